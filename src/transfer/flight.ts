import type { Hash } from "node:crypto";
import type { Bytes, Clock, Milliseconds } from "../base/clock.ts";
import { startHash, type Digest } from "../oci/digest.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { RemoteBody } from "../remote/remote.ts";
import type { BlobReader, BlobStore } from "../store/blobs.ts";
import { FlightReader, type FlightView } from "./flight-reader.ts";
import { HOLD_BACK_BYTES, PassThrough } from "./pass-through.ts";
import { Segments, type Segment } from "./segments.ts";
import { DigestMismatch, NotAtSource, SourceRota, type BlobSource } from "./source.ts";
import { StagedContent } from "./staged-content.ts";

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
  /** So many more bytes of it are on the disk now. */
  written(bytes: Bytes): void;
  release(): void;
}

/** Who makes room. */
export interface Space {
  /**
   * @param bytes what the content takes in all
   * @param presentBytes how many of them are on the disk already
   * @returns undefined where the bytes cannot fit, whatever is evicted
   */
  reserve(bytes: Bytes, presentBytes: Bytes): Promise<Reservation | undefined>;
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
  /** Records the blob, whose file is in place; where it can't, the file is gone again, unless others need it. Run alone with the digest. */
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

const BATCH_BYTES = 1024 * 1024;
const MEASURE_MS: Milliseconds = 100;
/** A fill that nobody waits for any more goes on when no more than this is missing. */
const LITTLE_BYTES = 32 * 1024 * 1024;
/** What is reserved at a time for a blob of unknown size. */
const ROOM_STEP_BYTES = 4 * 1024 * 1024;
/** How often bytes of several origins that proved wrong together are fetched anew. */
const MAX_RESTARTS = 2;

/** Why the fill ended without failing: the disk can't take more, so each reader goes on alone. */
class NoRoom extends Error {}
class Paused extends Error {}

/**
 * One download of one blob, read by any number of readers.
 *
 * The fill reads the source once and writes a staging file; `Segments` keeps the watermark: all that lies before it is in the file.
 * Every reader reads the file behind the watermark at its own pace, so a slow one throttles nobody and a late one starts at byte 0.
 *
 * opening → filling → proven → committed
 *              ├→ failed    every reader learns it; the partial file is kept unless its bytes are wrong
 *              ├→ paused    nobody waits and much is missing: the partial file is kept
 *              └→ spilled   no room: the file ends at #spilled.sizeBytes, beyond it each reader has a download of its own
 *
 * Invariants: the last HOLD_BACK_BYTES are given out only when the digest is proven; a connection's writes are done before another
 * one fetches what it left; what a crash leaves is re-hashed before it counts.
 */
export class Flight {
  readonly digest: Digest;
  /** Resolves when the flight has ended, however it did; never rejects. */
  readonly ended: Promise<void>;
  readonly #plan: FlightPlan;
  readonly #deps: FlightDeps;
  #rota: SourceRota;
  readonly #abort = new AbortController();

  /** Undefined before the fill, where none can be made, and after the last reader. */
  #content: StagedContent | undefined;
  #reservations: Reservation[] = [];
  #reserved = 0;
  #state: "opening" | "filling" | "proven" | "failed" | "paused" | "spilled" = "opening";
  #error: unknown;
  /** Grows when the fill starts anew from byte 0: who has been given bytes of an older one cannot go on. */
  #generation = 0;
  #interest = 0;
  #filledBy = new Set<BlobSource>();
  #resumed = false;
  #restarts = 0;
  #finished = false;

  #segments = new Segments(0);
  #helpers: Promise<void>[] = [];
  #addHelpers: (count: number) => void = () => undefined;
  #signal: AbortSignal;
  #ranged = false;
  #firstByteAtMs: number | undefined;
  #measured = 0;
  #slow: boolean | undefined;
  /** Where the staging file ends for good, and the hash over it. */
  #spilled: { sizeBytes: number; hash: Hash } | undefined;

  #wake = Promise.withResolvers<void>();

  /** @param after resolves when an earlier flight of the same digest has let go of its file */
  constructor(plan: FlightPlan, deps: FlightDeps, after?: Promise<void>) {
    this.digest = plan.digest;
    this.#plan = plan;
    this.#deps = deps;
    this.#rota = new SourceRota(plan.sources, plan.spares);
    this.#signal = this.#abort.signal;
    this.ended = this.#run(after);
  }

