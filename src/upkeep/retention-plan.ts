/**
 * Which tags a retention rule keeps: pure functions of a rule, what is known of a tag, and the time.
 *
 * A tag stays if anything names it; then it also says what. Companions (signatures, attestations, and the tags of clients that know no
 * referrers API) are named after the digest of an image, `sha256-HEX` or `sha256-HEX.sig`: they count among no latest ones, and stay as
 * long as their image has a tag that does. That is for others to find out, since it takes more than the tag itself.
 */
import picomatch from "picomatch";
import type { Milliseconds } from "../base/clock.ts";
import { formatDuration } from "../config/units.ts";
import type { Config } from "../config/schema.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { versionsIn } from "../oci/version.ts";
import type { DigestSpan, HostedTag } from "../store/tag-catalog.ts";

/** What keeps a tag. */
export type Keeper =
  | { by: "immutable" }
  | { by: "tags"; glob: string }
  | { by: "semver"; range: string }
  | { by: "latestPushed" | "latestPulled"; rank: number; of: number }
  | { by: "pushedWithin" | "pulledWithin"; withinMs: Milliseconds }
  /** A tag of its image stays. */
  | { by: "image"; tag: Tag }
  /** It is new, and its image is not there. */
  | { by: "awaited" };

export interface RetentionRule {
  /** As the configuration has it: `retention.rules[0] (team/**)`. */
  readonly name: string;
  readonly removeAll: boolean;
  readonly latestPushed: number;
  readonly latestPulled: number;
  readonly pushedWithinMs: Milliseconds;
  readonly pulledWithinMs: Milliseconds;
  readonly isAbout: (repository: RepositoryName) => boolean;
  /** Of `keep.tags`: the first one that matches. */
  readonly globOf: (tag: Tag) => string | undefined;
  /** `keep.semver`, if the tag is a version in it. */
  readonly rangeOf: (tag: Tag) => string | undefined;
}

/** The tags of one repository that were pushed and pulled last. */
export interface Latest {
  pushed: Ranking;
  pulled: Ranking;
}

/** Finds the latest of any number of tags, given one by one. Holds no more of them than the rule speaks of. */
export class LatestSoFar {
  readonly #pushed: Newest;
  readonly #pulled: Newest;

  constructor({ latestPushed, latestPulled }: RetentionRule) {
    this.#pushed = new Newest(latestPushed);
    this.#pulled = new Newest(latestPulled);
  }

  add({ name, pushedAtMs, pulledAtMs }: HostedTag): void {
    if (companionOf(name)) return;
    this.#pushed.add(pushedAtMs, name);
    if (pulledAtMs !== null) this.#pulled.add(pulledAtMs, name);
  }

