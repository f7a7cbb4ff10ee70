import type { Bytes, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import type { BlobStore, Leftover } from "../store/blobs.ts";
import type { Catalog, EvictionCandidate, Ledger, Removed } from "../store/catalog.ts";
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
  inFlight: () => ReadonlySet<Digest>;
}

const BATCH = 64;
/** A reading of the file system's free bytes is good for so long. */
const FREE_TTL_MS: Milliseconds = 500;

/**
 * Keeps the cache within its limits: `used + reserved + partial files ≤ cacheMaxSize` and `free − what is reserved and not yet written ≥ minFree`.
 * What goes: partial files that nobody fetches, then cached content in the order of its last use. What stays: whatever was pushed,
 * and whatever is being read. One eviction runs at a time.
 */
export class Evictor implements Space, Ledger {
  readonly #deps: EvictorDeps;
  readonly #used = new Map<string, Bytes>();
  #reserved = 0;
  /** How many of the reserved bytes are not on the disk yet. */
  #unwritten = 0;
  #turn: Promise<unknown> = Promise.resolve();
  #free: { bytes: Bytes; atMs: number } | undefined;

  constructor(deps: EvictorDeps) {
    this.#deps = deps;
  }

  /** Counts what is there. To be called once, before anything is reserved. */
  async start(): Promise<void> {
    for (const [upstream, bytes] of await this.#deps.catalog.cachedBytes()) this.#used.set(upstream, bytes);
  }

  get limits(): Limits {
    return this.#deps.limits;
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
  removed(rows: readonly Removed[]): void {
    for (const { upstream, sizeBytes } of rows) if (upstream !== null) this.added(upstream, -sizeBytes);
  }

  async reserve(bytes: Bytes, presentBytes: Bytes): Promise<Reservation | undefined> {
    let missing = bytes - presentBytes;
    const made = await this.#inTurn(async () => {
      if (!(await this.#makeRoom(bytes, missing))) return false;
      this.#reserved += bytes;
      this.#unwritten += missing;
      return true;
    });
    if (!made) return undefined;
    let held = true;
    return {
      written: (more) => {
        const fewer = Math.min(more, missing);
        missing -= fewer;
        this.#unwritten -= fewer;
        if (this.#free) this.#free.bytes -= more;
      },
      release: () => {
        if (!held) return;
        held = false;
        this.#reserved -= bytes;
        this.#unwritten -= missing;
        missing = 0;
      },
    };
  }

  /**
   * Room for what is pushed: it counts against the file system alone, and cached content makes way for it.
   * @returns undefined where the bytes cannot fit, whatever is evicted; else to be released once they are on the disk, or given up
   */
  async reserveForUpload(bytes: Bytes): Promise<{ release(): void } | undefined> {
    const made = await this.#inTurn(async () => {
      const missing = this.#unwritten + bytes + this.#deps.limits.minFree - (await this.#freeBytes());
      if (missing > 0 && !(await this.#clear(missing, await this.#forgotten()))) return false;
      this.#unwritten += bytes;
      return true;
    });
    if (!made) return undefined;
    let held = true;
    return {
      release: () => {
        if (!held) return;
        held = false;
        this.#unwritten -= bytes;
        if (this.#free) this.#free.bytes -= bytes;
      },
    };
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work);
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  /** @param bytes what the content takes in all; `unwritten` of them are not on the disk yet */
  async #makeRoom(bytes: Bytes, unwritten: Bytes): Promise<boolean> {
    const { limits } = this.#deps;
    // What is on its way can't be evicted: then nothing else needs to go either.
    if (this.#reserved + bytes > limits.cacheMaxSize) return false;
    const partials = await this.#forgotten();
    let used = this.#reserved;
    for (const each of [...this.#used.values(), ...partials.map(({ sizeBytes }) => sizeBytes)]) used += each;
    const missing = Math.max(
      used + bytes - limits.cacheMaxSize,
      this.#unwritten + unwritten + limits.minFree - (await this.#freeBytes()),
    );
    return missing <= 0 || this.#clear(missing, partials);
  }

  /** Partial files that nobody fetches. */
  async #forgotten(): Promise<Leftover[]> {
    const flying = this.#deps.inFlight();
    return (await this.#deps.blobs.leftovers()).filter(({ digest }) => !flying.has(digest));
  }

  /** @returns whether so much went */
  async #clear(missing: Bytes, partials: readonly Leftover[]): Promise<boolean> {
    const { blobs, usage, metrics } = this.#deps;
    let rest = missing;
    // What nobody fetches any more is the cheapest to lose.
    for (const { digest, sizeBytes } of partials.toSorted((a, b) => a.modifiedAtMs - b.modifiedAtMs)) {
      if (rest <= 0) return true;
      await blobs.removeLeftover(digest);
      metrics.cacheEvictions.inc({ reason: "partial" });
      this.#freed(sizeBytes);
      rest -= sizeBytes;
    }
    if (rest <= 0) return true;
    await usage.flush();
    return (await this.#evict(rest)) >= rest;
  }

  async #freeBytes(): Promise<Bytes> {
    if (!this.#free || performance.now() - this.#free.atMs > FREE_TTL_MS) {
      this.#free = { bytes: await this.#deps.blobs.freeBytes(), atMs: performance.now() };
    }
    return this.#free.bytes;
  }

  // Counted, not measured anew: some file systems free space only later, and would have us evict everything meanwhile.
  #freed(bytes: Bytes): void {
    if (this.#free) this.#free.bytes += bytes;
  }

  /** @returns how many bytes went: less than what is missing if nothing else may go */
  async #evict(missing: Bytes): Promise<Bytes> {
    const { catalog, blobs, inFlight } = this.#deps;
    let gone = 0;
    for (let limit = BATCH; gone < missing;) {
      const candidates = await catalog.evictionCandidates(limit);
      const chosen: EvictionCandidate[] = [];
      const flying = inFlight();
      let promised = 0;
      for (const candidate of candidates) {
        if (promised >= missing - gone) break;
        if (blobs.isOpen(candidate.digest) || flying.has(candidate.digest)) continue;
        chosen.push(candidate);
        promised += candidate.sizeBytes;
      }
      if (chosen.length > 0) {
        gone += await blobs.exclusive(
          chosen.map(({ digest }) => digest),
          async () => bytesOf(await this.#remove(chosen, "space")),
        );
      } else if (candidates.length < limit) break;
      // What is in use is skipped, so a batch may hold nothing that may go: then look further.
      else limit *= 4;
    }
    return gone;
  }

  /** Takes contents away that somebody has chosen, but for those in use. */
  async purge(contents: readonly EvictionCandidate[]): Promise<{ contents: number; bytes: Bytes; inUse: number }> {
    const { blobs, inFlight } = this.#deps;
    const flying = inFlight();
    const free = contents.filter(({ digest }) => !blobs.isOpen(digest) && !flying.has(digest));
    const purged = { contents: 0, bytes: 0, inUse: contents.length - free.length };
    for (let at = 0; at < free.length; at += BATCH) {
      const chosen = free.slice(at, at + BATCH);
      const digests = chosen.map(({ digest }) => digest);
      const removed = await blobs.exclusive(digests, () => this.#remove(chosen, "purge"));
      purged.contents += removed.length;
      purged.bytes += bytesOf(removed);
    }
    return purged;
  }

  async #remove(chosen: readonly EvictionCandidate[], reason: "space" | "purge"): Promise<readonly Removed[]> {
    const { catalog, blobs, memory, inFlight, log, metrics } = this.#deps;
    const digestsOf = (kind: EvictionCandidate["kind"]): Digest[] =>
      chosen.filter((candidate) => candidate.kind === kind).map(({ digest }) => digest);
    // Rows first: a file without a row is collected at the next start, a row without a file would be a promise broken.
    const removed = [
      ...(await catalog.evictBlobs(digestsOf("blob"))),
      ...(await catalog.evictManifests(digestsOf("manifest"))),
    ];
    this.removed(removed);
    const bytes = bytesOf(removed);
    for (const { digest } of chosen) memory.delete(digest);
    for (const digest of digestsOf("blob")) {
      // It may have been pushed since it was chosen, or be coming back.
      if (inFlight().has(digest) || (await catalog.hasBlob(digest))) continue;
      await blobs.remove(digest).catch((error: unknown) => log.warn({ digest, err: error }, "could not remove a file"));
    }
    this.#freed(bytes);
    metrics.cacheEvictions.inc({ reason }, removed.length);
    log.info({ reason, contents: removed.length, bytes }, "evicted from the cache");
    return removed;
  }
}

function bytesOf(removed: readonly Removed[]): Bytes {
  return removed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}
