import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";

const STRACE = "strace";

/** A system call in the order of a trace: it began at line `from` and had returned by line `to`. */
export interface Call {
  readonly name: string;
  /** Its arguments, as strace prints them. */
  readonly text: string;
  readonly from: number;
  readonly to: number;
}

/** Reads what `strace -f -o FILE` wrote, and puts together the calls that other threads interrupted in it. */
export async function readTrace(file: string): Promise<Call[]> {
  const calls: Call[] = [];
  const unfinished = new Map<string, { name: string; text: string; from: number }>();
  for (const [index, line] of (await readFile(file, "utf8")).split("\n").entries()) {
    const [, thread = "", rest = ""] = /^(\d+) +(.*)$/.exec(line) ?? [];
    const [, name] = /^(\w+)\(/.exec(rest) ?? [];
    if (name !== undefined) {
      if (rest.endsWith("<unfinished ...>")) unfinished.set(thread, { name, text: rest, from: index });
      else calls.push({ name, text: rest, from: index, to: index });
    } else if (rest.startsWith("<... ")) {
      const begun = unfinished.get(thread);
      if (begun) calls.push({ ...begun, text: `${begun.text} ${rest}`, to: index });
      unfinished.delete(thread);
    }
  }
  return calls.sort((a, b) => a.from - b.from);
}

/** strace at a daemon that runs. Disposing of it lets go of the daemon, which goes on. */
export interface Attached extends AsyncDisposable {
  detach(): Promise<void>;
}

/** What befalls the system calls of a daemon. */
export interface Injection {
  /** Names of system calls, separated by commas. */
  readonly calls: string;
  /** `signal=SIGKILL` (before the call), `error=EIO`, `delay_enter=50ms`. */
  readonly effect: string;
  /** Only the calls at this file or folder. */
  readonly path?: string;
}

export function inject(pid: number, { calls, effect, path }: Injection): Promise<Attached> {
  return attach(pid, [
    ...(path === undefined ? [] : ["-P", path]),
    "-e",
    `trace=${calls}`,
    "-e",
    `inject=${calls}:${effect}`,
  ]);
}

/** Writes down the system calls of a daemon, for {@link readTrace}. */
export function record(pid: number, calls: string, file: string): Promise<Attached> {
  return attach(pid, ["-y", "-o", file, "-e", `trace=${calls}`]);
}

/** @throws Error where the process can't be traced */
async function attach(pid: number, args: readonly string[]): Promise<Attached> {
  const child = spawn(STRACE, ["-f", "-p", String(pid), ...args], { stdio: ["ignore", "ignore", "pipe"] });
  const ended = once(child, "exit");
  const attached = Promise.withResolvers<void>();
  let printed = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    printed += text;
    if (/Process \d+ attached/.test(printed)) attached.resolve();
  });
  child.once("error", (error) => attached.reject(error));
  void ended.then(() => attached.reject(new Error(`strace ended: ${printed}`)));
  await attached.promise;
  const detach = async (): Promise<void> => {
    child.kill("SIGINT");
    await ended;
  };
  return { detach, [Symbol.asyncDispose]: detach };
}
