import type { Milliseconds } from "../base/clock.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { RemoteBody } from "../remote/remote.ts";

/** A place that has a blob: one repository at one remote registry. */
export interface BlobSource {
  /** The upstream's name, for logs and metrics. */
  readonly name: string;
  /**
   * @param firstByte 0-based; the answer's own firstByte may be 0 where the source ignores ranges
   * @param lastByte inclusive; undefined is the end
   * @returns undefined where the source says that it does not have the blob
   * @throws RemoteError
   */
  open(firstByte: number, lastByte: number | undefined, signal: AbortSignal): Promise<RemoteBody | undefined>;
}

/** Every source said, in so many words, that it does not have the blob. */
export class NotAtSource extends Error {
  override readonly name = "NotAtSource";
}

/** A source sent bytes that are not what the digest names. */
export class DigestMismatch extends Error {
  override readonly name = "DigestMismatch";
}

/** How often in a row connections to a source may break without having brought a byte; several break at once. */
const MAX_FRUITLESS = 8;
const PAUSE_MS: Milliseconds = 100;

/**
 * The state of one download's luck with its sources: which one is asked now, and when to go to the next.
 * A source that broke in mid-body is asked again (by range) while it makes progress; one that cannot be asked, or lies, is left for good.
 */
export class SourceRota {
  #sources: readonly BlobSource[];
  #spares: readonly BlobSource[];
  #index = 0;
  #fruitless = 0;
  #failure: unknown;

  /** @param spares further holders, asked after all others once {@link admitSpares} was called */
  constructor(sources: readonly BlobSource[], spares: readonly BlobSource[] = []) {
    this.#sources = sources;
    this.#spares = spares;
  }

  admitSpares(): void {
    this.#sources = [...this.#sources, ...this.#spares];
    this.#spares = [];
  }

  get current(): BlobSource {
    const source = this.#sources[this.#index];
    if (!source) throw this.#failure ?? new NotAtSource("no source has the blob");
    return source;
  }

  progressed(): void {
    this.#fruitless = 0;
  }

  /**
   * @param source the one that failed; news of one that was left already changes nothing
   * @returns how long to wait before the next try
   * @throws the failure to report, once no source is left: a real failure before a plain "not here"
   */
  failed(source: BlobSource, error: unknown): Milliseconds {
    if (source !== this.#sources[this.#index]) return 0;
    // Whom the source refuses, no other one may serve.
    if (error instanceof RemoteError && !error.othersMayAnswer) throw error;
    const resumable = error instanceof RemoteError && (error.fault === "interrupted" || error.fault === "timeout");
    if (resumable && ++this.#fruitless < MAX_FRUITLESS) return PAUSE_MS * 2 ** (this.#fruitless - 1) * Math.random();
    this.skip(error);
    return 0;
  }

  /** Leaves the current source. @throws as {@link failed} */
  skip(error: unknown): void {
    if (this.#failure === undefined || this.#failure instanceof NotAtSource) this.#failure = error;
    this.#index++;
    this.#fruitless = 0;
    if (this.#index >= this.#sources.length) throw this.#failure;
  }
}
