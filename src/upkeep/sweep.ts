import type { Logger } from "../base/log.ts";
import type { BlobStore } from "../store/blobs.ts";
import type { Ledger } from "../store/catalog.ts";
import type { Garbage, GarbageCatalog, Link, Terms } from "../store/garbage.ts";
import type { MemoryCache } from "../store/memory.ts";

/** How garbage goes, or only seems to. `further…` is what becomes garbage by that without the database showing it. */
export interface Sweep {
  unlinkManifests(links: readonly Link[]): Promise<Link[]>;
  removeManifests(manifests: readonly Garbage[]): Promise<Garbage[]>;
  furtherManifests(): AsyncIterable<Garbage>;
  removeBlobs(blobs: readonly Garbage[]): Promise<Garbage[]>;
  furtherBlobs(): AsyncIterable<Garbage>;
  unlinkBlobs(links: readonly Link[]): Promise<Link[]>;
  furtherLinks(): AsyncIterable<Link>;
  removeRepositories(ids: readonly number[]): Promise<number>;
  furtherRepositories(): AsyncIterable<number>;
}

export interface RemovalDeps {
  garbage: GarbageCatalog;
  blobs: BlobStore;
  memory: MemoryCache;
  /** Keeps the count of what is cached. */
  ledger: Ledger;
  log: Logger;
}

/** The database shows all that becomes garbage. */
export const NO_MORE: AsyncIterable<never> = { async *[Symbol.asyncIterator]() {} };

/** Removes for good. */
export class Removal implements Sweep {
  readonly #deps: RemovalDeps;
  readonly #terms: Terms;

  constructor(deps: RemovalDeps, terms: Terms) {
    this.#deps = deps;
    this.#terms = terms;
  }

  unlinkManifests(links: readonly Link[]): Promise<Link[]> {
    return this.#deps.garbage.unlinkManifests(links, this.#terms);
  }

  async removeManifests(manifests: readonly Garbage[]): Promise<Garbage[]> {
    const { garbage, memory, ledger } = this.#deps;
    const gone = await garbage.removeManifests(manifests.map(({ digest }) => digest));
    ledger.removed(gone);
    for (const { digest } of gone) memory.delete(digest);
    return gone;
  }

  async removeBlobs(candidates: readonly Garbage[]): Promise<Garbage[]> {
    const { garbage, blobs, memory, log } = this.#deps;
    const digests = candidates.map(({ digest }) => digest);
    return blobs.exclusive(digests, async () => {
      const gone = await garbage.removeBlobs(digests, this.#terms);
      for (const { digest } of gone) {
        memory.delete(digest);
        // What can't be removed now is a file without a row: collected at the next start.
        await blobs
          .remove(digest)
          .catch((error: unknown) => log.warn({ digest, err: error }, "could not remove a file"));
      }
      return gone;
    });
  }

  unlinkBlobs(links: readonly Link[]): Promise<Link[]> {
    const { garbage, blobs } = this.#deps;
    return blobs.exclusive(
      links.map(({ digest }) => digest),
      () => garbage.unlinkBlobs(links, this.#terms),
    );
  }

  removeRepositories(ids: readonly number[]): Promise<number> {
    return this.#deps.garbage.removeRepositories(ids, this.#terms.beforeMs);
  }

  furtherManifests = (): typeof NO_MORE => NO_MORE;
  furtherBlobs = (): typeof NO_MORE => NO_MORE;
  furtherLinks = (): typeof NO_MORE => NO_MORE;
  furtherRepositories = (): typeof NO_MORE => NO_MORE;
}
