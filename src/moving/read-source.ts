import { Worker } from "node:worker_threads";
import { findLayout } from "./oci-layout.ts";
import { findRegistryDirectory } from "./registry-directory.ts";
import type { Found } from "./source.ts";

/** A folder that something can be taken over from. */
export interface SourceFolder {
  kind: "registry" | "layout";
  root: string;
}

/** @returns undefined for a folder of anything else */
export function findSource(folder: string): SourceFolder | undefined {
  const registry = findRegistryDirectory(folder);
  if (registry !== undefined) return { kind: "registry", root: registry };
  const layout = findLayout(folder);
  return layout === undefined ? undefined : { kind: "layout", root: layout };
}

/** Reads a source in a thread of its own, which is one step ahead. @throws Error of the disk; the signal's reason */
export async function* readSource(source: SourceFolder, signal: AbortSignal): AsyncGenerator<Found> {
  const worker = new Worker(new URL("./source-worker.ts", import.meta.url), { workerData: source });
  const ended = Promise.withResolvers<never>();
  // Whoever waits hears of it; nobody may be waiting.
  ended.promise.catch(() => undefined);
  worker.once("error", (error) => ended.reject(error));
  worker.once("exit", () => ended.reject(new Error("the thread that reads the source has ended")));
  const ask = (): Promise<Found | undefined> => {
    const answered = Promise.withResolvers<Found | undefined>();
    worker.once("message", (found: Found | undefined) => answered.resolve(found));
    worker.postMessage("next", []);
    return Promise.race([answered.promise, ended.promise]);
  };
  try {
    for (let next = ask(); ;) {
      const found = await next;
      signal.throwIfAborted();
      if (!found) return;
      next = ask();
      next.catch(() => undefined);
      yield found;
    }
  } finally {
    await worker.terminate();
  }
}
