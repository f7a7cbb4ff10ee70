/**
 * Pulls of a registry's rate limit as a budget: a reserve stays for those who pull, and a copy that would touch it begins later.
 *
 * A registry tells of its limit now and then. In between, its allowance is taken to fill evenly, to the whole limit within a window: where it
 * comes back all at once, a copy that began too early is told so by the next answer, and waits again.
 */
import type { Milliseconds } from "../base/clock.ts";
import type { RateLimit } from "../remote/remote.ts";

/** Of a limit whose window the registry does not tell. */
const WINDOW_MS: Milliseconds = 3_600_000;

/** What is to be left, and what is wanted. */
export interface Spending {
  /** Pulls that are left to others. */
  keep: number;
  /** Pulls that copies are making: no reading has them yet. */
  taken: number;
  /** Pulls that a copy is about to make. */
  pulls: number;
}

/**
 * When a copy may make its pulls. One that takes more than the limit leaves beside the reserve may when all of that is there.
 * @param reading what the registry told last; undefined: nothing, and so it has no limit
 * @returns undefined: now
 */
export function pullsAtMs(
  reading: RateLimit | undefined,
  { keep, taken, pulls }: Spending,
  nowMs: Milliseconds,
): Milliseconds | undefined {
  if (!reading) return undefined;
  const { limit, remaining } = reading;
  const windowMs = windowMsOf(reading);
  // Nothing is ever left beside the reserve: as limits are raised, it is looked at again.
  if (limit <= keep) return nowMs + windowMs;
  // A clock that was set back must not make a wait of it.
  const ageMs = Math.max(0, nowMs - reading.at);
  const left = Math.min(limit, remaining + (ageMs * limit) / windowMs) - taken;
  const missing = keep + Math.min(pulls, limit - keep) - left;
  return missing <= 0 ? undefined : nowMs + Math.ceil((missing * windowMs) / limit);
}

/** Those who have to wait, each for pulls of its own: they do not all come back at the same moment. */
export class PullLine {
  #endsAtMs: Milliseconds = 0;

  /** @param atMs when the first of them may @returns when this one may, at most a window from now */
  join(atMs: Milliseconds, reading: RateLimit, pulls: number, nowMs: Milliseconds): Milliseconds {
    const windowMs = windowMsOf(reading);
    const turnMs = Math.min(Math.max(atMs, this.#endsAtMs), Math.max(atMs, nowMs + windowMs));
    this.#endsAtMs = turnMs + (pulls * windowMs) / Math.max(1, reading.limit);
    return Math.ceil(turnMs);
  }
}

function windowMsOf({ windowSeconds }: RateLimit): Milliseconds {
  return windowSeconds === undefined || windowSeconds === 0 ? WINDOW_MS : windowSeconds * 1000;
}
