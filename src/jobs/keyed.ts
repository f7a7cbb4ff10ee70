import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database, SqlValue } from "../db/database.ts";
import type { Job } from "./job.ts";

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
const DEAD = `${KEYED} AND state = 'dead'`;

/** Jobs of several kinds whose dedupe keys begin alike, as one. There may be ten thousands: what is about all of them is done in the background. */
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
    const rows = await this.#db.background.all<{
      state: "queued" | "running" | "paused" | "dead";
      jobs: number;
      atMs: number;
    }>(halves.join(" UNION ALL "), range(kinds, prefix));
    for (const { state, jobs, atMs } of rows) {
      found[state] = jobs;
      found.oldestAtMs = Math.min(found.oldestAtMs ?? atMs, atMs);
    }
    return found;
  }

  /** Lets those that wait for a time begin now. Wake the runner afterwards. */
  async hurry(kinds: readonly string[], prefix: string): Promise<void> {
    await this.#db.background.transaction("lazy", (tx) =>
      tx.run(
        `UPDATE jobs SET run_at = :nowMs
         WHERE id IN (SELECT id FROM jobs ${UNFINISHED} AND state = 'queued' AND run_at > :nowMs)`,
        { ...range(kinds, prefix), nowMs: this.#clock.now() },
      ),
    );
  }

  /**
   * Lets the youngest queued job whose key begins alike stand in for an older one that runs: it becomes a part of the same job, as urgent, and as
   * soon unless it has failed before. Without that, the older ones of many would give way for ever to one behind all others.
   * One that runs may have come too far to notice what its elder was to see to.
   * @returns its id; undefined: there is none
   */
  async handOver({ id, kind, priority, runAtMs, parent }: Job, prefix: string): Promise<number | undefined> {
    const row = await this.#db.transaction("lazy", (tx) =>
      tx.get<{ id: number }>(
        `UPDATE jobs SET parent = COALESCE(parent, :parent), priority = MAX(priority, :priority),
           run_at = CASE WHEN attempts = 0 THEN MIN(run_at, :runAtMs) ELSE run_at END
         WHERE id = (SELECT MAX(id) FROM jobs ${UNFINISHED} AND state = 'queued' AND id > :id) RETURNING id`,
        { ...range([kind], prefix), id, priority, runAtMs, parent: parent ?? null },
      ),
    );
    return row?.id;
  }

  /**
   * Lets an unfinished job and its parts that wait for a time begin now, at least so urgently. Wake the runner afterwards.
   * @param payload replaces these fields of theirs: of one that runs, from its next run on
   */
  async urge(id: number, priority: number, payload: object): Promise<void> {
    await this.#db.background.transaction("durable", (tx) =>
      tx.run(
        `UPDATE jobs SET payload = json_patch(payload, :payload), priority = MAX(priority, :priority), run_at = MIN(run_at, :nowMs)
         WHERE id IN (SELECT :id UNION ALL SELECT id FROM jobs WHERE parent = :id) AND state IN ('queued', 'running', 'paused')`,
        { id, priority, payload: JSON.stringify(payload), nowMs: this.#clock.now() },
      ),
    );
  }

  /** Cancels dead ones that were added before that job: what they should have done is done. */
  async settle(kinds: readonly string[], prefix: string, before: number): Promise<void> {
    await this.#db.background.transaction("lazy", (tx) =>
      tx.run(
        `UPDATE jobs SET state = 'cancelled' WHERE id IN (SELECT id FROM jobs INDEXED BY jobs_dead WHERE ${DEAD} AND id < :before)`,
        { ...range(kinds, prefix), before },
      ),
    );
  }

  /** As {@link settle}, those about one subject. */
  async settleSubject(kinds: readonly string[], prefix: string, before: number, subject: string): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `UPDATE jobs SET state = 'cancelled' WHERE id IN (
           SELECT id FROM jobs INDEXED BY jobs_by_subject WHERE subject = :subject AND id < :before AND ${DEAD})`,
        { ...range(kinds, prefix), before, subject },
      ),
    );
  }
}

function range(kinds: readonly string[], prefix: string): Record<string, SqlValue> {
  return { kinds: JSON.stringify(kinds), from: prefix, to: `${prefix}\u{10ffff}` };
}
