import {
  close as closeFd,
  constants,
  fdatasync,
  fstat,
  fsync,
  ftruncate,
  open as openFd,
  read as readFd,
  writev as writevFd,
  type Stats,
} from "node:fs";
import { randomUUID } from "node:crypto";
import { mkdir, open, readdir, rename, rm, stat, statfs, truncate, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { algorithmOf, hexOf, isDigest, type Digest } from "../oci/digest.ts";
import {
  BlobFault,
  type BlobReader,
  type BlobStore,
  type Content,
  type Leftover,
  type StagedBlob,
  type StagedFile,
  type StagedUpload,
  type UploadFile,
} from "./blobs.ts";
import type { FileOutcome, FileThreads, ForeignFile } from "./file-threads.ts";

/*
 * The tree under storage.root:
 *
 *   blobs/sha256/ab/ab12…        content, complete and proven; never written again
 *   staging/sha256-ab12….part    on its way: its bytes are there from 0 to its end
 *   staging/sha256-ab12….part-N  on its way over several connections: its first N bytes are there, beyond them it may have holes
 *   uploads/UUID                 what a client uploads, from 0 to its end: its size is how far the client has come
 *   quarantine/sha256-ab12…-TIME damaged content, for inspection
 *   entrepot.db                  metadata (not ours)
 */

const PARTIAL = /^(sha\d+)-([0-9a-f]+)\.part(?:-(\d+))?$/;

const closeFile = promisify(closeFd);
const statFile = promisify(fstat);
const syncFile = promisify(fsync);
const syncData = promisify(fdatasync);
const truncateFile = promisify(ftruncate);
const openFile = promisify(openFd);

// Plain callbacks: a FileHandle costs twice the CPU per read of 512 KiB.
function readAt(fd: number, target: Buffer, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    readFd(fd, target, 0, target.length, position, (error, bytes) => (error ? reject(error) : resolve(bytes)));
  });
}

function writevAt(fd: number, buffers: readonly Buffer[], position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    writevFd(fd, buffers as Buffer[], position, (error, bytes) => (error ? reject(error) : resolve(bytes)));
  });
}

function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException | undefined)?.code;
}

/** Where the content of a blob lies under storage.root. */
export function blobPath(root: string, digest: Digest): string {
  const hex = hexOf(digest);
  return join(root, "blobs", algorithmOf(digest), hex.slice(0, 2), hex);
}

/** A file that someone reads now. */
interface OpenFile {
  readers: number;
}

export class FileBlobStore implements BlobStore {
  readonly #root: string;
  readonly #open = new Map<Digest, OpenFile>();
  /** A read failed: the next one to ask is told so, and fetches it again. */
  readonly #failed = new Set<Digest>();
  /** Who is alone with a digest, or waits to be: the last of them. */
  readonly #turns = new Map<Digest, Promise<void>>();

  /** Folders of blobs that are there, and on the disk. */
  readonly #folders = new Set<string>();

  private constructor(root: string) {
    this.#root = root;
  }

  /** @throws Error naming the folder where it can't be created or written */
  static async open(root: string): Promise<FileBlobStore> {
    for (const folder of ["blobs/sha256", "blobs/sha512", "staging", "uploads", "quarantine"]) {
      await mkdir(join(root, folder), { recursive: true });
    }
    for (const folder of ["blobs", ""]) await syncFolder(join(root, folder));
    return new FileBlobStore(root);
  }

