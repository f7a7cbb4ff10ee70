import { z } from "zod";
import type { Bytes, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import { Attended, DEDUPE } from "../jobs/attended.ts";
import { Hopeless } from "../jobs/kind.ts";
import type { JobQueue } from "../jobs/queue.ts";
import type { JobContext, JobRunner, Outcome } from "../jobs/runner.ts";
import type { JobSchedule } from "../jobs/schedule.ts";
import type { GarbageCollector, GcEvent, GcReport } from "./gc.ts";
import type { Retention, RetentionEvent, RetentionOptions, RetentionReport } from "./retention.ts";
import type { Scrubber, ScrubEvent, ScrubReport } from "./scrub.ts";

export interface UpkeepDeps {
  collector: GarbageCollector;
  scrubber: Scrubber;
  retention: Retention;
  queue: JobQueue;
  runner: JobRunner;
  schedule: JobSchedule;
  /** From the end of one run to the next; read whenever they are needed; 0: never. */
  intervals: () => { gc: Milliseconds; scrub: Milliseconds };
  /** When retention runs: a cron expression in UTC, or `never`. */
  retentionSchedule: () => string;
  log: Logger;
  metrics: Metrics;
}

const gcPayload = z.object({ dryRun: z.boolean() });
const retentionPayload = z.object({ dryRun: z.boolean(), removeAll: z.boolean(), repository: z.string().optional() });
const scrubPayload = z.object({ bandwidth: z.int().positive().optional() });

/** The jobs that look after what is stored: by hand and on their schedule. */
export class Upkeep {
  readonly gc: Attended<{ dryRun: boolean }, GcEvent, GcReport>;
  readonly scrub: Attended<{ bandwidth?: Bytes | undefined }, ScrubEvent, ScrubReport>;

  readonly retention: Attended<RetentionOptions, RetentionEvent, RetentionReport>;

  constructor(deps: UpkeepDeps) {
    const { collector, scrubber, retention, queue, runner, schedule, intervals, retentionSchedule, log, metrics } =
      deps;
    this.gc = new Attended({
      queue,
      runner,
      title: "garbage collection",
      kind: {
        kind: "gc",
        parse: (payload) => gcPayload.parse(payload),
        run: ({ dryRun }, context) => collector.run({ dryRun }, (event) => tellOf(context, event), context.signal),
        ended: async ({ dryRun }, outcome) => {
          if (dryRun) return;
          if (outcome.how === "done") {
            metrics.gcDuration.set(outcome.result.ms / 1000);
            log.info(outcome.result, "garbage collected");
          }
          metrics.gcRuns.inc({ result: resultOf(outcome) });
          if (isOver(outcome, this.gc.isAttended)) await schedule.ended("gc");
        },
      },
    });
    this.scrub = new Attended({
      queue,
      runner,
      title: "a scrub",
      kind: {
        kind: "scrub",
        parse: (payload) => scrubPayload.parse(payload),
        run: (options, context) => {
          const tell = (event: ScrubEvent): Promise<void> => {
            if (event.type === "finding") context.line(`${event.kind} ${event.digest}: ${event.message}`);
            return tellOf(context, event);
          };
          return scrubber.run(options, tell, context.signal);
        },
        ended: async (_, outcome) => {
          if (outcome.how === "done") {
            metrics.scrubDuration.set(outcome.result.ms / 1000);
            log.info(outcome.result, "scrubbed");
          }
          metrics.scrubRuns.inc({ result: resultOf(outcome) });
          if (isOver(outcome, this.scrub.isAttended)) await schedule.ended("scrub");
        },
      },
    });
    this.retention = new Attended({
      queue,
      runner,
      title: "retention",
      kind: {
        kind: "retention",
        parse: (payload) => retentionPayload.parse(payload),
        run: (options, context) => {
          const tell = (event: RetentionEvent): Promise<void> => {
            if (event.type === "refused") {
              context.line(event.message);
              if (!options.dryRun)
                log.error({ rule: event.rule }, "a retention rule would remove all that it is about: it is left out");
            }
            return tellOf(context, event);
          };
          // A daemon that was killed must not go on with that unasked.
          if (options.removeAll && !this.retention.isAttended)
            throw new Hopeless("whoever said that rules may remove all is gone: ask again");
          return retention.run(options, tell, context.signal);
        },
        ended: ({ dryRun }, outcome) => {
          if (dryRun) return;
          if (outcome.how === "done") log.info(outcome.result, "retention rules applied");
          const isRefused = outcome.how === "done" && outcome.result.refused > 0;
          metrics.retentionRuns.inc({ result: isRefused ? "refused" : resultOf(outcome) });
        },
      },
    });
    schedule.add({
      name: "retention",
      when: () => (retentionSchedule() === "never" ? undefined : { cron: retentionSchedule() }),
      job: () => ({ kind: "retention", payload: { dryRun: false, removeAll: false }, dedupe: DEDUPE }),
    });
    schedule.add({
      name: "gc",
      when: () => (intervals().gc > 0 ? { everyMs: intervals().gc } : undefined),
      job: () => ({ kind: "gc", payload: { dryRun: false }, dedupe: DEDUPE }),
    });
    schedule.add({
      name: "scrub",
      when: () => (intervals().scrub > 0 ? { everyMs: intervals().scrub } : undefined),
      job: () => ({ kind: "scrub", payload: {}, dedupe: DEDUPE }),
    });
  }
}

/** The row holds how far it is, not the last thing found. */
function tellOf<Event extends { type: string }>(context: JobContext<Event>, event: Event): Promise<void> {
  return event.type === "progress" ? context.progress(event) : context.tell(event);
}

function resultOf({ how }: Outcome<object>): "done" | "failed" | "stopped" {
  if (how === "done") return "done";
  return how === "dead" ? "failed" : "stopped";
}

/** What failed, or was cancelled by hand, waits for its next time. Whoever only left has not said that it is not wanted. */
function isOver({ how }: Outcome<object>, isAttended: boolean): boolean {
  return how === "done" || how === "dead" || (how === "cancelled" && !isAttended);
}
