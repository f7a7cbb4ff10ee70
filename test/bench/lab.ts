import { execFile, execFileSync, fork, spawn, type ChildProcess } from "node:child_process";
import { openSync, closeSync, readFileSync, rmSync } from "node:fs";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import packageJson from "../../package.json" with { type: "json" };

const START_DEADLINE_MS = 30_000;
const STOP_DEADLINE_MS = 5_000;
const POLL_MS = 10;
const PROJECT = fileURLToPath(new URL("../..", import.meta.url));
/** USER_HZ: what a tick of /proc/PID/stat is worth, on every Linux. */
const TICKS_PER_SECOND = 100;

/** A server under test, as a process of its own. Disposing of it ends it. */
export interface Server extends AsyncDisposable {
  readonly name: string;
  readonly port: number;
  readonly pid: number;
  /** From the start of the process to the first good answer. */
  readonly readyMs: number;
}

/** A process that takes one task at a time. Disposing of it kills it, and so drops its connections. */
export interface Helper extends AsyncDisposable {
  ask<Result>(task: object): Promise<Result>;
}

/** The processes and the temporary folder of one run. Nothing of them outlives it. */
export class Lab implements AsyncDisposable {
  readonly folder: string;
  readonly #children = new Set<ChildProcess>();

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async open(): Promise<Lab> {
    return new Lab(await mkdtemp(join(tmpdir(), "entrepot-bench-")));
  }

  /** A fresh folder inside the run's own. */
  newFolder(name: string): Promise<string> {
    return mkdtemp(join(this.folder, `${name}-`));
  }

  /**
   * Entrepot as `npm start` starts it: defaults, the line per request included, its log in a file.
   * @param more further keys of the configuration
   */
  async startEntrepot(upstreamPort: number, root?: string, more: object = {}): Promise<Server> {
    const port = await freePort();
    const folder = await this.newFolder("entrepot");
    const config = join(folder, "entrepot.yaml");
    await writeFile(
      config,
      `server: {listen: "127.0.0.1:${port}"}
storage: {root: ${JSON.stringify(root ?? join(folder, "data"))}}
upstreams: {docker.io: {url: "http://127.0.0.1:${upstreamPort}"}}
${Object.entries(more)
  .map(([key, value]) => `${key}: ${JSON.stringify(value)}\n`)
  .join("")}`,
    );
    const [command = "", ...args] = packageJson.scripts.start
      .split(" ")
      .map((word) => (word === "node" ? process.execPath : word));
    return this.#startServer("Entrepot", port, "/readyz", folder, command, [...args, "--config", config]);
  }

  /** docker-registry at its best: descriptors in memory, no access log, errors only. With an upstream it is a pull-through mirror. */
  async startDockerRegistry(upstreamPort?: number, root?: string): Promise<Server> {
    const port = await freePort();
    const folder = await this.newFolder("docker-registry");
    const config = join(folder, "config.yml");
    await writeFile(
      config,
      `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {cache: {blobdescriptor: inmemory}, filesystem: {rootdirectory: ${JSON.stringify(root ?? join(folder, "data"))}}}
http: {addr: "127.0.0.1:${port}"}
${upstreamPort === undefined ? "" : `proxy: {remoteurl: "http://127.0.0.1:${upstreamPort}"}\n`}`,
    );
    return this.#startServer("docker-registry", port, "/v2/", folder, "docker-registry", ["serve", config]);
  }

  /** Runs a module of this folder that answers tasks. */
  startHelper(module: string): Helper {
    const child = fork(new URL(module, import.meta.url), { stdio: ["ignore", "inherit", "inherit", "ipc"] });
    this.#own(child);
    return {
      ask: <Result>(task: object) =>
        new Promise<Result>((resolve, reject) => {
          const onExit = (): void => reject(new Error(`${module} ended before it answered`));
          child.once("exit", onExit);
          child.once("message", (answer: { result: Result } | { error: string }) => {
            child.off("exit", onExit);
            if ("error" in answer) reject(new Error(`${module}: ${answer.error}`));
            else resolve(answer.result);
          });
          child.send(task);
        }),
      [Symbol.asyncDispose]: () => stop(child, "SIGKILL"),
    };
  }

  /** Runs a program to its end. @param started is told its process @returns what it wrote @throws Error where it fails */
  async run(command: string, args: string[], started: (pid: number) => void = () => {}): Promise<string> {
    const running = promisify(execFile)(command, args);
    this.#own(running.child);
    if (running.child.pid !== undefined) started(running.child.pid);
    return (await running).stdout;
  }

  /** Ends everything at once, without waiting: for a signal that ends this process, too. */
  abandon(): void {
    for (const child of this.#children) child.kill("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#children].map((child) => stop(child, "SIGKILL")));
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }

  async #startServer(
    name: string,
    port: number,
    readyPath: string,
    folder: string,
    command: string,
    args: string[],
  ): Promise<Server> {
    const logFile = join(folder, "log");
    const log = openSync(logFile, "w");
    const startedAt = performance.now();
    const child = spawn(command, args, { cwd: PROJECT, stdio: ["ignore", log, log] });
    closeSync(log);
    this.#own(child);
    while (!(await answers(port, readyPath))) {
      const failed = child.exitCode !== null || child.pid === undefined;
      if (failed || performance.now() - startedAt > START_DEADLINE_MS) {
        throw new Error(`${name} did not start:\n${readFileSync(logFile, "utf8").slice(-2_000)}`);
      }
      await delay(POLL_MS);
    }
    return {
      name,
      port,
      pid: child.pid as number,
      readyMs: performance.now() - startedAt,
      [Symbol.asyncDispose]: () => stop(child, "SIGTERM"),
    };
  }

  #own(child: ChildProcess): void {
    this.#children.add(child);
    child.once("exit", () => this.#children.delete(child));
    // A program that can't be started: whoever waits for it sees that it has no process.
    child.once("error", () => this.#children.delete(child));
  }
}

async function stop(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const exited = new Promise((resolve) => child.once("exit", resolve));
  child.kill(signal);
  const timer = setTimeout(() => child.kill("SIGKILL"), STOP_DEADLINE_MS);
  await exited;
  clearTimeout(timer);
}

async function answers(port: number, path: string): Promise<boolean> {
  try {
    const response = await fetch(`http://127.0.0.1:${port}${path}`);
    await response.arrayBuffer();
    return response.ok;
  } catch {
    return false;
  }
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** The programs that are not on the PATH. */
export function missingPrograms(programs: readonly string[]): string[] {
  return programs.filter((program) => {
    try {
      execFileSync("sh", ["-c", 'command -v -- "$1"', "sh", program], { stdio: "ignore" });
      return false;
    } catch {
      return true;
    }
  });
}

/** What a program says of itself with `--version`. */
export function versionOf(program: string): string {
  return execFileSync(program, ["--version"], { encoding: "utf8" }).trim();
}

/** CPU seconds of a process with all its threads, in user and kernel mode. Source: proc_pid_stat(5) */
export async function cpuSeconds(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  // The name in parentheses may hold blanks; utime and stime are fields 14 and 15.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** Resident memory now and at its highest, in bytes. Source: proc_pid_status(5) */
export async function residentBytes(pid: number): Promise<{ now: number; peak: number }> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  const kib = (field: string): number => Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(status)?.[1]);
  return { now: kib("VmRSS") * 1024, peak: kib("VmHWM") * 1024 };
}

/** Forgets the highest resident memory so far. Source: proc_pid_clear_refs(5) */
export async function resetPeak(pid: number): Promise<void> {
  await writeFile(`/proc/${pid}/clear_refs`, "5");
}
