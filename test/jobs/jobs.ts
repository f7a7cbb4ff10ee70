import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLog, type Logger } from "../../src/base/log.ts";
import { Metrics } from "../../src/base/metrics.ts";
import type { Database } from "../../src/db/database.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { JobQueue } from "../../src/jobs/queue.ts";
import { JobRunner, type JobContext, type JobKind } from "../../src/jobs/runner.ts";
import { MovingClock } from "../registry/clients.ts";

/** A queue on a database of its own. */
export interface TestJobs extends AsyncDisposable {
  readonly file: string;
  readonly db: Database;
  readonly clock: MovingClock;
  readonly queue: JobQueue;
  readonly log: Logger;
  /** Every log line so far, parsed. */
  readonly lines: readonly Record<string, unknown>[];
  /** A further runner on the same queue: disposing of it stops it. */
  runner(): TestRunner;
}

export interface TestRunner extends AsyncDisposable {
  readonly runner: JobRunner;
  readonly metrics: Metrics;
  stop(): Promise<void>;
}

export async function startJobs(): Promise<TestJobs> {
  const folder = await mkdtempDisposable(join(tmpdir(), "entrepot-jobs-"));
  const file = join(folder.path, "entrepot.db");
  const db = await openSqlite(file);
  const clock = new MovingClock();
  const queue = new JobQueue(db, clock);
  const lines: Record<string, unknown>[] = [];
  const destination = { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) };
  const log = await createLog({ level: "debug", format: "json", destination });
  const runners: JobRunner[] = [];
  return {
    file,
    db,
    clock,
    queue,
    log,
    lines,
    runner: () => {
      const metrics = new Metrics();
      const runner = new JobRunner({ queue, clock, log, metrics });
      runners.push(runner);
      const stop = (): Promise<void> => runner.stop();
      return { runner, metrics, stop, [Symbol.asyncDispose]: stop };
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all(runners.map((runner) => runner.stop()));
      await db[Symbol.asyncDispose]();
      await folder.remove();
    },
  };
}

export type Payload = { name?: string };

/** A kind that runs what it is given, one at a time and without any pause after a failure. */
export function kindOf<Result>(
  run: (payload: Payload, context: JobContext<unknown>) => Promise<Result>,
  changes: Partial<JobKind<Payload, unknown, Result>> = {},
): JobKind<Payload, unknown, Result> {
  return {
    kind: "work",
    parse: (payload) => payload as Payload,
    concurrency: 1,
    attempts: 3,
    backoffMs: () => 0,
    run,
    ...changes,
  };
}

/** Resolves when the signal fires, by throwing its reason: what a run does that is told to end. */
export function untilTold(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const end = (): void => reject(signal.reason as Error);
    if (signal.aborted) end();
    else signal.addEventListener("abort", end, { once: true });
  });
}
