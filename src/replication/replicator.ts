/**
 * Keeps copies in step by the rules: starts runs by hand and by schedule, tasks by pushes, and tells how far everything is. The work itself
 * lies in the queue (`run-job.ts`, `task-job.ts`), and goes on after a restart.
 */
import type { Clock } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import { SELF } from "../config/replication-checks.ts";
import type { Config, ReplicationRule } from "../config/schema.ts";
import type { Database, Writer } from "../db/database.ts";
import type { Journal } from "../events/journal.ts";
import { KeyedJobs } from "../jobs/keyed.ts";
import type { Added, JobQueue } from "../jobs/queue.ts";
import type { JobRunner } from "../jobs/runner.ts";
import type { JobSchedule } from "../jobs/schedule.ts";
import { RegistryError } from "../oci/errors.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { UploadMemory } from "./copy-blob.ts";
import { CopyPool } from "./copy-pool.ts";
import { Feed } from "./feed.ts";
import { dueDeletions } from "./due-deletions.ts";
import { planRule, type RulePlan } from "./plan.ts";
import type { PlanRegistry } from "./plan-registry.ts";
import { PushEvents, type Pushed } from "./push-events.ts";
import type { Registries } from "./registries.ts";
import { ReplicationRows } from "./rows.ts";
import type { KnownRule, RuleBook } from "./rule-book.ts";
import { copyName, sourcesOf } from "./rules.ts";
import { jobOf, lanesOf, Runs } from "./run-job.ts";
import { exposeRules, type RuleStatus } from "./status.ts";
import { isDigestTag, selectTags, subjectOf } from "./tag-filter.ts";
import { priorityOf, Tasks } from "./task-job.ts";
import {
  keysOf,
  laneOf,
  registryOf,
  RUN,
  type RunPayload,
  type RunResult,
  type TaskPayload,
  type Trigger,
} from "./tasks.ts";
import { scheduledRun, scheduleRuns } from "./timetable.ts";

export interface ReplicatorDeps {
  db: Database;
  clock: Clock;
  log: Logger;
  metrics: Metrics;
  queue: JobQueue;
  runner: JobRunner;
  schedule: JobSchedule;
  journal: Journal;
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Config["replication"];
  rules: RuleBook;
  registries: Registries;
  uploads: UploadMemory;
  onFault: (operation: string, error: unknown) => void;
}

/** Tasks for this registry at a time. */
const OWN_CONCURRENCY = 8;

export class Replicator implements AsyncDisposable {
  readonly rules: RuleBook;
  readonly feed: Feed;
  readonly #deps: ReplicatorDeps;
  readonly #rows: ReplicationRows;
  readonly #keyed: KeyedJobs;
  readonly #tasks: Tasks;
  readonly #pushes: PushEvents;
  /** Registries whose tasks run. */
  readonly #lanes = new Set<string>();
  readonly #paused: Set<string>;

