import { join } from "node:path";
import Sqlite from "better-sqlite3";

/**
 * Takes the storage for this process alone, by a lock that the operating system drops however the process ends.
 * @returns gives it back
 * @throws Error where another process has it
 */
export function lockStorage(root: string): () => void {
  const db = new Sqlite(join(root, "lock.db"), { timeout: 0 });
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
