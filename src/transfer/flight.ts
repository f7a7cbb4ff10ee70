import type { Hash } from "node:crypto";
import type { Bytes, Clock, Milliseconds } from "../base/clock.ts";
import { proves, startHash, type Digest } from "../oci/digest.ts";
import type { ByteRange } from "../oci/range.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { RemoteBody } from "../remote/remote.ts";
import { PARALLEL_WINDOW_BYTES, type BlobReader, type BlobStore, type StagedBlob } from "../store/blobs.ts";
import { HOLD_BACK_BYTES, PassThrough } from "./pass-through.ts";
import { DigestMismatch, NotAtSource, SourceRota, type BlobSource } from "./source.ts";

/** When and how one blob is read over several connections. */
export interface RangePolicy {
  /** At most so many at once; 1 turns ranges off. */
  connections: number;
  /** Smaller blobs come over one. */
  minSize: Bytes;
  /** What one request asks for. */
  segment: Bytes;
  /** Bytes per second: a connection that is faster than this stays alone. */
  slowerThan: Bytes;
}

/** Room on the disk, held for one flight. */
export interface Reservation {
  release(): void;
}

/** Who makes room. */
export interface Space {
  /** @returns undefined where the bytes cannot fit, whatever is evicted */
  reserve(bytes: Bytes): Promise<Reservation | undefined>;
}

export interface FlightPlan {
  digest: Digest;
  /** In the order to be asked; at least one. */
  sources: readonly BlobSource[];
  /** Other holders of the digest: asked only once one of `sources` has shown that it has the blob, since they say nothing about the right to it. */
  spares: readonly BlobSource[];
  /** What a manifest says the size is: decides only whether to ask for ranges. */
  claimedSizeBytes: Bytes | undefined;
  ranges: RangePolicy;
  /** Records the blob, whose file is in place. */
  committed(sizeBytes: Bytes): Promise<void>;
  /** The flight is over, however it went. */
  ended(): void;
}

export interface FlightDeps {
  store: BlobStore;
  space: Space;
  clock: Clock;
  /** A failure of the cache that no client notices. */
  onFault(operation: string, error: unknown): void;
  onMismatch(source: string, digest: Digest): void;
}

/** A stretch of the blob that one connection fetches: [at, end) is still to come. */
interface Segment {
  at: number;
  end: number;
}

const BATCH_BYTES = 1024 * 1024;
const HASH_PIECE_BYTES = 512 * 1024;
const MEASURE_MS: Milliseconds = 100;
/** A fill that nobody waits for any more goes on when no more than this is missing. */
const LITTLE_BYTES = 32 * 1024 * 1024;
/** A reader that starts no more than this beyond the watermark waits for it. */
const FAR_BYTES = 8 * 1024 * 1024;
/** How often bytes of several origins that proved wrong together are fetched anew. */
const MAX_RESTARTS = 2;

/** Why the fill ended without failing: the disk can't take more, so each reader goes on alone. */
class NoRoom extends Error {}
class Paused extends Error {}

/**
 * One download of one blob, read by any number of readers.
 *
 * The fill reads the source once and writes a staging file; `#contiguous` is the watermark: [0, #contiguous) is in the file.
 * Every reader reads the file behind the watermark at its own pace, so a slow one throttles nobody and a late one starts at byte 0.
 *
 * opening → filling → proven → committed
 *              ├→ failed    every reader learns it; the partial file is kept unless its bytes are wrong
 *              ├→ paused    nobody waits and much is missing: the partial file is kept
 *              └→ spilled   no room: the file ends at #spilledAt, beyond it each reader has a download of its own
 *
 * Invariants: the last HOLD_BACK_BYTES are given out only when the digest is proven; segments never overlap and lie within
 * PARALLEL_WINDOW_BYTES of the watermark; what a crash leaves is re-hashed before it counts.
 */
export class Flight {
  readonly digest: Digest;
  /** Resolves when the flight has ended, however it did; never rejects. */
  readonly ended: Promise<void>;
  readonly #plan: FlightPlan;
  readonly #deps: FlightDeps;
  #rota: SourceRota;
  readonly #abort = new AbortController();

  #staged: StagedBlob | undefined;
  #reservation: Reservation | undefined;
  #size: number | undefined;
  #state: "opening" | "filling" | "proven" | "failed" | "paused" | "spilled" = "opening";
  #error: unknown;
  /** Grows when the fill starts anew from byte 0: who has been given bytes of an older one cannot go on. */
  #generation = 0;
  #interest = 0;
  #filledBy = new Set<BlobSource>();
  #resumed = false;
  #restarts = 0;
  #finished = false;