  private constructor(deps: ReplicatorDeps, paused: ReadonlySet<string>, left: readonly string[]) {
    this.#deps = deps;
    this.rules = deps.rules;
    this.feed = new Feed(deps.clock);
    this.#paused = new Set(paused);
    this.#rows = new ReplicationRows(deps.db, deps.clock);
    this.#keyed = new KeyedJobs(deps.db, deps.clock);
    const shared = { ...deps, rows: this.#rows, keyed: this.#keyed, feed: this.feed };
    const runs = new Runs({ ...shared, openLanes: () => this.#openLanes() });
    const copies = new CopyPool(deps.clock, deps.uploads);
    const add = async (task: TaskPayload): Promise<boolean> => {
      const { joined } = await deps.queue.add(jobOf(task));
      deps.runner.wake(laneOf(task.registry));
      return joined;
    };
    this.#tasks = new Tasks({ ...shared, copies, add, ended: (rule) => runs.taskEnded(rule) });
    this.#pushes = new PushEvents({
      ...deps,
      pushedWithin: (tx, pushed, trigger) => this.pushedWithin(tx, pushed, trigger),
      wake: (kind) => deps.runner.wake(kind),
    });
    scheduleRuns({ ...deps, isPaused: (rule) => this.#paused.has(rule) });
    this.#openLanes();
    // What is left for a registry that is configured no more has to come to its end, or its run would wait for ever.
    for (const registry of left) this.#openLane(registry, OWN_CONCURRENCY);
    deps.metrics.onScrape(async () => {
      await this.status().then(
        (rules) => exposeRules(deps.metrics, rules),
        () => undefined,
      );
    });
  }

  /** Before the runner and the schedule start. */
  static async open(deps: ReplicatorDeps): Promise<Replicator> {
    const waiting = (await deps.queue.counts()).filter(({ state }) => state !== "dead");
    const left = waiting.flatMap(({ kind }) => registryOf(kind) ?? []);
    return new Replicator(deps, await new ReplicationRows(deps.db, deps.clock).pausedRules(), left);
  }

  /** Begins to listen for pushes: before any is taken. */
  async start(): Promise<void> {
    await this.#pushes.start();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pushes[Symbol.asyncDispose]();
  }

  /** A configuration that was reloaded may know more registries. */
  #openLanes(): void {
    const { registries } = this.#deps.config();
    const concurrencies = { ...registries, [SELF]: { concurrency: OWN_CONCURRENCY } };
    for (const [registry, { concurrency }] of Object.entries(concurrencies)) this.#openLane(registry, concurrency);
  }

  #openLane(registry: string, concurrency: number): void {
    if (this.#lanes.has(registry)) return;
    this.#lanes.add(registry);
    this.#tasks.register(this.#deps.runner, registry, concurrency);
  }

  /** What a run would do now. @throws RangeError: there is no such rule; RemoteError: a registry can't be opened; the signal's reason */
  async plan(rule: string, { sizes }: { sizes: boolean }, signal: AbortSignal): Promise<RulePlan> {
    const { registries, clock } = this.#deps;
    const known = this.#known(rule).rule;
    const opened = new Map<string, PlanRegistry>();
    for (const name of [known.from.registry, ...known.to.map(({ registry }) => registry)]) {
      opened.set(name, await registries.source(name));
    }
    const nowMs = clock.now();
    const plan = await planRule(known, opened, { sizes, nowMs, byTasks: true, rewrites: this.#rows, signal });
    if (!known.delete.mirror) return plan;
    for (const planned of plan.repositories) {
      const { remote } = await registries.source(planned.registry);
      try {
        planned.deletions = await dueDeletions(known, planned, { rows: this.#rows, remote, nowMs }, signal);
      } catch (error) {
        if (!(error instanceof RemoteError)) throw error;
        plan.faults.push({ where: `${planned.registry} ${planned.target}`, message: error.message });
      }
    }
    return plan;
  }

  /** Lets a rule run, or joins its unfinished run. @throws RangeError: there is no such rule; RegistryError with status 409: it is taken back */
  async run(rule: string, trigger: Trigger): Promise<Added> {
    const { queue, runner } = this.#deps;
    const known = this.#known(rule).rule;
    const payload: RunPayload = { rule, trigger };
    const added = await queue.add({ kind: RUN, payload, dedupe: rule, subject: rule, priority: priorityOf(trigger) });
    if (added.joined) {
      const job = await queue.get(added.id);
      if ((job?.payload as RunPayload | undefined)?.undo !== undefined) {
        const message = `what a run of the rule ${rule} has moved is being taken back: wait for the end of ${added.id}`;
        throw new RegistryError("UNAVAILABLE", message, { status: 409 });
      }
      // It, or its tasks, may wait for their next try, or for what does not count by hand.
      await this.#keyed.urge(added.id, priorityOf(trigger), { trigger });
      for (const lane of lanesOf(known)) runner.wake(lane);
    }
    runner.wake(RUN);
    return added;
  }

  /**
   * Takes back what a run has moved. The rule is paused, since it would move it again.
   * @throws RangeError: there is no such run, or nothing of it to be taken back; RegistryError with status 409: the rule runs
   */
  async undo(run: number): Promise<Added> {
    const { queue, runner } = this.#deps;
    const job = await queue.get(run);
    if (job?.kind !== RUN || (await this.#rows.moves(run)).length === 0) {
      throw new RangeError(`there is no run ${run} that has moved anything which could be taken back`);
    }
    const { rule } = job.payload as RunPayload;
    const payload: RunPayload = { rule, trigger: "hand", undo: run };
    // Not before the rule is paused.
    using _ = runner.hold(RUN);
    const added = await queue.add({ kind: RUN, payload, dedupe: rule, subject: rule, priority: priorityOf("hand") });
    if (added.joined) {
      const message = `run ${added.id} of the rule ${rule} is under way: wait for its end, or cancel it`;
      throw new RegistryError("UNAVAILABLE", message, { status: 409 });
    }
    if (this.rules.get(rule)) await this.pause(rule, `run ${run} was taken back`);
    runner.wake(RUN);
    return added;
  }

  /** Nothing of the rule begins by itself, and its tasks wait. @throws RangeError: there is no such rule */
  async pause(rule: string, why: string): Promise<void> {
    this.#known(rule);
    await this.#rows.pause(rule, why);
    this.#paused.add(rule);
  }

  /** @throws RangeError: there is no such rule */
  async resume(rule: string): Promise<void> {
    const { runner, schedule } = this.#deps;
    const known = this.#known(rule).rule;
    await this.#rows.pause(rule, undefined);
    this.#paused.delete(rule);
    const lanes = lanesOf(known);
    await this.#keyed.hurry(lanes, keysOf(rule));
    await this.#keyed.hurry([RUN], rule);
    for (const kind of [RUN, ...lanes]) runner.wake(kind);
    schedule.changed();
  }

  /** Adds the tasks of what was pushed, in the transaction that notes it. @returns the kinds of jobs to be woken once that is committed */
  async pushedWithin(tx: Writer, pushed: Pushed, trigger: "push" | "webhook"): Promise<string[]> {
    const tasks = this.rules.all().flatMap(({ rule }) => tasksFor(rule, pushed));
    this.#openLanes();
    for (const task of tasks) await this.#deps.queue.addWithin(tx, jobOf({ ...task, trigger }));
    return [...new Set(tasks.map(({ registry }) => laneOf(registry)))];
  }

  /** How far the copies of each rule are. */
  async status(): Promise<RuleStatus[]> {
    return await Promise.all(this.rules.all().map((known) => this.#statusOf(known)));
  }

  async #statusOf({ rule, origin }: KnownRule): Promise<RuleStatus> {
    const { queue, clock, schedule } = this.#deps;
    const nowMs = clock.now();
    const [state, tasks] = await Promise.all([
      this.#rows.state(rule.name),
      this.#keyed.counts(lanesOf(rule), keysOf(rule.name)),
    ]);
    const job = state.run === undefined ? undefined : await queue.get(state.run);
    const lastRun: RuleStatus["lastRun"] = job && {
      id: job.id,
      state: job.state,
      atMs: job.endedAtMs ?? job.startedAtMs ?? job.createdAtMs,
      result: job.result as RunResult | undefined,
      error: job.error,
    };
    const isBehind = lastRun?.state === "dead" || (lastRun?.result?.faults.length ?? 0) > 0;
    // What a run could not look at may have changed just after the last one that could.
    const sinceMs = Math.min(
      tasks.oldestAtMs ?? nowMs,
      isBehind ? (state.settledAtMs ?? job?.createdAtMs ?? nowMs) : nowMs,
    );
    return {
      name: rule.name,
      origin,
      from: rule.from.registry,
      to: [...new Set(rule.to.map(({ registry }) => registry))],
      paused: state.paused,
      queued: tasks.queued,
      running: tasks.running,
      waiting: tasks.paused,
      dead: tasks.dead,
      lagSeconds: Math.max(0, nowMs - sinceMs) / 1000,
      settledAtMs: state.settledAtMs,
      nextAtMs: state.paused === undefined ? await schedule.dueAtMs(scheduledRun(rule)) : undefined,
      lastRun,
    };
  }

  #known(rule: string): KnownRule {
    const known = this.rules.get(rule);
    if (!known) throw new RangeError(`there is no rule ${rule}`);
    return known;
  }
}

/** What a rule makes of a push. Whether a tag is among the newest is found out by the task. Pure. */
function tasksFor(
  rule: ReplicationRule,
  { registry, repository, tag, digest }: Pushed,
): Omit<TaskPayload, "trigger">[] {
  if (!rule.on.push || rule.from.registry !== registry || !sourcesOf(rule).has(repository)) return [];
  let why = "was pushed";
  if (tag === undefined) {
    if (!rule.attached.referrers || digest === undefined) return [];
  } else if (isDigestTag(tag)) {
    if (!rule.attached.digestTags || subjectOf(tag) === undefined) return [];
  } else {
    const [selected] = selectTags([tag], { ...rule.tags, newest: 0 }).selected;
    if (!selected) return [];
    ({ why } = selected);
  }
  // Tags that go together wait for a run: what they are to lead to comes at once.
  const staged = rule.write.together && tag !== undefined && !isDigestTag(tag);
  const about = {
    rule: rule.name,
    source: repository,
    why,
    ...(tag && { tag }),
    ...(digest && { digest }),
    ...(staged && { staged }),
  };
  return rule.to.flatMap((to): Omit<TaskPayload, "trigger">[] => {
    const target = copyName(rule, to, repository);
    return target === undefined ? [] : [{ ...about, registry: to.registry, target }];
  });
}
