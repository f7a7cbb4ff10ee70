import type { Milliseconds } from "../base/clock.ts";

/** What is known when a tag of a cached repository is asked for. */
export interface TagFacts {
  nowMs: Milliseconds;
  /** When upstream last confirmed the stored digest; undefined: no digest is stored. */
  checkedAtMs: Milliseconds | undefined;
  /** Whether upstream said, and is still believed, that there is no such tag. */
  knownAbsent: boolean;
  tagTtl: Milliseconds;
  maxStale: Milliseconds;
  /** Whether asking makes sense: false while upstream told us to wait (429). */
  mayAsk: boolean;
  /** Requests left in the upstream's rate limit; undefined where that is not known. */
  rateRemaining: number | undefined;
  /** At or below so many, the rest is kept for content that is not here yet. */
  rateKeep: number;
}

/**
 * fresh: serve without asking. revalidate: ask, serve the stored digest if upstream can't be asked. stale: serve it and don't ask.
 * absent: ask, nothing is stored that may be served. negative: upstream said a moment ago that there is no such tag.
 */
export type Freshness = "fresh" | "revalidate" | "stale" | "absent" | "negative";

/** Decides how to answer for a tag. */
export function freshness(facts: TagFacts): Freshness {
  const { nowMs, checkedAtMs } = facts;
  if (facts.knownAbsent) return "negative";
  if (checkedAtMs === undefined) return "absent";
  // A clock that was set back makes an age negative: then ask, rather than believe until it catches up.
  const ageMs = nowMs - checkedAtMs;
  if (ageMs >= 0 && ageMs < facts.tagTtl) return "fresh";
  if (!mayServeStale(ageMs, facts.maxStale)) return "absent";
  if (!facts.mayAsk) return "stale";
  if (facts.rateRemaining !== undefined && facts.rateRemaining <= facts.rateKeep) return "stale";
  return "revalidate";
}

/** Whether content confirmed that long ago may still be served when upstream cannot be asked. */
export function mayServeStale(ageMs: Milliseconds, maxStale: Milliseconds): boolean {
  return ageMs <= maxStale;
}