  #active: Segment[] = [];
  #todo: Segment[] = [];
  /** First byte that no segment covers. */
  #frontier = 0;
  #contiguous = 0;
  #helpers: Promise<void>[] = [];
  #addHelpers: (count: number) => void = () => undefined;
  #signal: AbortSignal;
  #ranged = false;
  #firstByteAtMs: number | undefined;
  #measured = 0;
  #slow: boolean | undefined;

  #hash: Hash;
  #hashed = 0;
  #pump: Promise<void> | undefined;
  #spilledAt: number | undefined;
  /** The newest bytes before the watermark, so that readers close behind it need no file. */
  #tail: { at: number; buffers: readonly Buffer[] } = { at: 0, buffers: [] };

  #wake = Promise.withResolvers<void>();

  /** @param after resolves when an earlier flight of the same digest has let go of its file */
  constructor(plan: FlightPlan, deps: FlightDeps, after?: Promise<void>) {
    this.digest = plan.digest;
    this.#plan = plan;
    this.#deps = deps;
    this.#rota = new SourceRota(plan.sources);
    this.#hash = startHash(plan.digest);
    this.#signal = this.#abort.signal;
    this.ended = this.#run(after);
  }

  get progress(): { digest: Digest; sizeBytes: number | undefined; receivedBytes: number; readers: number } {
    return { digest: this.digest, sizeBytes: this.#size, receivedBytes: this.#contiguous, readers: this.#interest };
  }

  /** Whether a newcomer can be served by this flight. */
  get joinable(): boolean {
    return this.#state === "opening" || this.#state === "filling" || this.#state === "proven";
  }

  /** Keeps the fill going until released, as a reader does. */
  hold(): () => void {
    this.#interest++;
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#interest--;
      this.#pauseIfForgotten();
    };
  }

