import { existsSync } from "node:fs";
import { join } from "node:path";
import Sqlite from "better-sqlite3";

const FILE = "lock.db";

/**
 * Takes the storage for this process alone, by a lock that the operating system drops however the process ends.
 * @returns gives it back
 * @throws Error where another process has it
 */
export function lockStorage(root: string): () => void {
  const db = new Sqlite(join(root, FILE), { timeout: 0 });
  try {
    db.pragma("locking_mode = EXCLUSIVE");
    db.exec("BEGIN EXCLUSIVE");
  } catch (cause) {
    db.close();
    if ((cause as NodeJS.ErrnoException).code !== "SQLITE_BUSY") throw cause;
    throw new Error(`${root} is in use by another entrepot: stop it, or give this one another storage.root`, { cause });
  }
  return () => db.close();
}

/** Whether it is certain that no process has the storage, which one had before: to tell, it is taken for a moment. */
export function isUnused(root: string): boolean {
  if (!existsSync(join(root, FILE))) return false;
  try {
    lockStorage(root)();
    return true;
  } catch {
    return false;
  }
}
