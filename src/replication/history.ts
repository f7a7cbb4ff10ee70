/** What replication has in the queue, and had as long as jobs are kept: runs and tasks, newest first. */
import type { Milliseconds } from "../base/clock.ts";
import type { Database, Params } from "../db/database.ts";
import type { JobState } from "../jobs/queue.ts";
import { laneOf, RUN, runPayload, taskPayload, type RunPayload, type TaskPayload } from "./tasks.ts";

interface Kept {
  id: number;
  state: JobState;
  attempts: number;
  /** How far it is, a second ago at most. */
  progress: unknown;
  /** Of what is done. */
  result: unknown;
  /** Of the last attempt that failed. */
  error: string | undefined;
  createdAtMs: Milliseconds;
  /** Not before. */
  runAtMs: Milliseconds;
  startedAtMs: Milliseconds | undefined;
  endedAtMs: Milliseconds | undefined;
}

export interface Run extends Kept, RunPayload {}

export interface Task extends Kept, TaskPayload {
  /** Undefined: a push has started it. */
  run: number | undefined;
  priority: number;
}

interface Page {
  /** Only those with a smaller id: the last one of the page before. */
  before: number | undefined;
  limit: number;
}

export interface TaskFilter extends Page {
  rule?: string | undefined;
  run?: number | undefined;
  state?: JobState | undefined;
  /** Of the target. */
  registry?: string | undefined;
}

interface Row extends Omit<Kept, "progress" | "result" | "error" | "startedAtMs" | "endedAtMs"> {
  parent: number | null;
  priority: number;
  payload: string;
  progress: string | null;
  result: string | null;
  error: string | null;
  startedAtMs: Milliseconds | null;
  endedAtMs: Milliseconds | null;
}

const COLUMNS = `id, parent, payload, priority, state, attempts, run_at AS "runAtMs", progress, result, error,
  created_at AS "createdAtMs", started_at AS "startedAtMs", ended_at AS "endedAtMs"`;

const LANES = laneOf("");

export class History {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  async runs({ rule, before, limit }: Page & { rule?: string | undefined }): Promise<Run[]> {
    const rows = await this.#db.background.all<Row>(
      `SELECT ${COLUMNS} FROM jobs
       WHERE kind = :kind AND id < :before AND (:rule IS NULL OR payload ->> 'rule' = :rule) ORDER BY id DESC LIMIT :limit`,
      { kind: RUN, rule: rule ?? null, ...pageParams({ before, limit }) },
    );
    return rows.map(runOf);
  }

  async run(id: number): Promise<Run | undefined> {
    const row = await this.#db.get<Row>(`SELECT ${COLUMNS} FROM jobs WHERE id = :id AND kind = :kind`, {
      id,
      kind: RUN,
    });
    return row && runOf(row);
  }

  /** How many tasks of a run are in which state. */
  async counts(run: number): Promise<Partial<Record<JobState, number>>> {
    const rows = await this.#db.all<{ state: JobState; tasks: number }>(
      `SELECT state, COUNT(*) AS tasks FROM jobs WHERE parent = :run GROUP BY state`,
      { run },
    );
    return Object.fromEntries(rows.map(({ state, tasks }) => [state, tasks]));
  }

  async tasks({ rule, run, state, registry, ...page }: TaskFilter): Promise<Task[]> {
    const rest = `${run === undefined ? "" : "parent = :run AND "}(:rule IS NULL OR payload ->> 'rule' = :rule)
      AND (:state IS NULL OR state = :state) AND id < :before ORDER BY id DESC LIMIT :limit`;
    const rows = await this.#db.background.all<Row>(
      `SELECT ${COLUMNS} FROM jobs WHERE ${registry === undefined ? "kind >= :lanes AND kind < :beyond" : "kind = :lane"} AND ${rest}`,
      {
        ...(registry === undefined ? { lanes: LANES, beyond: `${LANES}\u{10ffff}` } : { lane: laneOf(registry) }),
        ...(run === undefined ? {} : { run }),
        rule: rule ?? null,
        state: state ?? null,
        ...pageParams(page),
      },
    );
    return rows.map(taskOf);
  }
}

function pageParams({ before, limit }: Page): Params {
  return { before: before ?? Number.MAX_SAFE_INTEGER, limit };
}

function keptOf(row: Row): Kept {
  const { id, state, attempts, createdAtMs, runAtMs } = row;
  return {
    id,
    state,
    attempts,
    progress: row.progress === null ? undefined : JSON.parse(row.progress),
    result: row.result === null ? undefined : JSON.parse(row.result),
    error: row.error ?? undefined,
    createdAtMs,
    runAtMs,
    startedAtMs: row.startedAtMs ?? undefined,
    endedAtMs: row.endedAtMs ?? undefined,
  };
}

function runOf(row: Row): Run {
  return { ...runPayload.parse(JSON.parse(row.payload)), ...keptOf(row) };
}

function taskOf(row: Row): Task {
  const payload = taskPayload.parse(JSON.parse(row.payload));
  return { ...payload, ...keptOf(row), run: row.parent ?? undefined, priority: row.priority };
}
