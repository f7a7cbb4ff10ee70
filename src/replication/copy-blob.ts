/**
 * One blob from a source to a target, with flat memory.
 *
 * Invariants
 * - The upload of wrong bytes is never completed: the last piece goes out when the digest is proven. Where an upload of an earlier
 *   process is gone on with, whose bytes are not at hand, the target alone proves it.
 * - What the target says that it has is not sent again: after a break it is asked where the upload stands.
 * - A source that breaks is read on by range, within the same request to the target.
 */
import type { Hash } from "node:crypto";
import type { Bytes, Clock } from "../base/clock.ts";
import { proves, startHash, type Digest } from "../oci/digest.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { Remote } from "../remote/remote.ts";
import type { Target, UploadSession } from "../remote/target.ts";
import { CopyError } from "./copy-error.ts";
import { MOST_TRIES, pauseAfter } from "./copy-retry.ts";
import { givePiece } from "./pieces.ts";

/** Sessions of uploads by `TARGET REPOSITORY DIGEST`, to be gone on with. A map forgets them with the process. */
export interface UploadMemory {
  get(key: string): UploadSession | undefined;
  set(key: string, session: UploadSession): unknown;
  delete(key: string): boolean;
}

export interface BlobCopy {
  source: Pick<Remote, "name" | "openBlob">;
  target: Pick<Target, "name" | "headBlob" | "startUpload" | "findUpload" | "append" | "finishUpload" | "cancelUpload">;
  from: string;
  to: string;
  blob: { digest: Digest; sizeBytes: Bytes };
  /** One that the target has started already. */
  session: UploadSession | undefined;
  uploads: UploadMemory;
  clock: Clock;
  /** Told of what goes out. */
  sent: (bytes: Bytes) => void;
  signal: AbortSignal;
}

/** Larger blobs go out in chunks, each of which the target keeps. */
export const CHUNKED_FROM_BYTES: Bytes = 100 * 1024 * 1024;
const CHUNK_BYTES: Bytes = 64 * 1024 * 1024;

/** In how many chunks a blob goes out, where the target asks for no larger ones; 0: in one piece. */
export function chunksOf(sizeBytes: Bytes): number {
  return sizeBytes > CHUNKED_FROM_BYTES ? Math.ceil(sizeBytes / CHUNK_BYTES) : 0;
}

/**
 * Sends a blob; goes on with an upload that an earlier try has left behind.
 * @throws RemoteError, CopyError missing or wrong, the signal's reason
 */
export async function sendBlob(copy: BlobCopy): Promise<void> {
  const { target, to, blob, uploads, clock, signal } = copy;
  const key = `${target.name} ${to} ${blob.digest}`;
  const proof = new Proof(blob.digest);
  let session = copy.session;
  /** Where it stands has to be asked. */
  let doubtful = uploads.get(key);
  let furthestByte = 0;
  for (let attempt = 1; ; attempt++) {
    try {
      if (doubtful) {
        const found = await findUpload(copy, doubtful);
        // The answer to the last request may have been lost, not the blob.
        if (!found && (await target.headBlob(to, blob.digest, { signal }))?.sizeBytes === blob.sizeBytes) {
          uploads.delete(key);
          return;
        }
        if (found && session && session !== doubtful) await target.cancelUpload(to, session);
        session = found ?? (session === doubtful ? undefined : session);
        doubtful = undefined;
      }
      session ??= await target.startUpload(to, blob.digest, { signal });
      uploads.set(key, session);
      if (session.offsetBytes > furthestByte) attempt = 1;
      furthestByte = Math.max(furthestByte, session.offsetBytes);
      await sendFrom(copy, session, proof, (moved) => void uploads.set(key, moved));
      uploads.delete(key);
      return;
    } catch (error) {
      if (signal.aborted) throw error;
      const pauseMs = isLost(error) && attempt < MOST_TRIES ? 0 : pauseAfter(error, attempt);
      if (pauseMs === undefined) {
        if (!(error instanceof RemoteError) && session) {
          uploads.delete(key);
          await target.cancelUpload(to, session);
        }
        throw error;
      }
      await clock.sleep(pauseMs, signal);
      doubtful = uploads.get(key);
      session = doubtful;
    }
  }
}

/** @returns undefined for one that can't be gone on with */
async function findUpload(
  { target, to, blob, signal }: BlobCopy,
  session: UploadSession,
): Promise<UploadSession | undefined> {
  const found = await target.findUpload(to, session, { signal });
  if (!found || found.offsetBytes <= blob.sizeBytes) return found;
  await target.cancelUpload(to, found);
  return undefined;
}

/** Whether the target knows the upload no more, or has it elsewhere than we do. */
function isLost(error: unknown): boolean {
  return error instanceof RemoteError && (error.status === 404 || error.status === 416);
}

