import type { Clock, Milliseconds } from "../base/clock.ts";
import type { JobQueue } from "../jobs/queue.ts";

/** Tasks that end in quick succession are counted once. */
const COUNT_EVERY_MS: Milliseconds = 100;
/** A task may end without this process's doing: cancelled or paused by hand. */
export const LOOK_EVERY_MS: Milliseconds = 5_000;

/** Runs that wait for their tasks. */
export class TaskWaits {
  readonly #queue: JobQueue;
  readonly #clock: Clock;
  /** By rule: wakes the run that waits for tasks of it. */
  readonly #waiting = new Map<string, () => void>();

  constructor(queue: JobQueue, clock: Clock) {
    this.#queue = queue;
    this.#clock = clock;
  }

  /** A task of a rule has ended. */
  ended(rule: string): void {
    this.#waiting.get(rule)?.();
  }

  /**
   * Resolves when no task of a run waits or is at work. Those that are paused by hand are waited for.
   * @param tell is told how many have ended, at first, at last and now and then
   * @throws the signal's reason; what `tell` throws
   */
  async allEnded(
    rule: string,
    run: number,
    tell: (counts: { tasks: number; ended: number }) => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    for (;;) {
      const news = Promise.withResolvers<void>();
      this.#waiting.set(rule, news.resolve);
      const counts = await this.#queue.countsOf(run);
      const count = (states: readonly string[]): number =>
        counts.reduce((sum, { state, jobs }) => (states.includes(state) ? sum + jobs : sum), 0);
      const ended = count(["done", "dead", "cancelled"]);
      const open = count(["queued", "running", "paused"]);
      await tell({ tasks: open + ended, ended });
      if (open === 0) {
        this.#waiting.delete(rule);
        return;
      }
      const over = new AbortController();
      const late = this.#clock.sleep(LOOK_EVERY_MS, AbortSignal.any([signal, over.signal])).catch(() => undefined);
      await Promise.race([news.promise, late]);
      over.abort();
      signal.throwIfAborted();
      await this.#clock.sleep(COUNT_EVERY_MS, signal);
    }
  }
}
