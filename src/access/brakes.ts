/**
 * Brakes against guessing passwords: pure decisions over what was tried, by whom, and `now`.
 *
 * A *track* counts wrong tries from its first one on, for the length of an interval; then it begins anew. Tracks are kept for
 * - an address, whatever accounts it tries (of IPv6 its /64, all of which one host may have),
 * - an account, from whatever address it is tried,
 * - an address and an account together that have logged in lately. Such a pair has its own track alone: what others on the same network
 *   get wrong, or try on the same account, does not slow it down.
 *
 * A try takes a place on its tracks before it is checked, and gives it back if it was right, so that a thousand tries at once are no way
 * around. While the places that are left are all taken by tries whose outcome is not known, the next one waits.
 * Memory is bounded: beyond {@link CAPACITY}, the oldest tracks go.
 */
import { isIPv6 } from "node:net";
import type { Milliseconds } from "../base/clock.ts";

export interface BrakeLimits {
  /** Wrong tries that a track takes within the interval. */
  failures: number;
  interval: Milliseconds;
}

/** A try that may be made. */
export interface Attempt {
  /** It is of an account that has logged in lately from that address. */
  isKnown: boolean;
  /** To be called once, when its outcome is known. @param outcome dropped: it was not checked after all */
  end(outcome: "right" | "wrong" | "dropped", nowMs: Milliseconds): void;
}

export type Verdict =
  | { kind: "go"; attempt: Attempt }
  /** Ask again when a try has ended. */
  | { kind: "wait" }
  /** `isFirst`: nobody was told yet on this track. */
  | { kind: "spent"; retryAfterMs: Milliseconds; isFirst: boolean };

interface Track {
  fromMs: Milliseconds;
  wrong: number;
  trying: number;
  told: boolean;
}

export const CAPACITY = 10_000;
/** How long a pair that has logged in has a track of its own. */
export const LATELY_MS: Milliseconds = 86_400_000;

export class Brakes {
  readonly #limits: () => BrakeLimits;
  readonly #tracks = new Map<string, Track>();
  /** When pairs have logged in. */
  readonly #known = new Map<string, Milliseconds>();

  /** @param limits read at every try: they can be reloaded */
  constructor(limits: () => BrakeLimits) {
    this.#limits = limits;
  }

  /** How many tracks and pairs are remembered. */
  get size(): number {
    return this.#tracks.size + this.#known.size;
  }

  /** Decides on a try of a password. @param address empty: through a Unix socket */
  begin(address: string, account: string, nowMs: Milliseconds): Verdict {
    const network = networkOf(address);
    const pair = `pair ${network} ${account}`;
    const isKnown = this.#isKnown(pair, nowMs);
    return this.#decide(isKnown ? [pair] : [`address ${network}`, `account ${account}`], nowMs, { pair, isKnown });
  }

  /** Decides on a try of a secret that belongs to no account. */
  secret(address: string, nowMs: Milliseconds): Verdict {
    return this.#decide([`secret ${networkOf(address)}`], nowMs);
  }

  /** Counts a secret that nobody has, which can't be guessed: only so that its sender can't fill the record. */
  wrongSecret(address: string, nowMs: Milliseconds): Verdict {
    const verdict = this.secret(address, nowMs);
    if (verdict.kind === "go") verdict.attempt.end("wrong", nowMs);
    return verdict;
  }

  #decide(keys: readonly string[], nowMs: Milliseconds, of?: { pair: string; isKnown: boolean }): Verdict {
    const { failures, interval } = this.#limits();
    const tracks = keys.map((key) => this.#track(key, nowMs, interval));
    const spent = tracks.filter((track) => track.wrong >= failures);
    if (spent.length > 0) {
      const isFirst = spent.some((track) => !track.told);
      for (const track of spent) track.told = true;
      const untilMs = Math.max(...spent.map((track) => track.fromMs + interval));
      return { kind: "spent", retryAfterMs: untilMs - nowMs, isFirst };
    }
    if (tracks.some((track) => track.wrong + track.trying >= failures)) return { kind: "wait" };
    // Only now: what is refused costs its sender nothing, and would push out of memory what was counted.
    for (const [i, track] of tracks.entries()) {
      setBounded(this.#tracks, keys[i] ?? "", track);
      track.trying += 1;
    }
    const end: Attempt["end"] = (outcome, atMs) => {
      for (const track of tracks) {
        track.trying -= 1;
        if (outcome !== "wrong") continue;
        if (track.wrong === 0 || !isWithin(track.fromMs, atMs, interval)) startAnew(track, atMs);
        track.wrong += 1;
      }
      if (outcome === "right" && of) setBounded(this.#known, of.pair, atMs);
    };
    return { kind: "go", attempt: { isKnown: of?.isKnown === true, end } };
  }

  #track(key: string, nowMs: Milliseconds, interval: Milliseconds): Track {
    const found = this.#tracks.get(key);
    if (!found) return { fromMs: nowMs, wrong: 0, trying: 0, told: false };
    if (!isWithin(found.fromMs, nowMs, interval)) startAnew(found, nowMs);
    return found;
  }

  #isKnown(pair: string, nowMs: Milliseconds): boolean {
    const atMs = this.#known.get(pair);
    return atMs !== undefined && isWithin(atMs, nowMs, LATELY_MS);
  }
}

function startAnew(track: Track, nowMs: Milliseconds): void {
  track.fromMs = nowMs;
  track.wrong = 0;
  track.told = false;
}

/** A clock that was set back ends it: else it would last for as long as the clock went back. */
function isWithin(fromMs: Milliseconds, nowMs: Milliseconds, spanMs: Milliseconds): boolean {
  return nowMs >= fromMs && nowMs < fromMs + spanMs;
}

function setBounded<Value>(map: Map<string, Value>, key: string, value: Value): void {
  map.delete(key);
  map.set(key, value);
  const [oldest] = map.keys();
  if (map.size > CAPACITY && oldest !== undefined) map.delete(oldest);
}

/** What one host may send from: an IPv4 address, the first 64 bits of an IPv6 address. */
export function networkOf(address: string): string {
  if (!isIPv6(address)) return address;
  const plain = address.split("%", 1)[0] ?? "";
  const [head = "", tail] = plain.split("::", 2);
  const before = head === "" ? [] : head.split(":");
  const after = tail === undefined || tail === "" ? [] : tail.split(":");
  // An IPv4 address at the end stands for two groups.
  const given = before.length + after.length + (plain.includes(".") ? 1 : 0);
  const gap = tail === undefined ? [] : Array.from({ length: 8 - given }, () => "0");
  const groups = [...before, ...gap, ...after].slice(0, 4);
  return groups.map((group) => Number.parseInt(group, 16).toString(16)).join(":");
}
