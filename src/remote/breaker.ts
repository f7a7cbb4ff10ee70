import type { Clock, Milliseconds } from "../base/clock.ts";

const FAILURES_TO_OPEN = 5;
const FIRST_OPEN_MS = 10_000;
const MAX_OPEN_MS = 60_000;

/** Leave to ask, given back by exactly one of `succeeded`, `failed`, `abandoned`. */
export interface Pass {
  readonly probe: boolean;
}

/**
 * A circuit breaker: five failures in a row open it for 10 s; then one request at a time may probe, whose failure opens it
 * for twice as long, up to 60 s, and whose success closes it.
 */
export class Breaker {
  readonly #clock: Clock;
  #failures = 0;
  #openForMs = 0;
  #openUntilMs: Milliseconds | undefined;
  #probing = false;
  #cause: Error | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get closed(): boolean {
    return this.#openUntilMs === undefined;
  }

  /** The failure that opened it, or kept it open. */
  get cause(): Error | undefined {
    return this.#cause;
  }

  /** @returns leave to ask, or for how long not to, in milliseconds */
  enter(): Pass | Milliseconds {
    if (this.#openUntilMs === undefined) return { probe: false };
    const leftMs = this.#openUntilMs - this.#clock.now();
    // More is left than was ever set: the wall clock went back.
    if (leftMs > 0 && leftMs <= this.#openForMs) return leftMs;
    if (this.#probing) return Math.min(1000, this.#openForMs);
    this.#probing = true;
    return { probe: true };
  }

  /** @returns whether this closed it */
  succeeded(): boolean {
    const wasOpen = !this.closed;
    this.#failures = 0;
    this.#openForMs = 0;
    this.#openUntilMs = undefined;
    this.#probing = false;
    this.#cause = undefined;
    return wasOpen;
  }

  /** @returns whether this opened it, again or for the first time */
  failed(pass: Pass, cause: Error): boolean {
    if (!this.closed && !pass.probe) return false;
    this.#failures += 1;
    this.#probing = false;
    if (this.closed && this.#failures < FAILURES_TO_OPEN) return false;
    this.#cause = cause;
    this.#openForMs = Math.min(MAX_OPEN_MS, this.#openForMs === 0 ? FIRST_OPEN_MS : this.#openForMs * 2);
    this.#openUntilMs = this.#clock.now() + this.#openForMs;
    return true;
  }

  /** The request ended without telling anything about the host. */
  abandoned(pass: Pass): void {
    if (pass.probe) this.#probing = false;
  }
}
