/** What the API answers about replication. */
import { z } from "zod";
import type { Task } from "../../replication/history.ts";
import type { RuleStatus } from "../../replication/status.ts";
import { taskSubject, TRIGGERS } from "../../replication/tasks.ts";
import { jobAnswer } from "./jobs.ts";
import { isoTime } from "./operation.ts";
import { amount, digest, repositoryName, tagName, time } from "./schemas.ts";

export const STATES = ["queued", "running", "paused", "done", "dead", "cancelled"] as const;

const id = z.int().min(1);
const ruleFault = z.object({ path: z.string(), cause: z.string(), remedy: z.string() });

export const runResult = z
  .looseObject({
    copied: amount,
    unchanged: amount,
    kept: amount.describe("Were to stay as they are at the target."),
    withheld: amount.describe("Lack what `attached.require` names."),
    failed: amount,
    deleted: amount.describe("Tags at the targets."),
    sentBytes: amount,
    mountedBytes: amount.describe("Were in another repository of the target."),
    presentBytes: amount.describe("Were at the target already."),
    faults: z.array(z.object({ where: z.string(), message: z.string() })).describe("The first hundred."),
  })
  .meta({ id: "ReplicationResult", description: "What a run came to. Images are counted once for each target." });

const ended = {
  state: z.enum(STATES).describe("dead: it failed for the last time."),
  attempts: amount,
  progress: z.unknown().optional(),
  error: z.string().optional().describe("Of the last attempt that failed."),
  createdAt: time,
  runAt: time.describe("Not before."),
  startedAt: time.optional(),
  endedAt: time.optional(),
};

export const run = z
  .object({
    id: id.describe("Of its job, too: see /jobs/{id}."),
    rule: z.string(),
    trigger: z.enum(TRIGGERS),
    undo: id.optional().describe("The run whose moves it takes back."),
    ...ended,
    result: runResult.optional(),
  })
  .meta({ id: "ReplicationRun", description: "One application of a rule to all that it is about." });

export const runDetails = run
  .extend({ tasks: z.partialRecord(z.enum(STATES), amount).describe("How many of its copies are in which state.") })
  .meta({ id: "ReplicationRunDetails" });

export const task = z
  .object({
    id: id.describe("Of its job, too: /jobs/{id} has its log, and steers it."),
    run: id.optional().describe("Absent: a push has started it."),
    rule: z.string(),
    trigger: z.enum(TRIGGERS),
    registry: z.string().describe("Of the target."),
    source: repositoryName,
    target: repositoryName,
    subject: z.string().describe("`REGISTRY REPOSITORY:TAG` of the target."),
    tag: tagName.optional().describe("Absent: what was pushed by its digest alone."),
    digest: digest.optional().describe("What the source's tag led to; absent: it is asked."),
    named: z.array(tagName).optional().describe("The source's tags that are named after the digest."),
    why: z.string().describe("Why the rule is about it."),
    staged: z.boolean().optional().describe("The tag moves at the run's end."),
    priority: z.int().describe("Higher first, of one target."),
    ...ended,
    result: z
      .looseObject({
        outcome: z.enum(["copied", "unchanged", "kept", "withheld", "superseded"]),
        digest: digest.optional(),
        sentBytes: amount,
        mountedBytes: amount,
        presentBytes: amount,
        notes: z.array(z.string()),
      })
      .optional(),
  })
  .meta({ id: "ReplicationTask", description: "The copy of one tag to one target." });

export const ruleStatus = z
  .object({
    name: z.string(),
    origin: z.enum(["config", "api"]),
    from: z.string(),
    to: z.array(z.string()),
    paused: z.string().optional().describe("Why; absent: it is not."),
    queued: amount.describe("Copies, as the next three."),
    running: amount,
    waiting: amount.describe("Are paused."),
    dead: amount.describe("Failed for the last time."),
    lagSeconds: z.number().min(0).describe("The age of the oldest change that is not copied yet; 0: there is none."),
    settledAt: time.optional().describe("When the last run without a fault ended."),
    nextAt: time.optional().describe("When it runs by itself."),
    lastRun: z
      .object({
        id,
        state: z.enum(STATES),
        at: time,
        result: runResult.optional(),
        error: z.string().optional(),
      })
      .optional(),
  })
  .meta({ id: "ReplicationStatus", description: "How far the copies of a rule are." });

