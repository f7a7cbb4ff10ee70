import { randomUUID } from "node:crypto";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database, SqlValue, Writer } from "../db/database.ts";

/**
 * ```
 *            ┌──── failed, stopped, or its process died ────┐
 *            ▼                                              │
 * add ──▶ queued ──── claimed, with a lease ────────────▶ running ──▶ done
 *          ▲   └──▶ cancelled ◀── asked to, and ended ──────┤
 *          └────────── retried by hand ◀────────────────── dead
 * ```
 * Queued and running jobs are unfinished: nobody forgets them. `dead` is what failed for the last time.
 */
export type JobState = "queued" | "running" | "done" | "dead" | "cancelled";

export interface Job {
  id: number;
  kind: string;
  dedupe: string | undefined;
  /** What it is about, as a person would say it. */
  subject: string | undefined;
  /** The job that it is a part of. */
  parent: number | undefined;
  payload: unknown;
  priority: number;
  state: JobState;
  /** Runs that it has begun, without those that cost nothing. */
  attempts: number;
  /** Not before. */
  runAtMs: Milliseconds;
  /** As of about a second ago; undefined: nothing was told. */
  progress: unknown;
  /** Of what is done. */
  result: unknown;
  /** Of the last run that failed. */
  error: string | undefined;
  createdAtMs: Milliseconds;
  /** Of the last run. */
  startedAtMs: Milliseconds | undefined;
  endedAtMs: Milliseconds | undefined;
}

export interface NewJob {
  kind: string;
  /** Becomes JSON. */
  payload: object;
  /** At most one unfinished job of a kind has a key. */
  dedupe?: string;
  /** What it is about: lists are filtered by it. */
  subject?: string;
  /** The id of the job that it is a part of. */
  parent?: number;
  /** Higher first; 0 if absent. */
  priority?: number;
  /** Not before; now if absent. */
  runAtMs?: Milliseconds;
}

export interface Added {
  id: number;
  /** An unfinished job with this key is there already: it is that one, and the new payload is dropped. */
  joined: boolean;
}

export interface JobFilter {
  kind?: string | undefined;
  state?: JobState | undefined;
  /** Only those with a smaller id: the last one of the page before. */
  before?: number | undefined;
  limit: number;
}

export interface JobLine {
  id: number;
  atMs: Milliseconds;
  text: string;
}

/** A job that this process runs, as long as it holds the lease. */
export interface Claim {
  job: Job;
  /** Of this run alone. */
  lease: string;
}

/** What a run has told since it was last written. */
export interface Note {
  /** Undefined: as it was. */
  progress: unknown;
  lines: readonly Omit<JobLine, "id">[];
}

/** What becomes of a job whose run is over. */
export type Ending =
  | { state: "done"; result: unknown }
  | { state: "dead"; error: string }
  | { state: "cancelled" }
  /** `free`: the run costs no attempt. */
  | { state: "queued"; runAtMs: Milliseconds; error: string | undefined; free: boolean };

/** Longer ones are cut, in UTF-16 units. */
const LONGEST_TEXT = 2_000;
/** Of a job's lines, the newest are kept. */
const MOST_LINES = 1_000;
/** Forgotten at a time: each may have as many lines. */
const GROUP = 5;

/** A job before its columns are read. */
interface Row extends Omit<
  Job,
  "dedupe" | "subject" | "parent" | "payload" | "progress" | "result" | "error" | "startedAtMs" | "endedAtMs"
> {
  dedupe: string | null;
  subject: string | null;
  parent: number | null;
  payload: string;
  progress: string | null;
  result: string | null;
  error: string | null;
  startedAtMs: Milliseconds | null;
  endedAtMs: Milliseconds | null;
}

const COLUMNS = `id, kind, dedupe, subject, parent, payload, priority, state, attempts, run_at AS "runAtMs", progress, result, error,
  created_at AS "createdAtMs", started_at AS "startedAtMs", ended_at AS "endedAtMs"`;

/** By whether a kind and a state are asked for: each has an index of its own. */
const LISTS = [
  ["", ""],
  ["", " AND state = :state"],
  [" AND kind = :kind", ""],
  [" AND kind = :kind", " AND state = :state"],
].map(([kind, state]) => `SELECT ${COLUMNS} FROM jobs WHERE id < :before${kind}${state} ORDER BY id DESC LIMIT :limit`);

