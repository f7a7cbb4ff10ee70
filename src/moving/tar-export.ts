import {
  closeSync,
  fdatasync,
  fsync,
  ftruncate,
  open as openFd,
  read as readFd,
  write as writeFd,
  type PathLike,
} from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";
import { hexOf, algorithmOf, proves, startHash, type Digest } from "../oci/digest.ts";
import { blobPath } from "../store/blobs-fs.ts";
import type { ExportPlan, PlannedBlob } from "./export-plan.ts";
import type { RegistryClient } from "./registry-client.ts";
import { fileHead, padding, TAR_END } from "./tar-format.ts";

/** What the caches of a core hold three of: with 2 MiB, reading and writing cost the system twice the time. */
const PIECE_BYTES = 256 * 1024;
/** The disk is set to work after so much, so that the sync at the end is short. Smaller steps hold up the writing. */
const FLUSH_BYTES = 256 * 1024 * 1024;

const openFile = promisify(openFd) as (path: PathLike, flags: string) => Promise<number>;
const syncData = promisify(fdatasync);
const syncFile = promisify(fsync);
const truncateFile = promisify(ftruncate);

/** Where an archive goes. */
export interface ArchiveSink {
  /** The buffer is the caller's again once this has resolved. */
  write(bytes: Buffer): Promise<void>;
}

export interface ExportSource {
  client: RegistryClient;
  /** The folder of the storage, where it is on this machine: what lies there is read without a detour. */
  root: string | undefined;
}

/**
 * Writes an OCI image layout as a tar: `oci-layout`, `index.json`, manifests, then blobs, small ones first. The same images give the same
 * bytes. Every blob is proven while it is written; memory does not grow with the images.
 * @param told how many bytes of content have been written, of `sizeOf(plan)`
 * @throws Error naming the blob that is damaged or can't be had
 * Source: OCI image-spec, "Image Layout Specification"
 */
export async function writeArchive(
  plan: ExportPlan,
  source: ExportSource,
  sink: ArchiveSink,
  told: (bytes: number) => void,
  signal: AbortSignal,
): Promise<void> {
  const small = async (name: string, bytes: Buffer): Promise<void> => {
    await sink.write(Buffer.concat([fileHead(name, bytes.length), bytes, padding(bytes.length)]));
  };
  await small("oci-layout", Buffer.from('{"imageLayoutVersion":"1.0.0"}'));
  await small("index.json", plan.index);
  let written = 0;
  for (const { digest, bytes } of plan.manifests) {
    await small(entryName(digest), bytes);
    written += bytes.length;
  }
  told(written);
  for (const blob of plan.blobs) {
    await sink.write(fileHead(entryName(blob.digest), blob.sizeBytes));
    await copyBlob(blob, source, sink, (bytes) => told((written += bytes)), signal);
    const fill = padding(blob.sizeBytes);
    if (fill.length > 0) await sink.write(fill);
  }
  await sink.write(TAR_END);
}

/** Bytes of content that an archive will hold. */
export function sizeOf({ manifests, blobs }: ExportPlan): number {
  const sum = (sizes: number[]): number => sizes.reduce((total, size) => total + size, 0);
  return sum(manifests.map(({ bytes }) => bytes.length)) + sum(blobs.map(({ sizeBytes }) => sizeBytes));
}

/** Where content lies in a layout. */
export function entryName(digest: Digest): string {
  return `blobs/${algorithmOf(digest)}/${hexOf(digest)}`;
}

/** Copies and proves. While one piece is hashed here, another is written and the next is read by other threads. */
async function copyBlob(
  { digest, sizeBytes, repository }: PlannedBlob,
  { client, root }: ExportSource,
  sink: ArchiveSink,
  told: (bytes: number) => void,
  signal: AbortSignal,
): Promise<void> {
  const local = root === undefined ? undefined : await LocalBlob.open(blobPath(root, digest));
  const pieces = local ? local.pieces(sizeBytes) : gathered(client.blob(repository, digest, signal), sizeBytes);
  const hash = startHash(digest);
  let copied = 0;
  let writing: Promise<void> = Promise.resolve();
  try {
    let next = pieces.next();
    for (;;) {
      const piece = await next;
      if (piece.done === true) break;
      signal.throwIfAborted();
      copied += piece.value.length;
      if (copied > sizeBytes) break;
      // Two pieces at most are in use: this one, and the one that is read into once the last has been written.
      await writing;
      writing = sink.write(piece.value);
      writing.catch(() => undefined);
      next = pieces.next();
      next.catch(() => undefined);
      hash.update(piece.value);
      told(piece.value.length);
    }
    await writing;
  } finally {
    await writing.catch(() => undefined);
    await pieces.return(undefined);
    local?.close();
  }
  if (copied === sizeBytes && proves(hash, digest)) return;
  throw new Error(
    `${repository}: blob ${digest} is damaged where it is stored: find and repair what is with "entrepot scrub", then export again`,
  );
}

