import type { ServerResponse } from "node:http";
import type { Bytes, Milliseconds } from "../base/clock.ts";
import type { ByteRange } from "../oci/range.ts";
import type { BlobReader } from "../store/blobs.ts";
import { SharedPieces, type Piece } from "./pieces.ts";

/** The least that a connection has to move, or it is cut: `minBytes` in every `interval`. */
export interface ProgressRule {
  minBytes: Bytes;
  interval: Milliseconds;
}

/** The client went away, or moved less than the rule wants: nobody is left to be told. */
export class ClientGone extends Error {
  override readonly name = "ClientGone";
}

// Measured on two cores: pieces of 512 KiB cost 0.28 CPU seconds a GiB, of 64 KiB 0.55; larger ones only cost memory.
const PIECE_BYTES = 512 * 1024;
const LEAST_PIECE_BYTES = 64 * 1024;
/** About so much memory for the pieces of single sends: beyond it, they get smaller. */
const BUDGET_BYTES = 8 * 1024 * 1024;
/** So few sends read ahead, which keeps one of them busy; more keep each other busy, and share what they read. */
const FEW = 3;
const MAX_SHARED = 16;

const shared = new SharedPieces(PIECE_BYTES, MAX_SHARED);
let sending = 0;

/**
 * Writes bytes of a blob to an answer whose head has been written, at the client's pace.
 * Resolves when the last byte has been handed to the kernel; the caller ends the answer.
 * @param range undefined: all of it
 * @throws ClientGone; or the reader's error, after which the connection must be destroyed
 */
export async function sendBlob(
  response: ServerResponse,
  reader: BlobReader,
  range: ByteRange | undefined,
  rule: ProgressRule,
): Promise<number> {
  sending++;
  const takeOwn = ownPieces(reader);
  // One slot for the one promise that is being waited for. Promise.race with a lasting promise would leave a reaction on it for every piece.
  let interrupt: ((gone: ClientGone) => void) | undefined;
  const unlessGone = <T>(work: Promise<T>): Promise<T> =>
    new Promise((resolve, reject) => {
      interrupt = reject;
      if (response.destroyed) reject(new ClientGone("the client closed the connection"));
      work.then(resolve, reject);
    });
  const onClose = (): void => interrupt?.(new ClientGone("the client closed the connection"));
  response.once("close", onClose);
  const guard = guardProgress(response, rule);
  try {
    const first = range?.firstByte ?? 0;
    const end = range ? range.lastByte + 1 : (reader.sizeBytes ?? Infinity);
    let position = first;
    let writing: Promise<void> | undefined;
    for (;;) {
      const few = sending <= FEW;
      if (writing && !few) await unlessGone(writing);
      if (position === end) break;
      const common =
        !few && reader.content && shared.startsAt(position) ? shared.take(reader.content, reader, position) : undefined;
      const piece = common ?? takeOwn(position, end);
      let taken: Buffer;
      try {
        taken = await unlessGone(piece.bytes);
        if (writing && few) await unlessGone(writing);
      } catch (error) {
        piece.release();
        throw error;
      }
      if (taken.length === 0) break;
      // A shared piece may go on beyond a range's end.
      if (position + taken.length > end) taken = taken.subarray(0, end - position);
      position += taken.length;
      writing = write(response, taken).finally(piece.release);
      // It is awaited in the next turn; until then its failure must not count as unhandled.
      writing.then(guard.caughtUp, () => undefined);
      guard.moved(taken.length);
    }
    if (writing) await unlessGone(writing);
    if (end !== Infinity && position !== end) throw new Error(`the blob ended at ${position}, before byte ${end}`);
    return position - first;
  } finally {
    sending--;
    guard.stop();
    response.off("close", onClose);
  }
}

/**
 * Writes texts to an answer, at the client's pace.
 * @param begin writes the head, before the first text
 * @throws ClientGone; or what the texts throw, after which the connection must be destroyed if the head is out
 */
export async function sendTexts(
  response: ServerResponse,
  begin: () => void,
  texts: AsyncIterable<string>,
  rule: ProgressRule,
): Promise<void> {
  const write = paced(response, rule);
  for await (const text of texts) {
    if (response.destroyed) throw new ClientGone("the client closed the connection");
    if (!response.headersSent) begin();
    if (text !== "") await write(Buffer.from(text));
  }
}

/**
 * A writer of an answer that comes bit by bit, at the client's pace. It cuts a client that takes less than the rule wants; that there is
 * nothing new for a while is no fault of the client.
 * @returns resolves once the kernel has all of it, or the client has left
 */
export function paced(response: ServerResponse, rule: ProgressRule): (bytes: Buffer) => Promise<void> {
  const guard = guardProgress(response, rule);
  response.once("close", guard.stop);
  return (bytes) =>
    new Promise((resolve) => {
      const over = (): void => {
        response.off("close", over);
        guard.caughtUp();
        resolve();
      };
      if (response.destroyed) return resolve();
      response.once("close", over);
      guard.moved(bytes.length);
      response.write(bytes, over);
    });
}

/** Cuts the client of an answer that has been handed over whole and is not taken as the rule wants. Costs nothing where the kernel took it all. */
export function guardEnd(response: ServerResponse, rule: ProgressRule): void {
  if (response.writableLength === 0) return;
  const guard = guardProgress(response, rule);
  guard.moved(pendingBytes(response));
  response.once("close", guard.stop);
}

/** Pieces in buffers of this send alone, used again and again: one, or two where it reads ahead. */
function ownPieces(reader: BlobReader): (position: number, end: number) => Piece {
  const pieceBytes = Math.max(LEAST_PIECE_BYTES, Math.min(PIECE_BYTES, Math.floor(BUDGET_BYTES / sending)));
  const free: Buffer[] = [];
  return (position, end) => {
    const buffer = free.pop() ?? Buffer.allocUnsafeSlow(pieceBytes);
    const target = end - position < buffer.length ? buffer.subarray(0, end - position) : buffer;
    const bytes = reader.read(target, position).then((length) => target.subarray(0, length));
    return { bytes, release: () => free.push(buffer) };
  };
}

function write(response: ServerResponse, chunk: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    response.write(chunk, (error) =>
      error ? reject(new ClientGone("the client closed the connection", { cause: error })) : resolve(),
    );
  });
}

/** Bytes that the kernel has not taken yet. */
function pendingBytes(response: ServerResponse): number {
  // libuv's count falls with every partial write, `writableLength` only when a whole buffer is gone: half a MiB is minutes to a slow client.
  const handle = (response.socket as { _handle?: { writeQueueSize?: number } | null } | null)?._handle;
  return handle?.writeQueueSize ?? response.writableLength;
}

/**
 * Destroys the connection of a client that takes less than the rule wants while there is something for it to take: after one to two intervals.
 * Waiting for upstream is no fault of the client, so what was handed over only since it had taken everything is given a whole interval.
 */
function guardProgress(
  response: ServerResponse,
  rule: ProgressRule,
): { moved: (bytes: number) => void; caughtUp: () => void; stop: () => void } {
  let handed = 0;
  let taken = 0;
  let caughtUp = true;
  const timer = setInterval(() => {
    const pending = pendingBytes(response);
    const now = handed - pending;
    if (pending > 0 && !caughtUp && now - taken < rule.minBytes) response.destroy();
    taken = now;
    caughtUp = false;
  }, rule.interval);
  timer.unref();
  return {
    moved: (bytes) => (handed += bytes),
    caughtUp: () => (caughtUp = true),
    stop: () => clearInterval(timer),
  };
}
