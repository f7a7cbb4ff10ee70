import type { Digest } from "../oci/digest.ts";
import type { ByteRange } from "../oci/range.ts";
import type { FileOutcome, FileThreads, ForeignFile } from "./file-threads.ts";

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

/** Why a stored blob could not be opened. Only `missing` says that it is not there. */
export class BlobFault extends Error {
  override readonly name = "BlobFault";
  readonly fault: "missing" | "corrupt" | "unreadable";

  constructor(fault: "missing" | "corrupt" | "unreadable", message: string, options?: ErrorOptions) {
    super(message, options);
    this.fault = fault;
  }
}

/** A file on its way in: written at any offset, read behind the writer. */
export interface StagedFile {
  /** Writes the buffers one after the other. @throws Error with `code` ENOSPC, EIO, … */
  write(buffers: readonly Buffer[], position: number): Promise<void>;
  /** @returns how many bytes were read, 0 at the end of what is written */
  read(target: Buffer, position: number): Promise<number>;
  /** Cuts the file to its first `sizeBytes` and keeps it for later. */
  keep(sizeBytes: number): Promise<void>;
  /** Removes the file. Reading goes on to work until `close`. */
  discard(): Promise<void>;
  close(): Promise<void>;
}

/** A blob whose digest is known before its content. */
export interface StagedBlob extends StagedFile {
  readonly digest: Digest;
  /**
   * From now on it may have holes beyond its first `soundBytes`: after a crash, only those are used.
   * To be called again as they grow: once in a while, and one call at a time.
   */
  allowHoles(soundBytes: number): Promise<void>;
  /** Makes it the blob: fsync, rename, fsync of the folder. The content must have been proven. Reading goes on to work. */
  commit(): Promise<void>;
}

/** What a client uploads: its digest is known at the end. */
export interface StagedUpload extends StagedFile {
  /** Brings what is written so far to the disk, so that the commit has less to do. @throws Error with `code` EIO, ENOSPC, … */
  flush(): Promise<void>;
  /**
   * Makes it the blob: fsync, rename, fsync of the folder. The content must have been proven. A file that is in the place gives way:
   * whatever was wrong with it is mended.
   */
  commit(digest: Digest): Promise<void>;
}

/** What an earlier run left behind. */
export interface Leftover {
  digest: Digest;
  sizeBytes: number;
  modifiedAtMs: number;
}

/** The file of an upload. */
export interface UploadFile {
  id: string;
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
  /** Starts or goes on with the file of an upload. `sizeBytes` says how far it has come. @param id a UUID */
  stageUpload(id: string): Promise<{ staged: StagedUpload; sizeBytes: number }>;
  uploads(): Promise<UploadFile[]>;
  /** @returns undefined where there is no such file. @throws Error where that can't be told */
  uploadSize(id: string): Promise<number | undefined>;
  /** Idempotent. */
  removeUpload(id: string): Promise<void>;
  /**
   * Runs `work` alone among all that puts in or takes away the files of these digests together with their rows. Whoever comes first
   * is served first; places are taken for all digests at once, so two never wait for each other. Not reentrant.
   */
  exclusive<T>(digests: readonly Digest[], work: () => Promise<T>): Promise<T>;
  /** Undefined where nobody is alone with the digest or waits to be; else resolves when all who do now are done. Never rejects. */
  settled(digest: Digest): Promise<void> | undefined;
  /**
   * Puts files from elsewhere in place as blobs: hard links where the file system lets, else copies. They must have been proven, or be left
   * to a scrub; the caller is alone with their digests, and no row knows these. When it resolves, all of them are on the disk.
   * @param options.syncedAtMs bytes that were written before are on the disk; undefined: it is not known of any
   * @returns an outcome for each, in their order. @throws Error with `code` ENOSPC, EIO, …; the signal's reason
   */
  adopt(
    files: readonly ForeignFile[],
    options: { syncedAtMs: number | undefined; threads: FileThreads; signal: AbortSignal },
  ): Promise<FileOutcome[]>;
  /** Whether a folder's files can be linked to: it is on the same file system. */
  isBeside(folder: string): Promise<boolean>;
  /** Idempotent. Readers that have it open go on. */
  remove(digest: Digest): Promise<void>;
  /** Takes a damaged blob out of the way, and keeps it for inspection. Idempotent. */
  quarantine(digest: Digest): Promise<void>;
  /** Every blob in place, in no order. */
  list(): AsyncIterable<{ digest: Digest; modifiedAtMs: number }>;
  /** Free bytes for this process. */
  freeBytes(): Promise<number>;
}
