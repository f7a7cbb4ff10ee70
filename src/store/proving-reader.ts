import type { Hash } from "node:crypto";
import { proves, startHash, type Digest } from "../oci/digest.ts";
import { BlobFault, type BlobReader } from "./blobs.ts";

/**
 * Proves a stored blob while it is read: a disk may have changed it since it came. Whoever reads all of it in order gets its last bytes
 * only after the proof; a part read from elsewhere proves nothing, and is given out as it is.
 * Costs 0.6 CPU seconds a GiB, so the caller does it now and then, not each time.
 */
export class ProvingReader implements BlobReader {
  readonly sizeBytes: number;
  readonly #inner: BlobReader;
  readonly #digest: Digest;
  readonly #hash: Hash;
  readonly #told: (sound: boolean) => void;
  #hashed = 0;

  /** @param told learns, once all has been read, whether it is what its digest names */
  constructor(inner: BlobReader & { sizeBytes: number }, digest: Digest, told: (sound: boolean) => void) {
    this.#inner = inner;
    this.sizeBytes = inner.sizeBytes;
    this.#digest = digest;
    this.#hash = startHash(digest);
    this.#told = told;
  }

  /** @throws BlobFault corrupt in place of the last bytes of a damaged blob */
  async read(target: Buffer, position: number): Promise<number> {
    const bytes = await this.#inner.read(target, position);
    if (position !== this.#hashed || bytes === 0) return bytes;
    this.#hash.update(target.subarray(0, bytes));
    this.#hashed += bytes;
    if (this.#hashed < this.sizeBytes) return bytes;
    const sound = proves(this.#hash, this.#digest);
    this.#told(sound);
    if (!sound) throw new BlobFault("corrupt", `the file of ${this.#digest} is damaged`);
    return bytes;
  }

  close(): void {
    this.#inner.close();
  }
}
