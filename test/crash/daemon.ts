import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export const MAIN = fileURLToPath(new URL("../../src/main.ts", import.meta.url));

export type Tree = { [key: string]: unknown };

/** The daemon as a process of its own, which can be killed. */
export interface Daemon extends AsyncDisposable {
  readonly url: string;
  readonly pid: number;
  /** Every log line so far, parsed. */
  readonly log: readonly Record<string, unknown>[];
  /** Resolves once the process has ended, however. */
  readonly ended: Promise<void>;
  /** As a power switch does. */
  kill(): Promise<void>;
  /** Asks it to stop, and waits until it has. */
  stop(): Promise<void>;
}

export interface DaemonOptions {
  /** `storage.root`; the configuration is written beside it. */
  root: string;
  /** Further keys of the configuration. */
  config?: Tree;
  /** Hands out the process id before the daemon is ready. */
  onStart?: (pid: number) => void;
}

/** The daemon ended before it was ready. */
export class StartFailed extends Error {
  override readonly name = "StartFailed";
}

/** Starts the daemon on a free port. @throws StartFailed with what it printed */
export async function startDaemon(options: DaemonOptions): Promise<Daemon> {
  const { root, config = {} } = options;
  const file = configFile(root);
  const whole = {
    server: { listen: "127.0.0.1:0", drainTimeout: "2s" },
    log: { format: "json" },
    storage: { root, minFree: 0 },
    ...config,
  };
  await writeFile(file, JSON.stringify(whole));
  const child = spawn(process.execPath, [MAIN, "serve", "--config", file], { stdio: ["ignore", "pipe", "pipe"] });
  const ended = once(child, "exit").then(() => undefined);
  await once(child, "spawn");
  if (child.pid === undefined) throw new Error("the daemon has no process id");
  options.onStart?.(child.pid);
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    child.kill(signal);
    await ended;
  };
  const log: Record<string, unknown>[] = [];
  const printed: string[] = [];
  child.stderr.setEncoding("utf8").on("data", (text: string) => printed.push(text));
  const ready = Promise.withResolvers<string>();
  createInterface({ input: child.stdout }).on("line", (line) => {
    // A process that was killed may leave half a line.
    if (!line.endsWith("}")) return;
    const entry = JSON.parse(line) as Record<string, unknown>;
    log.push(entry);
    if (entry["msg"] === "entrepot is ready") ready.resolve(String(entry["address"]));
  });
  void ended.then(() => ready.reject(new StartFailed(`the daemon ended before it was ready: ${printed.join("")}`)));
  return {
    url: await ready.promise,
    pid: child.pid,
    log,
    ended,
    kill: () => end("SIGKILL"),
    stop: () => end("SIGTERM"),
    [Symbol.asyncDispose]: () => end("SIGKILL"),
  };
}

/** Where {@link startDaemon} writes the configuration: beside the storage, which may be full. */
export function configFile(root: string): string {
  return `${root}.yaml`;
}
