import type { Milliseconds } from "../base/clock.ts";
import type { Database } from "../db/database.ts";

/** When the jobs that look after the storage last came to their end. */
export class UpkeepRuns {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /** @returns undefined: it never did */
  async endedAtMs(job: string): Promise<Milliseconds | undefined> {
    const row = await this.#db.get<{ endedAtMs: Milliseconds }>(
      `SELECT ended_at AS "endedAtMs" FROM schedules WHERE name = :job`,
      { job },
    );
    return row?.endedAtMs;
  }

  async ended(job: string, nowMs: Milliseconds): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `INSERT INTO schedules (name, ended_at) VALUES (:job, :nowMs)
         ON CONFLICT (name) DO UPDATE SET ended_at = excluded.ended_at`,
        { job, nowMs },
      ),
    );
  }
}
