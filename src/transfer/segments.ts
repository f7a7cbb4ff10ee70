/** How far beyond the first missing byte one may be fetched. A crash costs what lies behind a hole. */
export const WINDOW_BYTES: number = 128 * 1024 * 1024;

/** A stretch of the blob that one connection fetches: [at, end) is still to come. */
export interface Segment {
  readonly at: number;
  /** One past its last byte; Infinity: to the end of the blob, wherever that is. */
  readonly end: number;
}

interface Open extends Segment {
  at: number;
  end: number;
}

/**
 * Which bytes of a blob are here, which are on their way, and which are still to be asked for.
 *
 * Invariants: every byte below the frontier is here or in exactly one segment; segments that are taken in steps end within
 * WINDOW_BYTES of the watermark, and one without a step is the only one that is not complete.
 */
export class Segments {
  readonly #active = new Set<Open>();
  /** Given back, in the order of their bytes. */
  #todo: Open[] = [];
  /** First byte that no segment covers. */
  #frontier: number;
  #contiguous: number;
  #sizeBytes: number | undefined;

  /** @param firstByte [0, firstByte) is here already */
  constructor(firstByte: number) {
    this.#frontier = firstByte;
    this.#contiguous = firstByte;
  }

  /** The watermark: [0, contiguous) is here. */
  get contiguous(): number {
    return this.#contiguous;
  }

  get sizeBytes(): number | undefined {
    return this.#sizeBytes;
  }

  /**
   * Takes what is to be fetched next.
   * @param wanted at most so many bytes, and never more than the window; undefined: all the rest
   * @returns "later" where that would lie too far ahead of the watermark; undefined where nothing is left
   */
  take(wanted: number | undefined): Segment | "later" | undefined {
    // A step wider than the window would never be given out.
    const step = wanted === undefined ? undefined : Math.min(wanted, WINDOW_BYTES);
    const back = this.#todo.shift();
    if (back) {
      this.#active.add(back);
      return back;
    }
    const end = this.#sizeBytes ?? Infinity;
    if (this.#frontier >= end) return undefined;
    const later = step === undefined ? this.#active.size > 0 : this.#frontier + step - this.#contiguous > WINDOW_BYTES;
    if (later) return "later";
    const segment = { at: this.#frontier, end: step === undefined ? end : Math.min(end, this.#frontier + step) };
    this.#frontier = segment.end;
    this.#active.add(segment);
    return segment;
  }

  /** The connection broke: what it has not brought is to be fetched by another. */
  giveBack(segment: Segment): void {
    const open = this.#opened(segment);
    this.#active.delete(open);
    if (open.end === this.#frontier) this.#frontier = open.at;
    else if (open.at < open.end) this.#todo = [...this.#todo, open].sort((a, b) => a.at - b.at);
    // One that broke after its last byte was the only thing between the watermark and what lies behind it.
    this.#raise();
  }

  /** The next `bytes` of the segment are here. */
  advance(segment: Segment, bytes: number): void {
    this.#opened(segment).at += bytes;
    this.#raise();
  }

  /** The segment is complete. */
  finish(segment: Segment): void {
    this.#active.delete(this.#opened(segment));
    this.#raise();
  }

  /**
   * Lets a segment go on to the end of the blob, where nothing else is missing before or after it.
   * @returns whether it may
   */
  extend(segment: Segment): boolean {
    const open = this.#opened(segment);
    if (this.#active.size > 1 || this.#todo.length > 0 || open.end !== this.#frontier) return false;
    open.end = this.#sizeBytes ?? Infinity;
    this.#frontier = open.end;
    return true;
  }

  /** @param sizeBytes at least as much as is here already */
  learnSize(sizeBytes: number): void {
    this.#sizeBytes = sizeBytes;
    this.#frontier = Math.min(this.#frontier, sizeBytes);
    for (const segment of this.#active) segment.end = Math.min(segment.end, sizeBytes);
  }

  #opened(segment: Segment): Open {
    const open = segment as Open;
    if (!this.#active.has(open)) throw new Error("a segment that is not being fetched");
    return open;
  }

  #raise(): void {
    let first = this.#frontier;
    for (const segment of this.#active) first = Math.min(first, segment.at);
    for (const segment of this.#todo) first = Math.min(first, segment.at);
    this.#contiguous = Math.max(this.#contiguous, first);
  }
}
