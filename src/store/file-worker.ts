/** A thread of `file-threads.ts`. It waits for the disk itself: nobody else waits for it. */
import {
  closeSync,
  constants,
  copyFileSync,
  fstatSync,
  fsyncSync,
  linkSync,
  lstatSync,
  openSync,
  readSync,
  renameSync,
  unlinkSync,
  writeSync,
  type Stats,
} from "node:fs";
import { setPriority } from "node:os";
import { parentPort } from "node:worker_threads";
import { proves, startHash } from "../oci/digest.ts";
import type { FileAnswer, FileOutcome, FileTask, ForeignFile } from "./file-threads.ts";

const NICE = 10;
// Linux counts a thread as a process here; elsewhere this would slow the whole daemon down.
if (process.platform === "linux") setPriority(0, NICE);

/** What the caches of a core hold: with 2 MiB, reading and writing cost the system twice the time. */
const PIECE_BYTES = 256 * 1024;
const piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
/** Another file system, one without links, another user's file (protected_hardlinks), or one that has all the links it may have. */
const NOT_LINKED = new Set(["EXDEV", "EPERM", "EMLINK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EACCES"]);

/** The source's fault: this file is not taken, others may be. */
class Refused extends Error {}

function unreadable(cause: unknown): Refused {
  return new Refused(`its file can't be read (${(cause as NodeJS.ErrnoException).code})`, { cause });
}

/** @throws Refused */
function openForeign({ path, sizeBytes }: ForeignFile): { fd: number; stats: Stats } {
  let fd: number;
  try {
    // Without waiting: a pipe that lies there would hold the thread for ever.
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") throw new Refused("its file is missing", { cause });
    if (code === "ELOOP") throw new Refused("its file is a symbolic link", { cause });
    throw unreadable(cause);
  }
  const stats = fstatSync(fd);
  const reason = !stats.isFile()
    ? "what should be its file is none"
    : stats.size !== sizeBytes
      ? `its file has ${stats.size} bytes, expected ${sizeBytes}`
      : undefined;
  if (reason === undefined) return { fd, stats };
  closeSync(fd);
  throw new Refused(reason);
}

/** @param take gets the file's bytes [from, to), or less where it ends before, a piece at a time @throws Refused; what `take` throws */
function readThrough(file: ForeignFile, from: number, to: number, take: (bytes: Buffer) => void): void {
  const { fd } = openForeign(file);
  try {
    for (let at = from; at < to;) {
      let bytes: number;
      try {
        bytes = readSync(fd, piece, 0, Math.min(PIECE_BYTES, to - at), at);
      } catch (cause) {
        throw unreadable(cause);
      }
      if (bytes === 0) break;
      at += bytes;
      take(piece.subarray(0, bytes));
    }
  } finally {
    closeSync(fd);
  }
}

function prove(file: ForeignFile): void {
  const hash = startHash(file.digest);
  readThrough(file, 0, file.sizeBytes, (bytes) => hash.update(bytes));
  if (!proves(hash, file.digest)) throw new Refused("its file is damaged: it is not what the digest says");
}

function copyInto({ file, from, bytes, into, at }: Extract<FileTask, { verb: "copy" }>): void {
  const target = openSync(into, constants.O_WRONLY);
  try {
    let position = at;
    readThrough(file, from, from + bytes, (read) => {
      for (let written = 0; written < read.length;) {
        const more = writeSync(target, read, written, read.length - written, position);
        written += more;
        position += more;
      }
    });
    if (position !== at + bytes) throw new Refused("its file became shorter");
  } finally {
    closeSync(target);
  }
}

/** @returns whether it was copied */
function place({ file, place: to, temporary, syncedAtMs }: Extract<FileTask, { verb: "place" }>): boolean {
  const { fd, stats } = openForeign(file);
  try {
    if (syncedAtMs === undefined || stats.mtimeMs >= syncedAtMs) fsyncSync(fd);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== "EIO") throw cause;
    throw new Refused("its file can't be brought to the disk (EIO)", { cause });
  } finally {
    closeSync(fd);
  }
  try {
    try {
      linkSync(file.path, to);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      // No row knows it: it is of a run that was killed, or of nobody.
      unlinkSync(to);
      linkSync(file.path, to);
    }
  } catch (error) {
    if (!NOT_LINKED.has((error as NodeJS.ErrnoException).code ?? "")) throw blamed(error, file);
    try {
      copy(file, to, temporary);
    } catch (failure) {
      throw blamed(failure, file);
    }
    return true;
  }
  const linked = lstatSync(to);
  if (linked.ino === stats.ino && linked.dev === stats.dev) return false;
  unlinkSync(to);
  throw new Refused("its file was exchanged while it was taken over");
}

/** What the system says of two files in one call: the store's disk is at fault, unless the source can't be read through. */
function blamed(error: unknown, file: ForeignFile): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (code !== "EIO" && code !== "ENOENT") return error;
  try {
    readThrough(file, 0, file.sizeBytes, () => undefined);
    return error;
  } catch (refused) {
    return refused;
  }
}

function copy({ path }: ForeignFile, to: string, temporary: string): void {
  try {
    copyFileSync(path, temporary, constants.COPYFILE_FICLONE);
    // To be read: the copy has the source's mode, which may forbid to write.
    const fd = openSync(temporary, constants.O_RDONLY);
    try {
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, to);
  } catch (error) {
    try {
      unlinkSync(temporary);
    } catch {
      // It was not made, or the disk fails: then the first error is the one to tell.
    }
    throw error;
  }
}

function syncFolder(folder: string): void {
  const fd = openSync(folder, constants.O_RDONLY);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function look(task: FileTask): FileOutcome {
  try {
    if (task.verb === "sync") {
      syncFolder(task.folder);
      return { copied: false };
    }
    if (task.verb === "place") return { copied: place(task) };
    if (task.verb === "copy") copyInto(task);
    else prove(task.file);
    return { copied: task.verb === "copy" };
  } catch (error) {
    if (error instanceof Refused) return { reason: error.message };
    throw error;
  }
}

parentPort?.on("message", (tasks: FileTask[]) => {
  let answer: FileAnswer;
  try {
    answer = { outcomes: tasks.map(look) };
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException;
    answer = { message, code };
  }
  parentPort?.postMessage(answer, []);
});
