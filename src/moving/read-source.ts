import { Worker } from "node:worker_threads";
import { findLayout } from "./oci-layout.ts";
import { findRegistryDirectory } from "./registry-directory.ts";
import type { Found } from "./source.ts";

/** A folder that something can be taken over from. */
export interface SourceFolder {
  kind: "registry" | "layout";
  root: string;
}

/** There is nothing at a path that could be taken over. */
export class NoSource extends Error {
  override readonly name = "NoSource";

  constructor(folder: string) {
    super(
      `${folder} is nothing that can be taken over: name the data directory of a registry:2 (with docker/registry/v2 in it) or an OCI layout (with oci-layout and index.json in it), on the daemon's machine and readable by its user`,
    );
  }
}

/** @throws NoSource for a folder of anything else */
export async function findSource(folder: string): Promise<SourceFolder> {
  const registry = await findRegistryDirectory(folder);
  if (registry !== undefined) return { kind: "registry", root: registry };
  const layout = await findLayout(folder);
  if (layout !== undefined) return { kind: "layout", root: layout };
  throw new NoSource(folder);
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