/** A file of the storage. Nobody changes it; while it is open, nobody can take it away. */
class LocalBlob {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** @returns undefined where it can't be read: then it is asked for */
  static async open(path: string): Promise<LocalBlob | undefined> {
    try {
      return new LocalBlob(await openFile(path, "r"));
    } catch {
      return undefined;
    }
  }

  /** A piece is good until two more have been asked for. */
  async *pieces(sizeBytes: number): AsyncGenerator<Buffer, undefined, undefined> {
    const ring = pieceRing(sizeBytes);
    for (let at = 0, turn = 0; ; turn++) {
      const target = ring[turn % ring.length] as Buffer;
      const bytes = await readAt(this.#fd, target, at);
      if (bytes === 0) return undefined;
      at += bytes;
      yield target.subarray(0, bytes);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }
}

/** The small pieces of a socket, joined: each write costs a turn of a thread. A piece is good until two more have been asked for. */
async function* gathered(
  chunks: AsyncIterable<Buffer>,
  sizeBytes: number,
): AsyncGenerator<Buffer, undefined, undefined> {
  const ring = pieceRing(sizeBytes);
  let turn = 0;
  let filled = 0;
  for await (const chunk of chunks) {
    for (let at = 0; at < chunk.length;) {
      const target = ring[turn % ring.length] as Buffer;
      const copied = chunk.copy(target, filled, at);
      at += copied;
      filled += copied;
      if (filled < target.length) continue;
      yield target;
      turn++;
      filled = 0;
    }
  }
  if (filled > 0) yield (ring[turn % ring.length] as Buffer).subarray(0, filled);
  return undefined;
}

/** Buffers to read into in turn: what is made anew for each piece would wait for the next collection, a hundred MiB of it. */
function pieceRing(sizeBytes: number): Buffer[] {
  return [0, 1, 2].map(() => Buffer.allocUnsafeSlow(Math.max(1, Math.min(PIECE_BYTES, sizeBytes))));
}

/** A file that is there whole or not at all: written beside its place, synced, renamed. */
export class ArchiveFile implements ArchiveSink, AsyncDisposable {
  readonly #path: string;
  readonly #part: string;
  readonly #fd: number;
  #at = 0;
  #flushedAt = 0;
  #flushing: Promise<unknown> | undefined;
  #state: "open" | "whole" | "gone" = "open";

  private constructor(path: string, part: string, fd: number) {
    this.#path = path;
    this.#part = part;
    this.#fd = fd;
  }

  /** What an export that was killed has left is written over. @throws Error where it can't be written */
  static async create(path: string): Promise<ArchiveFile> {
    const part = `${path}.part`;
    const fd = await openFile(part, "a");
    await truncateFile(fd, 0);
    return new ArchiveFile(path, part, fd);
  }

  async write(bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length;) at += await appendTo(this.#fd, bytes.subarray(at));
    this.#at += bytes.length;
    if (this.#flushing !== undefined || this.#at - this.#flushedAt < FLUSH_BYTES) return;
    this.#flushedAt = this.#at;
    // A failure is told by the sync at the end, too.
    this.#flushing = syncData(this.#fd)
      .catch(() => undefined)
      .finally(() => (this.#flushing = undefined));
  }

  /** Makes it the file. */
  async finish(): Promise<void> {
    await this.#flushing;
    await syncFile(this.#fd);
    await rename(this.#part, this.#path);
    this.#state = "whole";
    // Rename alone may not survive a power loss.
    const folder = await open(dirname(this.#path), "r");
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  }

  /** Unless it is finished, nothing of it stays. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#state === "gone") return;
    await this.#flushing;
    closeSync(this.#fd);
    if (this.#state === "open") await rm(this.#part, { force: true });
    this.#state = "gone";
  }
}

function readAt(fd: number, target: Buffer, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    readFd(fd, target, 0, target.length, position, (error, bytes) => (error ? reject(error) : resolve(bytes)));
  });
}

function appendTo(fd: number, bytes: Buffer): Promise<number> {
  return new Promise((resolve, reject) => {
    writeFd(fd, bytes, 0, bytes.length, null, (error, written) => (error ? reject(error) : resolve(written)));
  });
}
