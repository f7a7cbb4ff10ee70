import { Readable } from "node:stream";
import type { Digest } from "../oci/digest.ts";
import type { BlobAnswer } from "../registry/answers.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { RemoteBody } from "../remote/remote.ts";
import type { BlobReader } from "../store/blobs.ts";
import { DigestMismatch } from "../transfer/source.ts";
import { givePiece, PIECE_BYTES, takePiece } from "./pieces.ts";

/** Which bytes of a blob are wanted; `lastByte` is inclusive. */
export interface Part {
  firstByte?: number | undefined;
  lastByte?: number | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * A blob that this registry has, or is getting, as the body of another one's answer. Whatever becomes of the body, the blob is closed.
 * @param from who is to blame for it, in errors
 * @throws RemoteError protocol for a first byte beyond the end; the signal's reason, at once
 */
export async function bodyOf(from: string, opening: Promise<BlobAnswer>, part: Part): Promise<RemoteBody> {
  const { content, digest, sizeBytes } = await unlessAborted(opening, part.signal);
  const { firstByte = 0, lastByte } = part;
  const partial = firstByte > 0 || lastByte !== undefined;
  if (content === undefined) throw new TypeError(`the blob ${digest} was opened without its content`);
  if (sizeBytes !== undefined && firstByte > 0 && firstByte >= sizeBytes) {
    close(content);
    throw new RemoteError("protocol", from, `has no byte ${firstByte} of ${digest}: it has ${sizeBytes}`);
  }
  const endByte = Math.min(lastByte === undefined ? Infinity : lastByte + 1, sizeBytes ?? Infinity);
  if (Buffer.isBuffer(content)) {
    const bytes = content.subarray(firstByte, endByte);
    return { body: Readable.from(bytes.byteLength === 0 ? [] : [bytes]), firstByte, partial, sizeBytes };
  }
  if (partial && Number.isFinite(endByte)) content.narrow?.({ firstByte, lastByte: endByte - 1 });
  return {
    body: new ReaderBody(from, digest, content, firstByte, endByte, part.signal),
    firstByte,
    partial,
    sizeBytes,
  };
}

/** A reader of a blob as a stream, one piece ahead of who reads it. */
class ReaderBody extends Readable {
  readonly #from: string;
  readonly #digest: Digest;
  readonly #reader: BlobReader;
  readonly #endByte: number;
  #at: number;

  constructor(
    from: string,
    digest: Digest,
    reader: BlobReader,
    firstByte: number,
    endByte: number,
    signal: AbortSignal | undefined,
  ) {
    super({ highWaterMark: PIECE_BYTES });
    this.#from = from;
    this.#digest = digest;
    this.#reader = reader;
    this.#at = firstByte;
    this.#endByte = endByte;
    // Whoever holds it may drop it at any time: an error that nobody listens to must not end the process.
    this.on("error", () => {});
    if (!signal) return;
    const abort = (): void => void this.destroy(signal.reason as Error);
    signal.addEventListener("abort", abort);
    this.once("close", () => signal.removeEventListener("abort", abort));
    if (signal.aborted) abort();
  }

  override _read(): void {
    void this.#next().then(
      (piece) => this.push(piece),
      (error: unknown) => this.destroy(this.#faultOf(error)),
    );
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#reader.close();
    callback(error);
  }

  async #next(): Promise<Buffer | null> {
    const wantedBytes = Math.min(PIECE_BYTES, this.#endByte - this.#at);
    if (wantedBytes <= 0) return null;
    const buffer = takePiece();
    const readBytes = await this.#reader.read(buffer.subarray(0, wantedBytes), this.#at);
    this.#at += readBytes;
    if (readBytes > PIECE_BYTES / 2) return buffer.subarray(0, readBytes);
    // A little of a large buffer would keep all of it in memory.
    const piece = readBytes === 0 ? null : Buffer.from(buffer.subarray(0, readBytes));
    givePiece(buffer);
    return piece;
  }

  #faultOf(error: unknown): Error {
    if (error instanceof RemoteError) return error;
    if (error instanceof DigestMismatch) {
      return new RemoteError("protocol", this.#from, `sent bytes that are not ${this.#digest}`, { cause: error });
    }
    const said = error instanceof Error ? error.message : String(error);
    return new RemoteError("interrupted", this.#from, `broke off within a blob (${said})`, { cause: error });
  }
}

/** Who does not wait any longer leaves nothing open behind. */
async function unlessAborted(opening: Promise<BlobAnswer>, signal: AbortSignal | undefined): Promise<BlobAnswer> {
  if (!signal) return await opening;
  return await new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason as Error);
    signal.addEventListener("abort", abort);
    if (signal.aborted) abort();
    opening
      .then((answer) => {
        if (signal.aborted) close(answer.content);
        else resolve(answer);
      }, reject)
      .finally(() => signal.removeEventListener("abort", abort));
  });
}

function close(content: Buffer | BlobReader | undefined): void {
  if (content !== undefined && !Buffer.isBuffer(content)) content.close();
}
