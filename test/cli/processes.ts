import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { stringify } from "yaml";

const MAIN = join(import.meta.dirname, "../../src/main.ts");

/** A machine may be busy with other tests. */
const PATIENCE_MS = 40_000;

export interface Ended {
  status: number | null;
  stdout: string;
  stderr: string;
}

export interface Options {
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  /** Options of node itself. */
  node?: string[];
}

/** Starts `entrepot` as a person does, with nothing of this process's environment but the PATH. */
function start(args: string[], { env = {}, cwd, node = [] }: Options): ChildProcess {
  return spawn(process.execPath, [...node, MAIN, ...args], {
    env: { PATH: process.env["PATH"], TMPDIR: tmpdir(), ...env },
    cwd: cwd ?? tmpdir(),
    stdio: ["ignore", "pipe", "pipe"],
  });
}

function collect(child: ChildProcess): Promise<Ended> {
  const ended: Ended = { status: null, stdout: "", stderr: "" };
  child.stdout?.setEncoding("utf8").on("data", (text: string) => (ended.stdout += text));
  child.stderr?.setEncoding("utf8").on("data", (text: string) => (ended.stderr += text));
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (status) => resolve({ ...ended, status }));
  });
}

/** Runs a command to its end. */
export function run(args: string[], options: Options = {}): Promise<Ended> {
  return collect(start(args, options));
}

/** A command under way. Disposing of it kills it. */
export interface Running extends AsyncDisposable {
  readonly ended: Promise<Ended>;
  kill(signal: NodeJS.Signals): void;
}

export function begin(args: string[], options: Options = {}): Running & { stdout: NodeJS.ReadableStream } {
  const child = start(args, options);
  const ended = collect(child);
  assert.ok(child.stdout);
  return {
    ended,
    stdout: child.stdout,
    kill: (signal) => void child.kill(signal),
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

/** `entrepot serve` as a process of its own. */
export interface Served extends Running {
  readonly address: string;
  /** Every log line so far, parsed. */
  readonly log: Record<string, unknown>[];
  /** Waits for a log line with this message, after the first `from` lines. */
  logged(msg: string, from?: number): Promise<Record<string, unknown>>;
}

/** @throws Error with what it printed, if it ends before it is ready */
export async function serve(args: string[], options: Options = {}): Promise<Served> {
  const running = begin(["serve", ...args], options);
  const log: Record<string, unknown>[] = [];
  const waiting = new Set<() => void>();
  createInterface({ input: running.stdout }).on("line", (line) => {
    if (line.startsWith("{")) log.push(JSON.parse(line) as Record<string, unknown>);
    for (const check of waiting) check();
  });
  const logged: Served["logged"] = (msg, from = 0) => {
    const { promise, resolve, reject } = Promise.withResolvers<Record<string, unknown>>();
    const check = (): void => {
      const found = log.slice(from).find((line) => line["msg"] === msg);
      if (found) resolve(found);
    };
    const timer = setTimeout(() => reject(new Error(`waited in vain for the daemon to log "${msg}"`)), PATIENCE_MS);
    waiting.add(check);
    check();
    return promise.finally(() => {
      clearTimeout(timer);
      waiting.delete(check);
    });
  };
  const failed = running.ended.then(({ stderr }) => {
    throw new Error(`serve ended: ${stderr}`);
  });
  failed.catch(() => undefined);
  try {
    const ready = await Promise.race([logged("entrepot is ready"), failed]);
    return { ...running, address: String(ready["address"]), log, logged };
  } catch (error) {
    await running[Symbol.asyncDispose]();
    throw error;
  }
}

/** A folder with a configuration file, `data` as storage and a free port, changed by what is given. */
export interface Place extends AsyncDisposable {
  readonly path: string;
  readonly config: string;
  write(changes: Tree): Promise<void>;
}

export type Tree = { [key: string]: unknown };

export async function place(changes: Tree = {}): Promise<Place> {
  const folder = await mkdtempDisposable(join(tmpdir(), "entrepot-cli-"));
  const config = join(folder.path, "entrepot.yaml");
  const write = (changes: Tree): Promise<void> => {
    const server = { listen: "127.0.0.1:0", drainTimeout: "10s", ...(changes["server"] as Tree) };
    const storage = { root: join(folder.path, "data"), minFree: 0, ...(changes["storage"] as Tree) };
    return writeFile(config, stringify({ ...changes, server, storage }));
  };
  await write(changes);
  return { path: folder.path, config, write, [Symbol.asyncDispose]: () => folder.remove() };
}