  /** Of what was given so far. */
  get latest(): Latest {
    return { pushed: this.#pushed.ranking(), pulled: this.#pulled.ranking() };
  }
}

export function compileRules(rules: Config["retention"]["rules"]): RetentionRule[] {
  return rules.map(({ repositories, keep, removeAll }, index) => {
    const globs = keep.tags.map((glob) => ({ glob, expression: picomatch.makeRe(glob, { dot: true }) }));
    const { semver: range } = keep;
    const matches = range === undefined ? () => false : versionsIn(range);
    return {
      name: `retention.rules[${index}] (${repositories.join(", ")})`,
      removeAll,
      latestPushed: keep.latestPushed,
      latestPulled: keep.latestPulled,
      pushedWithinMs: keep.pushedWithin,
      pulledWithinMs: keep.pulledWithin,
      isAbout: picomatch([...repositories]),
      globOf: (tag) => globs.find(({ glob, expression }) => glob === tag || expression.test(tag))?.glob,
      rangeOf: (tag) => (matches(tag) ? range : undefined),
    };
  });
}

/** Of several rules about a repository the first one counts. @returns undefined: it keeps all */
export function ruleFor(rules: readonly RetentionRule[], repository: RepositoryName): RetentionRule | undefined {
  return rules.find((rule) => rule.isAbout(repository));
}

/**
 * @param latest of the tag's repository, by this rule
 * @param nowMs a time that {@link HostedTag} can be compared with
 * @returns what keeps the tag; undefined: nothing does, unless it is the companion of an image that stays
 */
export function keeperOf(
  rule: RetentionRule,
  latest: Latest,
  tag: HostedTag,
  isImmutable: boolean,
  nowMs: Milliseconds,
): Keeper | undefined {
  if (isImmutable) return { by: "immutable" };
  const { name, pushedAtMs, pulledAtMs } = tag;
  const glob = rule.globOf(name);
  if (glob !== undefined) return { by: "tags", glob };
  const range = rule.rangeOf(name);
  if (range !== undefined) return { by: "semver", range };
  if (!companionOf(name)) {
    const { latestPushed, latestPulled } = rule;
    const pushed = latestPushed > 0 ? latest.pushed.rankOf(pushedAtMs, name) : Infinity;
    if (pushed <= latestPushed) return { by: "latestPushed", rank: pushed, of: latestPushed };
    const pulled = latestPulled > 0 && pulledAtMs !== null ? latest.pulled.rankOf(pulledAtMs, name) : Infinity;
    if (pulled <= latestPulled) return { by: "latestPulled", rank: pulled, of: latestPulled };
  }
  const isWithin = (atMs: Milliseconds, withinMs: Milliseconds): boolean => withinMs > 0 && atMs >= nowMs - withinMs;
  if (isWithin(pushedAtMs, rule.pushedWithinMs)) return { by: "pushedWithin", withinMs: rule.pushedWithinMs };
  if (pulledAtMs !== null && isWithin(pulledAtMs, rule.pulledWithinMs))
    return { by: "pulledWithin", withinMs: rule.pulledWithinMs };
  return undefined;
}

/** The digest that a companion is named after, of which a tag holds at most 64 digits; undefined for any other tag. */
export function companionOf(tag: Tag): DigestSpan | undefined {
  if (!tag.startsWith("sha")) return undefined;
  const [, algorithm, hex] = /^(sha256|sha512)-([0-9a-f]{64})(?:\.[A-Za-z0-9._-]+)?$/.exec(tag) ?? [];
  // "g" follows the digits.
  return algorithm === undefined ? undefined : { first: `${algorithm}:${hex}`, end: `${algorithm}:${hex}g` };
}

/** In words, why a tag stays or goes. */
export function reasonText(tag: HostedTag, keeper: Keeper | undefined, nowMs: Milliseconds): string {
  const ago = (atMs: Milliseconds): string => agoText(nowMs - atMs);
  const { pushedAtMs, pulledAtMs } = tag;
  if (keeper) return `kept: ${keeperText(keeper, ago(pushedAtMs), ago(pulledAtMs ?? 0))}`;
  const nothing = companionOf(tag.name) ? "its image has no tag that stays, and no rule keeps it" : "no rule keeps it";
  return `goes: ${nothing}; pushed ${ago(pushedAtMs)}, ${pulledAtMs === null ? "never pulled" : `pulled ${ago(pulledAtMs)}`}`;
}

function keeperText(keeper: Keeper, pushedAgo: string, pulledAgo: string): string {
  switch (keeper.by) {
    case "immutable":
      return "hosted.immutableTags names it";
    case "tags":
      return `it matches ${keeper.glob}`;
    case "semver":
      return `a version in ${keeper.range}`;
    case "latestPushed":
      return `${ordinal(keeper.rank)} of the ${keeper.of} pushed last`;
    case "latestPulled":
      return `${ordinal(keeper.rank)} of the ${keeper.of} pulled last`;
    case "pushedWithin":
      return `pushed ${pushedAgo}, within ${formatDuration(keeper.withinMs)}`;
    case "pulledWithin":
      return `pulled ${pulledAgo}, within ${formatDuration(keeper.withinMs)}`;
    case "awaited":
      return `pushed ${pushedAgo}, and its image may still come`;
    default:
      return `it belongs to ${keeper.tag}`;
  }
}

function ordinal(rank: number): string {
  const teen = rank % 100 >= 11 && rank % 100 <= 13;
  return `${rank}${(teen ? undefined : ["th", "st", "nd", "rd"][rank % 10]) ?? "th"}`;
}

const AGES: readonly [unit: string, ms: Milliseconds][] = [
  ["day", 86_400_000],
  ["hour", 3_600_000],
  ["minute", 60_000],
];

function agoText(ageMs: Milliseconds): string {
  const [unit, ms] = AGES.find(([, ms]) => ageMs >= ms) ?? ["", 0];
  if (ms === 0) return "just now";
  const count = Math.floor(ageMs / ms);
  return `${count} ${unit}${count === 1 ? "" : "s"} ago`;
}

interface Entry {
  atMs: Milliseconds;
  name: Tag;
}

/** Among equals in time, the greater name is newer. */
class Newest {
  readonly #most: number;
  /** A heap: none is older than its parent. */
  readonly #heap: Entry[] = [];

  constructor(most: number) {
    this.#most = most;
  }

  add(atMs: Milliseconds, name: Tag): void {
    const heap = this.#heap;
    if (heap.length < this.#most) {
      heap.push({ atMs, name });
      this.#rise(heap.length - 1);
    } else if (heap[0] && isNewer(atMs, name, heap[0])) {
      heap[0] = { atMs, name };
      this.#sink();
    }
  }

  ranking(): Ranking {
    return new Ranking(this.#heap.toSorted((a, b) => (isNewer(a.atMs, a.name, b) ? -1 : 1)));
  }

  #rise(from: number): void {
    for (let index = from; index > 0;) {
      const above = (index - 1) >> 1;
      if (!this.#swapIfOlder(index, above)) return;
      index = above;
    }
  }

  #sink(): void {
    const heap = this.#heap;
    for (let index = 0; ;) {
      const [left, right] = [heap[2 * index + 1], heap[2 * index + 2]];
      if (!left) return;
      const below = 2 * index + (right && isNewer(left.atMs, left.name, right) ? 2 : 1);
      if (!this.#swapIfOlder(below, index)) return;
      index = below;
    }
  }

  #swapIfOlder(below: number, above: number): boolean {
    const heap = this.#heap;
    const [lower, upper] = [heap[below], heap[above]];
    if (!lower || !upper || !isNewer(upper.atMs, upper.name, lower)) return false;
    heap[below] = upper;
    heap[above] = lower;
    return true;
  }
}

/** The latest tags in their order. */
export class Ranking {
  readonly #newestFirst: readonly Entry[];

  constructor(newestFirst: readonly Entry[]) {
    this.#newestFirst = newestFirst;
  }

  /** From 1; after all of them, one more than they are. So a tag that came since is among them, and of an incomplete list nothing goes. */
  rankOf(atMs: Milliseconds, name: Tag): number {
    const entries = this.#newestFirst;
    let [low, high] = [0, entries.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      const entry = entries[middle];
      if (entry && isNewer(entry.atMs, entry.name, { atMs, name })) low = middle + 1;
      else high = middle;
    }
    return low + 1;
  }
}

function isNewer(atMs: Milliseconds, name: Tag, than: Entry): boolean {
  return atMs > than.atMs || (atMs === than.atMs && name > than.name);
}
