import type { Bytes, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import type { BlobStore } from "../store/blobs.ts";
import type { Catalog } from "../store/catalog.ts";
import type { Digest } from "../oci/digest.ts";
import type { Usage } from "../store/usage.ts";
import type { MemoryCache } from "../store/memory.ts";
import type { Reservation, Space } from "../transfer/download.ts";

export interface Limits {
  /** Cached content beyond it goes, least recently used first. */
  cacheMaxSize: Bytes;
  /** Free bytes of the file system that are never used. */
  minFree: Bytes;
}

export interface EvictorDeps {
  limits: Limits;
  catalog: Catalog;
  blobs: BlobStore;
  memory: MemoryCache;
  usage: Usage;
  log: Logger;
  metrics: Metrics;
  /** Digests whose download is under way: their partial files are in use. */
  inFlight(): ReadonlySet<Digest>;
}

const BATCH = 64;
/** A reading of the file system's free bytes is good for so long. */
const FREE_TTL_MS: Milliseconds = 500;

/**
 * Keeps the cache within its limits: `used + reserved ≤ cacheMaxSize` and `free − reserved ≥ minFree`.
 * What goes: partial files that nobody fetches, then cached content in the order of its last use. What stays: whatever was pushed,
 * and whatever is being read. One eviction runs at a time.
 */
export class Evictor implements Space {
  readonly #deps: EvictorDeps;
  readonly #used = new Map<string, Bytes>();
  #reserved = 0;
  #turn: Promise<unknown> = Promise.resolve();
  #free: { bytes: Bytes; atMs: number } | undefined;

  constructor(deps: EvictorDeps) {
    this.#deps = deps;
  }

  /** Counts what is there. To be called once, before anything is reserved. */
  async start(): Promise<void> {
    for (const [upstream, bytes] of await this.#deps.catalog.cachedBytes()) this.#used.set(upstream, bytes);
  }

  /** Bytes of cached content per upstream. */
  get used(): ReadonlyMap<string, Bytes> {
    return this.#used;
  }

  /** Notes that content is stored now. */
  added(upstream: string, bytes: Bytes): void {
    this.#used.set(upstream, (this.#used.get(upstream) ?? 0) + bytes);
  }

  /** Notes that content is gone. */
  removed(upstream: string, bytes: Bytes): void {
    this.added(upstream, -bytes);
  }

  async reserve(bytes: Bytes): Promise<Reservation | undefined> {
    const made = await this.#inTurn(async () => {
      if (!(await this.#makeRoom(bytes))) return false;
      this.#reserved += bytes;
      return true;
    });
    if (!made) return undefined;
    let held = true;
    return {
      release: () => {
        if (held) this.#reserved -= bytes;
        held = false;
      },
    };
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work);
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  async #makeRoom(bytes: Bytes): Promise<boolean> {
    if (bytes > this.#deps.limits.cacheMaxSize) return false;
    if ((await this.#missing(bytes)) <= 0) return true;
    await this.#dropPartials();
    await this.#deps.usage.flush();
    for (;;) {
      const missing = await this.#missing(bytes);
      if (missing <= 0) return true;
      if ((await this.#evict(missing)) === 0) return false;
    }
  }

  /** How many bytes have to go before so many more fit. */
  async #missing(bytes: Bytes): Promise<Bytes> {
    const { cacheMaxSize, minFree } = this.#deps.limits;
    let used = this.#reserved;
    for (const each of this.#used.values()) used += each;
    const overCap = used + bytes - cacheMaxSize;
    const overDisk = bytes + this.#reserved + minFree - (await this.#freeBytes());
    return Math.max(overCap, overDisk);
  }

  async #freeBytes(): Promise<Bytes> {
    if (!this.#free || performance.now() - this.#free.atMs > FREE_TTL_MS) {
      this.#free = { bytes: await this.#deps.blobs.freeBytes(), atMs: performance.now() };
    }
    return this.#free.bytes;
  }

  /** What earlier runs left behind is the cheapest to lose. */
  async #dropPartials(): Promise<void> {
    const { blobs, inFlight, metrics } = this.#deps;
    for (const { digest } of await blobs.leftovers()) {
      if (inFlight().has(digest)) continue;
      await blobs.removeLeftover(digest);
      metrics.cacheEvictions.inc({ reason: "partial" });
    }
    this.#free = undefined;
  }

  /** @returns how many bytes went; 0 if nothing may go */
  async #evict(missing: Bytes): Promise<Bytes> {
    const { catalog, blobs, memory, log, metrics } = this.#deps;
    const blobDigests: Digest[] = [];
    const manifestDigests: Digest[] = [];
    let gone = 0;
    let limit = BATCH;
    // What is being read is skipped, so a batch may hold nothing that may go: then look further.
    for (;;) {
      const candidates = await catalog.evictionCandidates(limit);
      for (const { digest, kind, sizeBytes, upstream } of candidates) {
        if (gone >= missing) break;
        if (blobs.isOpen(digest)) continue;
        (kind === "blob" ? blobDigests : manifestDigests).push(digest);
        gone += sizeBytes;
        this.removed(upstream, sizeBytes);
      }
      if (gone > 0 || candidates.length < limit) break;
      limit *= 4;
    }
    // Rows first: a file without a row is collected at the next start, a row without a file would be a promise broken.
    await catalog.removeBlobs(blobDigests);
    await catalog.removeManifests(manifestDigests);
    for (const digest of [...blobDigests, ...manifestDigests]) memory.delete(digest);
    for (const digest of blobDigests) await blobs.remove(digest);
    this.#free = undefined;
    const count = blobDigests.length + manifestDigests.length;
    if (count > 0) {
      metrics.cacheEvictions.inc({ reason: "space" }, count);
      log.info({ blobs: blobDigests.length, manifests: manifestDigests.length, bytes: gone }, "evicted from the cache");
    }
    return gone;
  }
}
