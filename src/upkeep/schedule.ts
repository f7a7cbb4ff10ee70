import type { Clock, Milliseconds } from "../base/clock.ts";
import type { UpkeepRuns } from "../store/upkeep-runs.ts";
import type { ClockWatch } from "./clock-watch.ts";

export interface Scheduled {
  name: string;
  /** From the end of one run to the next; 0: never. */
  intervalMs: () => Milliseconds;
  /** Starts a run, unless one is under way. */
  start: () => void;
}

export interface ScheduleDeps {
  jobs: readonly Scheduled[];
  runs: UpkeepRuns;
  clock: Clock;
  watch: ClockWatch;
  onFault: (operation: string, error: unknown) => void;
}

/** Timers reach no further than 24 days, and a clock may jump: so it is looked at once in a while. */
const LOOK_EVERY_MS: Milliseconds = 60_000;

/** Runs jobs again and again, counted over restarts: the first time an interval after the storage was first used. */
export async function runOnSchedule(deps: ScheduleDeps, signal: AbortSignal): Promise<void> {
  const { jobs, clock, watch, onFault } = deps;
  while (!signal.aborted) {
    watch.look();
    for (const job of jobs)
      await startIfDue(deps, job).catch((error: unknown) => onFault(`schedule ${job.name}`, error));
    await clock.sleep(LOOK_EVERY_MS, signal).catch(() => undefined);
  }
}

async function startIfDue({ runs, clock }: ScheduleDeps, { name, intervalMs, start }: Scheduled): Promise<void> {
  const interval = intervalMs();
  if (interval === 0) return;
  const nowMs = clock.now();
  const endedAtMs = await runs.endedAtMs(name);
  // In the future: the clock was set back, and it would wait for as long.
  if (endedAtMs === undefined || endedAtMs > nowMs) await runs.ended(name, nowMs);
  else if (nowMs - endedAtMs >= interval) start();
}