  async open(digest: Digest, sizeBytes: number): Promise<BlobReader & { sizeBytes: number }> {
    if (this.#failed.delete(digest)) throw new BlobFault("unreadable", `the file of ${digest} could not be read`);
    let fd: number;
    try {
      fd = await openFile(this.#path(digest), "r");
    } catch (cause) {
      const fault = codeOf(cause) === "ENOENT" ? "missing" : "unreadable";
      throw new BlobFault(fault, `the file of ${digest} is ${fault}`, { cause });
    }
    try {
      const stats = await statFile(fd);
      if (!stats.isFile()) throw new BlobFault("corrupt", `what should be the file of ${digest} is none`);
      if (stats.size !== sizeBytes) {
        throw new BlobFault("corrupt", `the file of ${digest} has ${stats.size} bytes, expected ${sizeBytes}`);
      }
    } catch (error) {
      await closeFile(fd);
      if (error instanceof BlobFault) throw error;
      throw new BlobFault("unreadable", `the file of ${digest} is unreadable`, { cause: error });
    }
    const file = this.#open.get(digest) ?? { readers: 0 };
    this.#open.set(digest, file);
    file.readers++;
    return new FileReader(fd, sizeBytes, file, {
      failed: () => {
        // It may be another file by now.
        if (this.#open.get(digest) === file) this.#failed.add(digest);
      },
      closed: () => {
        file.readers--;
        if (file.readers === 0 && this.#open.get(digest) === file) this.#open.delete(digest);
      },
    });
  }

  isOpen(digest: Digest): boolean {
    return this.#open.has(digest);
  }

  async stage(digest: Digest): Promise<{ staged: StagedBlob; sizeBytes: number }> {
    const path = this.#stagingPath(digest);
    for (const { name, soundBytes } of await this.#partials(digest)) {
      if (soundBytes === undefined) continue;
      const holed = join(this.#root, "staging", name);
      const { size } = await stat(holed);
      // After a power loss it may be shorter than its name says: cut it, never fill it up.
      if (size > soundBytes) await truncate(holed, soundBytes);
      // In this order: killed in between, it is cut once more, never taken for whole.
      await rename(holed, path);
    }
    const fd = await openFile(path, constants.O_RDWR | constants.O_CREAT);
    try {
      const { size: sizeBytes } = await statFile(fd);
      return { staged: new BlobFile(digest, fd, path, this.#path(digest)), sizeBytes };
    } catch (error) {
      await closeFile(fd);
      throw error;
    }
  }

  async leftovers(): Promise<Leftover[]> {
    const found = await Promise.all(
      (await this.#partials()).map(async ({ name, digest }): Promise<Leftover[]> => {
        const stats = await stat(join(this.#root, "staging", name)).catch(() => undefined);
        return stats ? [{ digest, sizeBytes: stats.size, modifiedAtMs: stats.mtimeMs }] : [];
      }),
    );
    return found.flat();
  }

  async removeLeftover(digest: Digest): Promise<void> {
    for (const { name } of await this.#partials(digest)) await rm(join(this.#root, "staging", name), { force: true });
  }

  async stageUpload(id: string): Promise<{ staged: StagedUpload; sizeBytes: number }> {
    const path = this.#uploadPath(id);
    const fd = await openFile(path, constants.O_RDWR | constants.O_CREAT);
    try {
      const { size: sizeBytes } = await statFile(fd);
      const places = {
        of: (digest: Digest) => this.#path(digest),
        taken: (digest: Digest) => {
          // What is read from now on is the new file, whatever is known of the one that was there.
          this.#open.delete(digest);
          this.#failed.delete(digest);
        },
      };
      return { staged: new Upload(fd, path, places), sizeBytes };
    } catch (error) {
      await closeFile(fd);
      throw error;
    }
  }

  async uploads(): Promise<UploadFile[]> {
    const found = await Promise.all(
      (await readdir(join(this.#root, "uploads"))).map(async (id): Promise<UploadFile[]> => {
        const stats = await this.#uploadStats(id);
        return stats ? [{ id, sizeBytes: stats.size, modifiedAtMs: stats.mtimeMs }] : [];
      }),
    );
    return found.flat();
  }

  async uploadSize(id: string): Promise<number | undefined> {
    return (await this.#uploadStats(id))?.size;
  }

  async removeUpload(id: string): Promise<void> {
    await rm(this.#uploadPath(id), { force: true });
  }

  async exclusive<T>(digests: readonly Digest[], work: () => Promise<T>): Promise<T> {
    const over = Promise.withResolvers<void>();
    const wanted = [...new Set(digests)];
    const earlier = wanted.flatMap((digest) => this.#turns.get(digest) ?? []);
    for (const digest of wanted) this.#turns.set(digest, over.promise);
    try {
      await Promise.all(earlier);
      return await work();
    } finally {
      over.resolve();
      for (const digest of wanted) if (this.#turns.get(digest) === over.promise) this.#turns.delete(digest);
    }
  }

  settled(digest: Digest): Promise<void> | undefined {
    return this.#turns.get(digest);
  }

  async adopt(
    files: readonly ForeignFile[],
    { syncedAtMs, threads, signal }: { syncedAtMs: number | undefined; threads: FileThreads; signal: AbortSignal },
  ): Promise<FileOutcome[]> {
    const folders = [...new Set(files.map(({ digest }) => dirname(this.#path(digest))))];
    const unknown = folders.filter((folder) => !this.#folders.has(folder));
    await Promise.all(unknown.map((folder) => mkdir(folder, { recursive: true })));
    const outcomes = await threads.run(
      files.map((file) => {
        // What is read from now on is the new file, whatever is known of one that was there.
        this.#open.delete(file.digest);
        this.#failed.delete(file.digest);
        return {
          verb: "place",
          file,
          place: this.#path(file.digest),
          // Left there by a kill, it goes as an upload does whose session is gone.
          temporary: this.#uploadPath(randomUUID()),
          syncedAtMs,
        };
      }),
      signal,
    );
    const parents = new Set(unknown.map((folder) => dirname(folder)));
    await threads.run(
      [...folders, ...parents].map((folder) => ({ verb: "sync", folder })),
      signal,
    );
    for (const folder of unknown) this.#folders.add(folder);
    return outcomes;
  }

  async isBeside(folder: string): Promise<boolean> {
    const [here, there] = await Promise.all([stat(join(this.#root, "blobs")), stat(folder)]);
    return here.dev === there.dev;
  }

  async remove(digest: Digest): Promise<void> {
    await unlink(this.#path(digest)).catch((error: unknown) => {
      if (codeOf(error) !== "ENOENT") throw error;
    });
  }

  async quarantine(digest: Digest): Promise<void> {
    // Whoever opens it from now on reads another file.
    this.#open.delete(digest);
    const to = join(this.#root, "quarantine", `${digest.replace(":", "-")}-${Date.now()}`);
    await rename(this.#path(digest), to).catch((error: unknown) => {
      if (codeOf(error) !== "ENOENT") throw error;
    });
  }

  async *list(): AsyncIterable<{ digest: Digest; modifiedAtMs: number }> {
    for (const algorithm of ["sha256", "sha512"]) {
      for (const shard of await readdir(join(this.#root, "blobs", algorithm), { withFileTypes: true })) {
        if (!shard.isDirectory()) continue;
        for (const name of await readdir(join(shard.parentPath, shard.name))) {
          const digest = `${algorithm}:${name}`;
          if (!isDigest(digest)) continue;
          const stats = await stat(this.#path(digest)).catch(() => undefined);
          if (stats) yield { digest, modifiedAtMs: stats.mtimeMs };
        }
      }
    }
  }

  async freeBytes(): Promise<number> {
    const stats = await statfs(this.#root);
    return stats.bavail * stats.bsize;
  }

  #path(digest: Digest): string {
    return blobPath(this.#root, digest);
  }

  /** The partial files, of one digest or of all. `soundBytes` is undefined where they have no holes. */
  async #partials(of?: Digest): Promise<{ name: string; digest: Digest; soundBytes: number | undefined }[]> {
    const names = await readdir(join(this.#root, "staging"));
    const prefix = of === undefined ? "" : `${of.replace(":", "-")}.part`;
    return names.flatMap((name) => {
      if (!name.startsWith(prefix)) return [];
      const [, algorithm, hex, soundBytes] = PARTIAL.exec(name) ?? [];
      const digest = `${algorithm}:${hex}`;
      if (!isDigest(digest)) return [];
      return [{ name, digest, soundBytes: soundBytes === undefined ? undefined : Number(soundBytes) }];
    });
  }

  #uploadPath(id: string): string {
    return join(this.#root, "uploads", id);
  }

  async #uploadStats(id: string): Promise<Stats | undefined> {
    try {
      return await stat(this.#uploadPath(id));
    } catch (error) {
      if (codeOf(error) === "ENOENT") return undefined;
      throw error;
    }
  }

  #stagingPath(digest: Digest): string {
    return join(this.#root, "staging", `${digest.replace(":", "-")}.part`);
  }
}

class FileReader implements BlobReader {
  readonly sizeBytes: number;
  readonly content: Content;
  readonly #fd: number;
  readonly #on: { failed: () => void; closed: () => void };
  #reading = 0;
  #closed = false;

  constructor(fd: number, sizeBytes: number, content: Content, on: { failed: () => void; closed: () => void }) {
    this.#fd = fd;
    this.sizeBytes = sizeBytes;
    this.content = content;
    this.#on = on;
  }

  async read(target: Buffer, position: number): Promise<number> {
    const wanted = Math.min(target.length, this.sizeBytes - position);
    if (wanted <= 0) return 0;
    if (this.#closed) throw new Error("read after close");
    this.#reading++;
    try {
      const bytes = await readAt(this.#fd, wanted === target.length ? target : target.subarray(0, wanted), position);
      if (bytes === 0) throw new BlobFault("corrupt", `the file ends at ${position}, expected ${this.sizeBytes} bytes`);
      return bytes;
    } catch (error) {
      this.#on.failed();
      throw error;
    } finally {
      this.#reading--;
      this.#closeWhenIdle();
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#on.closed();
    this.#closeWhenIdle();
  }

  // A descriptor closed under a read could be another file's by the time the read runs.
  #closeWhenIdle(): void {
    if (!this.#closed || this.#reading > 0) return;
    // Without a callback a failure would end the process; nothing was written here, so none matters.
    closeFd(this.#fd, () => undefined);
  }
}

/** A descriptor that is closed only when nothing runs on it. */
class WritableFile implements StagedFile {
  protected readonly fd: number;
  protected path: string;
  #pending = 0;
  #closing: (() => void) | undefined;

  constructor(fd: number, path: string) {
    this.fd = fd;
    this.path = path;
  }

  async write(buffers: readonly Buffer[], position: number): Promise<void> {
    let rest = buffers.filter((buffer) => buffer.length > 0);
    let at = position;
    await this.use(async () => {
      while (rest.length > 0) {
        let written = await writevAt(this.fd, rest, at);
        at += written;
        // A short write (a file system about to be full): go on after the last byte that went out.
        while (rest[0] && written >= rest[0].length) {
          written -= rest[0].length;
          rest = rest.slice(1);
        }
        if (rest[0] && written > 0) rest = [rest[0].subarray(written), ...rest.slice(1)];
      }
    });
  }

  async read(target: Buffer, position: number): Promise<number> {
    return this.use(() => readAt(this.fd, target, position));
  }

  async keep(sizeBytes: number): Promise<void> {
    await this.use(() => truncateFile(this.fd, sizeBytes));
  }

  async discard(): Promise<void> {
    await rm(this.path, { force: true });
  }

  async close(): Promise<void> {
    if (this.#pending > 0) await new Promise<void>((resolve) => (this.#closing = resolve));
    await closeFile(this.fd);
  }

  protected async use<T>(work: () => Promise<T>): Promise<T> {
    this.#pending++;
    try {
      return await work();
    } finally {
      this.#pending--;
      if (this.#pending === 0) this.#closing?.();
    }
  }

  /** Puts it in its place so that it is there after a power loss. */
  protected async publish(place: string): Promise<void> {
    await this.use(() => syncFile(this.fd));
    const folder = dirname(place);
    if ((await mkdir(folder, { recursive: true })) !== undefined) await syncFolder(dirname(folder));
    await rename(this.path, place);
    // The folder too: a rename alone may not survive power loss.
    await syncFolder(folder);
  }
}

class BlobFile extends WritableFile implements StagedBlob {
  readonly digest: Digest;
  readonly #place: string;
  /** Its path while it has no holes. */
  readonly #wholePath: string;

  constructor(digest: Digest, fd: number, path: string, place: string) {
    super(fd, path);
    this.digest = digest;
    this.#wholePath = path;
    this.#place = place;
  }

  override async keep(sizeBytes: number): Promise<void> {
    await super.keep(sizeBytes);
    await this.#move(this.#wholePath);
  }

  async allowHoles(soundBytes: number): Promise<void> {
    await this.#move(`${this.#wholePath}-${soundBytes}`);
  }

  async commit(): Promise<void> {
    await this.publish(this.#place);
  }

  async #move(path: string): Promise<void> {
    if (path === this.path) return;
    await rename(this.path, path);
    this.path = path;
  }
}

/** Where blobs lie, and who is told that a place has another file now. */
interface Places {
  of(digest: Digest): string;
  taken(digest: Digest): void;
}

class Upload extends WritableFile implements StagedUpload {
  readonly #places: Places;

  constructor(fd: number, path: string, places: Places) {
    super(fd, path);
    this.#places = places;
  }

  async flush(): Promise<void> {
    await this.use(() => syncData(this.fd));
  }

  async commit(digest: Digest): Promise<void> {
    await this.publish(this.#places.of(digest));
    this.#places.taken(digest);
  }
}

async function syncFolder(path: string): Promise<void> {
  await using folder = await open(path, "r");
  await folder.sync();
}
