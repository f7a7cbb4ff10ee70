import { setImmediate as turn } from "node:timers/promises";
import type { Milliseconds } from "../base/clock.ts";
import type { Digest } from "../oci/digest.ts";
import type { Tag } from "../oci/reference.ts";
import type { DigestSpan, HostedRepository, HostedTag, TagCatalog } from "../store/tag-catalog.ts";
import { companionOf, keeperOf, LatestSoFar, type Keeper, type Latest, type RetentionRule } from "./retention-plan.ts";

export interface Decision {
  tag: HostedTag;
  /** undefined: it goes. */
  keeper: Keeper | undefined;
}

export interface Walk {
  tags: TagCatalog;
  repository: HostedRepository;
  rule: RetentionRule;
  isImmutable: (tag: Tag) => boolean;
  nowMs: Milliseconds;
  signal: AbortSignal;
}

/** So many take the event loop about a millisecond. */
const PAGE = 100;
const COMPANIONS = 200;
/** Of that many companions' images. Should these have more, each is looked at alone. */
const IMAGE_TAGS = 1_000;
/** Behind every tag: none begins with it. */
const BEHIND_ALL = "{";
/** Where companions are in the order of names; "." follows "-". */
const COMPANION_RANGES = ["sha256", "sha512"].map((algorithm) => ({ after: `${algorithm}-`, before: `${algorithm}.` }));
/** Of signatures of signatures: whoever goes on stays. */
const MOST_STEPS = 8;
/** A signature may be pushed before its image. */
const AWAITED_MS: Milliseconds = 86_400_000;

/**
 * Decides about every tag of a repository that is there throughout, in two passes over them: one for the latest, one for the rest.
 * Companions come last, when all others have been decided (and, by whoever removes, removed). Holds a page at a time.
 * @throws the signal's reason; Error of the database
 */
export async function* decisions(walk: Walk): AsyncGenerator<Decision[]> {
  const { tags, repository, rule, isImmutable, nowMs, signal } = walk;
  const latest = await findLatest(walk);
  const keeper = (tag: HostedTag): Keeper | undefined => keeperOf(rule, latest, tag, isImmutable(tag.name), nowMs);
  let companions = 0;
  for await (const page of pages(walk, "", BEHIND_ALL, PAGE)) {
    const decided = [];
    for (const tag of page) {
      const found = { tag, keeper: keeper(tag) };
      if (!found.keeper && companionOf(tag.name)) companions++;
      else decided.push(found);
    }
    yield decided;
  }
  if (companions === 0) return;
  const images = new Images(tags, repository.id, keeper, signal);
  for (const { after, before } of COMPANION_RANGES) {
    for await (const page of pages(walk, after, before, COMPANIONS)) {
      const undecided = page.flatMap((tag) => {
        const image = keeper(tag) ? undefined : companionOf(tag.name);
        return image ? [{ tag, image }] : [];
      });
      const keepers = await images.keepers(undecided.map(({ image }) => image));
      yield undecided.map(({ tag }, index) => {
        const keeper = keepers[index];
        if (keeper !== "no image") return { tag, keeper };
        return { tag, keeper: tag.pushedAtMs >= nowMs - AWAITED_MS ? { by: "awaited" } : undefined };
      });
    }
  }
}

async function findLatest(walk: Walk): Promise<Latest> {
  const { rule } = walk;
  const latest = new LatestSoFar(rule);
  if (rule.latestPushed > 0 || rule.latestPulled > 0) {
    for await (const page of pages(walk, "", BEHIND_ALL, PAGE)) for (const tag of page) latest.add(tag);
  }
  return latest.latest;
}

/** Asks for the next page before it gives one. */
async function* pages(
  { tags, repository, signal }: Walk,
  after: string,
  before: string,
  rows: number,
): AsyncGenerator<HostedTag[]> {
  const ask = (last: string): Promise<HostedTag[]> => {
    const asked = tags.tags(repository.id, last, before, rows);
    // Whoever stops in between does not wait for it.
    asked.catch(() => undefined);
    return asked;
  };
  for (let asked = ask(after); ;) {
    const page = await asked;
    // Answers that are there already would be taken one after the other, within the same turn.
    await turn();
    signal.throwIfAborted();
    const last = page.at(-1);
    if (!last) return;
    asked = page.length === rows ? ask(last.name) : Promise.resolve([]);
    yield page;
  }
}

/** What keeps companions: a tag that leads to their image, and stays. */
class Images {
  readonly #tags: TagCatalog;
  readonly #repositoryId: number;
  readonly #keeper: (tag: HostedTag) => Keeper | undefined;
  readonly #signal: AbortSignal;

  constructor(
    tags: TagCatalog,
    repositoryId: number,
    keeper: (tag: HostedTag) => Keeper | undefined,
    signal: AbortSignal,
  ) {
    this.#tags = tags;
    this.#repositoryId = repositoryId;
    this.#keeper = keeper;
    this.#signal = signal;
  }

  /** @returns for each image what keeps its companions; undefined: nothing; `no image`: the repository has none */
  async keepers(images: readonly DigestSpan[]): Promise<(Keeper | "no image" | undefined)[]> {
    const above = await this.#tags.above(this.#repositoryId, images);
    const digests = [...new Set(above.flat())];
    const found = await this.#tags.tagsOfAny(this.#repositoryId, digests, IMAGE_TAGS);
    const tagsOf = found.length < IMAGE_TAGS ? Map.groupBy(found, ({ digest }) => digest) : undefined;
    const keepers: (Keeper | "no image" | undefined)[] = [];
    for (const [index, { first }] of images.entries()) {
      let keeper: Keeper | undefined;
      for (const digest of above[index] ?? []) {
        const pages = tagsOf ? [tagsOf.get(digest) ?? []] : this.#tagsOf(digest);
        keeper ??= await this.#among(pages, [first]);
      }
      keepers.push(above[index]?.length === 0 ? "no image" : keeper);
    }
    return keepers;
  }

  /** @param way images on the way here, which are not asked again: one that is kept by itself alone is not kept */
  async #among(
    pages: Iterable<HostedTag[]> | AsyncIterable<HostedTag[]>,
    way: readonly string[],
  ): Promise<Keeper | undefined> {
    for await (const page of pages) {
      for (const tag of page) {
        const next = companionOf(tag.name);
        // A companion of the very image says nothing of it, not even where a rule keeps it.
        if (next && next.first === way.at(-1)) continue;
        const isNew = next && !way.includes(next.first);
        if (this.#keeper(tag) || (isNew && (await this.#isKept(next, way)))) return { by: "image", tag: tag.name };
      }
    }
    return undefined;
  }

  async #isKept(image: DigestSpan, below: readonly string[]): Promise<boolean> {
    if (below.length >= MOST_STEPS) return true;
    const way = [...below, image.first];
    const [above = []] = await this.#tags.above(this.#repositoryId, [image]);
    for (const digest of above) if (await this.#among(this.#tagsOf(digest), way)) return true;
    return false;
  }

  async *#tagsOf(digest: Digest): AsyncGenerator<HostedTag[]> {
    for (let after = ""; ;) {
      this.#signal.throwIfAborted();
      const page = await this.#tags.tagsOf(this.#repositoryId, digest, after, COMPANIONS);
      yield page;
      if (page.length < COMPANIONS) return;
      after = page.at(-1)?.name ?? BEHIND_ALL;
    }
  }
}
