/** How copies bear with a registry that fails for a while. Each request has been tried a few times already. */
import { backoffMs, type RetryPolicy } from "../base/retry.ts";
import type { Clock, Milliseconds } from "../base/clock.ts";
import { RemoteError } from "../remote/remote-error.ts";

export const MOST_TRIES = 6;
const PAUSES: RetryPolicy = { attempts: MOST_TRIES, baseMs: 500, maxMs: 15_000 };
/** A longer Retry-After is not waited for: who asked for the copy is told. */
const LONGEST_RETRY_AFTER_SECONDS = 300;
const PASSING = new Set(["unreachable", "timeout", "interrupted", "server", "rateLimited", "circuitOpen"]);

/** @returns how long to wait before it is worth another try; undefined: it is not */
export function pauseAfter(error: unknown, attempt: number): Milliseconds | undefined {
  if (!(error instanceof RemoteError) || !PASSING.has(error.fault) || attempt >= MOST_TRIES) return undefined;
  const seconds = error.retryAfterSeconds ?? 0;
  if (seconds > LONGEST_RETRY_AFTER_SECONDS) return undefined;
  return seconds * 1000 + backoffMs(PAUSES, attempt, Math.random());
}

/** Repeats a request. @throws what it threw last; the signal's reason */
export type Again = <T>(work: () => Promise<T>, signal: AbortSignal) => Promise<T>;

/** What a registry asks to be repeated later is, within bounds. */
export function againBy(clock: Clock): Again {
  return async (work, signal) => {
    for (let attempt = 1; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        const worthIt = error instanceof RemoteError && (error.fault === "rateLimited" || error.fault === "server");
        const pauseMs = worthIt ? pauseAfter(error, attempt) : undefined;
        if (pauseMs === undefined) throw error;
        await clock.sleep(pauseMs, signal);
      }
    }
  };
}
