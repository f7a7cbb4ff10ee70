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

/** A limit of requests that any number of callers share: they take turns, evenly. */
export class Turns {
  readonly #everyMs: Milliseconds;
  #nextAtMs = 0;

  constructor(perSecond: number) {
    this.#everyMs = 1000 / perSecond;
  }

  /** @returns how long to wait before the request is sent */
  take(): Milliseconds {
    const now = performance.now();
    const atMs = Math.max(now, this.#nextAtMs);
    this.#nextAtMs = atMs + this.#everyMs;
    return atMs - now;
  }
}
