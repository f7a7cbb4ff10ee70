import {
  close as closeFd,
  constants,
  fstat,
  fsync,
  ftruncate,
  open as openFd,
  read as readFd,
  writev as writevFd,
} from "node:fs";
import { mkdir, open, readdir, rename, rm, stat, statfs, truncate } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { algorithmOf, hexOf, isDigest, type Digest } from "../oci/digest.ts";
import {
  BlobFault,
  PARALLEL_WINDOW_BYTES,
  type BlobReader,
  type BlobStore,
  type Content,
  type Leftover,
  type StagedBlob,
} from "./blobs.ts";

/*
 * The tree under storage.root:
 *
 *   blobs/sha256/ab/ab12…        content, complete and proven; never written again
 *   staging/sha256-ab12….part    on its way: its bytes are there from 0 to its end
 *   staging/sha256-ab12….parts   on its way over several connections: may have holes within its last PARALLEL_WINDOW_BYTES
 *   quarantine/sha256-ab12…-TIME damaged content, for inspection
 *   entrepot.db                  metadata (not ours)
 */

/** What the name of a partial file ends with while it may have holes. */
const PARALLEL = "s";

const closeFile = promisify(closeFd);
const statFile = promisify(fstat);
const syncFile = promisify(fsync);
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

/** A file that someone reads now. */
interface OpenFile {
  readers: number;
}

export class FileBlobStore implements BlobStore {
  readonly #root: string;
  readonly #open = new Map<Digest, OpenFile>();
  /** A read failed: the next one to ask is told so, and fetches it again. */
  readonly #failed = new Set<Digest>();

  private constructor(root: string) {
    this.#root = root;
  }

  /** @throws Error naming the folder where it can't be created or written */
  static async open(root: string): Promise<FileBlobStore> {
    for (const folder of ["blobs/sha256", "blobs/sha512", "staging", "quarantine"]) {
      await mkdir(join(root, folder), { recursive: true });
    }
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
      failed: () => this.#failed.add(digest),
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
    // What was fetched in parallel may have holes near its end: only what lies before them counts.
    const parallel = path + PARALLEL;
    const parallelBytes = await sizeOf(parallel);
    if (parallelBytes !== undefined) {
      // In this order: killed in between, it is cut once more, never taken for whole.
      await truncate(parallel, Math.max(0, parallelBytes - PARALLEL_WINDOW_BYTES));
      await rename(parallel, path);
    }
    const fd = await openFile(path, constants.O_RDWR | constants.O_CREAT);
    try {
      const { size: sizeBytes } = await statFile(fd);
      return { staged: new StagedFile(digest, fd, path, this.#path(digest)), sizeBytes };
    } catch (error) {
      await closeFile(fd);
      throw error;
    }
  }

  async leftovers(): Promise<Leftover[]> {
    const names = await readdir(join(this.#root, "staging"));
    const found = await Promise.all(
      names.map(async (name): Promise<Leftover[]> => {
        const digest = name.replace(/\.parts?$/, "").replace("-", ":");
        if (!isDigest(digest)) return [];
        const stats = await stat(join(this.#root, "staging", name)).catch(() => undefined);
        return stats ? [{ digest, sizeBytes: stats.size, modifiedAtMs: stats.mtimeMs }] : [];
      }),
    );
    return found.flat();
  }

  async removeLeftover(digest: Digest): Promise<void> {
    const path = this.#stagingPath(digest);
    await Promise.all([rm(path, { force: true }), rm(path + PARALLEL, { force: true })]);
  }

  async remove(digest: Digest): Promise<void> {
    await rm(this.#path(digest), { force: true });
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
    const hex = hexOf(digest);
    return join(this.#root, "blobs", algorithmOf(digest), hex.slice(0, 2), hex);
  }

  #stagingPath(digest: Digest): string {
    return join(this.#root, "staging", `${digest.replace(":", "-")}.part`);
  }
}

async function sizeOf(path: string): Promise<number | undefined> {
  return stat(path).then(
    (stats) => stats.size,
    (error: unknown) => {
      if (codeOf(error) === "ENOENT") return undefined;
      throw error;
    },
  );
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

class StagedFile implements StagedBlob {
  readonly digest: Digest;
  readonly #fd: number;
  readonly #finalPath: string;
  #path: string;
  #pending = 0;
  #closing: (() => void) | undefined;

  constructor(digest: Digest, fd: number, path: string, finalPath: string) {
    this.digest = digest;
    this.#fd = fd;
    this.#path = path;
    this.#finalPath = finalPath;
  }

  async write(buffers: readonly Buffer[], position: number): Promise<void> {
    let rest = buffers.filter((buffer) => buffer.length > 0);
    let at = position;
    await this.#use(async () => {
      while (rest.length > 0) {
        let written = await writevAt(this.#fd, rest, at);
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
    return this.#use(() => readAt(this.#fd, target, position));
  }

  async keep(sizeBytes: number): Promise<void> {
    await this.#use(() => truncateFile(this.#fd, sizeBytes));
    if (this.#path.endsWith(PARALLEL)) await this.#move(this.#path.slice(0, -PARALLEL.length));
  }

  async becomeParallel(): Promise<void> {
    await this.#move(this.#path + PARALLEL);
  }

  async #move(path: string): Promise<void> {
    await rename(this.#path, path);
    this.#path = path;
  }

  async commit(): Promise<void> {
    await this.#use(() => syncFile(this.#fd));
    const folder = dirname(this.#finalPath);
    if ((await mkdir(folder, { recursive: true })) !== undefined) await syncFolder(dirname(folder));
    await rename(this.#path, this.#finalPath);
    // The folder too: a rename alone may not survive power loss.
    await syncFolder(folder);
  }

  async discard(): Promise<void> {
    await rm(this.#path, { force: true });
  }

  async close(): Promise<void> {
    if (this.#pending > 0) await new Promise<void>((resolve) => (this.#closing = resolve));
    await closeFile(this.#fd);
  }

  async #use<T>(work: () => Promise<T>): Promise<T> {
    this.#pending++;
    try {
      return await work();
    } finally {
      this.#pending--;
      if (this.#pending === 0) this.#closing?.();
    }
  }
}

async function syncFolder(path: string): Promise<void> {
  await using folder = await open(path, "r");
  await folder.sync();
}