  get progress(): { digest: Digest; sizeBytes: number | undefined; receivedBytes: number; readers: number } {
    const { sizeBytes, contiguous } = this.#segments;
    return { digest: this.digest, sizeBytes, receivedBytes: contiguous, readers: this.#interest };
  }

  /** Whether a newcomer can be served by this flight. */
  get joinable(): boolean {
    // One that has failed or was given up may still be putting its file in order: a newcomer waits for that, and starts the next.
    if (this.#finished || this.#error !== undefined) return false;
    if (this.#state === "proven") return true;
    return !this.#abort.signal.aborted && (this.#state === "opening" || this.#state === "filling");
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
      this.#releaseRoom();
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
      this.#content = new StagedContent(staged, sizeBytes, (operation, error) => this.#deps.onFault(operation, error));
      this.#startAt(sizeBytes);
    } catch (error) {
      this.#deps.onFault("stage", error);
      throw new NoRoom("the staging file can't be made", { cause: error });
    }
    for (;;) {
      let failure: unknown;
      try {
        await this.#fetchAll();
        if (await this.#isProven()) return;
        const [only] = this.#filledBy;
        failure = new DigestMismatch(`${only?.name ?? "upstream"} sent bytes that are not ${this.digest}`);
      } catch (error) {
        // What an earlier run left may belong to nothing that upstream has now.
        if (!this.#resumed || !(error instanceof RemoteError) || error.fault !== "protocol") throw error;
        failure = error;
      }
      await this.#startOver(failure);
    }
  }

  /** From byte 0 once more: from the next source where one alone sent wrong bytes, from the first where it can't be told whose they were. */
  async #startOver(failure: unknown): Promise<void> {
    const resumed = this.#resumed;
    const [blamed, ...others] = this.#filledBy;
    // Readers see all of this change at once: none may take bytes of the old fill for bytes of the new one.
    this.#generation++;
    this.#state = "opening";
    this.#content?.restart();
    this.#startAt(0);
    this.#releaseRoom();
    this.#changed();
    if (resumed) this.#deps.onFault("resume", failure);
    else this.#deps.onMismatch(blamed?.name ?? "", this.digest);
    if (!resumed && others.length === 0) this.#rota.skip(failure);
    else if (++this.#restarts > MAX_RESTARTS) throw failure;
    else this.#rota = new SourceRota(this.#plan.sources, this.#plan.spares);
    await this.#content?.file.keep(0);
  }

  /** @throws NoRoom where the staging file can't be read */
  async #isProven(): Promise<boolean> {
    try {
      return (await this.#content?.proves()) === true;
    } catch (cause) {
      throw new NoRoom("the staging file can't be read", { cause });
    }
  }

  #startAt(offset: number): void {
    this.#resumed = offset > 0;
    this.#filledBy.clear();
    this.#segments = new Segments(offset);
    this.#slow = undefined;
    this.#measured = 0;
    this.#firstByteAtMs = undefined;
    const { connections, minSize } = this.#plan.ranges;
    // A claimed size is a manifest's word; a wrong one costs a request, not a byte.
    this.#ranged = connections > 1 && (this.#plan.claimedSizeBytes ?? 0) - offset >= minSize;
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
        this.#segments.giveBack(segment);
        this.#advanced();
        await this.#deps.clock.sleep(this.#rota.failed(source, error), this.#signal);
      }
    }
  }

  async #take(): Promise<Segment | undefined> {
    for (;;) {
      this.#signal.throwIfAborted();
      // A fast connection takes all the rest; slow ones take turns.
      const turns = this.#ranged && this.#slow !== false;
      const segment = this.#segments.take(turns ? this.#plan.ranges.segment : undefined);
      if (segment !== "later") return segment;
      await this.#wake.promise;
    }
  }

  async #fetch(segment: Segment, source: BlobSource): Promise<void> {
    const toTheEnd = segment.end === Infinity || segment.end === this.#segments.sizeBytes;
    const lastByte = this.#ranged && !toTheEnd ? segment.end - 1 : undefined;
    // While the size is unknown all may be here already, and beyond its end nothing can be asked for. Asked it must be: the source says
    // who may have the blob.
    const firstByte = this.#segments.sizeBytes === undefined ? Math.max(0, segment.at - 1) : segment.at;
    const remote = await source.open(firstByte, lastByte, this.#signal);
    if (!remote) throw new NotAtSource(`${source.name} does not have ${this.digest}`);
    try {
      await this.#opened(remote, segment, source);
      await this.#receive(remote, segment, source);
    } finally {
      remote.body.destroy();
    }
    this.#segments.finish(segment);
    this.#advanced();
  }

