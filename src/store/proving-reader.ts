import type { Hash } from "node:crypto";
import { proves, startHash, type Digest } from "../oci/digest.ts";
import { BlobFault, type BlobReader, type BlobStore } from "./blobs.ts";

const PIECE_BYTES = 512 * 1024;

/**
 * Reads a stored blob to its end and proves it.
 * @param pace is awaited after every piece of that many bytes: whoever reads much and is in no hurry waits there
 * @throws BlobFault
 */
export async function proveStored(
  blobs: BlobStore,
  digest: Digest,
  sizeBytes: number,
  pace: (bytes: number) => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  const file = await blobs.open(digest, sizeBytes);
  try {
    const reader = new ProvingReader(file, digest, () => undefined);
    const buffer = Buffer.allocUnsafeSlow(Math.max(1, Math.min(PIECE_BYTES, sizeBytes)));
    for (let at = 0; at < sizeBytes;) {
      const bytes = await reader.read(buffer, at);
      at += bytes;
      await pace(bytes);
    }
    if (sizeBytes === 0 && !proves(startHash(digest), digest)) {
      throw new BlobFault("corrupt", `the file of ${digest} is empty`);
    }
  } catch (error) {
    if (error instanceof BlobFault) throw error;
    throw new BlobFault("unreadable", `the file of ${digest} is unreadable`, { cause: error });
  } finally {
    file.close();
  }
}

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
