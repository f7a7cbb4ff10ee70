import { once } from "node:events";
import type { Clock } from "../base/clock.ts";
import type { CacheResult } from "../base/metrics.ts";
import type { Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { BlobStore } from "../store/blobs.ts";
import type { Catalog, Ledger, Owner } from "../store/catalog.ts";
import type { Usage } from "../store/usage.ts";
import type { Downloads, FlightPlan } from "../transfer/download.ts";
import type { BlobSource } from "../transfer/source.ts";
import type { BlobAnswer } from "./answers.ts";
import { attempt } from "./shared.ts";
import type { StoredBlobs } from "./stored-blobs.ts";
import { ownerOf, type Target } from "./upstream.ts";

export interface BlobDeps {
  catalog: Catalog;
  blobs: BlobStore;
  stored: StoredBlobs;
  usage: Usage;
  downloads: Downloads;
  clock: Clock;
  /** Where a stored repository can be asked for a blob; nowhere, once its upstream is not configured any more. */
  sourcesOf: (repository: RepositoryName, digest: Digest) => readonly BlobSource[];
  /** Keeps the count of what is cached. */
  ledger: Ledger;
  /** A failure of the cache that no client notices. */
  onFault: (operation: string, error: unknown) => void;
}

/** A flight from its start to its end, as the right to its bytes sees it. */
interface Boarding {
  /** Whose upstream it asks. */
  starter: RepositoryName;
  /** The starter, which owns the blob only if its upstream sends it, and those whose own upstream said that they have it. */
  owners: Map<RepositoryName, Owner>;
}

/** How often a client goes on by itself after joining the failed download of another repository. */
const MAX_REBOARDINGS = 2;

/**
 * Blobs of cached repositories: from memory, from their file, from a download under way, or from upstream.
 *
 * Content is stored once, and reached per repository: what another repository brought here, or is bringing, is given out only after
 * this repository's own upstream said that it has it too.
 */
export class CachedBlobs {
  readonly #deps: BlobDeps;
  readonly #boardings = new Map<Digest, Boarding>();

  constructor(deps: BlobDeps) {
    this.#deps = deps;
  }

  /**
   * @param head only the head is wanted: what is not here costs a HEAD upstream, no download
   * @throws RegistryError BLOB_UNKNOWN absent upstream; RemoteError, NotAtSource, DigestMismatch where it can't be had
   */
  async open(target: Target, digest: Digest, head: boolean): Promise<BlobAnswer> {
    const stored = await this.#stored(target, digest, head);
    if (stored) return stored;
    if (!head) return this.#download(target, digest);
    const { sizeBytes } = await this.#provePossession(target, digest);
    return { digest, sizeBytes, content: undefined, upstream: target.upstream.name, result: "miss" };
  }

  /**
   * Brings a blob here without reading it.
   * @param signal ends the wait, and the download too if nobody else needs it
   * @throws as {@link open}, or the signal's reason
   */
  async bring(target: Target, digest: Digest, signal: AbortSignal): Promise<void> {
    if (await this.#stored(target, digest, true)) return;
    const { taken } = await this.#board(target, digest, (plan) => this.#deps.downloads.start(plan));
    await settle(taken, signal);
  }

  /** As {@link bring}, unless it is here or on its way already, for whomever. */
  async bringAhead(target: Target, digest: Digest, signal: AbortSignal): Promise<void> {
    const { downloads, catalog } = this.#deps;
    if (downloads.has(digest) || (await catalog.hasBlob(digest))) return;
    const plan = await this.#plan(target, digest);
    if (downloads.has(digest)) return;
    await settle(downloads.start(this.#depart(target, plan)), signal);
  }

  /** Whether it is read without asking anyone. */
  async has(repository: RepositoryName, digest: Digest): Promise<boolean> {
    return (await this.#deps.catalog.findBlob(repository, digest))?.linked === true;
  }

  /** @returns undefined where it is not here, or not whole */
  async #stored(target: Target, digest: Digest, head: boolean): Promise<BlobAnswer | undefined> {
    const { catalog, stored, usage, clock, onFault } = this.#deps;
    const row = await this.#attempt("find blob", () => catalog.findBlob(target.repository, digest));
    if (!row) return undefined;
    let result: CacheResult = "hit";
    if (!row.linked) {
      await this.#provePossession(target, digest);
      await this.#attempt("link blob", () => catalog.link(ownerOf(target), digest, clock.now()));
      result = "revalidated";
    }
    usage.touch(digest);
    const answer = { digest, sizeBytes: row.sizeBytes, upstream: target.upstream.name, result };
    try {
      return { ...answer, content: await stored.open(digest, row.sizeBytes, head) };
    } catch (error) {
      // This pull goes upstream.
      onFault("open blob", error);
      return undefined;
    }
  }

  /** This repository's own upstream says that it has the blob. @throws RegistryError BLOB_UNKNOWN, RemoteError */
  async #provePossession(target: Target, digest: Digest): Promise<{ sizeBytes: number | undefined }> {
    const { upstream, remoteName } = target;
    const found = await upstream.ask((remote) => remote.headBlob(remoteName, digest, {}));
    if (!found) {
      throw new RegistryError("BLOB_UNKNOWN", `${upstream.name} has no blob ${digest} in ${remoteName}`, {
        detail: { digest },
      });
    }
    return found.answer;
  }

  async #download(target: Target, digest: Digest): Promise<BlobAnswer> {
    for (let boardings = 0; ; boardings++) {
      const { joined, taken } = await this.#board(target, digest, (plan) => this.#deps.downloads.open(plan));
      try {
        const reader = await taken;
        return {
          digest,
          sizeBytes: reader.sizeBytes,
          content: reader,
          upstream: target.upstream.name,
          result: reader.passedThrough ? "bypass" : joined ? "joined" : "miss",
        };
      } catch (error) {
        // The repository that started it may have asked where the blob is not; this one's own upstream has not been asked yet.
        if (joined !== "another's" || boardings === MAX_REBOARDINGS) throw error;
      }
    }
  }

  /** Joins the flight of a digest, if this repository may, or starts one. */
  async #board<T>(
    target: Target,
    digest: Digest,
    take: (plan: FlightPlan) => T,
  ): Promise<{ joined: "own" | "another's" | undefined; taken: T }> {
    const plan = await this.#plan(target, digest);
    let proven = false;
    for (;;) {
      // From this look to `take` nothing is awaited: a flight that another repository starts meanwhile must not be joined unseen.
      if (!this.#deps.downloads.has(digest)) return { joined: undefined, taken: take(this.#depart(target, plan)) };
      const running = this.#boardings.get(digest);
      const own = running?.starter === target.repository;
      if (own || proven || running?.owners.has(target.repository)) {
        running?.owners.set(target.repository, ownerOf(target));
        return { joined: own ? "own" : "another's", taken: take(plan) };
      }
      await this.#provePossession(target, digest);
      proven = true;
    }
  }

  /** Notes that a flight starts for this repository. To be called in the same turn as the start itself. */
  #depart(target: Target, plan: FlightPlan): FlightPlan {
    const { digest } = plan;
    const { catalog, blobs, clock, ledger, stored } = this.#deps;
    const boarding: Boarding = {
      starter: target.repository,
      owners: new Map([[target.repository, ownerOf(target)]]),
    };
    this.#boardings.set(digest, boarding);
    return {
      ...plan,
      committed: async (sizeBytes) => {
        let isNew: boolean;
        try {
          isNew = await catalog.addBlob([...boarding.owners.values()], digest, sizeBytes, clock.now());
        } catch (error) {
          // Its file would count for nobody, unless it has been pushed as well.
          if (!(await catalog.hasBlob(digest))) await blobs.remove(digest);
          throw error;
        }
        if (isNew) ledger.added(target.upstream.name, sizeBytes);
        stored.proven(digest);
      },
      ended: () => {
        if (this.#boardings.get(digest) === boarding) this.#boardings.delete(digest);
      },
    };
  }

  async #plan({ repository, remoteName, upstream }: Target, digest: Digest): Promise<FlightPlan> {
    const { catalog, sourcesOf } = this.#deps;
    const claimedSizeBytes = await this.#attempt("find size", () => catalog.claimedSizeBytes(digest));
    const holders = (await this.#attempt("find holders", () => catalog.repositoriesWith(digest))) ?? [];
    return {
      digest,
      sources: upstream.sources(remoteName, digest),
      spares: holders.flatMap((holder) =>
        holder.repository === repository ? [] : sourcesOf(holder.repository, digest),
      ),
      claimedSizeBytes,
      ranges: upstream.config.ranges,
      committed: async () => undefined,
      ended: () => undefined,
    };
  }

  #attempt<T>(operation: string, work: () => Promise<T>): Promise<T | undefined> {
    return attempt(this.#deps.onFault, operation, work);
  }
}

/** Waits until a download is whole, or lets go of it when the signal fires. */
async function settle(
  { release, proven }: { release: () => void; proven: Promise<void> },
  signal: AbortSignal,
): Promise<void> {
  const over = new AbortController();
  const aborted = signal.aborted
    ? Promise.resolve()
    : once(signal, "abort", { signal: over.signal }).catch(() => undefined);
  try {
    await Promise.race([proven, aborted]);
    signal.throwIfAborted();
  } finally {
    over.abort();
    release();
    proven.catch(() => undefined);
  }
}
