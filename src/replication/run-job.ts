/**
 * A run of a rule: it plans, has a task for each tag that is to change, waits for them, and then does what can only be done at the end: moves
 * tags that go together, and deletes what is due.
 *
 * Invariants
 * - Of one rule, one run at most is unfinished: whoever asks for another joins it.
 * - Begun again after a stop or `kill -9`, it plans anew: what has been copied is at rest, what is in the queue is joined.
 * - Tags that go together move only after every task has ended well, and where they did not, nothing is deleted either.
 * - Nothing is deleted of a repository that could not be listed, or that the source has again by now.
 */
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Metrics } from "../base/metrics.ts";
import type { ReplicationRule } from "../config/schema.ts";
import type { Database } from "../db/database.ts";
import { exponential, Hopeless, Later, type JobContext } from "../jobs/kind.ts";
import type { KeyedJobs } from "../jobs/keyed.ts";
import type { JobQueue, NewJob } from "../jobs/queue.ts";
import type { JobRunner, Outcome } from "../jobs/runner.ts";
import { imagesOf } from "./copy-image.ts";
import type { Feed } from "./feed.ts";
import { ruleCalled, waitForTurn } from "./holds.ts";
import { undoMoves } from "./moves.ts";
import { planRule, type RulePlan } from "./plan.ts";
import type { PlanRegistry } from "./plan-registry.ts";
import type { Registries } from "./registries.ts";
import type { ReplicationRows } from "./rows.ts";
import type { RuleBook } from "./rule-book.ts";
import { deleteDue } from "./run-deletions.ts";
import { moveStaged } from "./run-moves.ts";
import { endsOf, fault, NOTHING, resultOf } from "./run-result.ts";
import { LOOK_EVERY_MS, TaskWaits } from "./run-waits.ts";
import { priorityOf } from "./task-job.ts";
import {
  keysOf,
  laneOf,
  RUN,
  runPayload,
  taskKey,
  taskSubject,
  type FeedEvent,
  type RunPayload,
  type RunResult,
  type TaskPayload,
} from "./tasks.ts";

export interface RunDeps {
  db: Database;
  clock: Clock;
  metrics: Metrics;
  queue: JobQueue;
  keyed: KeyedJobs;
  runner: JobRunner;
  rules: RuleBook;
  rows: ReplicationRows;
  registries: Registries;
  feed: Feed;
  /** Lets tasks run for registries that a reload has brought. */
  openLanes: () => void;
}

/** What a run tells of itself, and what its row has. */
export interface RunProgress {
  state: Extract<FeedEvent, { type: "run" }>["state"];
  tasks: number;
  ended: number;
}

type Context = JobContext<RunProgress>;

/** Of different rules: mostly they wait for their tasks. */
const CONCURRENCY = 64;
const ATTEMPTS = 5;
const backoffMs = exponential(30_000, 600_000);
/** Tasks added in one transaction. */
const GROUP = 100;
/** Of faults of a plan, in the log. */
const MOST_LINES = 100;
const KEEP_MOVES_MS: Milliseconds = 90 * 86_400_000;

export class Runs {
  readonly #deps: RunDeps;
  readonly #waits: TaskWaits;

  constructor(deps: RunDeps) {
    this.#deps = deps;
    this.#waits = new TaskWaits(deps.queue, deps.clock);
    deps.runner.register<RunPayload, RunProgress, RunResult>({
      kind: RUN,
      parse: (payload) => runPayload.parse(payload),
      concurrency: CONCURRENCY,
      attempts: ATTEMPTS,
      backoffMs,
      run: (payload, context) => this.#run(payload, context),
      ended: (payload, outcome, jobId) => this.#ended(payload, outcome, jobId),
    });
  }

  /** A task of a rule has ended. */
  taskEnded(rule: string): void {
    this.#waits.ended(rule);
  }

