import type { Milliseconds } from "../base/clock.ts";
import type { Metrics } from "../base/metrics.ts";
import type { JobState } from "../jobs/queue.ts";
import type { RunResult } from "./tasks.ts";

/** How far the copies of a rule are. */
export interface RuleStatus {
  name: string;
  origin: "config" | "api";
  /** Registries, as rules call them. */
  from: string;
  to: string[];
  /** Why; undefined: it is not. */
  paused: string | undefined;
  queued: number;
  running: number;
  /** Paused tasks. */
  waiting: number;
  /** Tasks that failed for the last time. */
  dead: number;
  /** Age of the oldest change that is not copied yet; 0: none. */
  lagSeconds: number;
  /** When the last run without a fault ended. */
  settledAtMs: Milliseconds | undefined;
  /** When it runs by itself. */
  nextAtMs: Milliseconds | undefined;
  lastRun:
    | { id: number; state: JobState; atMs: Milliseconds; result: RunResult | undefined; error: string | undefined }
    | undefined;
}

type Gauges = Pick<Metrics, "replicationLag" | "replicationLastSuccess" | "replicationTasks">;

/** Sets the gauges of all rules; those of rules that are gone go. */
export function exposeRules(metrics: Gauges, rules: readonly RuleStatus[]): void {
  const { replicationLag, replicationLastSuccess, replicationTasks } = metrics;
  for (const gauge of [replicationLag, replicationLastSuccess, replicationTasks]) gauge.reset();
  for (const { name: rule, lagSeconds, settledAtMs, queued, running, waiting, dead } of rules) {
    replicationLag.set({ rule }, lagSeconds);
    if (settledAtMs !== undefined) replicationLastSuccess.set({ rule }, settledAtMs / 1000);
    const tasks = { queued, running, paused: waiting, dead };
    for (const [state, count] of Object.entries(tasks)) replicationTasks.set({ rule, state }, count);
  }
}
