/**
 * A task: one tag at one target, asked for anew on both sides, and copied. What is found then counts, not what a plan found before.
 *
 * Invariants
 * - Of several tasks for one tag of a target, one is at work at a time, and each asks the source anew: whichever comes last has the last word.
 *   So an older one gives way to a newer one that has yet to begin, and that takes its place.
 * - What a tag led to is recorded before it moves, and so is that a new one is the rule's own.
 * - A failure that waiting may mend is tried again; another is told at once, and its tag stays as it was.
 */
import type { Clock, Milliseconds } from "../base/clock.ts";
import { inTurns } from "../base/give-way.ts";
import type { Metrics } from "../base/metrics.ts";
import { Turns } from "../base/turns.ts";
import type { ReplicationRule } from "../config/schema.ts";
import { exponential, Hopeless, Later, type JobContext } from "../jobs/kind.ts";
import type { KeyedJobs } from "../jobs/keyed.ts";
import type { JobQueue } from "../jobs/queue.ts";
import type { JobRunner, Outcome } from "../jobs/runner.ts";
import type { Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { parseManifest } from "../oci/manifest.ts";
import type { Origin } from "../oci/origin.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { RemoteError } from "../remote/remote-error.ts";
import { SourceContent } from "./content.ts";
import { CopyError } from "./copy-error.ts";
import { isChange, type ImageCopied } from "./copy-image.ts";
import type { CopyPool } from "./copy-pool.ts";
import type { Feed } from "./feed.ts";
import { ruleCalled, waitForTurn } from "./holds.ts";
import type { PlanRegistry, TargetRegistry } from "./plan-registry.ts";
import { TagPlans } from "./plan-tag.ts";
import type { Registries } from "./registries.ts";
import type { ReplicationRows } from "./rows.ts";
import type { RuleBook } from "./rule-book.ts";
import { copyName, sourcesOf } from "./rules.ts";
import { DigestTags, isDigestTag, selectingTags, selectTags, subjectOf, type SelectedTag } from "./tag-filter.ts";
import {
  keysOf,
  laneOf,
  tagKey,
  taskPayload,
  taskSubject,
  type FeedEvent,
  type TaskPayload,
  type TaskResult,
  type Trigger,
} from "./tasks.ts";

export interface TaskDeps {
  clock: Clock;
  metrics: Metrics;
  queue: JobQueue;
  keyed: KeyedJobs;
  rules: RuleBook;
  rows: ReplicationRows;
  registries: Registries;
  copies: CopyPool;
  feed: Feed;
  /** Adds a task. @returns whether there is one already, which is unfinished */
  add: (task: TaskPayload) => Promise<boolean>;
  /** Told after each end of a task of a rule. */
  ended: (rule: string) => void;
}

/** Tries of a task, over about 20 minutes. Each request has been tried a few times before. */
const ATTEMPTS = 8;
const backoffMs = exponential(5_000, 300_000);
const TELL_EVERY_MS: Milliseconds = 250;
/** How often what belongs to an image looks whether that is there. */
const COPYING_MS: Milliseconds = 5_000;
/** Without a `Retry-After`. */
const RATE_LIMITED_MS: Milliseconds = 60_000;
/** Also where a registry says 0. */
const SHORTEST_WAIT_MS: Milliseconds = 1_000;
const LONGEST_PATIENCE_MS: Milliseconds = 86_400_000;

/** All that a task works with. */
interface Work {
  payload: TaskPayload;
  rule: ReplicationRule;
  source: PlanRegistry;
  target: TargetRegistry;
  context: JobContext<TaskProgress>;
}

/** How far a task is, as its row has it. */
type TaskProgress = Pick<Extract<FeedEvent, { type: "progress" }>, "doneBytes" | "totalBytes" | "sentBytes">;

const NOTHING = { sentBytes: 0, mountedBytes: 0, presentBytes: 0 };

export class Tasks {
  readonly #deps: TaskDeps;
  /** By what they are about. */
  readonly #turns = new Turns();

  constructor(deps: TaskDeps) {
    this.#deps = deps;
  }

  /** Lets tasks for a target run, so many at a time. */
  register(runner: JobRunner, registry: string, concurrency: number): void {
    runner.register<TaskPayload, TaskProgress, TaskResult>({
      kind: laneOf(registry),
      parse: (payload) => taskPayload.parse(payload),
      concurrency,
      attempts: ATTEMPTS,
      backoffMs,
      run: (payload, context) => this.#run(payload, context),
      ended: (payload, outcome, jobId) => this.#ended(payload, outcome, jobId),
    });
  }

  async #run(payload: TaskPayload, context: JobContext<TaskProgress>): Promise<TaskResult> {
    const { clock } = this.#deps;
    const { registry } = payload;
    const rule = ruleCalled(payload.rule, this.#deps);
    if (!rule || !isAbout(rule, payload)) return superseded("the rule is about it no more");
    await waitForTurn(rule, payload.trigger, this.#deps);
    const work = async (): Promise<TaskResult> => {
      try {
        const { registries } = this.#deps;
        const source = await registries.source(rule.from.registry);
        const target = await registries.target(registry);
        const result = await this.#copy({ payload, rule, source, target, context });
        context.line(lineOf(result));
        return result;
      } catch (error) {
        context.signal.throwIfAborted();
        const { createdAtMs = clock.now() } = (await this.#deps.queue.get(context.jobId)) ?? {};
        const failure = failureOf(error, clock.now(), clock.now() - createdAtMs);
        context.line(`${(error as Error).message}${failure instanceof Hopeless ? "" : "; it is tried again"}`);
        throw failure;
      }
    };
    return await this.#turns.take(taskSubject(payload), work, context.signal);
  }

  async #copy(work: Work): Promise<TaskResult> {
    const { queue, keyed, feed } = this.#deps;
    const { payload, context, rule } = work;
    const subject = taskSubject(payload);
    const job = await queue.get(context.jobId);
    // What is wanted by hand waits for nothing that a newer one may wait for.
    const newer = job && payload.trigger !== "hand" ? await keyed.handOver(job, tagKey(payload)) : undefined;
    if (newer !== undefined) return superseded(`task ${newer} is about the same tag`);
    const run = job?.parent;
    feed.publish({
      type: "task",
      task: context.jobId,
      ...(run && { run }),
      rule: rule.name,
      subject,
      state: "running",
    });
    if (payload.tag === undefined || isDigestTag(payload.tag)) return await this.#copyAttached(work, payload.tag);
    return await this.#copyTag(work, payload.tag, run);
  }

  async #copyTag(work: Work, tag: Tag, run: number | undefined): Promise<TaskResult> {
    const { rows, registries, copies } = this.#deps;
    const { payload, rule, source, target, context } = work;
    const { signal } = context;
    // A run knows whether it moves the tags. Of what was pushed, the rule tells as it is now.
    const staged = run === undefined ? rule.write.together : (payload.staged ?? false);
    const selected = await this.#selected(work, tag);
    if (!selected) return superseded("the rule leaves it out now");
    const plans = this.#plansOf(work);
    // What started the task may have told it: by now it may lead elsewhere.
    const told = await plans.toldBySource(payload.source, tag);
    if (told === undefined) return superseded("the source has it no more");
    const { digest } = told;
    const at = {
      name: payload.source,
      named: payload.named && new DigestTags(payload.named),
      listed: undefined,
      copies: async (other: Tag) =>
        selectTags([other], rule.tags).selected.length > 0 &&
        (await plans.toldBySource(payload.source, other)) !== undefined,
    };
    const place = { registry: target, name: payload.target, dropped: [], attended: new Set<never>() };
    const [image, ...others] = await plans.plan(at, selected, told, place);
    if (!image) return superseded("the rule leaves it out: its image is too old");
    if (image.action === "withhold" || image.action === "keep") {
      const outcome = image.action === "keep" ? "kept" : "withheld";
      return { outcome, digest, ...NOTHING, notes: [image.because] };
    }
    if (image.action === "fail") throw new Hopeless(`${taskSubject(payload)} is not replaced: ${image.because}`);
    const companions = others.filter(isChange);
    const became = image.rewritten ?? digest;
    const was = image.action === "copy" ? undefined : image.action === "replace" ? image.was : became;
    const spot = { rule: rule.name, registry: target.name, repository: payload.target, tag };
    const made = { ...spot, digest: became, was, source: payload.source, sourceDigest: digest };
    if (isChange(image) || companions.length > 0 || image.referrers.length > 0) {
      const waitUntilMs = registries.mayPullAtMs(source.name, 1);
      if (waitUntilMs !== undefined) throw new Later("what is left of its rate limit is for others", waitUntilMs);
    }
    const isNew = image.action === "copy" && !staged;
    if (isNew) await rows.copying(made);
    if (run !== undefined && (isNew || image.action === "replace") && !staged) {
      await rows.moving(run, [{ ...spot, was, became }]);
    }
    const copied = await copies.use(rule, source, target, (images) =>
      images.copy(
        { source: payload.source, target: payload.target, image, companions, staged },
        signal,
        this.#teller(work, run),
      ),
    );
    if (copied.outcome !== "kept" && !staged) await rows.copied(made);
    else if (isNew) await rows.forgetCopying(made);
    return { ...copied, digest: became };
  }

  #plansOf({ rule, source, context: { signal } }: Work): TagPlans {
    const { clock, rows } = this.#deps;
    const content = new SourceContent(source, rule, signal, rows);
    return new TagPlans(rule, source, content, { nowMs: clock.now(), signal, attempt: (_, attempt) => attempt() });
  }

  /** What refers to something goes where that is. */
  async #copyAttached(work: Work, tag: Tag | undefined): Promise<TaskResult> {
    const { payload, rule, source, target, context } = work;
    const { signal } = context;
    // A tag is asked for anew, with the mark of its push: what has started the task may be out of date.
    const told: { digest?: Digest | undefined; origin?: Origin | undefined } | undefined =
      tag === undefined ? payload : await this.#plansOf(work).toldBySource(payload.source, tag);
    if (told?.digest === undefined) return superseded("the source has it no more, or it is not known what was pushed");
    const { digest, origin } = told;
    const nothing = (note: string): TaskResult => ({ outcome: "unchanged", digest, ...NOTHING, notes: [note] });
    let subject = tag === undefined ? undefined : subjectOf(tag);
    if (tag === undefined) {
      const found = await source.remote.getManifest(payload.source, digest, { signal });
      if (!found) return nothing("the source has it no more");
      subject = parseManifest(found.bytes, found.contentType).subject?.digest;
    }
    if (subject === undefined) return nothing("it refers to nothing");
    const isThere = await target.target.headManifest(payload.target, subject, { signal });
    if (!isThere) {
      const again = await this.#lookAgain(payload, subject);
      if (again.length > 0) return nothing(`what it refers to is looked at anew: ${again.join(", ")}`);
      return nothing("what it refers to is not at the target: it goes with that");
    }
    return await this.#deps.copies.use(rule, source, target, async (images): Promise<TaskResult> => {
      const { outcome, ...copied }: ImageCopied = await images.attach(
        { source: payload.source, target: payload.target, digest, origin, tag },
        signal,
      );
      return { outcome, ...copied, digest };
    });
  }

  /**
   * Adds tasks for the tags of an image that may have waited for what was pushed to it.
   * @throws Later: it is being copied, perhaps without that
   */
  async #lookAgain(payload: TaskPayload, image: Digest): Promise<Tag[]> {
    const { rows, clock, add } = this.#deps;
    const { rule, registry, target: repository } = payload;
    const tags = await rows.tagsOf({ rule, registry, repository }, image);
    for (const tag of tags) {
      const task = { ...payload, tag, digest: image, why: "what belongs to it was pushed" };
      if (await add(task)) throw new Later(`${repository}:${tag} is being copied`, clock.now() + COPYING_MS);
    }
    return tags;
  }

  /** Of a tag that somebody has told of, only the list tells whether it is among the newest. */
  async #selected({ payload, rule, source, context }: Work, tag: Tag): Promise<SelectedTag | undefined> {
    const { trigger, why } = payload;
    const always = selectTags([tag], rule.tags).selected[0]?.always ?? false;
    if (always || rule.tags.newest === 0 || (trigger !== "push" && trigger !== "webhook")) return { tag, why, always };
    const { signal } = context;
    const listed = await source.queue.add(() => source.remote.listTags(payload.source, { signal }));
    const { selected } = await inTurns(selectingTags(listed ?? [], rule.tags), signal);
    return selected.find((one) => one.tag === tag);
  }

  #teller({ payload, context }: Work, run: number | undefined): (progress: TaskProgress) => void {
    const subject = taskSubject(payload);
    let toldAtMs = -Infinity;
    return ({ doneBytes, totalBytes, sentBytes }) => {
      const nowMs = performance.now();
      if (nowMs - toldAtMs < TELL_EVERY_MS && doneBytes < totalBytes) return;
      toldAtMs = nowMs;
      const progress = { doneBytes, totalBytes, sentBytes };
      void context.progress(progress);
      this.#deps.feed.publish({
        type: "progress",
        task: context.jobId,
        ...(run && { run }),
        rule: payload.rule,
        subject,
        ...progress,
      });
    };
  }

  async #ended(payload: TaskPayload, outcome: Outcome<TaskResult>, jobId: number): Promise<void> {
    const { feed, metrics, keyed, queue, ended } = this.#deps;
    const { rule } = payload;
    const subject = taskSubject(payload);
    const run = (await queue.get(jobId))?.parent;
    const told = { type: "task", task: jobId, ...(run && { run }), rule, subject } as const;
    if (outcome.how === "done") {
      const { sentBytes, mountedBytes, presentBytes, notes, outcome: how } = outcome.result;
      metrics.replicationImages.inc({ rule, outcome: how });
      metrics.replicationBytes.inc({ rule, how: "sent" }, sentBytes);
      metrics.replicationBytes.inc({ rule, how: "mounted" }, mountedBytes);
      metrics.replicationBytes.inc({ rule, how: "present" }, presentBytes);
      await keyed.settleSubject([laneOf(payload.registry)], keysOf(rule), jobId, subject);
      const message = notes.length > 0 ? { message: notes.join("; ") } : {};
      feed.publish({ ...told, state: "done", outcome: how, sentBytes, mountedBytes, ...message });
    } else if (outcome.how === "dead" || outcome.how === "failed") {
      if (outcome.how === "dead") metrics.replicationImages.inc({ rule, outcome: "failed" });
      const { message } = outcome.error as Error;
      feed.publish({ ...told, state: outcome.how === "dead" ? "dead" : "waiting", message });
    } else {
      feed.publish({ ...told, state: outcome.how === "later" || outcome.how === "paused" ? "waiting" : outcome.how });
    }
    ended(rule);
  }
}