  async #run(payload: RunPayload, context: Context): Promise<RunResult> {
    const { rows, clock } = this.#deps;
    if (payload.undo !== undefined) return await this.#undo(payload, payload.undo, context);
    const rule = ruleCalled(payload.rule, this.#deps);
    if (!rule) throw new Hopeless(`there is no rule ${payload.rule} any more`);
    await waitForTurn(rule, payload.trigger, this.#deps);
    await rows.runBegan(rule.name, context.jobId);
    const beganAtMs = clock.now();
    const result = await this.#copyAll(rule, payload, context);
    if (result.failed === 0 && result.faults.length === 0) {
      await rows.settled(rule.name, beganAtMs);
      await this.#deps.keyed.settle(lanesOf(rule), keysOf(rule.name), context.jobId);
    }
    await rows.forgetMoves(clock.now() - KEEP_MOVES_MS);
    return result;
  }

  async #copyAll(rule: ReplicationRule, payload: RunPayload, context: Context): Promise<RunResult> {
    const { clock, metrics, rows, runner } = this.#deps;
    const { jobId, signal } = context;
    await this.#tell(rule.name, { state: "planning", tasks: 0, ended: 0 }, context);
    const registries = await this.#open(rule);
    const plan = await planRule(rule, registries, {
      sizes: false,
      nowMs: clock.now(),
      rewrites: rows,
      waits: true,
      signal,
    });
    const [first] = plan.faults;
    // Nothing could be asked: later it may be.
    if (first && plan.repositories.length === 0) throw new Error(`${first.where}: ${first.message}`);
    for (const { where, message } of plan.faults.slice(0, MOST_LINES)) context.line(`${where}: ${message}`);
    const tasks = tasksOf(rule, payload, plan);
    await this.#add(tasks, jobId);
    this.#deps.openLanes();
    for (const lane of new Set(tasks.map(({ registry }) => laneOf(registry)))) runner.wake(lane);
    const counted = async (counts: { tasks: number; ended: number }): Promise<void> => {
      await this.#tell(rule.name, { state: "copying", ...counts }, context);
    };
    await this.#waits.allEnded(rule.name, jobId, counted, signal);
    const ends = await endsOf(plan, jobId, this.#deps.queue);
    const { together } = rule.write;
    if (together && (ends.failures.size > 0 || plan.faults.length > 0)) {
      const result = resultOf(plan, ends);
      const because = "not everything could be copied, and its tags go together: none has moved, and none is deleted";
      if (tasks.length > 0 || rule.delete.mirror) fault(result, rule.name, because);
      return result;
    }
    if (together && tasks.length > 0) {
      await this.#tell(rule.name, { state: "moving", tasks: ends.tasks, ended: ends.tasks }, context);
      await moveStaged(rule, plan, ends, { rows, registries }, context);
    }
    const result = resultOf(plan, ends);
    if (rule.delete.mirror) {
      await this.#tell(rule.name, { state: "deleting", tasks: result.copied, ended: result.copied }, context);
      await deleteDue(rule, plan, result, { rows, clock, metrics, registries }, context);
    }
    return result;
  }

  async #open(rule: ReplicationRule): Promise<ReadonlyMap<string, PlanRegistry>> {
    const { registries } = this.#deps;
    const opened = new Map<string, PlanRegistry>();
    for (const { registry } of rule.to) opened.set(registry, await registries.target(registry));
    // Where a rule copies within one registry, what may be written may be read.
    const { registry } = rule.from;
    if (!opened.has(registry)) opened.set(registry, await registries.source(registry));
    return opened;
  }

