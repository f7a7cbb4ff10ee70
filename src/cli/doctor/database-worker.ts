/** A thread that checks the database, and holds the storage's lock meanwhile. */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { parentPort, workerData } from "node:worker_threads";
import Sqlite from "better-sqlite3";
import { lockStorage } from "../../db/lock.ts";
import { MIGRATIONS } from "../../db/migrations.ts";
import type { DatabaseState } from "./storage.ts";

function check(root: string): DatabaseState {
  const file = join(root, "entrepot.db");
  if (!existsSync(file)) return { state: "absent" };
  let unlock: () => void;
  try {
    unlock = lockStorage(root);
  } catch {
    return { state: "inUse" };
  }
  try {
    const db = new Sqlite(file, { fileMustExist: true });
    try {
      const version = db.pragma("user_version", { simple: true }) as number;
      if (version > MIGRATIONS.length) return { state: "newer", version };
      const verdict = db.pragma("quick_check(1)", { simple: true }) as string;
      return verdict === "ok"
        ? { state: "sound", sizeBytes: statSync(file).size }
        : { state: "damaged", cause: verdict.replaceAll("\n", " ") };
    } finally {
      db.close();
    }
  } catch (error) {
    return { state: "damaged", cause: (error as Error).message };
  } finally {
    unlock();
  }
}

parentPort?.postMessage(check((workerData as { root: string }).root), []);
