import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database, SqlValue } from "../db/database.ts";

export interface KeyedCounts {
  queued: number;
  running: number;
  paused: number;
  dead: number;
  /** When the oldest of them was added; undefined: there is none. */
  oldestAtMs: Milliseconds | undefined;
}

const KEYED =
  "kind IN (SELECT value FROM json_each(:kinds)) AND dedupe IS NOT NULL AND dedupe >= :from AND dedupe < :to";
// Named, since the planner would rather read all of a kind and state.
const UNFINISHED = `INDEXED BY jobs_unfinished WHERE ${KEYED} AND state IN ('queued', 'running', 'paused')`;
const DEAD = `INDEXED BY jobs_dead WHERE ${KEYED} AND state = 'dead'`;

/** Jobs of several kinds whose dedupe keys begin alike, as one. */
export class KeyedJobs {
  readonly #db: Database;
  readonly #clock: Clock;

  constructor(db: Database, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** Of what is unfinished or dead. */
  async counts(kinds: readonly string[], prefix: string): Promise<KeyedCounts> {
    const found: KeyedCounts = { queued: 0, running: 0, paused: 0, dead: 0, oldestAtMs: undefined };
    // Each half has an index of its own.
    const halves = ["state IN ('queued', 'running', 'paused')", "state = 'dead'"].map(
      (states) =>
        `SELECT state, COUNT(*) AS jobs, MIN(created_at) AS "atMs" FROM jobs WHERE ${KEYED} AND ${states} GROUP BY state`,
    );
    const rows = await this.#db.all<{ state: "queued" | "running" | "paused" | "dead"; jobs: number; atMs: number }>(
      halves.join(" UNION ALL "),
      range(kinds, prefix),
    );
    for (const { state, jobs, atMs } of rows) {
      found[state] = jobs;
      found.oldestAtMs = Math.min(found.oldestAtMs ?? atMs, atMs);
    }
    return found;
  }

  /** Lets those that wait for a time begin now. Wake the runner afterwards. */
  async hurry(kinds: readonly string[], prefix: string): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `UPDATE jobs SET run_at = :nowMs
         WHERE id IN (SELECT id FROM jobs ${UNFINISHED} AND state = 'queued' AND run_at > :nowMs)`,
        { ...range(kinds, prefix), nowMs: this.#clock.now() },
      ),
    );
  }

  /** Cancels dead ones that were added before that job: what they should have done is done. @param subject undefined: whatever it is */
  async settle(kinds: readonly string[], prefix: string, before: number, subject?: string): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `UPDATE jobs SET state = 'cancelled'
         WHERE id IN (SELECT id FROM jobs ${DEAD} AND id < :before AND (:subject IS NULL OR subject = :subject))`,
        { ...range(kinds, prefix), before, subject: subject ?? null },
      ),
    );
  }
}

function range(kinds: readonly string[], prefix: string): Record<string, SqlValue> {
  return { kinds: JSON.stringify(kinds), from: prefix, to: `${prefix}\u{10ffff}` };
}