/** Each half is cut on its own: neither sorts all that is to go. */
const FORGET = `DELETE FROM jobs WHERE id IN (
  SELECT id FROM (SELECT id FROM jobs WHERE kind = :kind AND ended_at < :beforeMs LIMIT :group) AS late
  UNION SELECT id FROM (
    SELECT id FROM jobs WHERE kind = :kind AND ended_at IS NOT NULL
    ORDER BY ended_at DESC, id DESC LIMIT :group OFFSET :most) AS many
  LIMIT :group)`;

/**
 * Jobs as rows, and nothing that runs: what was added is there after a power loss, what a run has told may lag a second behind it.
 *
 * - Of one kind and dedupe key, one job at most is unfinished.
 * - A running job has one lease; only who holds it notes and ends. A job whose lease has run out is queued again.
 * - A job runs at least once: killed between the end of its work and the row that says so, it runs again.
 */
export class JobQueue {
  readonly #db: Database;
  readonly #clock: Clock;

  constructor(db: Database, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** Resolves once it survives a power loss. Wake the runner afterwards. */
  add(job: NewJob): Promise<Added> {
    return this.#db.transaction("durable", (tx) => this.addWithin(tx, job));
  }

  /** The same in the caller's transaction. */
  async addWithin(
    tx: Writer,
    { kind, payload, dedupe, subject, parent, priority = 0, runAtMs }: NewJob,
  ): Promise<Added> {
    const nowMs = this.#clock.now();
    const added = await tx.get<{ id: number }>(
      `INSERT INTO jobs (kind, dedupe, subject, parent, payload, priority, state, run_at, created_at)
       VALUES (:kind, :dedupe, :subject, :parent, :payload, :priority, 'queued', :runAtMs, :nowMs)
       ON CONFLICT (kind, dedupe) WHERE dedupe IS NOT NULL AND state IN ('queued', 'running', 'paused') DO NOTHING
       RETURNING id`,
      {
        kind,
        dedupe: dedupe ?? null,
        subject: subject ?? null,
        parent: parent ?? null,
        payload: JSON.stringify(payload),
        priority,
        runAtMs: runAtMs ?? nowMs,
        nowMs,
      },
    );
    if (added) return { id: added.id, joined: false };
    const there = await tx.get<{ id: number }>(
      `SELECT id FROM jobs WHERE kind = :kind AND dedupe = :dedupe AND state IN ('queued', 'running', 'paused')`,
      { kind, dedupe: dedupe ?? null },
    );
    if (!there) throw new Error(`a job of kind ${kind} was neither added nor there`);
    return { id: there.id, joined: true };
  }

  async get(id: number): Promise<Job | undefined> {
    const row = await this.#db.get<Row>(`SELECT ${COLUMNS} FROM jobs WHERE id = :id`, { id });
    return row && jobOf(row);
  }

  /** Newest first. */
  async list({ kind, state, before, limit }: JobFilter): Promise<Job[]> {
    const sql = LISTS[(kind === undefined ? 0 : 2) + (state === undefined ? 0 : 1)] as string;
    const params: Record<string, SqlValue> = { before: before ?? Number.MAX_SAFE_INTEGER, limit };
    if (kind !== undefined) params["kind"] = kind;
    if (state !== undefined) params["state"] = state;
    return (await this.#db.all<Row>(sql, params)).map(jobOf);
  }

  /** What a job's runs have told, oldest first. @param after the last id of the page before, or 0 */
  lines(id: number, after: number, limit: number): Promise<JobLine[]> {
    return this.#db.all<JobLine>(
      `SELECT id, at AS "atMs", text FROM job_lines WHERE job_id = :id AND id > :after ORDER BY id LIMIT :limit`,
      { id, after, limit },
    );
  }

  /** How many there are, of those that tell how the queue does. */
  counts(): Promise<{ kind: string; state: "queued" | "running" | "dead"; jobs: number }[]> {
    return this.#db.all(
      `SELECT kind, state, COUNT(*) AS jobs FROM jobs WHERE state IN ('queued', 'running', 'dead') GROUP BY state, kind`,
    );
  }

  /** Cancels what is queued. @returns false: it is not */
  withdraw(id: number): Promise<boolean> {
    return this.#db.transaction("durable", (tx) => this.#withdrawWithin(tx, id));
  }

