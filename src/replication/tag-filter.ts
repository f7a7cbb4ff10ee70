/**
 * Which tags of a repository a rule is about. The stages, in their order: match, semver, exclude, newest, maxAge; then what `always`
 * names comes back. Each stage takes away from what the one before left, and says why.
 *
 * All but maxAge are decided by names alone, so that a list of tags costs one request. Newest are the highest versions, as tags write them (`18`
 * is 18.0.0); names that are no versions come after all versions, in order of names with numbers in them read as numbers. When an image was
 * made, only its configuration tells: so maxAge is asked of what would be copied, one by one, and an image that does not tell stays.
 */
import picomatch from "picomatch";
import type { SemVer } from "semver";
import type { Milliseconds } from "../base/clock.ts";
import { atOnce } from "../base/give-way.ts";
import type { ReplicationRule } from "../config/schema.ts";
import { formatDuration } from "../config/units.ts";
import { isDigest, type Digest } from "../oci/digest.ts";
import { isTag, referrersTag, type Tag } from "../oci/reference.ts";
import { versionOf, versionsIn } from "../oci/version.ts";

export type TagStage = "attached" | "match" | "semver" | "exclude" | "newest" | "maxAge";

export interface SelectedTag {
  tag: Tag;
  /** In words: `matches v1.*, a version in >=18, 2nd of the 5 newest`. */
  why: string;
  /** `tags.always` names it: no stage takes it away. */
  always: boolean;
}

export interface DroppedTag {
  tag: Tag;
  stage: TagStage;
  why: string;
}

/** Both in order, the newest first. */
export interface TagSelection {
  selected: SelectedTag[];
  dropped: DroppedTag[];
}

const DIGEST_TAG = /^sha(?:256|512)-[0-9a-f]{64}(?:\.|$)/;
const NUMBERS = new Intl.Collator("en", { numeric: true });

/** After so many tags, others may have the event loop. */
const STEP = 256;

/**
 * All stages that need nothing but names.
 * @param listed in any order; what is no tag, or there twice, counts for nothing
 */
export function selectTags(listed: readonly string[], rule: ReplicationRule["tags"]): TagSelection {
  return atOnce(selectingTags(listed, rule));
}

/** As {@link selectTags}, in steps: some repositories have a hundred thousand tags. */
export function* selectingTags(
  listed: readonly string[],
  rule: ReplicationRule["tags"],
): Generator<void, TagSelection, void> {
  const matchOf = globFinder(rule.match);
  const excludeOf = globFinder(rule.exclude);
  const alwaysOf = globFinder(rule.always);
  const inRange = rule.semver === undefined ? undefined : versionsIn(rule.semver);
  const dropped = new Map<Tag, DroppedTag>();
  const drop = (tag: Tag, stage: TagStage, why: string): void => void dropped.set(tag, { tag, stage, why });
  const tags = yield* newestFirst([...new Set(listed)].filter(isTag));

  const passed: { tag: Tag; reasons: string[] }[] = [];
  for (const [index, tag] of tags.entries()) {
    if (index % STEP === 0) yield;
    const glob = matchOf(tag);
    const excluded = excludeOf(tag);
    if (isDigestTag(tag)) drop(tag, "attached", "it goes with the image that it is named after");
    else if (glob === undefined) drop(tag, "match", `matches none of ${rule.match.join(", ")}`);
    else if (inRange?.(tag) === false) drop(tag, "semver", `is no version in ${rule.semver}`);
    else if (excluded !== undefined) drop(tag, "exclude", `matches ${excluded}`);
    else {
      const reasons = [`matches ${glob}`, ...(inRange ? [`a version in ${rule.semver}`] : [])];
      if (rule.newest > 0 && passed.length >= rule.newest) drop(tag, "newest", `${rule.newest} are newer`);
      else {
        passed.push({ tag, reasons });
        if (rule.newest > 0) reasons.push(`number ${passed.length} of the ${rule.newest} newest`);
      }
    }
  }

  const reasonsOf = new Map(passed.map(({ tag, reasons }) => [tag, reasons.join(", ")]));
  const selected: SelectedTag[] = [];
  for (const [index, tag] of tags.entries()) {
    if (index % STEP === 0) yield;
    const glob = isDigestTag(tag) ? undefined : alwaysOf(tag);
    const why = glob === undefined ? reasonsOf.get(tag) : `always matches ${glob}`;
    if (why === undefined) continue;
    selected.push({ tag, why, always: glob !== undefined });
    dropped.delete(tag);
  }
  return { selected, dropped: [...dropped.values()] };
}

/**
 * The stage maxAge, of one tag.
 * @param madeAtMs when its image was made, as it says itself; undefined where it does not
 * @returns why it is dropped; undefined: it stays
 */