/** Whether a rule still copies one repository to another. */
function isAbout(rule: ReplicationRule, payload: { registry: string; source: RepositoryName; target: RepositoryName }) {
  const { registry, source, target } = payload;
  return (
    sourcesOf(rule).has(source) &&
    rule.to.some((to) => to.registry === registry && copyName(rule, to, source) === target)
  );
}

/** What a task's log says of its end. */
function lineOf({ outcome, digest, sentBytes, mountedBytes, presentBytes, notes }: TaskResult): string {
  const what = [outcome, ...(digest === undefined ? [] : [digest])].join(" ");
  const bytes = `${sentBytes} bytes sent, ${mountedBytes} mounted, ${presentBytes} there already`;
  return [outcome === "copied" ? `${what}: ${bytes}` : what, ...notes].join("; ");
}

function superseded(note: string): TaskResult {
  return { outcome: "superseded", ...NOTHING, notes: [note] };
}

const PASSING: ReadonlySet<string> = new Set(["unreachable", "timeout", "interrupted", "server", "circuitOpen"]);

/** What a failure is to the queue. Pure. @param ageMs of the task */
function failureOf(error: unknown, nowMs: Milliseconds, ageMs: Milliseconds): unknown {
  if (error instanceof RemoteError) {
    const { fault, retryAfterSeconds, message } = error;
    const waitMs = retryAfterSeconds === undefined ? undefined : retryAfterSeconds * 1000;
    const laterMs = Math.max(waitMs ?? RATE_LIMITED_MS, SHORTEST_WAIT_MS);
    if (fault === "rateLimited") return new Later(message, nowMs + laterMs, { cause: error });
    if (PASSING.has(fault)) {
      // One that asks for patience day and night is one that fails.
      const isPatient = waitMs !== undefined && ageMs < LONGEST_PATIENCE_MS;
      return isPatient ? new Later(message, nowMs + laterMs, { cause: error }) : error;
    }
    return new Hopeless(message, { cause: error });
  }
  const isForGood = error instanceof CopyError || error instanceof RangeError || error instanceof RegistryError;
  return isForGood ? new Hopeless(error.message, { cause: error }) : error;
}

/** Copies that somebody waits for come before others. */
export function priorityOf(trigger: Trigger): number {
  return { hand: 20, push: 10, webhook: 10, schedule: 0 }[trigger];
}