  /** @throws RemoteError, NotAtSource, DigestMismatch where the blob can't be had */
  async reader(): Promise<BlobReader> {
    const release = this.hold();
    try {
      while (this.#state === "opening") await this.#wake.promise;
      if (this.#state === "failed" || this.#state === "paused") throw this.#error;
      const reader = new FlightReader(this.#view, release);
      await reader.start();
      return reader;
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Resolves once the blob is proven. @throws as {@link reader} */
  async proven(): Promise<void> {
    while (this.#state === "opening" || this.#state === "filling") await this.#wake.promise;
    if (this.#state !== "proven") throw this.#error ?? new Error("there is no room to keep it");
  }

  /** Stops the fill and keeps what is there for a later start. */
  async stop(): Promise<void> {
    this.#abort.abort(new Paused("the daemon is stopping"));
    await this.ended;
  }

  // ---- the fill ----

  async #run(after: Promise<void> | undefined): Promise<void> {
    try {
      // An earlier flight of this digest may still be putting its partial file in order.
      await after;
      await this.#fill();
      await this.#commit();
    } catch (error) {
      await this.#end(error);
    } finally {
      this.#reservation?.release();
      this.#finished = true;
      this.#plan.ended();
      this.#changed();
      // Readers may still hold the file: the last of them closes it.
      this.#closeIfUnused();
    }
  }

  async #fill(): Promise<void> {
    try {
      const { staged, sizeBytes } = await this.#deps.store.stage(this.digest);
      this.#staged = staged;
      this.#restartAt(sizeBytes);
      if (sizeBytes > 0 && sizeBytes === this.#plan.claimedSizeBytes) this.#size = sizeBytes;
    } catch (error) {
      this.#deps.onFault("stage", error);
      throw new NoRoom("the staging file can't be made", { cause: error });
    }
    for (;;) {
      try {
        await this.#fetchAll();
      } catch (error) {
        // What an earlier run left may belong to nothing that upstream has now.
        if (!this.#resumed || !(error instanceof RemoteError) || error.fault !== "protocol") throw error;
        await this.#startOver();
        continue;
      }
      await this.#pumpHash();
      if (proves(this.#hash, this.digest)) return;
      await this.#startOver();
    }
  }

  /** After a wrong digest: once more from the start where the bytes came from several places, else from the next source. */
  async #startOver(): Promise<void> {
    const [only] = this.#filledBy;
    const mixed = this.#filledBy.size !== 1 || this.#resumed;
    const blamed = only ?? this.#plan.sources[0];
    const error = new DigestMismatch(`${blamed?.name} sent bytes that are not ${this.digest}`);
    this.#deps.onMismatch(blamed?.name ?? "", this.digest);
    if (!mixed) this.#rota.skip(error);
    else if (++this.#restarts > MAX_RESTARTS) throw error;
    else this.#rota = new SourceRota(this.#plan.sources);
    await this.#pump?.catch(() => undefined);
    this.#generation++;
    this.#size = undefined;
    this.#hash = startHash(this.digest);
    this.#hashed = 0;
    await this.#staged?.keep(0);
    this.#restartAt(0);
    this.#changed();
  }

  #restartAt(offset: number): void {
    this.#resumed = offset > 0;
    this.#filledBy.clear();
    this.#active = [];
    this.#todo = [];
    this.#frontier = offset;
    this.#contiguous = offset;
    this.#tail = { at: 0, buffers: [] };
    this.#slow = undefined;
    this.#measured = 0;
    this.#firstByteAtMs = undefined;
    const { connections, minSize } = this.#plan.ranges;
    // A claimed size is a manifest's word; a wrong one costs a request, not a byte.
    this.#ranged = connections > 1 && (this.#plan.claimedSizeBytes ?? 0) - offset >= minSize;
    if (offset > 0) void this.#pumpHash();
  }

  /** Fetches all that is missing: over one connection, and over more once that one has proven slow. */
  async #fetchAll(): Promise<void> {
    const fill = new AbortController();
    this.#signal = AbortSignal.any([this.#abort.signal, fill.signal]);
    this.#helpers = [];
    this.#addHelpers = (count) => {
      for (let i = 0; i < count; i++) {
        const helper = this.#work();
        helper.catch(stop);
        this.#helpers.push(helper);
      }
    };
    const stop = (error: unknown): void => {
      fill.abort(error);
      this.#changed();
    };
    try {
      await this.#work();
      await Promise.all(this.#helpers);
    } catch (error) {
      stop(error);
      await Promise.allSettled(this.#helpers);
      this.#signal.throwIfAborted();
    }
  }

  /** One connection: takes segments until none is left. */
  async #work(): Promise<void> {
    for (;;) {
      const segment = await this.#take();
      if (!segment) return;
      const source = this.#rota.current;
      try {
        await this.#fetch(segment, source);
      } catch (error) {
        this.#signal.throwIfAborted();
        if (error instanceof NoRoom) throw error;
        this.#giveBack(segment);
        await this.#deps.clock.sleep(this.#rota.failed(source, error), this.#signal);
      }
    }
  }

  async #take(): Promise<Segment | undefined> {
    for (;;) {
      this.#signal.throwIfAborted();
      const back = this.#todo.shift();
      if (back) {
        this.#active.push(back);
        return back;
      }
      const end = this.#size ?? Infinity;
      if (this.#frontier >= end) return undefined;
      // A fast connection takes all the rest; slow ones take turns, none too far ahead.
      const turns = this.#ranged && this.#slow !== false;
      const { segment: step } = this.#plan.ranges;
      if (!turns || this.#frontier + step - this.#contiguous <= PARALLEL_WINDOW_BYTES) {
        const segment = { at: this.#frontier, end: turns ? Math.min(end, this.#frontier + step) : end };
        this.#frontier = segment.end;
        this.#active.push(segment);
        return segment;
      }
      await this.#wake.promise;
    }
  }

  #giveBack(segment: Segment): void {
    this.#active = this.#active.filter((other) => other !== segment);
    if (segment.end === this.#frontier) this.#frontier = segment.at;
    else if (segment.at < segment.end) this.#todo = [...this.#todo, segment].sort((a, b) => a.at - b.at);
  }

  async #fetch(segment: Segment, source: BlobSource): Promise<void> {
    const lastByte =
      this.#ranged && segment.end !== this.#size && segment.end !== Infinity ? segment.end - 1 : undefined;
    const remote = await source.open(segment.at, lastByte, this.#signal);
    if (!remote) throw new NotAtSource(`${source.name} does not have ${this.digest}`);
    try {
      await this.#opened(remote, segment, source);
      await this.#receive(remote, segment, source);
    } finally {
      remote.body.destroy();
    }
    this.#active = this.#active.filter((other) => other !== segment);
    this.#advance();
  }

  /** The head of an answer is here: learn the size, find room, and see whether the source knows ranges. */
  async #opened(remote: RemoteBody, segment: Segment, source: BlobSource): Promise<void> {
    if (this.#firstByteAtMs === undefined) {
      this.#firstByteAtMs = performance.now();
      this.#rota.admit(this.#plan.spares);
    }
    if (remote.firstByte > segment.at) {
      throw new RemoteError("protocol", source.name, `answered from byte ${remote.firstByte}, asked for ${segment.at}`);
    }
    if (this.#size !== undefined && remote.sizeBytes !== undefined && remote.sizeBytes !== this.#size) {
      throw new RemoteError("protocol", source.name, `says ${remote.sizeBytes} bytes, it was ${this.#size} before`);
    }
    if (!remote.partial && segment.end === this.#frontier) {
      // It sends all, asked for a part or not. Nothing lies beyond the frontier yet, so this connection takes all.
      this.#ranged = false;
      segment.end = this.#size ?? Infinity;
      this.#frontier = segment.end;
    }
    if (remote.sizeBytes !== undefined && this.#size === undefined) await this.#learnSize(remote.sizeBytes, source);
    if (this.#state === "opening") {
      this.#state = "filling";
      this.#changed();
    }
  }

  async #learnSize(sizeBytes: number, source: BlobSource): Promise<void> {
    if (sizeBytes < this.#contiguous) {
      throw new RemoteError("protocol", source.name, `says ${sizeBytes} bytes, ${this.#contiguous} are here already`);
    }
    this.#size = sizeBytes;
    this.#frontier = Math.min(this.#frontier, sizeBytes);
    for (const segment of this.#active) segment.end = Math.min(segment.end, sizeBytes);
    const room = await this.#deps.space.reserve(sizeBytes - this.#contiguous).catch((error: unknown) => {
      this.#deps.onFault("reserve", error);
      return undefined;
    });
    if (!room) throw new NoRoom("there is no room for it");
    this.#reservation?.release();
    this.#reservation = room;
  }

  async #receive(remote: RemoteBody, segment: Segment, source: BlobSource): Promise<void> {
    let skip = segment.at - remote.firstByte;
    let batch: Buffer[] = [];
    let batched = 0;
    let failure: unknown;
    let writing: Promise<void> | undefined;
    // One write at a time: what arrives meanwhile makes up the next.
    const flush = (): Promise<void> => {
      const buffers = batch;
      batch = [];
      batched = 0;
      return this.#store(buffers, segment, source).then(
        () => {
          writing = batch.length > 0 ? flush() : undefined;
        },
        (error: unknown) => {
          failure = error;
          writing = undefined;
        },
      );
    };
    let received = segment.at;
    for await (const chunk of remote.body) {
      if (failure !== undefined) throw failure;
      let fresh = skip > 0 ? chunk.subarray(Math.min(skip, chunk.length)) : chunk;
      skip -= chunk.length - fresh.length;
      if (received + fresh.length > segment.end) {
        if (segment.end === this.#size) {
          throw new RemoteError("protocol", source.name, `sent more than the ${this.#size} bytes it said`);
        }
        fresh = fresh.subarray(0, segment.end - received);
      }
      // Only a source that ignores ranges sends on after the segment: an answer that fits is read to its end, so that its connection is used again.
      if (fresh.length === 0) {
        if (received === segment.end) break;
        continue;
      }
      received += fresh.length;
      batch.push(fresh);
      batched += fresh.length;
      writing ??= flush();
      if (batched >= BATCH_BYTES) await writing;
    }
    while (writing) await writing;
    if (failure !== undefined) throw failure;
    if (segment.end === Infinity) {
      // No length was ever said: the digest alone tells whether this is all.
      this.#size = received;
      segment.end = received;
      this.#frontier = received;
    }
    if (received < segment.end) {
      throw new RemoteError("interrupted", source.name, `ended at byte ${received} of ${segment.end}`);
    }
  }

  async #store(buffers: Buffer[], segment: Segment, source: BlobSource): Promise<void> {
    const at = segment.at;
    try {
      await this.#staged?.write(buffers, at);
    } catch (error) {
      this.#deps.onFault("write", error);
      throw new NoRoom("the staging file can't be written", { cause: error });
    }
    this.#rota.progressed();
    this.#filledBy.add(source);
    for (const buffer of buffers) {
      // In order: hash it while it is in the processor's cache. Out of order: the pump reads it back.
      if (segment.at === this.#hashed && !this.#pump) {
        this.#hash.update(buffer);
        this.#hashed += buffer.length;
      }
      segment.at += buffer.length;
      this.#measured += buffer.length;
    }
    if (at === this.#contiguous) this.#tail = { at, buffers };
    this.#advance();
    await this.#measure();
  }

  /** Raises the watermark to the first byte that is missing. */
  #advance(): void {
    let first = this.#frontier;
    for (const segment of this.#active) first = Math.min(first, segment.at);
    for (const segment of this.#todo) first = Math.min(first, segment.at);
    if (first <= this.#contiguous) return;
    this.#contiguous = first;
    if (this.#hashed < this.#contiguous) void this.#pumpHash();
    this.#changed();
  }

  /** After a tenth of a second, tells whether one connection is fast enough; if not, more are opened. */
  async #measure(): Promise<void> {
    if (!this.#ranged || this.#slow !== undefined || this.#firstByteAtMs === undefined) return;
    const elapsedMs = performance.now() - this.#firstByteAtMs;
    if (elapsedMs < MEASURE_MS) return;
    this.#slow = (this.#measured / elapsedMs) * 1000 < this.#plan.ranges.slowerThan;
    if (!this.#slow) return;
    await this.#staged?.becomeParallel();
    this.#addHelpers(this.#plan.ranges.connections - 1);
  }

  /** Hashes what lies between the hash and the watermark, from the file. */
  #pumpHash(): Promise<void> {
    this.#pump ??= (async () => {
      const piece = Buffer.allocUnsafe(HASH_PIECE_BYTES);
      while (this.#staged && this.#hashed < this.#contiguous) {
        const wanted = Math.min(piece.length, this.#contiguous - this.#hashed);
        const bytes = await this.#staged.read(piece.subarray(0, wanted), this.#hashed);
        if (bytes === 0) throw new Error("the staging file is shorter than what was written");
        this.#hash.update(piece.subarray(0, bytes));
        this.#hashed += bytes;
      }
    })()
      .catch((error: unknown) => {
        this.#deps.onFault("hash", error);
        throw new NoRoom("the staging file can't be read", { cause: error });
      })
      .finally(() => (this.#pump = undefined));
    // Who needs the result awaits it; here only the rejection must not go unheard.
    this.#pump.catch(() => undefined);
    return this.#pump;
  }

  async #commit(): Promise<void> {
    // Proven is enough for readers: they get the last bytes while the disk is still busy.
    this.#state = "proven";
    this.#changed();
    try {
      await this.#staged?.commit();
      await this.#plan.committed(this.#size ?? 0);
    } catch (error) {
      this.#deps.onFault("commit", error);
      await this.#staged?.discard().catch(() => undefined);
      await this.#deps.store.remove(this.digest).catch(() => undefined);
    }
  }

  async #end(error: unknown): Promise<void> {
    this.#error = error;
    if (error instanceof NoRoom) {
      await this.#spill();
      return;
    }
    const paused = error instanceof Paused;
    try {
      await this.#pump?.catch(() => undefined);
      if (error instanceof DigestMismatch || this.#contiguous === 0) await this.#staged?.discard();
      else await this.#staged?.keep(this.#contiguous);
    } catch (fault) {
      this.#deps.onFault("keep", fault);
    }
    this.#state = paused ? "paused" : "failed";
  }

  async #spill(): Promise<void> {
    try {
      await this.#pumpHash();
      this.#spilledAt = this.#hashed;
      // Readers have it open; its space is free when the last of them is done.
      await this.#staged?.discard();
    } catch (fault) {
      this.#deps.onFault("spill", fault);
      this.#hash = startHash(this.digest);
      this.#spilledAt = 0;
    }
    this.#contiguous = this.#spilledAt;
    this.#state = "spilled";
  }

  #pauseIfForgotten(): void {
    if (this.#interest > 0) return;
    if (this.#state === "filling" || this.#state === "opening") {
      const missing = (this.#size ?? this.#plan.claimedSizeBytes ?? Infinity) - this.#contiguous;
      if (missing > LITTLE_BYTES) this.#abort.abort(new Paused("nobody waits for it"));
    }
    this.#closeIfUnused();
  }

  #closeIfUnused(): void {
    if (!this.#finished || this.#interest > 0 || !this.#staged) return;
    const staged = this.#staged;
    this.#staged = undefined;
    staged.close().catch((error: unknown) => this.#deps.onFault("close", error));
  }

  #changed(): void {
    const woken = this.#wake;
    this.#wake = Promise.withResolvers<void>();
    woken.resolve();
  }

  // ---- what a reader sees ----

  readonly #view: FlightView = {
    size: () => this.#size,
    generation: () => this.#generation,
    readable: () => this.#readable(),
    finished: () => this.#state === "proven",
    failure: () =>
      this.#state === "failed" || this.#state === "paused"
        ? (this.#error ?? new Error("the download ended"))
        : undefined,
    spilled: () => (this.#state === "spilled" ? this.#spilledAt : undefined),
    passThrough: (firstByte, lastByte) =>
      new PassThrough({
        digest: this.digest,
        sources: this.#plan.sources,
        firstByte,
        ...(lastByte === undefined ? {} : { lastByte }),
        ...(firstByte === this.#spilledAt && lastByte === undefined ? { hash: this.#hash.copy() } : {}),
        clock: this.#deps.clock,
      }),
    copyTail: (target, position) => this.#copyTail(target, position),
    readFile: (target, position) => {
      if (!this.#staged) throw new Error("the staging file is closed");
      return this.#staged.read(target, position);
    },
    change: () => this.#wake.promise,
  };

  #readable(): number {
    if (this.#state === "proven" || this.#state === "spilled") return this.#contiguous;
    return Math.min(this.#contiguous, (this.#size ?? this.#contiguous) - HOLD_BACK_BYTES);
  }

  #copyTail(target: Buffer, position: number): number {
    let at = this.#tail.at;
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
}

/** The face a flight shows to its readers. */
interface FlightView {
  size(): number | undefined;
  generation(): number;
  /** Bytes [0, readable) may be given out. */
  readable(): number;
  finished(): boolean;
  failure(): unknown;
  spilled(): number | undefined;
  passThrough(firstByte: number, lastByte?: number): PassThrough;
  copyTail(target: Buffer, position: number): number;
  readFile(target: Buffer, position: number): Promise<number>;
  change(): Promise<void>;
}

class FlightReader implements BlobReader {
  readonly #flight: FlightView;
  readonly #release: () => void;
  #generation: number;
  #given = false;
  #alone: PassThrough | undefined;
  #closed = false;

  constructor(flight: FlightView, release: () => void) {
    this.#flight = flight;
    this.#release = release;
    this.#generation = flight.generation();
  }

  get sizeBytes(): number | undefined {
    return this.#flight.size() ?? this.#alone?.sizeBytes;
  }

  /** Where nothing could be stored, learns the size from the reader's own download. */
  async start(): Promise<void> {
    if (this.#flight.spilled() === 0) {
      this.#alone = this.#flight.passThrough(0);
      await this.#alone.start();
    }
  }

  narrow(range: ByteRange): void {
    const size = this.#flight.size();
    const ahead = range.firstByte - Math.max(0, this.#flight.readable());
    const toTheEnd = size !== undefined && range.lastByte === size - 1;
    // Waiting for all that lies before it would take longer than to ask for just that range, while the fill goes on.
    if (ahead > FAR_BYTES && this.#flight.spilled() === undefined) {
      this.#alone = this.#flight.passThrough(range.firstByte, toTheEnd ? undefined : range.lastByte);
    }
  }

  async read(target: Buffer, position: number): Promise<number> {
    for (;;) {
      if (this.#closed) throw new Error("read after close");
      if (this.#alone) return this.#alone.read(target, position);
      const failure = this.#flight.failure();
      if (failure !== undefined) throw failure;
      if (this.#generation !== this.#flight.generation()) {
        if (this.#given) throw new DigestMismatch("bytes that were already sent turned out to be wrong");
        this.#generation = this.#flight.generation();
      }
      const wanted = Math.min(target.length, this.#flight.readable() - position);
      if (wanted > 0) {
        this.#given = true;
        const into = wanted === target.length ? target : target.subarray(0, wanted);
        return this.#flight.copyTail(into, position) || this.#flight.readFile(into, position);
      }
      if (this.#flight.finished()) return 0;
      if (this.#flight.spilled() !== undefined) {
        this.#alone = this.#flight.passThrough(position);
        continue;
      }
      await this.#flight.change();
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#alone?.close();
    this.#release();
  }
}
