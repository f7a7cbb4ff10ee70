import type { Milliseconds } from "../base/clock.ts";

// An idle connection may catch up this much; it evens out timers that fire late.
const BURST_MS = 50;

/** A bandwidth limit that any number of bodies share. Bytes are booked when they have arrived; whoever brought them then pauses. */
export class Pace {
  readonly #bytesPerMs: number;
  #freeAtMs = 0;

  constructor(bytesPerSecond: number) {
    this.#bytesPerMs = bytesPerSecond / 1000;
  }

  /** @returns how long to read nothing more */
  book(bytes: number): Milliseconds {
    // Not the replaceable clock: a wall clock that jumps back would stall every body.
    const now = performance.now();
    this.#freeAtMs = Math.max(this.#freeAtMs, now - BURST_MS) + bytes / this.#bytesPerMs;
    return Math.max(0, this.#freeAtMs - now);
  }
}
