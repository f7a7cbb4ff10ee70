import type { Hash } from "node:crypto";
import { proves, startHash } from "../oci/digest.ts";
import type { StagedBlob } from "../store/blobs.ts";

const HASH_PIECE_BYTES = 512 * 1024;
/** How much more of a file with holes must be sound before that is written down. */
const MARK_BYTES = 4 * 1024 * 1024;

/**
 * What a flight has on the disk, and what is known of it: the hash that follows the watermark, and the newest bytes before it.
 *
 * What is written in order is hashed at once. What came out of order, or was left by an earlier run, is read back from the file
 * by the pump: one at a time, in the background, as far as the watermark goes.
 */
export class StagedContent {
  readonly file: StagedBlob;
  readonly #onFault: (operation: string, error: unknown) => void;
  #watermark = 0;
  #hash: Hash;
  #hashed = 0;
  #pump: Promise<void> | undefined;
  #piece: Buffer | undefined;
  /** Grows with each restart: what the pump has read before belongs to nothing. */
  #epoch = 0;
  /** The newest bytes before the watermark, so that readers close behind it need no file. */
  #tail: { at: number; buffers: readonly Buffer[] } = { at: 0, buffers: [] };
  /** How much was written down to be sound; undefined while there are no holes. */
  #marked: number | undefined;
  #marking = false;

  /** @param presentBytes how much of it an earlier run left: unproven, hashed from now on */
  constructor(file: StagedBlob, presentBytes: number, onFault: (operation: string, error: unknown) => void) {
    this.file = file;
    this.#onFault = onFault;
    this.#hash = startHash(file.digest);
    this.follow(presentBytes);
  }

  /** Writes the next bytes of one connection; they count once the watermark has passed them. @throws Error of the disk */
  async write(buffers: readonly Buffer[], at: number): Promise<void> {
    if (this.#marked !== undefined && this.#watermark - this.#marked >= MARK_BYTES && !this.#marking)
      await this.#mark();
    await this.file.write(buffers, at);
    if (at === this.#watermark) this.#tail = { at, buffers };
    // In order: hash it while it is in the processor's cache.
    if (at !== this.#hashed || this.#pump) return;
    for (const buffer of buffers) {
      this.#hash.update(buffer);
      this.#hashed += buffer.length;
    }
  }

  /** @param watermark [0, watermark) has been written */
  follow(watermark: number): void {
    this.#watermark = watermark;
    // A failure is met again by whoever needs the hash.
    if (this.#hashed < watermark && !this.#pump) void this.#caughtUp().catch(() => undefined);
  }

  /** From now on there may be holes beyond the watermark. @throws Error of the disk */
  async allowHoles(): Promise<void> {
    const soundBytes = this.#watermark;
    await this.file.allowHoles(soundBytes);
    this.#marked = soundBytes;
  }

  /** All of it is wrong: what is written from now on is the content. The file is still to be cut. */
  restart(): void {
    this.#epoch++;
    this.#hash = startHash(this.file.digest);
    this.#hashed = 0;
    this.#watermark = 0;
    this.#tail = { at: 0, buffers: [] };
    this.#marked = undefined;
  }

  /**
   * Whether all before the watermark is what the digest names; to be asked once.
   * @throws Error where the file can't be read
   */
  async proves(): Promise<boolean> {
    await this.#caughtUp();
    return proves(this.#hash, this.file.digest);
  }

  /** All before the watermark, and the hash over it. @throws Error where the file can't be read */
  async sound(): Promise<{ sizeBytes: number; hash: Hash }> {
    await this.#caughtUp();
    return { sizeBytes: this.#hashed, hash: this.#hash };
  }

  /** Copies from memory what lies just before the watermark. @returns how many bytes, 0 where they are not in memory */
  copyTail(target: Buffer, position: number): number {
    let { at } = this.#tail;
    if (position < at) return 0;
    let copied = 0;
    for (const buffer of this.#tail.buffers) {
      const from = position + copied - at;
      if (from < buffer.length) copied += buffer.copy(target, copied, from);
      if (copied === target.length) break;
      at += buffer.length;
    }
    return copied;
  }

  /** Stops the pump and closes the file; nobody may be reading it any more. */
  async close(): Promise<void> {
    this.#epoch++;
    this.#watermark = 0;
    // A descriptor closed under a read could be another file's by the time the read runs.
    await this.#pump?.catch(() => undefined);
    await this.file.close();
  }

  /** Writes down, once in a while, how much is sound: the rest is what a crash costs. */
  async #mark(): Promise<void> {
    this.#marking = true;
    try {
      await this.allowHoles();
    } catch (error) {
      // The mark of before stays true; the next one is tried as much later.
      this.#marked = this.#watermark;
      this.#onFault("mark", error);
    } finally {
      this.#marking = false;
    }
  }

  async #caughtUp(): Promise<void> {
    while (this.#hashed < this.#watermark) await (this.#pump ??= this.#hashFromFile());
  }

  async #hashFromFile(): Promise<void> {
    const epoch = this.#epoch;
    const piece = (this.#piece ??= Buffer.allocUnsafe(HASH_PIECE_BYTES));
    try {
      while (this.#hashed < this.#watermark) {
        const wanted = Math.min(piece.length, this.#watermark - this.#hashed);
        const bytes = await this.file.read(piece.subarray(0, wanted), this.#hashed);
        if (epoch !== this.#epoch) return;
        if (bytes === 0) throw new Error("the staging file is shorter than what was written");
        this.#hash.update(piece.subarray(0, bytes));
        this.#hashed += bytes;
      }
    } catch (error) {
      this.#onFault("hash", error);
      throw error;
    } finally {
      this.#pump = undefined;
    }
  }
}
