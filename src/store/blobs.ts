import type { Digest } from "../oci/digest.ts";
import type { ByteRange } from "../oci/range.ts";

/** Stands for the bytes of one stored file while anybody reads it. */
export type Content = object;

/** A readable piece of content of which all bytes may not be here yet. One reader, one position at a time. */
export interface BlobReader {
  /** Undefined while the size is unknown: upstream sent no length. */
  readonly sizeBytes: number | undefined;
  /** True where there is no room to keep what is read, and each reader has a download of its own. */
  readonly passedThrough?: boolean;
  /** Readers with the same one read the same bytes: what one has read need not be read by the others. */
  readonly content?: Content;
  /** Tells, before the first read, that only these bytes will be read: a source that is far from them may fetch just them. */
  narrow?(range: ByteRange): void;
  /**
   * Reads bytes from `position` into `target`, waiting for them where they are still on their way.
   * @returns how many, at least 1; 0 at the end of the content
   * @throws Error where the content can't be had in full: the caller must break its answer off, never end it
   */
  read(target: Buffer, position: number): Promise<number>;
  /** Gives up the reader. Idempotent. */
  close(): void;
}

/** How far apart the parts of one blob that are fetched at the same time may lie. */
export const PARALLEL_WINDOW_BYTES: number = 128 * 1024 * 1024;

/** Why a stored blob could not be opened. Only `missing` says that it is not there. */
export class BlobFault extends Error {
  override readonly name = "BlobFault";
  readonly fault: "missing" | "corrupt" | "unreadable";

  constructor(fault: "missing" | "corrupt" | "unreadable", message: string, options?: ErrorOptions) {
    super(message, options);
    this.fault = fault;
  }
}

/** A blob on its way in: written at any offset, read behind the writer, then committed or discarded. */
export interface StagedBlob {
  readonly digest: Digest;
  /** Writes the buffers one after the other. @throws Error with `code` ENOSPC, EIO, … */
  write(buffers: readonly Buffer[], position: number): Promise<void>;
  /** @returns how many bytes were read, 0 at the end of what is written */
  read(target: Buffer, position: number): Promise<number>;
  /** From now on its last PARALLEL_WINDOW_BYTES may have holes: after a crash, only what lies before them is used. */
  becomeParallel(): Promise<void>;
  /** Cuts the file to its first `sizeBytes` and keeps it for a later start. */
  keep(sizeBytes: number): Promise<void>;
  /** Makes it the blob: fsync, rename, fsync of the folder. The content must have been proven. Reading goes on to work. */
  commit(): Promise<void>;
  /** Removes the file. Reading goes on to work until `close`. */
  discard(): Promise<void>;
  close(): Promise<void>;
}

/** What an earlier run left behind. */
export interface Leftover {
  digest: Digest;
  sizeBytes: number;
  modifiedAtMs: number;
}

/** The contract of a store of blobs. Every implementation passes test/contracts/blobs.ts. */
export interface BlobStore {
  /** @param sizeBytes what the catalog says; another size on disk is a corrupt blob. @throws BlobFault */
  open(digest: Digest, sizeBytes: number): Promise<BlobReader & { sizeBytes: number }>;
  /** Whether someone is reading it now. */
  isOpen(digest: Digest): boolean;
  /** Starts or goes on with the staged blob of a digest. `sizeBytes` says how many of its first bytes an earlier try left: unproven. */
  stage(digest: Digest): Promise<{ staged: StagedBlob; sizeBytes: number }>;
  leftovers(): Promise<Leftover[]>;
  removeLeftover(digest: Digest): Promise<void>;
  /** Idempotent. Readers that have it open go on. */
  remove(digest: Digest): Promise<void>;
  /** Takes a damaged blob out of the way, and keeps it for inspection. Idempotent. */
  quarantine(digest: Digest): Promise<void>;
  /** Every blob in place, in no order. */
  list(): AsyncIterable<{ digest: Digest; modifiedAtMs: number }>;
  /** Free bytes for this process. */
  freeBytes(): Promise<number>;
}
