import { access, constants, open, rm, stat, statfs } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { Worker } from "node:worker_threads";
import type { Config } from "../../config/schema.ts";
import { bytesText } from "../format.ts";
import { fault, ok, warning, type Finding } from "./finding.ts";

// Source: linux/magic.h
const FILE_SYSTEMS = new Map([
  [0xef53, "ext4"],
  [0x58465342, "xfs"],
  [0x9123683e, "btrfs"],
  [0x2fc12fc1, "zfs"],
  [0xf2f52010, "f2fs"],
  [0x01021994, "tmpfs"],
  [0x858458f6, "ramfs"],
  [0x794c7630, "overlayfs"],
  [0x6969, "nfs"],
  [0xff534d42, "cifs"],
  [0xfe534d42, "smb"],
  [0x65735546, "fuse"],
]);
const REMEDIES = new Map([
  ["tmpfs", "its content is memory, and gone after a restart: set storage.root to a disk"],
  ["ramfs", "its content is memory, and gone after a restart: set storage.root to a disk"],
  ["overlayfs", "in a container, its content is gone with the container: mount a volume there"],
  ["nfs", "the database's locks and durability are not certain there: set storage.root to a local disk"],
  ["cifs", "the database's locks and durability are not certain there: set storage.root to a local disk"],
  ["smb", "the database's locks and durability are not certain there: set storage.root to a local disk"],
]);

/** Whether storage.root can be written durably, on which file system, and whether the limits fit its size. */
export async function checkStorage(storage: Config["storage"]): Promise<Finding[]> {
  const root = resolve(storage.root);
  const folder = await nearestFolder(root);
  const probe = join(folder, `.entrepot-doctor-${process.pid}`);
  try {
    if (!(await stat(folder)).isDirectory()) {
      return [fault("storage", `${folder} is not a folder`, "move away what is there, or set another storage.root")];
    }
    await access(folder, constants.W_OK | constants.X_OK);
    const file = await open(probe, "wx");
    try {
      await file.write("entrepot");
      await file.sync();
    } finally {
      await file.close();
      await rm(probe, { force: true });
    }
  } catch (error) {
    const { code = String(error) } = error as NodeJS.ErrnoException;
    return [
      fault("storage", `${folder} can't be written (${code})`, REMEDY_BY_CODE[code] ?? "set another storage.root"),
    ];
  }
  const { type, bsize, blocks, bavail } = await statfs(folder);
  const kind = FILE_SYSTEMS.get(type) ?? `a file system of type 0x${type.toString(16)}`;
  const where = folder === root ? `${root} is writable` : `${root} will be created in ${folder}`;
  const kindRemedy = REMEDIES.get(kind);
  return [
    kindRemedy === undefined
      ? ok("storage", `${where}, on ${kind}`)
      : warning("storage", `${where}, on ${kind}`, kindRemedy),
    checkSpace(storage, bavail * bsize, blocks * bsize),
  ];
}

const REMEDY_BY_CODE: Record<string, string> = {
  EACCES: "give this user the folder, or set another storage.root",
  EPERM: "give this user the folder, or set another storage.root",
  EROFS: "mount it writable, or set another storage.root",
  ENOSPC: "free some space, or set another storage.root",
  EDQUOT: "raise this user's quota, or set another storage.root",
};

function checkSpace({ minFree, cacheMaxSize }: Config["storage"], freeBytes: number, totalBytes: number): Finding {
  const free = `${bytesText(freeBytes)} of ${bytesText(totalBytes)} free`;
  if (freeBytes < minFree) {
    return fault(
      "space",
      `${free}, and storage.minFree wants ${bytesText(minFree)}`,
      "free some space or lower storage.minFree: until then, new content is passed through and not kept",
    );
  }
  if (cacheMaxSize > totalBytes - minFree) {
    return warning(
      "space",
      `${free}, and storage.cacheMaxSize is ${bytesText(cacheMaxSize)}`,
      "the cache will grow until storage.minFree holds it: set storage.cacheMaxSize to what the disk has for it",
    );
  }
  return ok("space", `${free}; the cache takes ${bytesText(cacheMaxSize)} at most`);
}

/** The folder, or the nearest one above it that is there. */
async function nearestFolder(path: string): Promise<string> {
  const there = await stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code !== "ENOENT",
  );
  const above = dirname(path);
  return there || above === path ? path : nearestFolder(above);
}

/** What the thread that opens the database found. */
export type DatabaseState =
  | { state: "absent" | "inUse" }
  | { state: "sound"; sizeBytes: number }
  | { state: "newer"; version: number }
  | { state: "damaged"; cause: string };

/** Opens the database, unless a daemon has it, and lets SQLite check it. In a thread: a large one takes long. */
export async function readDatabase(storageRoot: string): Promise<DatabaseState> {
  const root = resolve(storageRoot);
  const { promise, resolve: found, reject } = Promise.withResolvers<DatabaseState>();
  const worker = new Worker(new URL("./database-worker.ts", import.meta.url), { workerData: { root } });
  worker.once("message", found);
  worker.once("error", reject);
  try {
    return await promise;
  } catch (error) {
    return { state: "damaged", cause: (error as Error).message };
  } finally {
    await worker.terminate();
  }
}

export function judgeDatabase(found: DatabaseState): Finding {
  switch (found.state) {
    case "absent":
      return ok("database", "there is none yet: the first start makes it");
    case "inUse":
      return ok("database", "in use by a running entrepot, so not checked");
    case "sound":
      return ok("database", `sound, ${bytesText(found.sizeBytes)}`);
    case "newer":
      return fault(
        "database",
        `has schema version ${found.version}, written by a newer release`,
        "start that release, or restore a backup",
      );
    default:
      return fault(
        "database",
        `is damaged: ${found.cause}`,
        "restore a backup, or move entrepot.db* away: cached content will be fetched again",
      );
  }
}
