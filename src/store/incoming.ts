import { createHash, type Hash } from "node:crypto";
import type { Bytes } from "../base/clock.ts";
import type { Digest, DigestAlgorithm } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import type { StagedUpload } from "./blobs.ts";

/** Who makes room on the disk for what is about to be written. */
export interface Room {
  /** @returns undefined where the bytes cannot fit; else gives the room back, once they are on the disk or given up */
  reserve(bytes: Bytes): Promise<{ release(): void } | undefined>;
}

/** One write takes so much: larger ones cost memory, smaller ones processor time. */
const BATCH_BYTES = 1024 * 1024;
const ROOM_STEP_BYTES = 64 * 1024 * 1024;
const FLUSH_BYTES = 32 * 1024 * 1024;
/** Re-hashing yields to the event loop after so much. */
const HASH_PIECE_BYTES = 512 * 1024;

/** The disk could not take the bytes: what was written of the file must not be relied on any more. */
export class DiskFault extends RegistryError {
  constructor(cause: unknown) {
    const code = (cause as NodeJS.ErrnoException | undefined)?.code;
    const full = cause === undefined || code === "ENOSPC" || code === "EDQUOT";
    super(
      "UNAVAILABLE",
      full
        ? "the registry's disk is full, the upload was given up: free space under storage.root or enlarge it, then push again"
        : `the registry's disk failed (${code ?? (cause as Error).message}), the upload was given up: check the disk under storage.root, then push again`,
      { cause, status: full ? 507 : 503 },
    );
  }
}

/** Ends the waiting for a body from outside. Not a promise to race with: each wait would stay attached to it until its end. */
export class Interruption {
  #interrupted = false;
  #reason: unknown;
  #wake: ((reason: unknown) => void) | undefined;

  /** The first one counts. */
  interrupt(reason: unknown): void {
    if (this.#interrupted) return;
    this.#interrupted = true;
    this.#reason = reason;
    this.#wake?.(reason);
  }

  throwIfInterrupted(): void {
    if (this.#interrupted) throw this.#reason;
  }

  /** Waits for the work, or for the interruption: then the work's outcome is dropped. One wait at a time. */
  async wait<T>(work: Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#wake = reject;
      work.then(resolve, reject);
      if (this.#interrupted) reject(this.#reason);
    });
  }
}

/** A hash, and how many bytes from the start of the file went through it. */
export interface RunningHash {
  algorithm: DigestAlgorithm;
  hash: Hash;
  sizeBytes: Bytes;
}

/**
 * The file of an upload while one request writes to it.
 *
 * While one batch is written and hashed, the next one gathers from the body; no third one is taken from the socket before the first is
 * on its way to the disk. After each FLUSH_BYTES the disk is set to work in the background, so that the fsync at the end is short.
 */
export class Incoming {
  readonly #staged: StagedUpload;
  readonly #room: Room;
  readonly #interruption: Interruption;
  #sizeBytes: Bytes;
  /** Undefined where the hash of what was there before is not known. */
  #running: RunningHash | undefined;
  #reserved: { endByte: Bytes; release(): void } | undefined;
  #writing: Promise<void> | undefined;
  #flushing: Promise<void> | undefined;
  #flushedBytes: Bytes;
  #fault: DiskFault | undefined;

  /** @param running taken over; ignored where it is not of all that the file has */
  constructor(
    staged: StagedUpload,
    sizeBytes: Bytes,
    running: RunningHash | undefined,
    deps: { room: Room; interruption: Interruption; algorithm: DigestAlgorithm },
  ) {
    this.#staged = staged;
    this.#sizeBytes = sizeBytes;
    this.#flushedBytes = sizeBytes;
    this.#room = deps.room;
    this.#interruption = deps.interruption;
    if (running?.sizeBytes === sizeBytes) this.#running = running;
    else if (sizeBytes === 0) {
      this.#running = { algorithm: deps.algorithm, hash: createHash(deps.algorithm), sizeBytes: 0 };
    }
  }

  get sizeBytes(): Bytes {
    return this.#sizeBytes;
  }

  get running(): RunningHash | undefined {
    return this.#running;
  }