  /** The head of an answer is here: learn the size, find room, and see whether the source knows ranges. */
  async #opened(remote: RemoteBody, segment: Segment, source: BlobSource): Promise<void> {
    this.#firstByteAtMs ??= performance.now();
    this.#rota.admitSpares();
    const { sizeBytes, contiguous } = this.#segments;
    if (remote.firstByte > segment.at) {
      throw new RemoteError("protocol", source.name, `answered from byte ${remote.firstByte}, asked for ${segment.at}`);
    }
    if (remote.sizeBytes !== undefined && sizeBytes !== undefined && remote.sizeBytes !== sizeBytes) {
      throw new RemoteError("protocol", source.name, `says ${remote.sizeBytes} bytes, it was ${sizeBytes} before`);
    }
    if (remote.sizeBytes !== undefined && remote.sizeBytes < contiguous) {
      throw new RemoteError("protocol", source.name, `says ${remote.sizeBytes} bytes, ${contiguous} are here already`);
    }
    if (remote.sizeBytes !== undefined && sizeBytes === undefined) {
      this.#segments.learnSize(remote.sizeBytes);
      await this.#reserve(remote.sizeBytes);
    }
    // It sends all, asked for a part or not: then this connection may as well take all.
    if (!remote.partial && this.#segments.extend(segment)) this.#ranged = false;
    if (this.#ranged && this.#segments.sizeBytes === undefined) {
      this.#ranged = false;
      throw new RemoteError("interrupted", source.name, "answers ranges without saying of how much: asked for all");
    }
    if (this.#state === "opening") {
      this.#state = "filling";
      this.#changed();
    }
  }

