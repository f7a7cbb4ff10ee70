/**
 * The mark of a push: when and where what a tag leads to was pushed first. It travels with every copy of the tag, so that registries that
 * copy the same names to each other come to rest with the newest push, in whatever order copies arrive.
 *
 * Marks are ordered by their time, then by where they come from: of two pushes one is newer, and every registry says which. A push is newer
 * than whatever its registry had under the tag, however clocks differ. What a rule makes of an image, with fewer platforms, bears the same
 * mark: of the two, the one that comes last counts.
 */
import type { Milliseconds } from "../base/clock.ts";
import type { Digest } from "./digest.ts";

export interface Origin {
  /** Since 1970, as the clock of that registry had it. */
  atMs: Milliseconds;
  /** The registry: at most 64 of `A-Za-z0-9_-`. */
  by: string;
}

/** What a tag leads to, and since which push. */
export interface Marked {
  digest: Digest;
  origin: Origin;
}

/** What a tag leads to at a registry that may tell no marks. */
export interface Told {
  digest: Digest;
  origin?: Origin | undefined;
}

export const ORIGIN_HEADER = "entrepot-origin";

/** A mark from further ahead counts as one from then: a clock that is wrong must not keep a tag where it is for years. */
const MOST_AHEAD_MS: Milliseconds = 5 * 60_000;

/** @param header `at=1732284000000; by=7f3a…`; further parameters are left out @returns undefined: it is no mark */
export function parseOrigin(header: string | undefined): Origin | undefined {
  const parameters = new Map(
    header?.split(";").map((part): [string, string] => {
      const [name = "", value = ""] = part.split("=", 2);
      return [name.trim(), value.trim()];
    }),
  );
  const [at = "", by = ""] = [parameters.get("at"), parameters.get("by")];
  return /^\d{1,15}$/.test(at) && /^[\w-]{1,64}$/.test(by) ? { atMs: Number(at), by } : undefined;
}

export function formatOrigin({ atMs, by }: Origin): string {
  return `at=${atMs}; by=${by}`;
}

/** The mark of a push by a client. @param present of what the tag leads to until now */
export function originOfPush(present: Origin | undefined, by: string, nowMs: Milliseconds): Origin {
  return { atMs: present ? Math.max(nowMs, within(present, nowMs).atMs + 1) : nowMs, by };
}

/**
 * The mark that a tag has once a copy with a mark of its own has come.
 * @param present undefined: the tag is not there
 * @returns undefined: it does not come, since what is there was pushed later
 */
export function originOfCopy(present: Marked | undefined, copy: Marked, nowMs: Milliseconds): Origin | undefined {
  if (present && isNewer(present.origin, copy.origin, nowMs)) {
    return present.digest === copy.digest ? present.origin : undefined;
  }
  return within(copy.origin, nowMs);
}

/** Whether a target's tag leads to something else that was pushed later: a copy would be refused. */
export function isPushedLater(there: Told, source: Told, nowMs: Milliseconds): boolean {
  if (there.digest === source.digest || !there.origin || !source.origin) return false;
  return isNewer(there.origin, source.origin, nowMs);
}

/** Whether a target's tag leads to the same as its source, by an earlier push. A mark that would not arrive as it is can wait. */
export function isBehind(there: Told, source: Told, nowMs: Milliseconds): boolean {
  if (there.digest !== source.digest || !there.origin || !source.origin) return false;
  return source.origin.atMs <= nowMs + MOST_AHEAD_MS && isNewer(source.origin, there.origin, nowMs);
}

function isNewer(one: Origin, other: Origin, nowMs: Milliseconds): boolean {
  const [a, b] = [within(one, nowMs), within(other, nowMs)];
  return a.atMs === b.atMs ? a.by > b.by : a.atMs > b.atMs;
}

function within({ atMs, by }: Origin, nowMs: Milliseconds): Origin {
  return { atMs: Math.min(atMs, nowMs + MOST_AHEAD_MS), by };
}
