import type { Hash } from "node:crypto";
import type { Clock } from "../base/clock.ts";
import { proves, type Digest } from "../oci/digest.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { RemoteBody } from "../remote/remote.ts";
import type { BlobReader } from "../store/blobs.ts";
import { DigestMismatch, NotAtSource, SourceRota, type BlobSource } from "./source.ts";

/** The last bytes of a body wait until its digest is proven, so that no client ever sees a wrong body end cleanly. */
export const HOLD_BACK_BYTES: number = 16 * 1024;

export interface PassThroughOptions {
  digest: Digest;
  sources: readonly BlobSource[];
  /** First byte wanted, 0-based. */
  firstByte: number;
  /** Last byte wanted, inclusive; undefined is the end of the blob. */
  lastByte?: number;
  /** What the client was told the blob's size is: another one is a fault. */
  sizeBytes: number | undefined;
  /** The hash over [0, firstByte): with it, what ends the blob is proven before it is given out. */
  hash?: Hash;
  clock: Clock;
  onMismatch(source: string, digest: Digest): void;
}

/**
 * One reader's own download, nothing stored: for a range of a cold blob, and for every pull that finds no room on the disk.
 * A break is mended by range on the same source, then on the next.
 */
export class PassThrough implements BlobReader {
  readonly #options: PassThroughOptions;
  readonly #rota: SourceRota;
  readonly #abort = new AbortController();
  #body: { remote: RemoteBody; chunks: AsyncIterator<Buffer>; source: BlobSource } | undefined;
  /** A source that ignores ranges sends from 0: what the reader has already is dropped. */
  #skipBytes = 0;
  #size: number | undefined;
  /** Next byte that the source sends, and next byte that the reader gets. */
  #received: number;
  #given: number;
  #queue: Buffer[] = [];
  #ended = false;

  constructor(options: PassThroughOptions) {
    this.#options = options;
    this.#rota = new SourceRota(options.sources);
    this.#received = options.firstByte;
    this.#given = options.firstByte;
    this.#size = options.sizeBytes;
  }

  get sizeBytes(): number | undefined {
    return this.#size;
  }

  /** Opens the source, so that the size is known and a refusal comes before any answer. @throws RemoteError, NotAtSource */
  async start(): Promise<void> {
    while (!this.#body) {
      const source = this.#rota.current;
      try {
        // While the size is unknown all may have come already, and beyond its end nothing can be asked for.
        const firstByte = this.#size === undefined ? Math.max(0, this.#received - 1) : this.#received;
        const remote = await source.open(firstByte, this.#options.lastByte, this.#abort.signal);
        if (!remote) throw new NotAtSource(`${source.name} does not have ${this.#options.digest}`);
        if (remote.sizeBytes !== undefined && this.#size !== undefined && remote.sizeBytes !== this.#size) {
          remote.body.destroy();
          throw new DigestMismatch(`${source.name} says ${remote.sizeBytes} bytes, it was ${this.#size} before`);
        }
        this.#size ??= remote.sizeBytes;
        this.#body = { remote, chunks: remote.body[Symbol.asyncIterator](), source };
        this.#skipBytes = this.#received - remote.firstByte;
      } catch (error) {
        this.#abort.signal.throwIfAborted();
        await this.#options.clock.sleep(this.#rota.failed(source, error), this.#abort.signal);
      }
    }
  }

  async read(target: Buffer, position: number): Promise<number> {
    if (position !== this.#given) throw new Error("a pass-through is read in order");
    for (;;) {
      const ready = this.#received - this.#given - (this.#ended || !this.#options.hash ? 0 : HOLD_BACK_BYTES);
      if (ready > 0) return this.#give(target, ready);
      if (this.#ended) return 0;
      await this.#pull();
    }
  }

  close(): void {
    this.#abort.abort();
    this.#body?.remote.body.destroy();
    this.#queue = [];
  }

  #give(target: Buffer, ready: number): number {
    let given = 0;
    while (given < Math.min(target.length, ready)) {
      const chunk = this.#queue[0];
      if (!chunk) break;
      const bytes = Math.min(chunk.length, target.length - given, ready - given);
      chunk.copy(target, given, 0, bytes);
      given += bytes;
      if (bytes === chunk.length) this.#queue.shift();
      else this.#queue[0] = chunk.subarray(bytes);
    }
    this.#given += given;
    return given;
  }

  get #endByte(): number | undefined {
    const { lastByte } = this.#options;
    return lastByte === undefined ? this.#size : lastByte + 1;
  }

  async #pull(): Promise<void> {
    await this.start();
    const body = this.#body;
    if (!body) return;
    try {
      const next = await body.chunks.next();
      if (!next.done) {
        this.#take(next.value, body.source);
        return;
      }
      if (this.#endByte !== undefined && this.#received < this.#endByte) {
        throw new RemoteError("interrupted", body.source.name, `ended at byte ${this.#received} of ${this.#endByte}`);
      }
    } catch (error) {
      this.#abort.signal.throwIfAborted();
      body.remote.body.destroy();
      this.#body = undefined;
      await this.#options.clock.sleep(this.#rota.failed(body.source, error), this.#abort.signal);
      return;
    }
    const { hash, digest } = this.#options;
    if (hash && !proves(hash, digest)) {
      this.#options.onMismatch(body.source.name, digest);
      throw new DigestMismatch(`${body.source.name} sent bytes that are not ${digest}`);
    }
    this.#ended = true;
  }

  #take(chunk: Buffer, source: BlobSource): void {
    let fresh = chunk.subarray(Math.min(this.#skipBytes, chunk.length));
    this.#skipBytes -= chunk.length - fresh.length;
    const missing = (this.#endByte ?? Infinity) - this.#received;
    if (fresh.length > missing) {
      if (this.#options.lastByte === undefined) throw new DigestMismatch(`${source.name} sent more bytes than it said`);
      // It ignores ranges, and goes on after the last byte that was asked for.
      fresh = fresh.subarray(0, missing);
      this.#ended = true;
      this.#body?.remote.body.destroy();
    }
    if (fresh.length === 0) return;
    this.#rota.progressed();
    this.#options.hash?.update(fresh);
    this.#received += fresh.length;
    this.#queue.push(fresh);
  }
}