  async #add(tasks: readonly TaskPayload[], run: number): Promise<void> {
    const { db, queue } = this.#deps;
    for (let at = 0; at < tasks.length; at += GROUP) {
      const group = tasks.slice(at, at + GROUP).map((task) => ({ ...jobOf(task), parent: run }));
      await db.transaction("durable", async (tx) => {
        for (const job of group) await queue.addWithin(tx, job);
      });
    }
  }

  async #undo({ rule }: RunPayload, run: number, context: Context): Promise<RunResult> {
    const { rows, registries } = this.#deps;
    const { signal } = context;
    const known = this.#deps.rules.get(rule)?.rule;
    const { running } = known ? await this.#deps.keyed.counts(lanesOf(known), keysOf(rule)) : { running: 0 };
    // The rule is paused by now. What had begun before would move a tag that was taken back.
    if (running > 0)
      throw new Later(`${running} copies of the rule are at work`, this.#deps.clock.now() + LOOK_EVERY_MS);
    const result: RunResult = { ...NOTHING, faults: [] };
    const moves = await rows.moves(run);
    let ended = 0;
    await this.#tell(rule, { state: "undoing", tasks: moves.length, ended }, context);
    for (const [name, made] of Map.groupBy(moves, ({ registry }) => registry)) {
      const { target, queue } = await registries.target(name);
      const undone: Promise<void>[] = [];
      await undoMoves(made, { name, target, concurrency: queue.concurrency }, signal, ({ move, outcome, because }) => {
        const where = `${name} ${move.repository}:${move.tag}`;
        ended++;
        if (outcome === "undone") {
          result.copied++;
          undone.push(rows.undone(run, { ...move, registry: name }));
        } else if (outcome === "left") result.kept++;
        else result.failed++;
        if (because !== undefined) fault(result, where, because);
        context.line(`${where}: ${outcome}${because === undefined ? "" : `, ${because}`}`);
      });
      await Promise.all(undone);
      await this.#tell(rule, { state: "undoing", tasks: moves.length, ended }, context);
    }
    return result;
  }

  async #tell(rule: string, progress: RunProgress, context: Context): Promise<void> {
    this.#deps.feed.publish({ type: "run", run: context.jobId, rule, ...progress });
    await context.progress(progress);
  }

  async #ended({ rule }: RunPayload, outcome: Outcome<RunResult>, run: number): Promise<void> {
    const { queue, runner, feed } = this.#deps;
    const { how } = outcome;
    if (how === "later" || how === "paused") return;
    if (outcome.how === "failed") {
      const message = `${(outcome.error as Error).message}; it is tried again at ${new Date(outcome.runAtMs).toISOString()}`;
      feed.publish({ type: "run", run, rule, state: "planning", tasks: 0, ended: 0, message });
      return;
    }
    if (how === "cancelled") await runner.cancelPart(run);
    const counts = await queue.countsOf(run);
    const tasks = counts.reduce((sum, { jobs }) => sum + jobs, 0);
    const state = how === "dead" ? "failed" : how;
    if (state === "failed" || state === "done" || state === "cancelled" || state === "stopped") {
      const message = "error" in outcome ? (outcome.error as Error).message : undefined;
      feed.publish({ type: "run", run, rule, state, tasks, ended: tasks, ...(message !== undefined && { message }) });
    }
  }
}

/** A task as the queue takes it. */
export function jobOf(task: TaskPayload): NewJob {
  return {
    kind: laneOf(task.registry),
    payload: task,
    dedupe: taskKey(task),
    subject: taskSubject(task),
    priority: priorityOf(task.trigger),
  };
}

export function lanesOf(rule: ReplicationRule): string[] {
  return [...new Set(rule.to.map(({ registry }) => laneOf(registry)))];
}

/** A task for each tag that is to change, or that something new belongs to. */
function tasksOf(rule: ReplicationRule, { trigger }: RunPayload, plan: RulePlan): TaskPayload[] {
  return plan.repositories.flatMap((one) =>
    imagesOf(one).map(({ image, companions }) => ({
      rule: rule.name,
      trigger,
      registry: one.registry,
      source: one.source,
      target: one.target,
      tag: image.tag,
      digest: image.digest,
      // Whether it is signed, a signature tells that is at the target already, too.
      ...(rule.attached.require.length > 0 ? {} : { named: companions.map(({ tag }) => tag) }),
      why: image.why,
      // A mark leaves the tag where it is.
      ...(rule.write.together && image.action !== "mark" ? { staged: true } : {}),
    })),
  );
}
