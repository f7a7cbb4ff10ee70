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
  type Stats,
} from "node:fs";
import { setPriority } from "node:os";
import { parentPort } from "node:worker_threads";
import { proves, startHash } from "../oci/digest.ts";
import type { FileAnswer, FileOutcome, FileTask, ForeignFile } from "./file-threads.ts";

const NICE = 10;
// Linux counts a thread as a process here; elsewhere this would slow the whole daemon down.
if (process.platform === "linux") setPriority(0, NICE);

const PIECE_BYTES = 1024 * 1024;
const piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
/** Another file system, one without links, another user's file (protected_hardlinks), or one that has all the links it may have. */
const NOT_LINKED = new Set(["EXDEV", "EPERM", "EMLINK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EACCES"]);

/** The source's fault: this file is not taken, others may be. */
class Refused extends Error {}

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
    throw new Refused(`its file can't be read (${code})`, { cause });
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

function prove(file: ForeignFile): void {
  const { fd } = openForeign(file);
  const hash = startHash(file.digest);
  try {
    for (;;) {
      let bytes: number;
      try {
        bytes = readSync(fd, piece, 0, PIECE_BYTES, null);
      } catch (cause) {
        throw new Refused(`its file can't be read (${(cause as NodeJS.ErrnoException).code})`, { cause });
      }
      if (bytes === 0) break;
      hash.update(piece.subarray(0, bytes));
    }
  } finally {
    closeSync(fd);
  }
  if (!proves(hash, file.digest)) throw new Refused("its file is damaged: it is not what the digest says");
}

/** @returns whether it was copied */
function place({ file, place: to, temporary, syncedAtMs }: Extract<FileTask, { verb: "place" }>): boolean {
  const { fd, stats } = openForeign(file);
  try {
    if (syncedAtMs === undefined || stats.mtimeMs >= syncedAtMs) fsyncSync(fd);
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
    if (!NOT_LINKED.has((error as NodeJS.ErrnoException).code ?? "")) throw error;
    copy(file, to, temporary);
    return true;
  }
  const linked = lstatSync(to);
  if (linked.ino === stats.ino && linked.dev === stats.dev) return false;
  unlinkSync(to);
  throw new Refused("its file was exchanged while it was taken over");
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
    prove(task.file);
    return { copied: false };
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