export function tooOld(
  { tag, always }: Pick<SelectedTag, "tag" | "always">,
  { maxAge }: Pick<ReplicationRule["tags"], "maxAge">,
  madeAtMs: Milliseconds | undefined,
  nowMs: Milliseconds,
): DroppedTag | undefined {
  if (always || maxAge === 0 || madeAtMs === undefined || madeAtMs >= nowMs - maxAge) return undefined;
  const made = new Date(madeAtMs).toISOString().slice(0, 10);
  return { tag, stage: "maxAge", why: `made on ${made}, more than ${formatDuration(maxAge)} ago` };
}

/** Those tags of a list that are named after images, found by the image: there may be as many as images. */
export class DigestTags {
  readonly #all: ReadonlySet<string>;
  readonly #byName = new Map<string, Tag[]>();

  constructor(listed: Iterable<string>) {
    this.#all = new Set([...listed].filter(isDigestTag));
    for (const tag of this.#all) {
      const dot = tag.indexOf(".");
      if (dot < 0 || !isTag(tag)) continue;
      const name = tag.slice(0, dot);
      const known = this.#byName.get(name);
      if (known) known.push(tag);
      else this.#byName.set(name, [tag]);
    }
  }

  has(tag: string): boolean {
    return this.#all.has(tag);
  }

  /** An image's signatures and the like. The tag that lists its referrers is none of them: that is each registry's own affair. */
  of(digest: Digest): readonly Tag[] {
    return this.#byName.get(referrersTag(digest)) ?? [];
  }
}

/** What an image's signatures and the like are mostly called, where tags can't be listed. Source: cosign, "Signature Specification" */
export function usualDigestTags(digest: Digest): Tag[] {
  return [".sig", ".att", ".sbom"].map((ending) => `${referrersTag(digest)}${ending}`).filter(isTag);
}

/** Whether a tag is named after an image's digest: its signature and the like, or the list of its referrers. */
export function isDigestTag(tag: string): boolean {
  return DIGEST_TAG.test(tag);
}

/** What a tag is named after; undefined: nothing, or the list of referrers, which is each registry's own. */
export function subjectOf(tag: Tag): Digest | undefined {
  // Of a sha512, such a tag holds the half.
  const hex = /^sha256-([0-9a-f]{64})\./.exec(tag)?.[1];
  const digest = `sha256:${hex ?? ""}`;
  return isDigest(digest) ? digest : undefined;
}

type GlobFinder = (tag: string) => string | undefined;

/** Compiled once for a rule: every push asks every rule. */
const finders = new WeakMap<readonly string[], GlobFinder>();

/** @returns finds the first glob that a tag matches */
export function globFinder(globs: readonly string[]): GlobFinder {
  let finder = finders.get(globs);
  if (!finder) {
    const matchers = globs.map((glob) => ({ glob, matches: picomatch(glob, { dot: true }) }));
    finder = (tag) => matchers.find(({ glob, matches }) => glob === tag || matches(tag))?.glob;
    finders.set(globs, finder);
  }
  return finder;
}

interface ReadTag {
  tag: Tag;
  /** Read once, not whenever two are compared. */
  version: SemVer | undefined;
}

/** Sorts in steps: pieces by themselves, then always two into one. */
function* newestFirst(tags: readonly Tag[]): Generator<void, Tag[], void> {
  let pieces: ReadTag[][] = [];
  for (let at = 0; at < tags.length; at += STEP) {
    yield;
    const piece = tags.slice(at, at + STEP).map((tag): ReadTag => ({ tag, version: versionOf(tag) }));
    pieces.push(piece.sort(byAge));
  }
  while (pieces.length > 1) {
    const merged: ReadTag[][] = [];
    for (let at = 0; at < pieces.length; at += 2) merged.push(yield* merge(pieces[at] ?? [], pieces[at + 1] ?? []));
    pieces = merged;
  }
  return (pieces[0] ?? []).map(({ tag }) => tag);
}

function* merge(left: readonly ReadTag[], right: readonly ReadTag[]): Generator<void, ReadTag[], void> {
  const merged: ReadTag[] = [];
  for (let l = 0, r = 0; ;) {
    const [a, b] = [left[l], right[r]];
    const first = a && b ? (byAge(a, b) <= 0 ? a : b) : (a ?? b);
    if (!first) return merged;
    if (first === a) l++;
    else r++;
    if (merged.push(first) % STEP === 0) yield;
  }
}

/** The newest first. A total order: which comes first does not depend on the order of the list. */
function byAge({ tag: a, version: x }: ReadTag, { tag: b, version: y }: ReadTag): number {
  const byVersion = x && y ? y.compare(x) : Number(y !== undefined) - Number(x !== undefined);
  return byVersion || NUMBERS.compare(b, a) || (a < b ? 1 : a > b ? -1 : 0);
}
