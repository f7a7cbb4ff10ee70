import type { Bytes } from "../base/clock.ts";
import type { Config } from "../config/schema.ts";
import type { Requester } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import { RegistryError } from "../oci/errors.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { Emptying, Leaving } from "../store/emptying.ts";
import type { HostedCatalog, TagGuard } from "../store/hosted-catalog.ts";
import { deletionOf } from "./hosted-deletion.ts";
import { immutableTags } from "./policy.ts";

/** How far the removal of a repository is. `bytes` are those of manifests and blobs that it no longer reaches. */
export interface RemovalCounts {
  tags: number;
  manifests: number;
  blobs: number;
  bytes: Bytes;
}

export interface RemovalDeps {
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Config["hosted"];
  hosted: HostedCatalog;
  emptying: Emptying;
  journal: Journal;
}

const TAGS_PER_LOOK = 500;

/** Removes a whole hosted repository in small steps: pushes and pulls go on meanwhile. Garbage collection gives the room back. */
export class Removal {
  readonly #deps: RemovalDeps;

  constructor(deps: RemovalDeps) {
    this.#deps = deps;
  }

  /**
   * Whether it may go.
   * @throws RegistryError NAME_UNKNOWN where it is not there; DENIED where deleting is off, or one of its tags is immutable
   */
  async check(repository: RepositoryName): Promise<void> {
    const { hosted, config } = this.#deps;
    if (!config().delete) throw new RegistryError("DENIED", "hosted.delete is off: nothing can be deleted");
    if (!(await hosted.hasRepository(repository)))
      throw new RegistryError("NAME_UNKNOWN", `there is no hosted repository ${repository}`);
    const guard = this.#guard(repository);
    for (let last = ""; ;) {
      const tags = await hosted.listTags(repository, last, TAGS_PER_LOOK);
      for (const tag of tags) guard(tag, undefined);
      if (tags.length < TAGS_PER_LOOK) return;
      last = tags.at(-1) ?? last;
    }
  }

  /**
   * Removes what is there; what is pushed meanwhile may stay. What has gone when it fails, or when the signal ends it, is gone.
   * @param tell is told after every step
   * @throws as {@link check}; the signal's reason
   */
  async run(
    repository: RepositoryName,
    by: Requester,
    tell: (counts: RemovalCounts) => Promise<void>,
    signal: AbortSignal,
  ): Promise<RemovalCounts> {
    const { emptying, journal } = this.#deps;
    const counts: RemovalCounts = { tags: 0, manifests: 0, blobs: 0, bytes: 0 };
    const record = (tx: Parameters<Journal["recordWithin"]>[0], left: readonly Leaving[]): Promise<void> =>
      journal.recordWithin(
        tx,
        left.map((each) => deletionOf(repository, each, by)),
      );
    const count = async (left: readonly Leaving[]): Promise<void> => {
      for (const { tag, mediaType, sizeBytes } of left) {
        if (tag !== undefined) counts.tags += 1;
        else {
          if (mediaType === undefined) counts.blobs += 1;
          else counts.manifests += 1;
          counts.bytes += sizeBytes;
        }
      }
      if (left.length > 0) journal.recorded();
      await tell(counts);
    };
    const guard = this.#guard(repository);
    for (let after: string | undefined = ""; after !== undefined;) {
      signal.throwIfAborted();
      const { left, last } = await emptying.tags(repository, after, guard, record);
      after = last;
      await count(left);
    }
    // A round takes what leads to others; the next one those.
    for (let taken = -1; taken !== 0;) {
      taken = 0;
      for (let after: string | undefined = ""; after !== undefined;) {
        signal.throwIfAborted();
        const { left, last } = await emptying.content(repository, after, record);
        after = last;
        taken += left.length;
        await count(left);
      }
    }
    return counts;
  }

  #guard(repository: RepositoryName): TagGuard {
    const immutable = immutableTags(this.#deps.config().immutableTags);
    return (tag) => {
      if (!immutable(repository, tag)) return;
      throw new RegistryError(
        "DENIED",
        `${repository}:${tag} is immutable by hosted.immutableTags: the repository stays`,
      );
    };
  }
}
