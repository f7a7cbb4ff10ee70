import type { Digest } from "../oci/digest.ts";

/** Larger content is read from its file each time. */
export const MAX_ENTRY_BYTES: number = 256 * 1024;

/**
 * Manifests and small blobs in memory, least recently used first out. Content is named by its digest, so an entry can never be stale;
 * who may read it is asked of the catalog before.
 */
export class MemoryCache {
  readonly #capacityBytes: number;
  readonly #entries = new Map<Digest, Buffer>();
  #bytes = 0;

  constructor(capacityBytes: number) {
    this.#capacityBytes = capacityBytes;
  }

  get(digest: Digest): Buffer | undefined {
    const entry = this.#entries.get(digest);
    if (entry) {
      // A Map iterates in order of insertion: to the end with what was used.
      this.#entries.delete(digest);
      this.#entries.set(digest, entry);
    }
    return entry;
  }

  /** @param content already proven to be what the digest names */
  set(digest: Digest, content: Buffer): void {
    if (content.length > MAX_ENTRY_BYTES || this.#entries.has(digest)) return;
    this.#entries.set(digest, content);
    this.#bytes += content.length;
    for (const [oldest, dropped] of this.#entries) {
      if (this.#bytes <= this.#capacityBytes) return;
      this.#entries.delete(oldest);
      this.#bytes -= dropped.length;
    }
  }

  delete(digest: Digest): void {
    const entry = this.#entries.get(digest);
    if (!entry) return;
    this.#entries.delete(digest);
    this.#bytes -= entry.length;
  }
}