export const faultyRule = z
  .object({ name: z.string(), faults: z.array(ruleFault) })
  .meta({ id: "FaultyReplicationRule", description: "A rule that the configuration does not allow any more." });

export const knownRule = z
  .object({
    origin: z.enum(["config", "api"]),
    rule: z.looseObject({ name: z.string() }).describe("As under replication.rules, durations in milliseconds."),
  })
  .meta({ id: "ReplicationRule" });

export const rulePlan = z
  .looseObject({
    rule: z.string(),
    from: z.string(),
    repositories: z.array(
      z.looseObject({
        source: z.string(),
        registry: z.string(),
        target: z.string(),
        tags: z.array(
          z.looseObject({
            tag: tagName,
            digest,
            why: z.string(),
            action: z.enum(["copy", "same", "mark", "replace", "keep", "fail", "withhold"]),
            was: digest.optional(),
            backup: tagName.optional(),
            because: z.string().optional(),
            referrers: z.array(digest),
            companionOf: digest.optional(),
          }),
        ),
        dropped: z.array(z.looseObject({ tag: z.string(), why: z.string() })),
        deletions: z
          .looseObject({
            remove: z.array(z.object({ tag: tagName, digest })),
            missed: z.array(z.object({ tag: tagName, digest: digest.optional() })),
            refused: z.string().optional(),
          })
          .optional()
          .describe("Of a rule that deletes: which tags go now, which are missed from now on, and why none goes."),
      }),
    ),
    faults: z.array(z.object({ where: z.string(), message: z.string() })),
    sizes: z
      .looseObject({
        targets: z.array(
          z.looseObject({
            registry: z.string(),
            manifests: amount,
            blobs: amount,
            bytes: amount,
            present: amount,
            mounts: amount,
          }),
        ),
        pulls: amount,
        requests: z
          .record(z.string(), amount)
          .describe("That a run will send, by registry: its own planning, and copying; without those for tokens."),
      })
      .optional(),
    requests: z.record(z.string(), amount).describe("That the plan took, by registry."),
    pulls: z.object({ remaining: amount, limit: amount, keep: amount }).optional(),
  })
  .meta({ id: "ReplicationPlan", description: "What a rule would do if it ran now." });

const about = { rule: z.string(), run: id.optional() };

export const feedEvent = z
  .discriminatedUnion("type", [
    z.object({
      type: z.literal("run"),
      rule: z.string(),
      run: id,
      state: z.enum(["planning", "copying", "moving", "deleting", "undoing", "done", "failed", "cancelled", "stopped"]),
      tasks: amount,
      ended: amount,
      message: z.string().optional(),
    }),
    z.object({
      type: z.literal("task"),
      ...about,
      task: id,
      subject: z.string(),
      state: z.enum(["running", "done", "waiting", "dead", "cancelled", "stopped"]),
      outcome: z.string().optional(),
      sentBytes: amount.optional(),
      mountedBytes: amount.optional(),
      message: z.string().optional(),
    }),
    z.object({
      type: z.literal("progress"),
      ...about,
      task: id,
      subject: z.string(),
      doneBytes: amount,
      totalBytes: amount,
      sentBytes: amount,
    }),
    z
      .object({ type: z.literal("missed") })
      .describe("More has happened than is remembered: ask for the state of what you watch."),
  ])
  .meta({ id: "ReplicationEvent" });

export function taskAnswer(one: Task): object {
  return { ...jobAnswer(one), subject: taskSubject(one) };
}

export function statusAnswer({ settledAtMs, nextAtMs, lastRun, ...rest }: RuleStatus): object {
  const { atMs, ...last } = lastRun ?? {};
  return {
    ...rest,
    ...(settledAtMs === undefined ? {} : { settledAt: isoTime(settledAtMs) }),
    ...(nextAtMs === undefined ? {} : { nextAt: isoTime(nextAtMs) }),
    ...(atMs === undefined ? {} : { lastRun: { ...last, at: isoTime(atMs) } }),
  };
}
