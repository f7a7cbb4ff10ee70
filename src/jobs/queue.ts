import { randomUUID } from "node:crypto";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database, SqlValue, Writer } from "../db/database.ts";
import { COLUMNS, jobOf, jsonOf, partOf, type Row } from "./job.ts";
import type { Added, Claim, Ending, Job, JobFilter, JobLine, JobPart, JobState, NewJob, Note } from "./job.ts";

export type { Added, Claim, Ending, Job, JobFilter, JobLine, JobState, NewJob, Note } from "./job.ts";

/** Longer ones are cut, in UTF-16 units. */
const LONGEST_TEXT = 2_000;
/** Of a job's lines, the newest are kept. */
const MOST_LINES = 1_000;
/** Forgotten at a time: each may have as many lines. */
const GROUP = 5;

/** In one transaction: the run of a large rule has many thousand parts. */
const CANCELLED_AT_A_TIME = 500;

/** What somebody wants of a run that goes on. */
type Asked = "cancel" | "pause";
const BECOMES = { cancel: "cancelled", pause: "paused" } as const;

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
    if (parent !== undefined) {
      await tx.run(
        `UPDATE jobs SET parent = :parent, priority = MAX(priority, :priority), run_at = MIN(run_at, :runAtMs),
           payload = CASE state WHEN 'running' THEN payload ELSE :payload END WHERE id = :id`,
        { id: there.id, parent, priority, runAtMs: runAtMs ?? nowMs, payload: JSON.stringify(payload) },
      );
    }
    return { id: there.id, joined: true };
  }

  async get(id: number): Promise<Job | undefined> {
    const row = await this.#db.get<Row>(`SELECT ${COLUMNS} FROM jobs WHERE id = :id`, { id });
    return row && jobOf(row);
  }

  /** Newest first. */
  async list({ before, limit, ...filter }: JobFilter): Promise<Job[]> {
    const params: Record<string, SqlValue> = { before: before ?? Number.MAX_SAFE_INTEGER, limit };
    let where = "id < :before";
    // Each of them has an index, alone and kind with state.
    for (const column of ["kind", "state", "subject", "parent"] as const) {
      const wanted = filter[column];
      if (wanted === undefined) continue;
      where += ` AND ${column} = :${column}`;
      params[column] = wanted;
    }
    const sql = `SELECT ${COLUMNS} FROM jobs WHERE ${where} ORDER BY id DESC LIMIT :limit`;
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
  counts(): Promise<{ kind: string; state: "queued" | "running" | "paused" | "dead"; jobs: number }[]> {
    return this.#db.all(
      `SELECT kind, state, COUNT(*) AS jobs FROM jobs WHERE state IN ('queued', 'running', 'paused', 'dead')
       GROUP BY state, kind`,
    );
  }

  /** How many parts a job has in each state. */
  countsOf(parent: number): Promise<{ state: JobState; jobs: number }[]> {
    return this.#db.all(`SELECT state, COUNT(*) AS jobs FROM jobs WHERE parent = :parent GROUP BY state`, { parent });
  }

  /** The parts of a job with what has become of them, oldest first. @param after the last id of the page before, or 0 */
  async resultsOf(parent: number, after: number, limit: number): Promise<JobPart[]> {
    const rows = await this.#db.all<Pick<Row, keyof JobPart>>(
      `SELECT id, state, subject, result, error FROM jobs WHERE parent = :parent AND id > :after ORDER BY id LIMIT :limit`,
      { parent, after, limit },
    );
    return rows.map(partOf);
  }

  /** Cancels what is queued or paused. @returns false: it is neither */
  withdraw(id: number): Promise<boolean> {
    return this.#db.transaction("durable", (tx) => this.#withdrawWithin(tx, id));
  }

  /**
   * Cancels what is queued or paused. Whoever runs it is asked to end it, and learns of that with its next heartbeat.
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
      `UPDATE jobs SET state = 'cancelled', ended_at = :nowMs WHERE id = :id AND state IN ('queued', 'paused')`,
      { id, nowMs: this.#clock.now() },
    );
    return cancelled > 0;
  }

  /**
   * Cancels the parts of a job, as {@link cancel} does it. What is added meanwhile may stay.
   * @returns those that waited, and the ids of those that run and were asked
   */
  async cancelPart(parent: number): Promise<{ cancelled: Job[]; asked: number[] }> {
    const cancelled: Job[] = [];
    const asked = new Set<number>();
    let found: number;
    do {
      // Both in one transaction: what ends its run or begins one meanwhile is either asked or cancelled.
      found = await this.#db.transaction("durable", async (tx) => {
        const waiting = await tx.all<Row>(
          `UPDATE jobs SET state = 'cancelled', ended_at = :nowMs WHERE id IN (
             SELECT id FROM jobs WHERE parent = :parent AND state IN ('queued', 'paused') LIMIT :most)
           RETURNING ${COLUMNS}`,
          { parent, nowMs: this.#clock.now(), most: CANCELLED_AT_A_TIME },
        );
        const running = await tx.all<{ id: number }>(
          `UPDATE jobs SET asked = 'cancel' WHERE parent = :parent AND state = 'running' RETURNING id`,
          { parent },
        );
        cancelled.push(...waiting.map(jobOf));
        for (const { id } of running) asked.add(id);
        return waiting.length;
      });
    } while (found === CANCELLED_AT_A_TIME);
    return { cancelled, asked: [...asked] };
  }

  /**
   * Pauses what is queued. Whoever runs it is asked to end the run, and learns of that with its next heartbeat.
   * @returns `running`: asked; undefined: it is neither queued nor running, or was told to end
   */
  pause(id: number): Promise<"paused" | "running" | undefined> {
    return this.#db.transaction("durable", async (tx) => {
      const paused = await tx.run(`UPDATE jobs SET state = 'paused' WHERE id = :id AND state = 'queued'`, { id });
      if (paused > 0) return "paused";
      const asked = await tx.run(
        `UPDATE jobs SET asked = 'pause' WHERE id = :id AND state = 'running' AND asked IS NOT 'cancel'`,
        { id },
      );
      return asked > 0 ? "running" : undefined;
    });
  }

  /**
   * Queues what is paused, not before its time, and takes back a pause that has yet to come. Wake the runner afterwards.
   * @returns false: nobody has paused it
   */
  resume(id: number): Promise<boolean> {
    return this.#db.transaction("durable", async (tx) => {
      const resumed = await tx.run(
        `UPDATE jobs SET state = CASE state WHEN 'paused' THEN 'queued' ELSE state END, asked = NULL
         WHERE id = :id AND (state = 'paused' OR state = 'running' AND asked = 'pause')`,
        { id },
      );
      return resumed > 0;
    });
  }

  /**
   * Changes when it is the turn of what is queued or paused.
   * @param priority undefined: ahead of all others of its kind that are queued
   * @returns false: it is neither
   */
  prioritise(id: number, priority: number | undefined): Promise<boolean> {
    return this.#db.transaction("durable", async (tx) => {
      const changed = await tx.run(
        `UPDATE jobs SET priority = COALESCE(:priority, MAX(priority, 1 + (
           SELECT MAX(other.priority) FROM jobs other WHERE other.kind = jobs.kind AND other.state = 'queued' AND other.id <> jobs.id
         )), priority)
         WHERE id = :id AND state IN ('queued', 'paused')`,
        { id, priority: priority ?? null },
      );
      return changed > 0;
    });
  }

  /**
   * Queues what is dead or cancelled once more, with all its attempts.
   * @returns false: it is neither, or an unfinished job has its dedupe key
   */
  retry(id: number): Promise<boolean> {
    return this.#db.transaction("durable", async (tx) => {
      const queued = await tx.run(
        `UPDATE jobs SET state = 'queued', attempts = 0, run_at = :nowMs, ended_at = NULL
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
   * @returns those whose runs are to be ended: somebody else has them, or somebody asked for it
   */
  renew(
    claims: readonly Claim[],
    leaseMs: Milliseconds,
  ): Promise<{ lost: Claim[]; cancelled: Claim[]; paused: Claim[]; freed: number }> {
    const nowMs = this.#clock.now();
    return this.#db.transaction("lazy", async (tx) => {
      const lost: Claim[] = [];
      const cancelled: Claim[] = [];
      const paused: Claim[] = [];
      for (const claim of claims) {
        const row = await tx.get<{ asked: Asked | null }>(
          `UPDATE jobs SET leased_until = :untilMs WHERE id = :id AND lease = :lease RETURNING asked`,
          { id: claim.job.id, lease: claim.lease, untilMs: nowMs + leaseMs },
        );
        if (!row) lost.push(claim);
        else if (row.asked === "cancel") cancelled.push(claim);
        else if (row.asked === "pause") paused.push(claim);
      }
      return { lost, cancelled, paused, freed: await this.#freeWithin(tx, nowMs, nowMs) };
    });
  }

  /** Queues again whatever is running: for the start, when nobody else is at work here. @returns how many */
  free(): Promise<number> {
    return this.#db.transaction("lazy", (tx) => this.#freeWithin(tx, this.#clock.now(), Number.MAX_SAFE_INTEGER));
  }

  /** The run has cost an attempt: should it be what ends the process, it is not begun forever. */
  #freeWithin(tx: Writer, nowMs: Milliseconds, untilMs: Milliseconds): Promise<number> {
    return tx.run(
      `UPDATE jobs SET state = CASE asked WHEN 'cancel' THEN 'cancelled' WHEN 'pause' THEN 'paused' ELSE 'queued' END,
         ended_at = CASE asked WHEN 'cancel' THEN :nowMs END, asked = NULL, lease = NULL, leased_until = NULL
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
   * Ends a run, and gives the lease back. What was to be cancelled or paused meanwhile is not queued again.
   * @returns what it has become; undefined: the lease was lost, and nothing happens
   */
  end(claim: Claim, note: Note, ending: Ending): Promise<JobState | undefined> {
    const { job, lease } = claim;
    const nowMs = this.#clock.now();
    return this.#db.transaction("lazy", async (tx) => {
      const held = await tx.get<{ asked: Asked | null }>(`SELECT asked FROM jobs WHERE id = :id AND lease = :lease`, {
        id: job.id,
        lease,
      });
      if (!held) return undefined;
      await this.#noteWithin(tx, claim, note);
      const again = ending.state === "queued" ? ending : undefined;
      const state: JobState = again && held.asked ? BECOMES[held.asked] : ending.state;
      await tx.run(
        `UPDATE jobs SET state = :state, attempts = attempts - :free, run_at = COALESCE(:runAtMs, run_at), result = :result,
           error = COALESCE(:error, error), ended_at = :endedAtMs, asked = NULL, lease = NULL, leased_until = NULL
         WHERE id = :id`,
        {
          id: job.id,
          state,
          free: again?.free ? 1 : 0,
          runAtMs: again?.runAtMs ?? null,
          result: ending.state === "done" ? jsonOf(ending.result) : null,
          error: "error" in ending && ending.error !== undefined ? cut(ending.error) : null,
          endedAtMs: state === "queued" || state === "paused" ? null : nowMs,
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

function cut(text: string): string {
  return text.length <= LONGEST_TEXT ? text : `${text.slice(0, LONGEST_TEXT - 1)}…`;
}
