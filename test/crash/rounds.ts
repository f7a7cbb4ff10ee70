import { AssertionError } from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { PushClient, WrongAnswer } from "./client.ts";
import { startDaemon, StartFailed, type Daemon, type DaemonOptions } from "./daemon.ts";
import { Ledger } from "./ledger.ts";
import { makeItems, Worker, type Counts, type World } from "./load.ts";
import { Random } from "./random.ts";
import { PRIVATE } from "./stage.ts";
import { inject } from "./strace.ts";
import { verify } from "./verify.ts";

const WORKERS = 6;
/** The kernel ends the daemon before the next system call of a kind: between the steps of a commit, a collection, a checkpoint. */
const POINTS: readonly { calls: string; file?: string }[] = [
  { calls: "rename" },
  { calls: "fsync" },
  { calls: "mkdir" },
  { calls: "unlink" },
  { calls: "pwritev" },
  { calls: "ftruncate" },
  { calls: "pwrite64", file: "entrepot.db-wal" },
  { calls: "fdatasync", file: "entrepot.db-wal" },
  { calls: "pwrite64", file: "entrepot.db" },
  { calls: "fdatasync", file: "entrepot.db" },
];
/** What a disk does that fails or is full; `when` counts the calls of one thread: the first one, and the distance of the next ones. */
const FAULTS: readonly { calls: string; error: string; when: string; file?: string }[] = [
  { calls: "fsync", error: "EIO", when: "2+3" },
  { calls: "fdatasync", error: "EIO", when: "9" },
  { calls: "pwritev", error: "ENOSPC", when: "2+3" },
  { calls: "rename", error: "EIO", when: "2+3" },
  { calls: "unlink", error: "EIO", when: "1+2" },
  { calls: "mkdir", error: "ENOSPC", when: "1+2" },
  // A commit writes two for each page.
  { calls: "pwrite64", error: "ENOSPC", when: "11+83", file: "entrepot.db-wal" },
  { calls: "pwrite64", error: "EIO", when: "12+67", file: "entrepot.db-wal" },
];
/** A point that is not met within so long: killed from outside. */
const LONGEST_MS = 3_000;

/** The life of one daemon. */
interface Life {
  readonly afterMs: number;
  readonly end: "SIGKILL" | "SIGTERM" | "while it starts" | (typeof POINTS)[number];
  /** `slow`: each sync takes long, so that whoever may come in between does. */
  readonly disk: "sound" | "slow" | (typeof FAULTS)[number];
  /** One of the clients does nothing but collect garbage. */
  readonly collects: boolean;
  readonly text: string;
}

function lifeOf(random: Random): Life {
  const collects = random.chance(0.5);
  const end = random.weighted<Life["end"]>([
    [40, () => "SIGKILL"],
    [40, () => random.pick(POINTS)],
    [10, () => "SIGTERM"],
    [10, () => "while it starts"],
  ]);
  const afterMs = end === "while it starts" ? 100 + random.below(400) : 50 + random.below(1_000);
  // Only one can trace a process at a time.
  const disk =
    end === "SIGKILL"
      ? random.weighted<Life["disk"]>([
          [1, () => "sound"],
          [1, () => "slow"],
          [1, () => random.pick(FAULTS)],
        ])
      : "sound";
  return {
    afterMs,
    end,
    disk,
    collects,
    text: `${textOf(end)} after ${afterMs} ms${disk === "sound" ? "" : ` (disk: ${textOf(disk)})`}`,
  };
}

function textOf(what: Life["end"] | Life["disk"]): string {
  if (typeof what === "string") return what;
  const calls = `${what.calls}${what.file === undefined ? "" : ` of ${what.file}`}`;
  return "error" in what ? `${what.error} at ${calls}` : `at the first ${calls}`;
}

/** One storage, and the daemons that live and die on it. */
export class Victim implements AsyncDisposable {
  /** Holds the storage. */
  readonly folder: string;
  readonly #root: string;
  readonly #world: World;
  #daemon: Daemon | undefined;

  private constructor(folder: string, world: World) {
    this.folder = folder;
    this.#root = join(folder, "data");
    this.#world = world;
  }

  static async make(seed: string): Promise<Victim> {
    const folder = await mkdtemp(join(tmpdir(), "entrepot-crash-"));
    const items = makeItems(new Random(seed));
    return new Victim(folder, { items, ledger: new Ledger(), loose: new Map(), sessions: new Set(), lostUploads: 0 });
  }