  /**
   * Cancels what is queued. Whoever runs it is asked to end it, and learns of that with its next heartbeat.
   * @returns `running`: asked; undefined: there is no unfinished job with this id
   */
  cancel(id: number): Promise<"cancelled" | "running" | undefined> {
    return this.#db.transaction("durable", async (tx) => {
      if (await this.#withdrawWithin(tx, id)) return "cancelled";
      const asked = await tx.run(`UPDATE jobs SET asked = 'cancel' WHERE id = :id AND state = 'running'`, { id });
      return asked > 0 ? "running" : undefined;
    });
  }

  async #withdrawWithin(tx: Writer, id: number): Promise<boolean> {
    const cancelled = await tx.run(
      `UPDATE jobs SET state = 'cancelled', ended_at = :nowMs WHERE id = :id AND state = 'queued'`,
      { id, nowMs: this.#clock.now() },
    );
    return cancelled > 0;
  }

  /**
   * Queues what is dead or cancelled once more, with all its attempts.
   * @returns false: it is neither, or an unfinished job has its dedupe key
   */
  retry(id: number): Promise<boolean> {
    return this.#db.transaction("durable", async (tx) => {
      const queued = await tx.run(
        `UPDATE jobs SET state = 'queued', attempts = 0, run_at = :nowMs, asked = NULL, ended_at = NULL
         WHERE id = :id AND state IN ('dead', 'cancelled') AND NOT EXISTS (
           SELECT 1 FROM jobs other
           WHERE other.kind = jobs.kind AND other.dedupe = jobs.dedupe AND other.state IN ('queued', 'running', 'paused'))`,
        { id, nowMs: this.#clock.now() },
      );
      return queued > 0;
    });
  }

  /** Takes the next job of a kind that is due: by priority, then by its time. */
  claim(kind: string, leaseMs: Milliseconds): Promise<Claim | undefined> {
    const lease = randomUUID();
    const nowMs = this.#clock.now();
    return this.#db.transaction("lazy", async (tx) => {
      const row = await tx.get<Row>(
        `UPDATE jobs SET state = 'running', lease = :lease, leased_until = :untilMs, attempts = attempts + 1, started_at = :nowMs
         WHERE id = (SELECT id FROM jobs WHERE kind = :kind AND state = 'queued' AND run_at <= :nowMs
                     ORDER BY priority DESC, run_at, id LIMIT 1)
         RETURNING ${COLUMNS}`,
        { kind, lease, nowMs, untilMs: nowMs + leaseMs },
      );
      return row && { job: jobOf(row), lease };
    });
  }

  /** When the next queued job of a kind is due; undefined: none is queued. */
  async nextAtMs(kind: string): Promise<Milliseconds | undefined> {
    const row = await this.#db.get<{ atMs: Milliseconds | null }>(
      `SELECT MIN(run_at) AS "atMs" FROM jobs WHERE kind = :kind AND state = 'queued'`,
      { kind },
    );
    return row?.atMs ?? undefined;
  }

  /**
   * Renews leases, then queues again what has a lease that has run out.
   * @returns those that are to be ended: somebody else has them, or they were cancelled
   */
  renew(
    claims: readonly Claim[],
    leaseMs: Milliseconds,
  ): Promise<{ lost: Claim[]; cancelled: Claim[]; freed: number }> {
    const nowMs = this.#clock.now();
    return this.#db.transaction("lazy", async (tx) => {
      const lost: Claim[] = [];
      const cancelled: Claim[] = [];
      for (const claim of claims) {
        const row = await tx.get<{ asked: string | null }>(
          `UPDATE jobs SET leased_until = :untilMs WHERE id = :id AND lease = :lease RETURNING asked`,
          { id: claim.job.id, lease: claim.lease, untilMs: nowMs + leaseMs },
        );
        if (!row) lost.push(claim);
        else if (row.asked === "cancel") cancelled.push(claim);
      }
      return { lost, cancelled, freed: await this.#freeWithin(tx, nowMs, nowMs) };
    });
  }

  /** Queues again whatever is running: for the start, when nobody else is at work here. @returns how many */
  free(): Promise<number> {
    return this.#db.transaction("lazy", (tx) => this.#freeWithin(tx, this.#clock.now(), Number.MAX_SAFE_INTEGER));
  }

  /** The run has cost an attempt: should it be what ends the process, it is not begun forever. */
  #freeWithin(tx: Writer, nowMs: Milliseconds, untilMs: Milliseconds): Promise<number> {
    return tx.run(
      `UPDATE jobs SET state = CASE asked WHEN 'cancel' THEN 'cancelled' ELSE 'queued' END,
         ended_at = CASE asked WHEN 'cancel' THEN :nowMs END, lease = NULL, leased_until = NULL
       WHERE state = 'running' AND leased_until < :untilMs`,
      { nowMs, untilMs },
    );
  }

  /** Stores what a run has told. Without the lease, nothing happens. */
  note(claim: Claim, note: Note): Promise<void> {
    return this.#db.transaction("lazy", (tx) => this.#noteWithin(tx, claim, note));
  }

  async #noteWithin(tx: Writer, { job: { id }, lease }: Claim, { progress, lines }: Note): Promise<void> {
    const held = await tx.run(
      `UPDATE jobs SET progress = COALESCE(:progress, progress) WHERE id = :id AND lease = :lease`,
      {
        id,
        lease,
        progress: jsonOf(progress),
      },
    );
    if (held === 0 || lines.length === 0) return;
    for (const { atMs, text } of lines.slice(-MOST_LINES)) {
      await tx.run(`INSERT INTO job_lines (job_id, at, text) VALUES (:id, :atMs, :text)`, {
        id,
        atMs,
        text: cut(text),
      });
    }
    await tx.run(
      `DELETE FROM job_lines WHERE job_id = :id
       AND id <= (SELECT id FROM job_lines WHERE job_id = :id ORDER BY id DESC LIMIT 1 OFFSET :most)`,
      { id, most: MOST_LINES },
    );
  }

  /**
   * Ends a run, and gives the lease back. What was cancelled meanwhile is not queued again.
   * @returns what it has become; undefined: the lease was lost, and nothing happens
   */
  end(claim: Claim, note: Note, ending: Ending): Promise<JobState | undefined> {
    const { job, lease } = claim;
    const nowMs = this.#clock.now();
    return this.#db.transaction("lazy", async (tx) => {
      const held = await tx.get<{ asked: string | null }>(`SELECT asked FROM jobs WHERE id = :id AND lease = :lease`, {
        id: job.id,
        lease,
      });
      if (!held) return undefined;
      await this.#noteWithin(tx, claim, note);
      const again = ending.state === "queued" ? ending : undefined;
      const state: JobState = again && held.asked === "cancel" ? "cancelled" : ending.state;
      await tx.run(
        `UPDATE jobs SET state = :state, attempts = attempts - :free, run_at = COALESCE(:runAtMs, run_at), result = :result,
           error = COALESCE(:error, error), ended_at = :endedAtMs, lease = NULL, leased_until = NULL
         WHERE id = :id`,
        {
          id: job.id,
          state,
          free: again?.free ? 1 : 0,
          runAtMs: again?.runAtMs ?? null,
          result: ending.state === "done" ? jsonOf(ending.result) : null,
          error: "error" in ending && ending.error !== undefined ? cut(ending.error) : null,
          endedAtMs: state === "queued" ? null : nowMs,
        },
      );
      return state;
    });
  }

  /**
   * Forgets jobs that have ended, with their lines.
   * @param beforeMs those that ended before
   * @param most and of each kind, beyond so many, the oldest
   * @returns how many; throws the signal's reason between two groups
   */
  async forget(beforeMs: Milliseconds, most: number, signal: AbortSignal): Promise<number> {
    let forgotten = 0;
    for (const { kind } of await this.#db.background.all<{ kind: string }>("SELECT DISTINCT kind FROM jobs")) {
      for (;;) {
        signal.throwIfAborted();
        const gone = await this.#db.background.transaction("lazy", (tx) =>
          tx.run(FORGET, { kind, beforeMs, most, group: GROUP }),
        );
        if (gone === 0) break;
        forgotten += gone;
      }
    }
    return forgotten;
  }
}

function jobOf(row: Row): Job {
  return {
    ...row,
    dedupe: row.dedupe ?? undefined,
    subject: row.subject ?? undefined,
    parent: row.parent ?? undefined,
    payload: JSON.parse(row.payload) as unknown,
    progress: row.progress === null ? undefined : (JSON.parse(row.progress) as unknown),
    result: row.result === null ? undefined : (JSON.parse(row.result) as unknown),
    error: row.error ?? undefined,
    startedAtMs: row.startedAtMs ?? undefined,
    endedAtMs: row.endedAtMs ?? undefined,
  };
}

function jsonOf(value: unknown): string | null {
  return value === undefined ? null : JSON.stringify(value);
}

function cut(text: string): string {
  return text.length <= LONGEST_TEXT ? text : `${text.slice(0, LONGEST_TEXT - 1)}…`;
}
