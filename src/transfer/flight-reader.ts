import type { ByteRange } from "../oci/range.ts";
import type { BlobReader } from "../store/blobs.ts";
import type { PassThrough } from "./pass-through.ts";
import { DigestMismatch } from "./source.ts";

/** A reader that starts no more than this beyond the watermark waits for it. */
const FAR_BYTES = 8 * 1024 * 1024;

/** So many readers of far ranges have connections of their own; more would leave none to the fills, and wait for theirs. */
const MAX_AHEAD = 4;
let ahead = 0;

/** The face a flight shows to its readers. */
export interface FlightView {
  size(): number | undefined;
  /** Grows when the fill starts anew from byte 0: whoever was given bytes of an older one cannot go on. */
  generation(): number;
  /** Bytes [0, readable) may be given out. */
  readable(): number;
  /** Whether the digest is proven: what is readable is all. */
  finished(): boolean;
  failure(): unknown;
  /** Where the staging file ends for want of room; undefined while there is room. */
  spilled(): number | undefined;
  /** @param sizeBytes what the reader's client was told */
  passThrough(from: { firstByte: number; lastByte: number | undefined; sizeBytes: number | undefined }): PassThrough;
  /** Copies from memory what lies just before the watermark. @returns how many bytes, 0 where they are not in memory */
  copyTail(target: Buffer, position: number): number;
  readFile(target: Buffer, position: number): Promise<number>;
  /** Resolves when any of the above may have changed. */
  change(): Promise<void>;
}

/** Reads a flight's staging file behind the watermark; goes on alone, from upstream, where the flight can't serve it. */
export class FlightReader implements BlobReader {
  readonly #flight: FlightView;
  readonly #release: () => void;
  #sizeBytes: number | undefined;
  #generation: number;
  #given = false;
  #range: ByteRange | undefined;
  #alone: PassThrough | undefined;
  #isAhead = false;
  #closed = false;

  /** @param release to be called when the reader is closed */
  constructor(flight: FlightView, release: () => void) {
    this.#flight = flight;
    this.#release = release;
    this.#generation = flight.generation();
    this.#sizeBytes = flight.size();
  }

  get sizeBytes(): number | undefined {
    return this.#sizeBytes;
  }

  get passedThrough(): boolean {
    return this.#flight.spilled() === 0;
  }

  /** Where nothing could be stored, learns the size from the reader's own download. */
  async start(): Promise<void> {
    if (this.#flight.spilled() !== 0) return;
    this.#alone = this.#passThrough(0);
    await this.#alone.start();
    this.#sizeBytes ??= this.#alone.sizeBytes;
  }

  narrow(range: ByteRange): void {
    this.#range = range;
    const distance = range.firstByte - Math.max(0, this.#flight.readable());
    if (this.#alone) {
      this.#alone.close();
      this.#alone = this.#passThrough(range.firstByte);
    } else if (distance > FAR_BYTES && ahead < MAX_AHEAD) {
      // Waiting for all that lies before it would take longer than to ask for just that range, while the fill goes on.
      this.#isAhead = true;
      ahead++;
      this.#alone = this.#passThrough(range.firstByte);
    }
  }

  async read(target: Buffer, position: number): Promise<number> {
    for (;;) {
      if (this.#closed) throw new Error("read after close");
      if (this.#alone) return this.#alone.read(target, position);
      const failure = this.#flight.failure();
      if (failure !== undefined) throw failure;
      this.#keepUp();
      const wanted = Math.min(target.length, this.#flight.readable() - position);
      if (wanted > 0) {
        this.#checkSize();
        const into = wanted === target.length ? target : target.subarray(0, wanted);
        const bytes = this.#flight.copyTail(into, position) || (await this.#flight.readFile(into, position));
        // The fill started anew during the read: these may be bytes of neither.
        if (this.#generation !== this.#flight.generation()) continue;
        if (bytes === 0) throw new Error("the staging file is shorter than what was written");
        this.#given = true;
        return bytes;
      }
      if (this.#flight.finished()) {
        this.#checkSize();
        return 0;
      }
      const spilledAt = this.#flight.spilled();
      if (spilledAt === undefined) await this.#flight.change();
      else if (position === spilledAt || this.#range) this.#alone = this.#passThrough(position);
      else throw new Error("what was sent so far can't be proven any more");
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#isAhead) ahead--;
    this.#alone?.close();
    this.#release();
  }

  #keepUp(): void {
    if (this.#generation === this.#flight.generation()) return;
    if (this.#given) throw new DigestMismatch("bytes that were already sent turned out to be wrong");
    this.#generation = this.#flight.generation();
  }

  #checkSize(): void {
    if (this.#sizeBytes !== undefined && this.#sizeBytes !== this.#flight.size()) {
      throw new DigestMismatch(`the client was told ${this.#sizeBytes} bytes, there are ${this.#flight.size()}`);
    }
  }

  #passThrough(firstByte: number): PassThrough {
    const size = this.#sizeBytes;
    const lastByte = this.#range?.lastByte;
    return this.#flight.passThrough({
      firstByte,
      lastByte: size !== undefined && lastByte === size - 1 ? undefined : lastByte,
      sizeBytes: size,
    });
  }
}