  /** Holds room for the first `bytes` of the blob. @throws NoRoom */
  async #reserve(bytes: number): Promise<void> {
    const presentBytes = this.#reserved === 0 ? this.#segments.contiguous : 0;
    const room = await this.#deps.space.reserve(bytes - this.#reserved, presentBytes).catch((error: unknown) => {
      this.#deps.onFault("reserve", error);
      return undefined;
    });
    if (!room) throw new NoRoom("there is no room for it");
    this.#reservations.push(room);
    this.#reserved = bytes;
  }

  #releaseRoom(): void {
    for (const room of this.#reservations) room.release();
    this.#reservations = [];
    this.#reserved = 0;
  }

  async #receive(remote: RemoteBody, segment: Segment, source: BlobSource): Promise<void> {
    let skip = segment.at - remote.firstByte;
    let batch: Buffer[] = [];
    let batched = 0;
    let failure: unknown;
    let writing: Promise<void> | undefined;
    // One write at a time: what arrives meanwhile makes up the next.
    const write = async (): Promise<void> => {
      try {
        while (batch.length > 0) {
          const buffers = batch;
          batch = [];
          batched = 0;
          await this.#store(buffers, segment, source);
        }
      } catch (error) {
        failure = error;
      } finally {
        writing = undefined;
      }
    };
    let received = segment.at;
    try {
      for await (const chunk of remote.body) {
        if (failure !== undefined) throw failure;
        let fresh = skip > 0 ? chunk.subarray(Math.min(skip, chunk.length)) : chunk;
        skip -= chunk.length - fresh.length;
        if (received + fresh.length > segment.end) {
          if (segment.end === this.#segments.sizeBytes) {
            throw new RemoteError("protocol", source.name, `sent more than the ${segment.end} bytes it said`);
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
        writing ??= write();
        if (batched >= BATCH_BYTES) await writing;
      }
    } finally {
      // Also after a break: what has arrived counts, and no write may be under way when another connection goes on from here.
      await writing;
    }
    if (failure !== undefined) throw failure;
    // No length was ever said: the digest alone tells whether this is all.
    if (segment.end === Infinity) this.#segments.learnSize(received);
    if (received < segment.end) {
      throw new RemoteError("interrupted", source.name, `ended at byte ${received} of ${segment.end}`);
    }
  }

  async #store(buffers: Buffer[], segment: Segment, source: BlobSource): Promise<void> {
    const { at } = segment;
    const bytes = buffers.reduce((sum, buffer) => sum + buffer.length, 0);
    if (at + bytes > this.#reserved) await this.#reserve(at + bytes + ROOM_STEP_BYTES);
    try {
      await this.#content?.write(buffers, at);
    } catch (error) {
      this.#deps.onFault("write", error);
      throw new NoRoom("the staging file can't be written", { cause: error });
    }
    this.#reservations.at(-1)?.written(bytes);
    this.#rota.progressed();
    this.#filledBy.add(source);
    this.#measured += bytes;
    this.#segments.advance(segment, bytes);
    this.#advanced();
    await this.#measure();
  }

  #advanced(): void {
    this.#content?.follow(this.#segments.contiguous);
    this.#changed();
  }

  /** After a tenth of a second, tells whether one connection is fast enough; if not, more are opened. */
  async #measure(): Promise<void> {
    if (!this.#ranged || this.#slow !== undefined || this.#firstByteAtMs === undefined) return;
    const elapsedMs = performance.now() - this.#firstByteAtMs;
    if (elapsedMs < MEASURE_MS) return;
    this.#slow = (this.#measured / elapsedMs) * 1000 < this.#plan.ranges.slowerThan;
    if (!this.#slow) return;
    try {
      await this.#content?.allowHoles();
    } catch (error) {
      this.#deps.onFault("parallel", error);
      this.#slow = false;
      return;
    }
    this.#addHelpers(this.#plan.ranges.connections - 1);
  }

  async #commit(): Promise<void> {
    // Proven is enough for readers: they get the last bytes while the disk is still busy.
    this.#state = "proven";
    this.#changed();
    try {
      await this.#deps.store.exclusive([this.digest], async () => {
        await this.#content?.file.commit();
        await this.#plan.committed(this.#segments.contiguous);
      });
    } catch (error) {
      this.#deps.onFault("commit", error);
      await this.#content?.file.discard().catch(() => undefined);
    }
  }

  async #end(error: unknown): Promise<void> {
    this.#error = error;
    if (error instanceof NoRoom) return this.#spill();
    try {
      const { contiguous } = this.#segments;
      if (contiguous === 0) await this.#content?.file.discard();
      else await this.#content?.file.keep(contiguous);
    } catch (fault) {
      this.#deps.onFault("keep", fault);
    }
    this.#state = error instanceof Paused ? "paused" : "failed";
  }

  async #spill(): Promise<void> {
    const sound = await this.#content?.sound().catch(() => undefined);
    // Readers have it open; its space is free when the last of them is done.
    await this.#content?.file.discard().catch((fault: unknown) => this.#deps.onFault("discard", fault));
    this.#spilled = sound ?? { sizeBytes: 0, hash: startHash(this.digest) };
    this.#state = "spilled";
  }

  #pauseIfForgotten(): void {
    if (this.#interest > 0) return;
    // Whoever was cut off for wrong bytes comes back, and must not meet the source that sent them first once more.
    const startedOver = this.#generation > 0;
    if ((this.#state === "filling" || this.#state === "opening") && !startedOver) {
      const missing = (this.#segments.sizeBytes ?? this.#plan.claimedSizeBytes ?? Infinity) - this.#segments.contiguous;
      if (missing > LITTLE_BYTES) this.#abort.abort(new Paused("nobody waits for it"));
    }
    this.#closeIfUnused();
  }

  #closeIfUnused(): void {
    if (!this.#finished || this.#interest > 0 || !this.#content) return;
    const content = this.#content;
    this.#content = undefined;
    content.close().catch((error: unknown) => this.#deps.onFault("close", error));
  }

  #changed(): void {
    const woken = this.#wake;
    this.#wake = Promise.withResolvers<void>();
    woken.resolve();
  }

  // ---- what a reader sees ----

  readonly #view: FlightView = {
    size: () => this.#segments.sizeBytes,
    generation: () => this.#generation,
    readable: () => this.#readable(),
    finished: () => this.#state === "proven",
    failure: () =>
      this.#state === "failed" || this.#state === "paused"
        ? (this.#error ?? new Error("the download ended"))
        : undefined,
    spilled: () => this.#spilled?.sizeBytes,
    passThrough: ({ firstByte, lastByte, sizeBytes }) =>
      new PassThrough({
        digest: this.digest,
        sources: this.#plan.sources,
        firstByte,
        sizeBytes,
        ...(lastByte === undefined ? {} : { lastByte }),
        ...(this.#spilled && firstByte === this.#spilled.sizeBytes && lastByte === undefined
          ? { hash: this.#spilled.hash.copy() }
          : {}),
        clock: this.#deps.clock,
        onMismatch: (source, digest) => this.#deps.onMismatch(source, digest),
      }),
    copyTail: (target, position) => this.#content?.copyTail(target, position) ?? 0,
    readFile: (target, position) => {
      if (!this.#content) throw new Error("the staging file is closed");
      return this.#content.file.read(target, position);
    },
    change: () => this.#wake.promise,
  };

  #readable(): number {
    if (this.#spilled) return this.#spilled.sizeBytes;
    const { contiguous, sizeBytes = contiguous } = this.#segments;
    return this.#state === "proven" ? contiguous : Math.min(contiguous, sizeBytes - HOLD_BACK_BYTES);
  }
}
