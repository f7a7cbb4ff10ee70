import { setTimeout as delay } from "node:timers/promises";

export type Milliseconds = number;
export type Bytes = number;

/** Time as the program sees it; a test hands in its own. */
export interface Clock {
  /** Wall-clock time, milliseconds since 1970. It may jump. */
  now(): Milliseconds;
  /** Resolves after `ms`; rejects with the signal's reason if it fires first. Never keeps the process alive. */
  sleep(ms: Milliseconds, signal?: AbortSignal): Promise<void>;
}

export const systemClock: Clock = {
  now: () => Date.now(),
  sleep: async (ms, signal) => {
    try {
      await delay(ms, undefined, signal ? { signal, ref: false } : { ref: false });
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    }
  },
};
