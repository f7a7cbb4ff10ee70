import type { Bytes, Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import type { UpkeepRuns } from "../store/upkeep-runs.ts";
import type { ClockWatch } from "./clock-watch.ts";
import type { GarbageCollector, GcEvent, GcReport } from "./gc.ts";
import { Job } from "./job.ts";
import { runOnSchedule } from "./schedule.ts";
import type { Scrubber, ScrubEvent, ScrubReport } from "./scrub.ts";

export interface UpkeepDeps {
  collector: GarbageCollector;
  scrubber: Scrubber;
  runs: UpkeepRuns;
  clock: Clock;
  watch: ClockWatch;
  log: Logger;
  metrics: Metrics;
  onFault: (operation: string, error: unknown) => void;
}

/** The jobs that look after what is stored: by hand and, between {@link begin} and {@link stop}, on their schedule. */
export class Upkeep {
  readonly gc: Job<{ dryRun: boolean }, GcEvent, GcReport>;
  readonly scrub: Job<{ bandwidth?: Bytes | undefined }, ScrubEvent, ScrubReport>;
  readonly #deps: UpkeepDeps;
  readonly #stop = new AbortController();
  #schedule: Promise<void> | undefined;

  constructor(deps: UpkeepDeps) {
    this.#deps = deps;
    const { collector, scrubber, log, metrics } = deps;
    this.gc = new Job({
      name: "garbage collection",
      work: ({ dryRun }, tell, signal) => collector.run({ dryRun }, tell, signal),
      ended: async ({ dryRun }, outcome) => {
        if (dryRun) return;
        if ("report" in outcome) {
          metrics.gcDuration.set(outcome.report.ms / 1000);
          log.info(outcome.report, "garbage collected");
        } else if (!outcome.stopped) log.error({ err: outcome.error }, "garbage collection failed");
        await this.#ended("gc", metrics.gcRuns, outcome);
      },
    });
    this.scrub = new Job({
      name: "a scrub",
      work: (options, tell, signal) => scrubber.run(options, tell, signal),
      ended: async (_, outcome) => {
        if ("report" in outcome) {
          metrics.scrubDuration.set(outcome.report.ms / 1000);
          log.info(outcome.report, "scrubbed");
        } else if (!outcome.stopped) log.error({ err: outcome.error }, "the scrub failed");
        await this.#ended("scrub", metrics.scrubRuns, outcome);
      },
    });
  }

  /** @param intervals read whenever they are needed; 0: never */
  begin(intervals: () => { gc: Milliseconds; scrub: Milliseconds }): void {
    const never = new AbortController().signal;
    const silent = (): Promise<void> => Promise.resolve();
    const jobs = [
      {
        name: "gc",
        intervalMs: () => intervals().gc,
        start: () => {
          if (!this.gc.isRunning) void this.gc.start({ dryRun: false }, silent, never);
        },
      },
      {
        name: "scrub",
        intervalMs: () => intervals().scrub,
        start: () => {
          if (!this.scrub.isRunning) void this.scrub.start({}, silent, never);
        },
      },
    ];
    this.#schedule = runOnSchedule({ ...this.#deps, jobs }, this.#stop.signal);
  }

  /** Ends what runs; what it has done stays done. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all([this.gc.stop(), this.scrub.stop(), this.#schedule]);
  }

  async #ended(
    job: string,
    counter: Metrics["gcRuns"],
    outcome: { report: object } | { error: unknown; stopped: boolean },
  ): Promise<void> {
    const stopped = "error" in outcome && outcome.stopped;
    counter.inc({ result: "report" in outcome ? "done" : stopped ? "stopped" : "failed" });
    // What was stopped is begun again when the daemon is back; what failed waits for its next time.
    if (stopped) return;
    const { runs, clock, onFault } = this.#deps;
    await runs.ended(job, clock.now()).catch((error: unknown) => onFault(`note the end of ${job}`, error));
  }
}
