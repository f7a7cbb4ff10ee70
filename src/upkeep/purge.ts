import type { Bytes } from "../base/clock.ts";
import type { Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { Browse } from "../store/browse.ts";
import { EVERYTHING } from "../store/visible.ts";
import type { Emptying } from "../store/emptying.ts";
import type { CachedHolders, HeldContent } from "../store/cached-holders.ts";
import type { Evictor } from "./evict.ts";

/** What is to go from the cache. */
export type PurgeTarget = { repository: RepositoryName } | { upstream: string } | { digest: Digest };

export interface PurgeCounts {
  repositories: number;
  contents: number;
  bytes: Bytes;
  /** What stays because somebody is reading it or it is on its way. */
  inUse: number;
}

export interface PurgeDeps {
  browse: Browse;
  holders: CachedHolders;
  emptying: Emptying;
  evictor: Evictor;
}

const REPOSITORIES_PER_LOOK = 100;

/** Takes content out of the cache by hand, in small steps. The next pull brings it again. What was pushed is never touched. */
export class Purge {
  readonly #deps: PurgeDeps;

  constructor(deps: PurgeDeps) {
    this.#deps = deps;
  }

  /** @throws RegistryError with status 409 for what is hosted, 404 for what is not here */
  async check(target: PurgeTarget): Promise<void> {
    const { browse, holders } = this.#deps;
    if ("repository" in target) {
      const found = await browse.find(target.repository);
      if (!found) throw new RegistryError("NAME_UNKNOWN", `there is no repository ${target.repository} in the cache`);
      if (found.upstream === undefined) throw hosted(target.repository);
    } else if ("digest" in target) {
      const found = await holders.find(target.digest);
      if (!found) throw new RegistryError("BLOB_UNKNOWN", `there is no ${target.digest} in the cache`);
      if (found.upstream === undefined) throw hosted(target.digest);
    }
  }

  /**
   * @param tell is told after every step
   * @throws the signal's reason; what has gone by then is gone
   */
  async run(
    target: PurgeTarget,
    tell: (counts: PurgeCounts) => Promise<void>,
    signal: AbortSignal,
  ): Promise<PurgeCounts> {
    const counts: PurgeCounts = { repositories: 0, contents: 0, bytes: 0, inUse: 0 };
    if ("digest" in target) {
      const found = await this.#deps.holders.find(target.digest);
      if (found?.upstream !== undefined) await this.#evict([{ ...found, upstream: found.upstream }], counts);
    } else if ("repository" in target) await this.#repository(target.repository, counts, tell, signal);
    else {
      const filter = { prefix: `${target.upstream}/`, text: "", kind: "cached" as const };
      for (let after: string | undefined = ""; after !== undefined;) {
        const page = await this.#deps.browse.repositories(filter, after, REPOSITORIES_PER_LOOK, EVERYTHING);
        for (const { name, upstream } of page.items)
          if (upstream === target.upstream) await this.#repository(name, counts, tell, signal);
        after = page.next;
      }
    }
    await tell(counts);
    return counts;
  }

  async #repository(
    repository: RepositoryName,
    counts: PurgeCounts,
    tell: (counts: PurgeCounts) => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    const { holders, emptying } = this.#deps;
    for (let after: string | undefined = ""; after !== undefined;) {
      signal.throwIfAborted();
      const step = await holders.leave(repository, after);
      after = step.last;
      await this.#evict(step.alone, counts);
      await tell(counts);
    }
    await emptying.listings(repository);
    counts.repositories += 1;
  }

  async #evict(contents: readonly HeldContent[], counts: PurgeCounts): Promise<void> {
    const { contents: gone, bytes, inUse } = await this.#deps.evictor.purge(contents);
    counts.contents += gone;
    counts.bytes += bytes;
    counts.inUse += inUse;
  }
}

function hosted(what: string): RegistryError {
  return new RegistryError(
    "DENIED",
    `${what} was pushed here, and is no copy that could be brought again: delete it instead`,
    { status: 409 },
  );
}
