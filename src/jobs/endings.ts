import type { Milliseconds } from "../base/clock.ts";
import type { Ending, Job } from "./job.ts";
import type { Outcome } from "./kind.ts";

const ENDS = {
  cancelled: "it was cancelled",
  paused: "it was paused",
  stopped: "the daemon stops",
  lost: "its lease was lost",
} as const;

/** Why a run is told to end. */
export class Ended extends Error {
  readonly how: keyof typeof ENDS;

  constructor(how: keyof typeof ENDS) {
    super(ENDS[how]);
    this.how = how;
  }
}

/** How a run ended. Lost is the lease where somebody else may have begun another run. */
export type RunEnd = Outcome<unknown> | { how: "lost" };

/** Whether the job is not run again by itself, or nobody is left to tell of it. A pause is none: whoever watches waits for the rest. */
export function isLast({ how }: Outcome<unknown>): boolean {
  return how === "done" || how === "dead" || how === "cancelled" || how === "stopped";
}

/** How a job ended, as its row tells it; undefined: it has not. */
export function endOf({ state, result, error }: Job): Outcome<unknown> | undefined {
  if (state === "done") return { how: "done", result };
  if (state === "dead") return { how: "dead", error: new Error(error ?? "it failed") };
  return state === "cancelled" ? { how: "cancelled" } : undefined;
}

/** What becomes of a job whose run ended so, unless somebody has asked for something else. */
export function endingOf(end: Outcome<unknown>, nowMs: Milliseconds): Ending {
  if (end.how === "done") return { state: "done", result: end.result };
  if (end.how === "dead") return { state: "dead", error: messageOf(end.error) };
  if (end.how === "cancelled") return { state: "cancelled" };
  if (end.how === "failed") return { state: "queued", runAtMs: end.runAtMs, error: messageOf(end.error), free: false };
  return { state: "queued", runAtMs: end.how === "later" ? end.runAtMs : nowMs, error: undefined, free: true };
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
