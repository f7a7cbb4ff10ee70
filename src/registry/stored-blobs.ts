import type { Clock } from "../base/clock.ts";
import { algorithmOf, digestOf, type Digest } from "../oci/digest.ts";
import { BlobFault, type BlobReader, type BlobStore } from "../store/blobs.ts";
import type { Catalog, Ledger } from "../store/catalog.ts";
import { MAX_ENTRY_BYTES, type MemoryCache } from "../store/memory.ts";
import { ProvingReader, proveStored } from "../store/proving-reader.ts";
import { attempt, Beliefs } from "./shared.ts";

export interface StoredBlobsDeps {
  catalog: Catalog;
  blobs: BlobStore;
  memory: MemoryCache;
  clock: Clock;
  /** Keeps the count of what is cached. */
  ledger: Ledger;
  /** A failure of the cache that no client notices. */
  onFault: (operation: string, error: unknown) => void;
}

/** How long the proof of a file is good: what a disk changes is found by the first full read a day later. */
const PROOF_LIFE_MS = 86_400_000;

/** Blobs whose bytes are here, cached or pushed: from memory or from their file, proven now and then; what is damaged is taken out of the way. */
export class StoredBlobs {
  readonly #deps: StoredBlobsDeps;
  /** Blobs whose file was hashed not long ago. */
  readonly #proven = new Beliefs();

  constructor(deps: StoredBlobsDeps) {
    this.#deps = deps;
  }

  /**
   * @param sizeBytes what the catalog says
   * @param head its bytes are not wanted: then nothing is returned
   * @throws BlobFault; what is missing or corrupt has been forgotten, so that whoever brings it next repairs it
   */
  async open(digest: Digest, sizeBytes: number, head: boolean): Promise<Buffer | BlobReader | undefined> {
    const { blobs, memory } = this.#deps;
    const remembered = memory.get(digest);
    if (remembered) return head ? undefined : remembered;
    let reader: (BlobReader & { sizeBytes: number }) | undefined;
    try {
      reader = await blobs.open(digest, sizeBytes);
      if (head) {
        reader.close();
        return undefined;
      }
      if (sizeBytes > MAX_ENTRY_BYTES) return this.#proving(reader, digest);
      const bytes = await readAll(reader, sizeBytes);
      reader.close();
      if (digestOf(bytes, algorithmOf(digest)) !== digest)
        throw new BlobFault("corrupt", `the file of ${digest} is damaged`);
      memory.set(digest, bytes);
      return bytes;
    } catch (error) {
      reader?.close();
      // Unreadable is not gone: the file stays for a disk that recovers.
      if (error instanceof BlobFault && error.fault !== "unreadable") await this.#retire(digest, sizeBytes);
      throw error;
    }
  }

  /** Notes that the bytes in the file have just been hashed. */
  proven(digest: Digest): void {
    this.#proven.believe(digest, this.#deps.clock.now(), PROOF_LIFE_MS);
  }

  /** The reader itself, or one that proves the file once more while it is read: the first to read it in a day pays for that. */
  #proving(reader: BlobReader & { sizeBytes: number }, digest: Digest): BlobReader {
    const { clock, onFault } = this.#deps;
    if (this.#proven.holds(digest, clock.now())) return reader;
    return new ProvingReader(reader, digest, (sound) => {
      if (sound) {
        this.proven(digest);
        return;
      }
      onFault("read blob", new BlobFault("corrupt", `the file of ${digest} is damaged`));
      void this.#retire(digest, reader.sizeBytes);
    });
  }

  /** Takes a damaged blob out of the way: whoever brings it anew repairs it. */
  async #retire(digest: Digest, sizeBytes: number): Promise<void> {
    const { catalog, blobs, ledger, onFault } = this.#deps;
    await attempt(onFault, "quarantine", () =>
      blobs.exclusive([digest], async () => {
        const fault = await proveStored(blobs, digest, sizeBytes).catch((error: unknown) => error);
        // A slow reader may tell of a file that has been replaced by a sound one; and unreadable is not gone.
        if (!(fault instanceof BlobFault) || fault.fault === "unreadable") return;
        ledger.removed(await catalog.retireBlob(digest));
        await blobs.quarantine(digest);
      }),
    );
  }
}

async function readAll(reader: BlobReader, sizeBytes: number): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(sizeBytes);
  for (let at = 0; at < sizeBytes;) {
    const read = await reader.read(bytes.subarray(at), at);
    if (read === 0) throw new BlobFault("corrupt", `the file ends at byte ${at} of ${sizeBytes}`);
    at += read;
  }
  return bytes;
}
