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
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { imagesOf } from "./copy-image.ts";
import { deleteTag } from "./deletion.ts";
import { dueDeletions } from "./due-deletions.ts";
import type { Feed } from "./feed.ts";
import { moveTogether, undoMoves, type StagedTag } from "./moves.ts";
import { planRule, type PlannedRepository, type RulePlan } from "./plan.ts";
import type { PlanRegistry } from "./plan-registry.ts";
import type { Registries } from "./registries.ts";
import type { ReplicationRows } from "./rows.ts";
import type { RuleBook } from "./rule-book.ts";
import { endsOf, fault, NOTHING, resultOf, type Ends } from "./run-result.ts";
import { isDigestTag, selectTags } from "./tag-filter.ts";
import { FAULTY, FAULTY_MS, priorityOf } from "./task-job.ts";
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
import { opensAtMs } from "./window.ts";

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
/** Tasks that end in quick succession are counted once. */
const COUNT_EVERY_MS: Milliseconds = 100;
/** A task may end without this process's doing: cancelled or paused by hand. */
const LOOK_EVERY_MS: Milliseconds = 5_000;
const PAUSED_MS: Milliseconds = 3_600_000;
const KEEP_MOVES_MS: Milliseconds = 90 * 86_400_000;

export class Runs {
  readonly #deps: RunDeps;
  /** By rule: wakes the run that waits for tasks of it. */
  readonly #waiting = new Map<string, () => void>();

  constructor(deps: RunDeps) {
    this.#deps = deps;
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
    this.#waiting.get(rule)?.();
  }

