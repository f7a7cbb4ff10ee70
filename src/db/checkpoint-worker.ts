/** A thread that moves the write-ahead log into the database file, so that no commit on the main thread pays for it. */
import { stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { workerData } from "node:worker_threads";
import Sqlite from "better-sqlite3";

const INTERVAL_MS = 2_000;
const WORTH_IT_BYTES = 4 * 1024 * 1024;

const { file } = workerData as { file: string };
const db = new Sqlite(file);
db.pragma("busy_timeout = 0");

for (;;) {
  await delay(INTERVAL_MS);
  const walBytes = await stat(`${file}-wal`).then(
    (stats) => stats.size,
    () => 0,
  );
  if (walBytes < WORTH_IT_BYTES) continue;
  try {
    // PASSIVE waits for nobody; what a reader still needs stays for the next time.
    db.pragma("wal_checkpoint(PASSIVE)");
  } catch {
    // A full disk or a lock: the log only grows a little; the next round tries again.
  }
}
