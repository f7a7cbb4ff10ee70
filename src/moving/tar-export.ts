import { closeSync, fdatasync, fsync, open as openFd, write as writeFd, type PathLike } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";
import { hexOf, algorithmOf, proves, startHash, type Digest } from "../oci/digest.ts";
import { blobPath } from "../store/blobs-fs.ts";
import { FileThreads, type FileTask, type ForeignFile } from "../store/file-threads.ts";
import type { ExportPlan, PlannedBlob } from "./export-plan.ts";
import type { RegistryClient } from "./registry-client.ts";
import { fileHead, padding, TAR_END } from "./tar-format.ts";

const PIECE_BYTES = 256 * 1024;
/** What a thread copies before it tells of it. */
const STRIDE_BYTES = 64 * 1024 * 1024;
/** The disk is set to work after so much, so that the sync at the end is short. Smaller steps hold up the writing. */
const FLUSH_BYTES = 256 * 1024 * 1024;

const openFile = promisify(openFd) as (path: PathLike, flags: string) => Promise<number>;
const syncData = promisify(fdatasync);
const syncFile = promisify(fsync);

/** Where an archive goes. */
export interface ArchiveSink {
  /** The buffer is the caller's again once this has resolved. */
  write(bytes: Buffer): Promise<void>;
  /**
   * Writes a whole file of this machine, and proves it.
   * @returns undefined, or why not: then it is as if nothing had been written
   */
  writeFile?(file: ForeignFile, told: (bytes: number) => void, signal: AbortSignal): Promise<string | undefined>;
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

/** Copies and proves. What can't be read on this machine, whatever the reason, is asked for. */
async function copyBlob(
  blob: PlannedBlob,
  { client, root }: ExportSource,
  sink: ArchiveSink,
  told: (bytes: number) => void,
  signal: AbortSignal,
): Promise<void> {
  const { digest, sizeBytes, repository } = blob;
  let reason = "it is damaged where it is stored";
  if (root !== undefined && sink.writeFile) {
    const refused = await sink.writeFile({ digest, path: blobPath(root, digest), sizeBytes }, told, signal);
    if (refused === undefined) return;
    reason = refused;
  }
  const hash = startHash(digest);
  let copied = 0;
  let cause: unknown;
  try {
    for await (const piece of gathered(client.blob(repository, digest, signal), sizeBytes)) {
      copied += piece.length;
      if (copied > sizeBytes) break;
      const writing = sink.write(piece);
      hash.update(piece);
      await writing;
      told(piece.length);
    }
    if (copied === sizeBytes && proves(hash, digest)) return;
  } catch (error) {
    signal.throwIfAborted();
    if (root === undefined) throw error;
    cause = error;
  }
  throw new Error(
    `${repository}: blob ${digest} can't be had (${reason}): find and repair what is damaged with "entrepot scrub", then export again`,
    { cause },
  );
}

/** The small pieces of a socket, joined: each write costs a turn of a thread. A piece is good until the next is asked for. */
async function* gathered(
  chunks: AsyncIterable<Buffer>,
  sizeBytes: number,
): AsyncGenerator<Buffer, undefined, undefined> {
  // What is made anew for each piece would wait for the next collection, a hundred MiB of it.
  const target = Buffer.allocUnsafeSlow(Math.max(1, Math.min(PIECE_BYTES, sizeBytes)));
  let filled = 0;
  for await (const chunk of chunks) {
    for (let at = 0; at < chunk.length;) {
      const copied = chunk.copy(target, filled, at);
      at += copied;
      filled += copied;
      if (filled < target.length) continue;
      yield target;
      filled = 0;
    }
  }
  if (filled > 0) yield target.subarray(0, filled);
  return undefined;
}

/** A file that is there whole or not at all: written beside its place, synced, renamed. */
export class ArchiveFile implements ArchiveSink, AsyncDisposable {
  readonly #path: string;
  readonly #part: string;
  readonly #fd: number;
  readonly #threads = new FileThreads();
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
    return new ArchiveFile(path, part, await openFile(part, "w"));
  }

  async write(bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length;) at += await writeAt(this.#fd, bytes.subarray(at), this.#at + at);
    this.#at += bytes.length;
    this.#flush();
  }

  /** One thread proves the file while another copies it: each reads it alone, the second out of memory. */
  async writeFile(file: ForeignFile, told: (bytes: number) => void, signal: AbortSignal): Promise<string | undefined> {
    const start = this.#at;
    const copies: FileTask[] = [];
    for (let from = 0; from < file.sizeBytes; from += STRIDE_BYTES) {
      const bytes = Math.min(STRIDE_BYTES, file.sizeBytes - from);
      copies.push({ verb: "copy", file, from, bytes, into: this.#part, at: start + from });
    }
    // A file may take minutes to prove.
    const end = (): void => void this.#threads[Symbol.asyncDispose]();
    signal.addEventListener("abort", end);
    let written = 0;
    try {
      const proving = this.#threads.run([{ verb: "prove", file }], signal);
      proving.catch(() => undefined);
      const copied = await this.#threads.run(copies, signal, (done) => {
        const bytes = done.reduce((sum, task) => sum + (task.verb === "copy" ? task.bytes : 0), 0);
        written += bytes;
        this.#at = start + written;
        this.#flush();
        told(bytes);
      });
      const outcomes = [...copied, ...(await proving)];
      const refused = outcomes.find((outcome) => "reason" in outcome);
      if (!refused) return undefined;
      this.#at = start;
      told(-written);
      return refused.reason;
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    } finally {
      signal.removeEventListener("abort", end);
    }
  }

  #flush(): void {
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
    await this.#threads[Symbol.asyncDispose]();
    await this.#flushing;
    closeSync(this.#fd);
    if (this.#state === "open") await rm(this.#part, { force: true });
    this.#state = "gone";
  }
}

function writeAt(fd: number, bytes: Buffer, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    writeFd(fd, bytes, 0, bytes.length, position, (error, written) => (error ? reject(error) : resolve(written)));
  });
}
