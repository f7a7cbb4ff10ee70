/** What a run came to: counted by tags, however many tries and tasks each has taken. */
import type { JobQueue } from "../jobs/queue.ts";
import type { RulePlan } from "./plan.ts";
import { taskSubject, type RunResult, type TaskResult } from "./tasks.ts";

/** What became of each tag that a run is about, by {@link taskSubject}. */
export interface Ends extends Pick<RunResult, "sentBytes" | "mountedBytes" | "presentBytes"> {
  outcomes: Map<string, TaskResult["outcome"]>;
  /** Why. */
  failures: Map<string, string>;
  tasks: number;
}

const MOST_FAULTS = 100;
const RESULTS_PER_PAGE = 1_000;

export const NOTHING = {
  copied: 0,
  unchanged: 0,
  kept: 0,
  withheld: 0,
  failed: 0,
  deleted: 0,
  sentBytes: 0,
  mountedBytes: 0,
  presentBytes: 0,
};

/** What became of each tag by the tasks of a run, of which a later one counts more. */
export async function endsOf(plan: RulePlan, run: number, queue: JobQueue): Promise<Ends> {
  const ends: Ends = { ...plannedEnds(plan), tasks: 0, sentBytes: 0, mountedBytes: 0, presentBytes: 0 };
  for (let after = 0; ;) {
    const page = await queue.resultsOf(run, after, RESULTS_PER_PAGE);
    for (const { state, subject = "", result: told, error } of page) {
      ends.tasks++;
      if (state === "done") {
        const { outcome, sentBytes, mountedBytes, presentBytes } = told as TaskResult;
        ends.outcomes.set(subject, outcome);
        ends.failures.delete(subject);
        ends.sentBytes += sentBytes;
        ends.mountedBytes += mountedBytes;
        ends.presentBytes += presentBytes;
        continue;
      }
      ends.outcomes.delete(subject);
      ends.failures.set(subject, state === "cancelled" ? "it was cancelled" : (error ?? "it failed"));
    }
    const last = page.at(-1);
    if (!last || page.length < RESULTS_PER_PAGE) return ends;
    after = last.id;
  }
}

/** Of what the plan leaves as it is. */
function plannedEnds(plan: RulePlan): Pick<Ends, "outcomes" | "failures"> {
  const ends: Pick<Ends, "outcomes" | "failures"> = { outcomes: new Map(), failures: new Map() };
  for (const { registry, target, tags } of plan.repositories) {
    for (const one of tags) {
      const subject = taskSubject({ registry, target, tag: one.tag });
      if (one.action === "fail") ends.failures.set(subject, one.because);
      else if (one.action === "same") ends.outcomes.set(subject, "unchanged");
      else if (one.action === "keep") ends.outcomes.set(subject, "kept");
      else if (one.action === "withhold") ends.outcomes.set(subject, "withheld");
    }
  }
  return ends;
}

/** Only tags are counted; what the plan could not find out is a fault. */
export function resultOf(
  plan: RulePlan,
  { outcomes, failures, sentBytes, mountedBytes, presentBytes }: Ends,
): RunResult {
  const result: RunResult = { ...NOTHING, sentBytes, mountedBytes, presentBytes, failed: failures.size, faults: [] };
  for (const outcome of outcomes.values()) if (outcome !== "superseded") result[outcome]++;
  for (const { where, message } of plan.faults) fault(result, where, message);
  for (const [where, message] of failures) fault(result, where, message);
  return result;
}

/** Tells of what went wrong, within bounds. */
export function fault({ faults }: RunResult, where: string, message: string): void {
  if (faults.length < MOST_FAULTS) faults.push({ where, message });
}