  async #run(payload: RunPayload, context: Context): Promise<RunResult> {
    const { rules, rows, clock } = this.#deps;
    if (payload.undo !== undefined) return await this.#undo(payload, payload.undo, context);
    const rule = rules.get(payload.rule)?.rule;
    if (!rule && rules.isFaulty(payload.rule)) throw new Later(FAULTY, clock.now() + FAULTY_MS);
    if (!rule) throw new Hopeless(`there is no rule ${payload.rule} any more`);
    if (payload.trigger !== "hand") {
      const { paused } = await rows.state(rule.name);
      if (paused !== undefined) throw new Later(`the rule is paused: ${paused}`, clock.now() + PAUSED_MS);
      const opensMs = opensAtMs(rule.on.window, clock.now());
      if (opensMs > clock.now()) throw new Later(`it waits for ${rule.on.window} UTC`, opensMs);
    }
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
    const { clock, runner } = this.#deps;
    const { jobId, signal } = context;
    await this.#tell(rule.name, { state: "planning", tasks: 0, ended: 0 }, context);
    const registries = await this.#open(rule);
    const plan = await planRule(rule, registries, {
      sizes: false,
      nowMs: clock.now(),
      rewrites: this.#deps.rows,
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
    await this.#allEnded(rule.name, context);
    const ends = await endsOf(plan, jobId, this.#deps.queue);
    const { together } = rule.write;
    if (together && (ends.failures.size > 0 || plan.faults.length > 0)) {
      const result = resultOf(plan, ends);
      const because = "not everything could be copied, and its tags go together: none has moved, and none is deleted";
      if (tasks.length > 0 || rule.delete.mirror) fault(result, rule.name, because);
      return result;
    }
    if (together && tasks.length > 0) await this.#moveTogether(rule, plan, ends, registries, context);
    const result = resultOf(plan, ends);
    if (rule.delete.mirror) await this.#delete(rule, plan, result, registries, context);
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

  /** Resolves when no task of the run waits or is at work. Those that are paused by hand are waited for. */
  async #allEnded(rule: string, context: Context): Promise<void> {
    const { queue, clock } = this.#deps;
    const { jobId, signal } = context;
    for (;;) {
      const news = Promise.withResolvers<void>();
      this.#waiting.set(rule, news.resolve);
      const counts = await queue.countsOf(jobId);
      const count = (states: readonly string[]): number =>
        counts.reduce((sum, { state, jobs }) => (states.includes(state) ? sum + jobs : sum), 0);
      const ended = count(["done", "dead", "cancelled"]);
      const open = count(["queued", "running", "paused"]);
      await this.#tell(rule, { state: "copying", tasks: open + ended, ended }, context);
      if (open === 0) {
        this.#waiting.delete(rule);
        return;
      }
      const over = new AbortController();
      const late = clock.sleep(LOOK_EVERY_MS, AbortSignal.any([signal, over.signal])).catch(() => undefined);
      await Promise.race([news.promise, late]);
      over.abort();
      signal.throwIfAborted();
      await clock.sleep(COUNT_EVERY_MS, signal);
    }
  }

  async #moveTogether(
    rule: ReplicationRule,
    plan: RulePlan,
    ends: Ends,
    registries: ReadonlyMap<string, PlanRegistry>,
    context: Context,
  ): Promise<void> {
    const { rows } = this.#deps;
    const { jobId, signal } = context;
    await this.#tell(rule.name, { state: "moving", tasks: ends.tasks, ended: ends.tasks }, context);
    for (const [name, repositories] of Map.groupBy(plan.repositories, ({ registry }) => registry)) {
      const registry = registries.get(name);
      if (!registry?.target) throw new TypeError(`registry ${name} was not opened to be written to`);
      const at = { name, target: registry.target, concurrency: registry.queue.concurrency };
      const staged = repositories.flatMap((one) => stagedOf(one).map((tag) => ({ ...tag, source: one.source })));
      const record: Parameters<typeof moveTogether>[3] = async (moves) => {
        await rows.moving(
          jobId,
          moves.map((move) => ({ registry: name, ...move })),
        );
        // Not once they have moved: begun again after a kill, the run would find them there and not know that it has put them.
        const moving = new Map(moves.map((move) => [`${move.repository}:${move.tag}`, move]));
        for (const { origin: _, ...one } of staged) {
          const move = moving.get(`${one.repository}:${one.tag}`);
          if (move) await rows.copied({ rule: rule.name, registry: name, ...one, was: move.was });
        }
      };
      for (const { outcome, repository, tag, because } of await moveTogether(staged, at, rule.write, record, signal)) {
        const how = outcome === "moved" ? "copied" : outcome;
        ends.outcomes.set(taskSubject({ registry: name, target: repository, tag }), how);
        if (outcome === "kept") context.line(`${name} ${repository}:${tag} stays: ${because}`);
      }
    }
  }

  async #delete(
    rule: ReplicationRule,
    plan: RulePlan,
    result: RunResult,
    registries: ReadonlyMap<string, PlanRegistry>,
    context: Context,
  ): Promise<void> {
    const { rows, clock, metrics } = this.#deps;
    const { signal } = context;
    await this.#tell(rule.name, { state: "deleting", tasks: result.copied, ended: result.copied }, context);
    for (const planned of plan.repositories) {
      const { registry: name, target: repository } = planned;
      const registry = registries.get(name);
      if (!registry?.target) throw new TypeError(`registry ${name} was not opened to be written to`);
      const { target } = registry;
      const where = `${name} ${repository}`;
      try {
        const place = { rule: rule.name, registry: name, repository };
        const know = { rows, remote: target, nowMs: clock.now() };
        let due = await dueDeletions(rule, planned, know, signal);
        if (due.remove.length + due.missed.length > 0 || due.refused !== undefined) {
          // What was pushed while others were copied is not in the plan, and may have been copied by now.
          const selected = [...planned.selected, ...(await selectedNow(rule, planned.source, registries, signal))];
          due = await dueDeletions(rule, { ...planned, selected }, know, signal);
        }
        if (due.refused !== undefined) fault(result, where, due.refused);
        const missed = await Promise.all(
          due.missed.map(async ({ tag, digest }) => {
            const head = digest === undefined ? await target.headManifest(repository, tag, { signal }) : undefined;
            const known = digest ?? (typeof head === "object" ? head.digest : undefined);
            return known === undefined ? [] : [{ tag, digest: known }];
          }),
        );
        await rows.missed(place, missed.flat(), due.back);
        for (const { tag, digest } of due.remove) {
          const deleted = await deleteTag(target, { repository, tag, expected: digest }, signal);
          await rows.forget({ ...place, tag });
          if (deleted !== "deleted") {
            context.line(
              `${where}:${tag} is not deleted: ${deleted === "moved" ? "others have moved it" : "it is gone"}`,
            );
            continue;
          }
          result.deleted++;
          metrics.replicationDeletedTags.inc({ rule: rule.name });
          context.line(`${where}:${tag} is deleted`);
        }
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof Error)) throw error;
        result.failed++;
        fault(result, where, `could not delete: ${error.message}`);
      }
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
      named: companions.map(({ tag }) => tag),
      why: image.why,
      // A mark leaves the tag where it is.
      ...(rule.write.together && image.action !== "mark" ? { staged: true } : {}),
    })),
  );
}

/** What is to move in a repository at the end. */
function stagedOf({ target, tags }: PlannedRepository) {
  return tags.flatMap((one): (StagedTag & { sourceDigest: StagedTag["digest"] })[] => {
    if ((one.action !== "copy" && one.action !== "replace") || isDigestTag(one.tag)) return [];
    const { tag, digest: sourceDigest, rewritten: digest = sourceDigest, origin } = one;
    return [{ repository: target, tag, digest, origin, sourceDigest }];
  });
}

/** What a rule is about of a repository of its source. @throws RemoteError; Error where the source does not have it */
async function selectedNow(
  rule: ReplicationRule,
  repository: RepositoryName,
  registries: ReadonlyMap<string, PlanRegistry>,
  signal: AbortSignal,
): Promise<Tag[]> {
  const source = registries.get(rule.from.registry);
  if (!source) throw new TypeError(`registry ${rule.from.registry} was not opened`);
  const listed = await source.queue.add(() => source.remote.listTags(repository, { signal }));
  if (!listed) throw new Error(`${source.name} does not have ${repository} any more`);
  return selectTags(listed, rule.tags).selected.map(({ tag }) => tag);
}
