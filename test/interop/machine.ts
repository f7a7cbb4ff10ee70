import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";

/** Programs of other projects that these tests drive, and the Debian package that brings each. */
const PACKAGES = {
  buildah: "buildah",
  containerd: "containerd",
  curl: "curl",
  ctr: "containerd",
  docker: "docker.io",
  dockerd: "docker.io",
  "docker-compose": "docker-compose",
  "docker-registry": "docker-registry",
  htpasswd: "apache2-utils",
  nginx: "nginx",
  openssl: "openssl",
  podman: "podman",
  prometheus: "prometheus",
  promtool: "prometheus",
  skopeo: "skopeo",
  umoci: "umoci",
};
export type ProgramName = keyof typeof PACKAGES;

const START_MS = 60_000;
const STOP_MS = 20_000;
const COMMAND_MS = 240_000;
const MAX_OUTPUT_BYTES = 64 * 1024 * 1024;

/** Where a program lies. @throws AssertionError naming the package that brings it */
export function findProgram(name: ProgramName): string {
  return find(name, ["/usr/sbin", "/sbin"], `apt-get install ${PACKAGES[name]}`);
}

/** @param elsewhere folders that are looked through after those of PATH @param remedy how to come by it */
export function find(name: string, elsewhere: readonly string[], remedy: string): string {
  for (const folder of [...(process.env["PATH"] ?? "").split(delimiter), ...elsewhere]) {
    try {
      const path = join(folder, name);
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // It may be in the next folder.
    }
  }
  const message = `${name} is not installed, and this test can't do without it: ${remedy}`;
  throw new assert.AssertionError({ message });
}

export interface RunOptions {
  env?: Record<string, string>;
  cwd?: string;
}

/**
 * Runs a program to its end.
 * @param options `input`: what its standard input holds
 * @returns its standard output
 * @throws Error with all that it wrote, for an exit status other than 0
 */
export async function run(
  program: ProgramName | { path: string },
  args: readonly string[],
  { timeoutMs = COMMAND_MS, input = "", ...options }: RunOptions & { timeoutMs?: number; input?: string } = {},
): Promise<string> {
  const path = typeof program === "string" ? findProgram(program) : program.path;
  try {
    const running = promisify(execFile)(path, args, {
      ...options,
      env: { ...process.env, ...options.env },
      maxBuffer: MAX_OUTPUT_BYTES,
      timeout: timeoutMs,
    });
    // A program that ends without reading it all is none of our business.
    running.child.stdin?.on("error", () => {}).end(input);
    const { stdout } = await running;
    return stdout;
  } catch (error) {
    const { stdout = "", stderr = "", code } = error as { stdout?: string; stderr?: string; code?: unknown };
    throw new Error(`${path} ${args.join(" ")} failed (${String(code)}):\n${stdout}${stderr}`, { cause: error });
  }
}

/** Process groups to end should this process end before it has ended them itself. */
const running = new Set<number>();
process.once("exit", () => {
  for (const pid of running) killGroup(pid, "SIGKILL");
});
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(1));

/** A program that stays. Disposing of it ends it, and all that it started. */
export interface Daemon extends AsyncDisposable {
  readonly pid: number;
  /** What it has written so far. */
  readonly output: string;
  /** Asks it to end, and waits. @returns its exit status; null if a signal ended it */
  stop(): Promise<number | null>;
}

/**
 * Starts a program and waits until a line of its output matches.
 * @returns the program, and what matched
 * @throws Error with its output, where it ends before that or is not ready within a minute
 */
export async function startDaemon(
  command: ProgramName | { path: string },
  args: readonly string[],
  ready: RegExp,
  options: RunOptions = {},
): Promise<{ daemon: Daemon; match: RegExpExecArray }> {
  const path = typeof command === "string" ? findProgram(command) : command.path;
  const child = spawn(path, args, {
    ...options,
    env: { ...process.env, ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  let output = "";
  const { promise, resolve, reject } = Promise.withResolvers<RegExpExecArray>();
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      const match = ready.exec(output);
      if (match) resolve(match);
    });
  }
  const ended = once(child, "exit").then(([code]) => {
    if (child.pid !== undefined) running.delete(child.pid);
    reject(new Error(`${path} ended with status ${String(code)}:\n${output}`));
    return code as number | null;
  });
  // Until it is running there is no pid, and "exit" never comes.
  await once(child, "spawn");
  const pid = child.pid as number;
  running.add(pid);
  const daemon: Daemon = {
    pid,
    get output() {
      return output;
    },
    stop: async () => {
      if (child.exitCode !== null || child.signalCode !== null) return ended;
      child.kill("SIGTERM");
      const kill = setTimeout(() => killGroup(pid, "SIGKILL"), STOP_MS);
      try {
        return await ended;
      } finally {
        clearTimeout(kill);
      }
    },
    [Symbol.asyncDispose]: async () => {
      await daemon.stop();
      killGroup(pid, "SIGKILL");
    },
  };
  const late = setTimeout(() => reject(new Error(`${path} is not ready after a minute:\n${output}`)), START_MS);
  try {
    return { daemon, match: await promise };
  } catch (error) {
    await daemon[Symbol.asyncDispose]();
    throw error;
  } finally {
    clearTimeout(late);
  }
}

function killGroup(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/** Resolves once the condition holds, asked ten times a second. @throws AssertionError after a minute */
export async function eventually(what: string, condition: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + START_MS;
  while (!(await condition())) {
    assert.ok(performance.now() < deadline, `waited a minute in vain until ${what}`);
    await sleep(100);
  }
}

/** A temporary folder that goes away with whatever is mounted in it. */
export interface Folder extends AsyncDisposable {
  readonly path: string;
}

export async function makeFolder(): Promise<Folder> {
  // Short: the path of a Unix socket has at most 107 bytes.
  const path = await mkdtemp(join(tmpdir(), "interop-"));
  return {
    path,
    [Symbol.asyncDispose]: async () => {
      const mounts = (await readFile("/proc/self/mounts", "utf8"))
        .split("\n")
        .map((line) => line.split(" ")[1] ?? "")
        .filter((point) => point.startsWith(`${path}/`));
      // What was mounted last may lie in what was mounted first.
      for (const point of mounts.reverse()) await promisify(execFile)("umount", ["--lazy", point]);
      await rm(path, { recursive: true, force: true });
    },
  };
}
