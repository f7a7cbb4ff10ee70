import type { Clock, Milliseconds } from "../base/clock.ts";

/** Less is how far apart two readings are taken. */
const JUMP_MS: Milliseconds = 1_000;

/**
 * Notices when the wall clock jumps ahead of the time that has really passed (it was set, or the machine slept). What was noted before
 * the jump then looks older than it is: whoever judges by age takes {@link gainedMs} off, for as long as that matters.
 */
export class ClockWatch {
  readonly #clock: Clock;
  #wallMs: Milliseconds;
  #steadyMs: Milliseconds;
  /** All of them: whoever asks for less must not forget them for others. */
  readonly #jumps: { atMs: Milliseconds; gainedMs: Milliseconds }[] = [];

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#wallMs = clock.now();
    this.#steadyMs = performance.now();
  }

  /** Compares the clocks. The more often, the sooner a jump is over. */
  look(): void {
    const wallMs = this.#clock.now();
    const steadyMs = performance.now();
    const gainedMs = wallMs - this.#wallMs - (steadyMs - this.#steadyMs);
    if (Math.abs(gainedMs) < JUMP_MS) return;
    this.#wallMs = wallMs;
    this.#steadyMs = steadyMs;
    // Set back, it makes everything look younger: that harms nobody.
    if (gainedMs > 0) this.#jumps.push({ atMs: steadyMs, gainedMs });
  }

  /** By how much what is younger than `ageMs` may look too old. */
  gainedMs(ageMs: Milliseconds): Milliseconds {
    this.look();
    const sinceMs = performance.now() - ageMs;
    return this.#jumps.reduce((sum, { atMs, gainedMs }) => (atMs > sinceMs ? sum + gainedMs : sum), 0);
  }
}