  /**
   * Writes a body behind what is there. Where the body breaks off or is interrupted, what came of it is kept and its error goes on.
   * @param lengthBytes how long the body must be, where that is known
   * @throws RegistryError SIZE_INVALID: it ended cleanly with more or fewer bytes; none of them is kept
   * @throws DiskFault
   */
  async append(body: AsyncIterable<Buffer>, lengthBytes: Bytes | undefined): Promise<void> {
    const before = { sizeBytes: this.#sizeBytes, running: this.#running && copyOf(this.#running) };
    const chunks = body[Symbol.asyncIterator]();
    try {
      await this.#receive(chunks, lengthBytes);
    } catch (error) {
      // Not awaited: a body may let go only when its connection does, which is up to whoever hears of this error.
      chunks.return?.().catch(() => undefined);
      if (error instanceof RegistryError && error.code === "SIZE_INVALID") {
        await this.#onDisk(() => this.#staged.keep(before.sizeBytes));
        this.#sizeBytes = before.sizeBytes;
        this.#running = before.running;
      }
      throw error;
    }
  }

  async #receive(chunks: AsyncIterator<Buffer>, lengthBytes: Bytes | undefined): Promise<void> {
    const endByte = lengthBytes === undefined ? undefined : this.#sizeBytes + lengthBytes;
    let receivedBytes = 0;
    let batch: Buffer[] = [];
    let batchBytes = 0;
    const put = async (): Promise<void> => {
      const buffers = batch;
      const bytes = batchBytes;
      batch = [];
      batchBytes = 0;
      await this.#writing;
      if (this.#fault || bytes === 0) return;
      try {
        await this.#makeRoom(bytes, endByte);
      } catch (error) {
        this.#fail(error);
        return;
      }
      this.#writing = this.#write(buffers, bytes);
    };
    try {
      for (;;) {
        const next = await this.#interruption.wait(chunks.next());
        if (next.done === true) break;
        receivedBytes += next.value.length;
        if (lengthBytes !== undefined && receivedBytes > lengthBytes) throw wrongSize(lengthBytes, receivedBytes);
        // Now, while the processor has it at hand.
        this.#running?.hash.update(next.value);
        batch.push(next.value);
        batchBytes += next.value.length;
        if (batchBytes >= BATCH_BYTES) await put();
      }
      if (lengthBytes !== undefined && receivedBytes < lengthBytes) throw wrongSize(lengthBytes, receivedBytes);
    } finally {
      // Also where it broke off: on a slow line each byte has cost something.
      await put();
      await this.#settle();
    }
  }

  /** Waits for the disk. @throws DiskFault */
  async #settle(): Promise<void> {
    await this.#writing;
    await this.#flushing;
    this.#reserved?.release();
    this.#reserved = undefined;
    if (this.#fault) throw this.#fault;
  }

  /** @param endByte where the body ends, if that is known. @throws DiskFault where there is none */
  async #makeRoom(bytes: Bytes, endByte: Bytes | undefined): Promise<void> {
    const end = this.#sizeBytes + bytes;
    if (this.#reserved && end <= this.#reserved.endByte) return;
    // All that it was for is written.
    this.#reserved?.release();
    this.#reserved = undefined;
    // Of unknown length: as much again as is here, so that many small uploads do not claim what they never need.
    const rest = endByte === undefined ? this.#sizeBytes : endByte - this.#sizeBytes;
    const step = Math.max(bytes, Math.min(ROOM_STEP_BYTES, rest));
    const reservation = await this.#room.reserve(step);
    if (!reservation) throw new DiskFault(undefined);
    this.#reserved = { endByte: this.#sizeBytes + step, release: () => reservation.release() };
  }

  /** Never rejects: a fault is kept, and ends the waiting for the body. */
  async #write(buffers: readonly Buffer[], bytes: Bytes): Promise<void> {
    const written = this.#staged.write(buffers, this.#sizeBytes);
    if (this.#running) this.#running.sizeBytes += bytes;
    this.#sizeBytes += bytes;
    try {
      await written;
    } catch (error) {
      this.#fail(error);
      return;
    }
    if (this.#flushing || this.#sizeBytes - this.#flushedBytes < FLUSH_BYTES) return;
    this.#flushedBytes = this.#sizeBytes;
    this.#flushing = this.#staged
      .flush()
      .catch((error: unknown) => this.#fail(error))
      .finally(() => (this.#flushing = undefined));
  }

  #fail(cause: unknown): void {
    this.#fault ??= cause instanceof DiskFault ? cause : new DiskFault(cause);
    this.#interruption.interrupt(this.#fault);
  }

  async #onDisk<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw new DiskFault(error);
    }
  }

  /** The digest of all that is there. Consumes the running hash, or reads the file where there is none of that algorithm. @throws DiskFault */
  async digest(algorithm: DigestAlgorithm): Promise<Digest> {
    const running = this.#running?.algorithm === algorithm ? this.#running : await this.#hashFile(algorithm);
    this.#running = undefined;
    return `${algorithm}:${running.hash.digest("hex")}` as Digest;
  }

  async #hashFile(algorithm: DigestAlgorithm): Promise<RunningHash> {
    const running = { algorithm, hash: createHash(algorithm), sizeBytes: 0 };
    const piece = Buffer.allocUnsafe(Math.min(HASH_PIECE_BYTES, this.#sizeBytes));
    while (running.sizeBytes < this.#sizeBytes) {
      this.#interruption.throwIfInterrupted();
      const bytes = await this.#onDisk(() => this.#staged.read(piece, running.sizeBytes));
      if (bytes === 0) throw new DiskFault(new Error("the file is shorter than what was written"));
      running.hash.update(piece.subarray(0, bytes));
      running.sizeBytes += bytes;
    }
    return running;
  }

  /** Makes it the blob, whose content was proven. @throws DiskFault */
  async commit(digest: Digest): Promise<void> {
    await this.#onDisk(() => this.#staged.commit(digest));
  }
}

function copyOf({ algorithm, hash, sizeBytes }: RunningHash): RunningHash {
  return { algorithm, hash: hash.copy(), sizeBytes };
}

function wrongSize(expected: Bytes, received: Bytes): RegistryError {
  const more = received > expected;
  return new RegistryError(
    "SIZE_INVALID",
    `the request announced ${expected} bytes and sent ${more ? "more" : `only ${received}`}: none of them was kept, send them again`,
    { detail: { expected, ...(more ? {} : { received }) } },
  );
}
