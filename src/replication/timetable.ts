import type { ReplicationRule } from "../config/schema.ts";
import type { JobSchedule, Scheduled } from "../jobs/schedule.ts";
import type { RuleBook } from "./rule-book.ts";
import { RUN, type RunPayload } from "./tasks.ts";
import { opensAtMs } from "./window.ts";

export interface TimetableDeps {
  schedule: JobSchedule;
  rules: RuleBook;
  /** One that is paused comes due once it is resumed. */
  isPaused: (rule: string) => boolean;
}

/** Has runs of rules come due by their cron, within their window. To be called before the schedule starts. */
export function scheduleRuns({ schedule, rules, isPaused }: TimetableDeps): void {
  schedule.addAll(() =>
    rules
      .all()
      .filter(({ rule }) => !isPaused(rule.name))
      .map(({ rule }) => scheduledRun(rule)),
  );
  rules.onChanged(() => schedule.changed());
}

/** A rule's place in the schedule. */
export function scheduledRun({ name, on }: ReplicationRule): Scheduled {
  const { cron, window } = on;
  return {
    name: `${RUN} ${name}`,
    when: () => (cron === undefined || cron === "never" ? undefined : { cron }),
    opensAtMs: (atMs) => opensAtMs(window, atMs),
    job: () => {
      const payload: RunPayload = { rule: name, trigger: "schedule" };
      return { kind: RUN, payload, dedupe: name, subject: name };
    },
  };
}
