/**
 * Passwords, hashed with bcrypt in threads of low priority: on the event loop one of them would hold up every pull for a tenth of a second.
 *
 * A wrong password takes as long for a name that nobody has, and for one whose hash is cheap, as for one of {@link COST}: the time tells
 * nothing of who is there. For the former the thread sleeps: names that nobody has cost no CPU. The threads end once they have had nothing
 * to do for two minutes, and their memory comes back: to begin one holds up the event loop for a moment.
 */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import type { Milliseconds } from "../base/clock.ts";
import { RegistryError } from "../oci/errors.ts";

/** Of the hashes that are made here: two to the power of it rounds, 65 ms on a machine of 2023. */
export const COST = 10;
/** Hashes beyond it are not taken: at 14, one try would take a second of a core. */
export const MAX_COST = 12;
export const MIN_COST = 4;
/** bcrypt does not look at what comes after them. */
export const MAX_PASSWORD_BYTES = 72;

/** What the thread is asked for. A hash of undefined is that of nobody. */
export type PasswordTask =
  | { verb: "hash"; password: string; cost: number }
  | { verb: "match"; password: string; hash: string | undefined; cost: number };
export type PasswordAnswer = { value: string | boolean } | { message: string };

/** One core is left to those who pull. */
const MOST_THREADS = Math.max(1, Math.min(2, availableParallelism() - 1));
/** What comes behind so many would wait for eight seconds and longer: then it is better to say so. */
const MOST_WAITING = 128 * MOST_THREADS;
const BUSY_SECONDS = 5;
const IDLE_MS: Milliseconds = 120_000;

interface Asked {
  task: PasswordTask;
  answered: PromiseWithResolvers<string | boolean>;
}

/** Whether bcrypt can tell the text from every other: not empty, not beyond its length, and without the control characters of RFC 7617. */
export function isHashable(password: string): boolean {
  return password !== "" && Buffer.byteLength(password) <= MAX_PASSWORD_BYTES && !/\p{Cc}/u.test(password);
}

export class Passwords implements AsyncDisposable {
  readonly #threads = new Set<Thread>();
  readonly #waiting: Asked[] = [];
  readonly #idleMs: Milliseconds;

  /** @param idleMs how long a thread stays that has nothing to do */
  constructor({ idleMs = IDLE_MS }: { idleMs?: Milliseconds } = {}) {
    this.#idleMs = idleMs;
  }

  /**
   * @param password as {@link isHashable}
   * @throws RegistryError TOOMANYREQUESTS while too many wait
   */
  async hash(password: string): Promise<string> {
    if (!isHashable(password)) throw new Error("the password is empty, too long or holds control characters");
    return (await this.#ask({ verb: "hash", password, cost: COST })) as string;
  }

  /**
   * Whether a password is that of a hash ($2a$, $2b$ or $2y$). A wrong one takes the same time whatever the cost of the hash is, up to
   * {@link COST}, and where there is none.
   * @param hash undefined: of nobody, no password matches
   * @param first it goes before those that wait, however many: for who is known not to be guessing
   * @throws RegistryError TOOMANYREQUESTS while too many wait
   */
  async matches(password: string, hash: string | undefined, first = false): Promise<boolean> {
    return (await this.#ask({ verb: "match", password, hash, cost: COST }, first)) as boolean;
  }

  #ask(task: PasswordTask, first = false): Promise<string | boolean> {
    if (!first && this.#waiting.length >= MOST_WAITING) {
      throw new RegistryError("TOOMANYREQUESTS", "too many passwords are being checked: try again in some seconds", {
        retryAfterSeconds: BUSY_SECONDS,
      });
    }
    const answered = Promise.withResolvers<string | boolean>();
    if (first) this.#waiting.unshift({ task, answered });
    else this.#waiting.push({ task, answered });
    this.#serve();
    return answered.promise;
  }

  /** Gives what waits to threads that are idle, or that may still be begun. */
  #serve(): void {
    for (const thread of this.#threads) if (!thread.isBusy) thread.take(this.#waiting.shift());
    while (this.#waiting.length > 0 && this.#threads.size < MOST_THREADS) {
      const thread: Thread = new Thread(this.#idleMs, {
        free: () => this.#serve(),
        ended: () => {
          this.#threads.delete(thread);
          this.#serve();
        },
      });
      this.#threads.add(thread);
      thread.take(this.#waiting.shift());
    }
  }

  /** What is under way or waits fails. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const { answered } of this.#waiting.splice(0)) answered.reject(new Error("the daemon is stopping"));
    await Promise.all([...this.#threads].map((thread) => thread.end()));
  }
}

/** Takes one task at a time. */
class Thread {
  readonly #worker = new Worker(new URL("./password-worker.ts", import.meta.url));
  readonly #idle: NodeJS.Timeout;
  #asked: Asked | undefined;
  #ending = false;

  constructor(idleMs: Milliseconds, { free, ended }: { free: () => void; ended: () => void }) {
    this.#idle = setTimeout(() => {
      // What takes long is no want of work: with its answer the time begins anew.
      if (!this.isBusy) void this.end();
    }, idleMs).unref();
    this.#worker.on("message", (answer: PasswordAnswer) => {
      const asked = this.#asked;
      this.#asked = undefined;
      this.#idle.refresh();
      if ("value" in answer) asked?.answered.resolve(answer.value);
      else asked?.answered.reject(new Error(answer.message));
      free();
    });
    this.#worker.once("error", (error) => this.#fail(error));
    this.#worker.once("exit", () => {
      clearTimeout(this.#idle);
      this.#fail(new Error("the thread that checks passwords has ended"));
      ended();
    });
  }

  /** Whether it can't be given anything now. */
  get isBusy(): boolean {
    return this.#ending || this.#asked !== undefined;
  }

  take(asked: Asked | undefined): void {
    if (!asked) return;
    this.#asked = asked;
    this.#idle.refresh();
    this.#worker.postMessage(asked.task, []);
  }

  #fail(error: unknown): void {
    this.#asked?.answered.reject(error);
    this.#asked = undefined;
  }

  async end(): Promise<void> {
    this.#ending = true;
    await this.#worker.terminate();
  }
}
