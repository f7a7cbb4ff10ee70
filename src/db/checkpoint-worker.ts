/** The thread of one checkpoint: see `checkpoint.ts`. */
import { parentPort, workerData } from "node:worker_threads";
import Sqlite from "better-sqlite3";

const { file } = workerData as { file: string };
const db = new Sqlite(file);
// PASSIVE waits for nobody and nobody waits for it: what a reader still needs stays for the next time.
const move = (): unknown => db.pragma("wal_checkpoint(PASSIVE)");
move();
parentPort?.once("message", () => {
  move();
  db.close();
});
parentPort?.postMessage("nothing may be written now", []);
