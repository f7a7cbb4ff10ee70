import { stat } from "node:fs/promises";
import { Worker } from "node:worker_threads";

const INTERVAL_MS = 2_000;
const WORTH_IT_BYTES = 4 * 1024 * 1024;

/**
 * Moves the write-ahead log into the database file once it has grown: in a thread, since its fsyncs would hold the event loop for 5 to 50 ms,
 * and for hundreds on a busy disk. The thread lives for one checkpoint only; kept, it would cost 16 MiB. Most is moved while writing goes on.
 * What was written meanwhile is moved while transactions wait: only a log of which nothing is left begins anew.
 */
export class Checkpointer {
  readonly #file: string;
  readonly #timer: NodeJS.Timeout;
  #running: Promise<void> | undefined;
  #written = true;

  readonly #alone: (work: () => Promise<void>) => Promise<void>;

  /** @param alone runs work while no transaction does */
  constructor(file: string, alone: (work: () => Promise<void>) => Promise<void>) {
    this.#file = file;
    this.#alone = alone;
    this.#timer = setInterval(() => {
      if (!this.#written) return;
      // A thread that the system refuses is tried again in the next round.
      this.#running ??= this.#checkpoint()
        .catch(() => this.written())
        .finally(() => (this.#running = undefined));
    }, INTERVAL_MS);
    this.#timer.unref();
  }

  /** Notes that a transaction was committed: a log that nobody writes to needs no further checkpoint, however long it is. */
  written(): void {
    this.#written = true;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#running;
  }

  async #checkpoint(): Promise<void> {
    const walBytes = await stat(`${this.#file}-wal`).then(
      (stats) => stats.size,
      () => 0,
    );
    if (walBytes < WORTH_IT_BYTES) return;
    this.#written = false;
    const thread = new Worker(new URL("./checkpoint-worker.ts", import.meta.url), { workerData: { file: this.#file } });
    const ended = new Promise<void>((resolve) => {
      // A full disk or a lock: the log only grows a little, and the next round tries again.
      thread.once("error", () => resolve());
      thread.once("exit", () => resolve());
    });
    thread.once("message", () => {
      void this.#alone(() => {
        thread.postMessage("go on", []);
        return ended;
      });
    });
    await ended;
  }
}