  /** What the last daemon logged as a fault. */
  get faults(): string[] {
    return (this.#daemon?.log ?? []).filter(({ level }) => Number(level) >= 40).map((line) => JSON.stringify(line));
  }

  /**
   * Lives under load, deaths, and then a look at what is left.
   * @returns a line that tells of it
   * @throws Error that says what does not hold
   */
  async round(random: Random): Promise<string> {
    const counts: Counts = { pushes: 0, pulls: 0, deletes: 0, collections: 0, mounts: 0 };
    const deaths = [];
    for (let lives = random.pick([1, 1, 2, 3]); lives > 0; lives--) {
      const life = lifeOf(random);
      const met = await (life.end === "while it starts" ? this.#killStarting(life) : this.#live(life, counts, random));
      this.#world.ledger.crash();
      deaths.push(`${life.text}${met ? "" : " (which never came)"}`);
    }
    await using daemon = await this.#start();
    await using client = new PushClient(daemon.url);
    const holding = await verify(this.#world, client, this.#root, random);
    const list = (facts: object): string =>
      Object.entries(facts)
        .map(([what, count]) => `${count} ${what}`)
        .join(", ");
    return `${deaths.join(", ")}: ${list(counts)}; holds ${list(holding)}`;
  }

  async #start(options: Partial<DaemonOptions> = {}): Promise<Daemon> {
    this.#daemon = await startDaemon({ root: this.#root, config: PRIVATE, ...options });
    return this.#daemon;
  }

  /** @returns whether it ended as planned */
  async #live(life: Life, counts: Counts, random: Random): Promise<boolean> {
    await using daemon = await this.#start();
    await using client = new PushClient(daemon.url);
    const over = new AbortController();
    const dead = daemon.ended.then(() => over.abort());
    await using _disk = await this.#disturb(daemon, life);
    const seed = `${random.seed}/${random.below(2 ** 32)}`;
    const works = Array.from({ length: WORKERS }, async (_, index) => {
      const worker = new Worker(this.#world, client, new Random(`${seed}/${index}`), counts);
      while (!over.signal.aborted) {
        try {
          await (life.collects && index === 0 ? worker.collect() : worker.step());
        } catch (error) {
          if (error instanceof WrongAnswer && mayRefuse(life, error)) continue;
          if (error instanceof WrongAnswer || error instanceof AssertionError) throw error;
          // The connection broke: then the daemon has ended, or is about to.
          await Promise.race([dead, delay(LONGEST_MS, undefined, { ref: false })]);
          if (!over.signal.aborted) throw new Error("a connection broke, and the daemon lives", { cause: error });
        }
      }
    });
    const working = Promise.all(works);
    const waited = await Promise.race([delay(life.afterMs, true, { ref: false }), dead, working]);
    if (waited !== true) throw new Error("the daemon ended by itself", { cause: await working });
    const met = await this.#end(daemon, life);
    await working;
    return met;
  }

  async #disturb({ pid }: Daemon, { disk }: Life): Promise<AsyncDisposable | undefined> {
    if (disk === "sound") return undefined;
    if (disk === "slow") return inject(pid, { calls: "fsync,fdatasync", effect: "delay_enter=15ms" });
    return inject(pid, { calls: disk.calls, effect: `error=${disk.error}:when=${disk.when}`, ...this.#pathOf(disk) });
  }

  #pathOf({ file }: { file?: string }): { path?: string } {
    return file === undefined ? {} : { path: join(this.#root, file) };
  }

  /** @returns whether it ended as planned */
  async #end(daemon: Daemon, { end }: Life): Promise<boolean> {
    if (typeof end === "string") {
      await (end === "SIGTERM" ? daemon.stop() : daemon.kill());
      return true;
    }
    const injection = { calls: end.calls, effect: "signal=SIGKILL", ...this.#pathOf(end) };
    await using _strace = await inject(daemon.pid, injection);
    const met = await Promise.race([daemon.ended.then(() => true), delay(LONGEST_MS, false, { ref: false })]);
    await daemon.kill();
    return met;
  }

  /** @returns whether it was not ready yet */
  async #killStarting({ afterMs }: Life): Promise<boolean> {
    let pid: number | undefined;
    const started = this.#start({ onStart: (id) => (pid = id) }).catch((error: unknown) => {
      if (!(error instanceof StartFailed)) throw error;
      return undefined;
    });
    await delay(afterMs);
    if (pid !== undefined) process.kill(pid, "SIGKILL");
    const daemon = await started;
    await daemon?.ended;
    return daemon === undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** Whether a change that did not succeed is what must be expected of such a life. */
function mayRefuse({ end, disk }: Life, { answer }: WrongAnswer): boolean {
  // A job that is stopped or fails tells so in its answer.
  if (end === "SIGTERM") return answer.status === 503 || answer.status === 200;
  return typeof disk === "object" && (answer.status >= 500 || answer.status === 200);
}