async function sendFrom(
  copy: BlobCopy,
  started: UploadSession,
  proof: Proof,
  keep: (session: UploadSession) => void,
): Promise<void> {
  const { target, to, blob, sent } = copy;
  const { digest, sizeBytes } = blob;
  const done = new AbortController();
  const signal = AbortSignal.any([copy.signal, done.signal]);
  let session = started;
  proof.startAt(session.offsetBytes);
  const pieces = new Take(proof.through(readBlob(copy, session.offsetBytes, signal), copy), sent);
  try {
    if (sizeBytes > CHUNKED_FROM_BYTES) {
      while (session.offsetBytes < sizeBytes) {
        const { offsetBytes, chunkMinBytes } = session;
        const lengthBytes = Math.min(sizeBytes - offsetBytes, Math.max(CHUNK_BYTES, chunkMinBytes));
        session = await target.append(to, session, { lengthBytes, pieces: pieces.next(lengthBytes) }, { signal });
        keep(session);
        if (session.offsetBytes !== offsetBytes + lengthBytes) {
          throw new RemoteError("interrupted", target.name, "kept another part of a chunk than was sent");
        }
      }
    }
    const lengthBytes = sizeBytes - session.offsetBytes;
    if (lengthBytes === 0) proof.check(copy);
    await target.finishUpload(to, session, digest, { lengthBytes, pieces: pieces.next(lengthBytes) }, { signal });
  } finally {
    done.abort(new Error("the upload is over"));
    await pieces.close();
  }
}

/** The blob's bytes from `firstByte` on, read on by range where the source breaks. */
async function* readBlob(
  { source, from, blob, clock }: BlobCopy,
  firstByte: number,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  const { digest, sizeBytes } = blob;
  let at = firstByte;
  for (let fruitless = 1; at < sizeBytes; fruitless++) {
    try {
      const opened = await source.openBlob(from, digest, { signal, firstByte: at });
      if (!opened) throw new CopyError("missing", `${source.name}/${from} does not have the blob ${digest}`);
      let skip = at - opened.firstByte;
      for await (const piece of opened.body) {
        const fresh = piece.subarray(Math.min(skip, piece.byteLength));
        skip -= piece.byteLength - fresh.byteLength;
        if (fresh.byteLength === 0) continue;
        at += fresh.byteLength;
        fruitless = 0;
        if (at > sizeBytes) throw wrong(source.name, from, digest, `more than its ${sizeBytes} bytes`);
        yield fresh;
      }
      if (at < sizeBytes) throw wrong(source.name, from, digest, `${at} bytes, not ${sizeBytes}`);
    } catch (error) {
      const pauseMs = pauseAfter(error, fruitless);
      if (pauseMs === undefined || signal.aborted) throw error;
      await clock.sleep(pauseMs, signal);
    }
  }
}

function wrong(source: string, repository: string, digest: Digest, what: string): CopyError {
  return new CopyError("wrong", `${source}/${repository} sent of the blob ${digest} ${what}: it is not copied`);
}

/** What has been read of a blob, hashed, over as many tries as it takes. */
class Proof {
  readonly #digest: Digest;
  #hash: Hash;
  #hashedBytes = 0;
  #at = 0;
  #checked = false;

  constructor(digest: Digest) {
    this.#digest = digest;
    this.#hash = startHash(digest);
  }

  startAt(firstByte: number): void {
    this.#at = firstByte;
    if (firstByte > 0) return;
    this.#hash = startHash(this.#digest);
    this.#hashedBytes = 0;
    this.#checked = false;
  }

  /** The pieces, the last one after the proof. */
  async *through(pieces: AsyncIterable<Buffer>, copy: BlobCopy): AsyncGenerator<Buffer> {
    let held: Buffer | undefined;
    for await (const piece of pieces) {
      this.#take(piece);
      if (held) yield held;
      held = piece;
    }
    this.check(copy);
    if (held) yield held;
  }

  /** @throws CopyError wrong */
  check({ source, from, blob }: BlobCopy): void {
    // Of what an earlier process sent there are no bytes to hash.
    if (this.#checked || this.#hashedBytes !== blob.sizeBytes) return;
    this.#checked = true;
    if (proves(this.#hash, blob.digest)) return;
    throw wrong(source.name, from, blob.digest, "other bytes than its digest says");
  }

  #take(piece: Buffer): void {
    const from = this.#at;
    this.#at += piece.byteLength;
    // Some of it may have been hashed in an earlier try; a gap has not been, and so nothing after it.
    if (from > this.#hashedBytes || this.#at <= this.#hashedBytes) return;
    this.#hash.update(piece.subarray(this.#hashedBytes - from));
    this.#hashedBytes = this.#at;
  }
}

/** The `highWaterMark` of sockets: what is as large is waited for by its sender. */
const WRITTEN_BYTES: Bytes = 64 * 1024;

/** One stream of pieces, handed out in lengths. */
class Take {
  readonly #pieces: AsyncGenerator<Buffer>;
  readonly #taken: (bytes: Bytes) => void;
  #left: Buffer | undefined;

  constructor(pieces: AsyncGenerator<Buffer>, taken: (bytes: Bytes) => void) {
    this.#pieces = pieces;
    this.#taken = taken;
  }

  /** The next so many bytes. */
  async *next(lengthBytes: number): AsyncGenerator<Buffer> {
    for (let missing = lengthBytes; missing > 0;) {
      const piece = this.#left ?? (await this.#pieces.next()).value;
      this.#left = undefined;
      if (piece === undefined) return;
      const now = piece.subarray(0, missing);
      if (now.byteLength < piece.byteLength) this.#left = piece.subarray(now.byteLength);
      missing -= now.byteLength;
      this.#taken(now.byteLength);
      yield now;
      // Who asks for more has written a large piece to the end; of small ones a socket takes some ahead.
      if (this.#left === undefined && now.byteLength >= WRITTEN_BYTES) givePiece(piece);
    }
  }

  async close(): Promise<void> {
    await this.#pieces.return(undefined);
  }
}
