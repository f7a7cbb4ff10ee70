import type { Milliseconds } from "../base/clock.ts";

/**
 * ```
 *            ┌──── failed, stopped, or its process died ────┐
 *            ▼                                              │
 * add ──▶ queued ──── claimed, with a lease ────────────▶ running ──▶ done
 *         ▲ ▲ │ └───▶ paused ◀────── asked to, and ended ───┤
 *         │ │ │          │                                  │
 *         │ └─┼─ resumed ┤                                  │
 *         │   └──────▶ cancelled ◀── asked to, and ended ───┤
 *         └──────────── retried by hand ◀───────────────── dead
 * ```
 * Queued, running and paused jobs are unfinished: nobody forgets them, and none of the same key is added. A paused one waits for somebody
 * to resume it, however long. `dead` is what failed for the last time.
 */
export type JobState = (typeof JOB_STATES)[number];
export const JOB_STATES = ["queued", "running", "paused", "done", "dead", "cancelled"] as const;

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
  /** The id of the job that it is a part of. One that is joined becomes a part of it: with the new payload, unless it runs, and as soon and urgent as the sooner and more urgent of both. */
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
  subject?: string | undefined;
  parent?: number | undefined;
  /** Only those with a smaller id: the last one of the page before. */
  before?: number | undefined;
  limit: number;
}

/** A part of another job, as that one needs to know it. */
export type JobPart = Pick<Job, "id" | "state" | "subject" | "result" | "error">;

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
  /** Or paused, where it was asked to be. `free`: the run costs no attempt. */
  | { state: "queued"; runAtMs: Milliseconds; error: string | undefined; free: boolean };

/** A job before its columns are read. */
export interface Row extends Omit<
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

export const COLUMNS = `id, kind, dedupe, subject, parent, payload, priority, state, attempts, run_at AS "runAtMs", progress, result, error,
  created_at AS "createdAtMs", started_at AS "startedAtMs", ended_at AS "endedAtMs"`;

export function jobOf(row: Row): Job {
  return {
    ...row,
    dedupe: row.dedupe ?? undefined,
    subject: row.subject ?? undefined,
    parent: row.parent ?? undefined,
    payload: JSON.parse(row.payload) as unknown,
    progress: parsedOf(row.progress),
    result: parsedOf(row.result),
    error: row.error ?? undefined,
    startedAtMs: row.startedAtMs ?? undefined,
    endedAtMs: row.endedAtMs ?? undefined,
  };
}

export function partOf({ id, state, subject, result, error }: Pick<Row, keyof JobPart>): JobPart {
  return { id, state, subject: subject ?? undefined, result: parsedOf(result), error: error ?? undefined };
}

export function jsonOf(value: unknown): string | null {
  return value === undefined ? null : JSON.stringify(value);
}

function parsedOf(stored: string | null): unknown {
  return stored === null ? undefined : JSON.parse(stored);
}
