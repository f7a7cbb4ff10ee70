import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database } from "../db/database.ts";

const PRECISION_MS: Milliseconds = 60_000;
const WRITE_MS: Milliseconds = 1_000;

/** When rows of a table were used last: written a second later, all that were used meanwhile at once, and each at most once a minute. */
export class LastUse implements AsyncDisposable {
  readonly #db: Database;
  readonly #clock: Clock;
  readonly #sql: string;
  readonly #stop = new AbortController();
  readonly #writtenAtMs = new Map<number, Milliseconds>();
  readonly #waiting = new Set<number>();
  #writing: Promise<void> | undefined;

  /** @param sql an UPDATE that takes `:uses`, JSON: an array of [id, milliseconds since 1970] */
  constructor(db: Database, clock: Clock, sql: string) {
    this.#db = db;
    this.#clock = clock;
    this.#sql = sql;
  }

  touch(id: number): void {
    const nowMs = this.#clock.now();
    // Also when the clock was put back.
    if (Math.abs(nowMs - (this.#writtenAtMs.get(id) ?? -Infinity)) < PRECISION_MS) return;
    this.#writtenAtMs.set(id, nowMs);
    this.#waiting.add(id);
    this.#writing ??= this.#writeSoon();
  }

  async #writeSoon(): Promise<void> {
    while (this.#waiting.size > 0) {
      await this.#clock.sleep(WRITE_MS, this.#stop.signal).catch(() => undefined);
      const ids = [...this.#waiting];
      this.#waiting.clear();
      const uses = JSON.stringify(ids.map((id) => [id, this.#writtenAtMs.get(id)]));
      // Where it fails, it is written with the next use: nobody relies on it.
      await this.#db
        .transaction("lazy", (tx) => tx.run(this.#sql, { uses }))
        .catch(() => ids.forEach((id) => this.#writtenAtMs.delete(id)));
    }
    this.#writing = undefined;
  }

  /** Writes what is waiting. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#writing;
  }
}
