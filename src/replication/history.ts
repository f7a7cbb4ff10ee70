/** What replication has in the queue, and had as long as jobs are kept: runs and tasks, newest first. */
import type { Database, Params } from "../db/database.ts";
import { COLUMNS, jobOf, type Job, type JobState, type Row } from "../jobs/job.ts";
import { laneOf, RUN, runPayload, taskPayload, type RunPayload, type TaskPayload } from "./tasks.ts";

/** What is told of a job whose payload is known. */
type Kept = Pick<
  Job,
  | "id"
  | "state"
  | "attempts"
  | "progress"
  | "result"
  | "error"
  | "createdAtMs"
  | "runAtMs"
  | "startedAtMs"
  | "endedAtMs"
>;

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

function keptOf({
  id,
  state,
  attempts,
  progress,
  result,
  error,
  createdAtMs,
  runAtMs,
  startedAtMs,
  endedAtMs,
}: Job): Kept {
  return { id, state, attempts, progress, result, error, createdAtMs, runAtMs, startedAtMs, endedAtMs };
}

function runOf(row: Row): Run {
  const job = jobOf(row);
  return { ...runPayload.parse(job.payload), ...keptOf(job) };
}

function taskOf(row: Row): Task {
  const job = jobOf(row);
  return { ...taskPayload.parse(job.payload), ...keptOf(job), run: job.parent, priority: job.priority };
}
