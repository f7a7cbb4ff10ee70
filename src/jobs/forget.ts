import type { Clock, Milliseconds } from "../base/clock.ts";
import type { JobQueue } from "./queue.ts";
import { exponential, type JobRunner } from "./runner.ts";
import type { JobSchedule } from "./schedule.ts";

const KIND = "forget-jobs";
const DAY_MS: Milliseconds = 86_400_000;
const KEEP_MS: Milliseconds = 30 * DAY_MS;
/** However young they are. */
const MOST_KEPT = 10_000;

export interface ForgettingDeps {
  queue: JobQueue;
  runner: JobRunner;
  schedule: JobSchedule;
  clock: Clock;
}

/** Every day, jobs that ended 30 days ago are forgotten, and of each kind all but the 10,000 that ended last. */
export function registerForgetting({ queue, runner, schedule, clock }: ForgettingDeps): void {
  runner.register<Record<string, never>, never, { jobs: number }>({
    kind: KIND,
    parse: () => ({}),
    concurrency: 1,
    attempts: 3,
    backoffMs: exponential(60_000, 600_000),
    run: async (_, { signal }) => ({ jobs: await queue.forget(clock.now() - KEEP_MS, MOST_KEPT, signal) }),
    ended: async (_, { how }) => {
      if (how === "done" || how === "dead" || how === "cancelled") await schedule.ended(KIND);
    },
  });
  schedule.add({
    name: KIND,
    when: () => ({ everyMs: DAY_MS }),
    job: () => ({ kind: KIND, payload: {}, dedupe: "" }),
  });
}
