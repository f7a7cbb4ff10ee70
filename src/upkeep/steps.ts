import type { Clock, Milliseconds } from "../base/clock.ts";

/** What one step may keep the database's thread busy for. */
const STEP_MS: Milliseconds = 5;
const FIRST_ROWS = 50;
const MOST_ROWS = 5000;

/**
 * Work over many rows beside pulls: in steps of about five milliseconds, however fast the machine, after each of which the machine is left to
 * others for as long. Shorter ones would mostly wait for the thread: with half a millisecond a collection takes ten times as long.
 */
export class Steps {
  readonly #clock: Clock;
  readonly #signal: AbortSignal;
  #rows = FIRST_ROWS;

  constructor(clock: Clock, signal: AbortSignal) {
    this.#clock = clock;
    this.#signal = signal;
  }

  /** @param work one step over at most so many rows @throws the signal's reason */
  async look<T>(work: (rows: number) => Promise<T>): Promise<T> {
    const rows = this.#rows;
    const startedAtMs = performance.now();
    const result = await work(rows);
    const tookMs = performance.now() - startedAtMs;
    const fitting = Math.round((rows * STEP_MS) / Math.max(tookMs, 0.01));
    this.#rows = Math.max(1, Math.min(fitting, 2 * rows, MOST_ROWS));
    await this.#clock.sleep(tookMs, this.#signal);
    return result;
  }

  /** A step that takes as long as it takes, most of it waiting for the disk. @throws the signal's reason */
  async rest<T>(work: () => Promise<T>): Promise<T> {
    const startedAtMs = performance.now();
    const result = await work();
    await this.#clock.sleep(performance.now() - startedAtMs, this.#signal);
    return result;
  }
}
