/**
 * What replication puts into the queue, and what it tells.
 *
 * A run of a rule is a job of kind {@link RUN}: it plans, adds a task for each tag that is to change, waits for them, and ends with what can
 * only be done at the end. A task copies one tag to one target. It is a job whose parent is the run, in the lane of its target's registry;
 * one that a push has started has no parent.
 */
import { z } from "zod";
import type { Bytes } from "../base/clock.ts";
import { isDigest, type Digest } from "../oci/digest.ts";
import { isRepositoryName, isTag, type RepositoryName, type Tag } from "../oci/reference.ts";
import type { PlanFault } from "./plan-faults.ts";

export const RUN = "replicate";

/** The kind of the tasks of a target's registry: each has a lane of its own, so that a slow one holds up no other. */
export function laneOf(registry: string): string {
  return `copy:${registry}`;
}

/** @returns undefined: it is no kind of tasks */
export function registryOf(kind: string): string | undefined {
  return kind.startsWith(laneOf("")) ? kind.slice(laneOf("").length) : undefined;
}

/** push: to this registry; webhook: another registry has told of it. */
export const TRIGGERS = ["hand", "schedule", "push", "webhook"] as const;
export type Trigger = (typeof TRIGGERS)[number];

const trigger = z.enum(TRIGGERS);
const tag = z.custom<Tag>((text) => typeof text === "string" && isTag(text));
const repository = z.custom<RepositoryName>((text) => typeof text === "string" && isRepositoryName(text));

export const runPayload = z.object({
  rule: z.string(),
  trigger,
  /** The run whose moves are taken back; undefined: an ordinary run. */
  undo: z.int().optional(),
});
export type RunPayload = z.output<typeof runPayload>;

export const taskPayload = z.object({
  rule: z.string(),
  trigger,
  /** Of the target. */
  registry: z.string(),
  source: repository,
  target: repository,
  /** Undefined: what was pushed by its digest alone, and goes along where it refers to something that is at the target. */
  tag: tag.optional(),
  /** What the source's tag led to; undefined: it was not told, and is asked for. */
  digest: z.custom<Digest>((text) => typeof text === "string" && isDigest(text)).optional(),
  /** The source's tags that are named after the digest; undefined: they were not listed, and are looked for. */
  named: z.array(tag).optional(),
  /** Why the rule is about it. */
  why: z.string(),
  /** All but the tag: that moves at the end of the run, with the others. */
  staged: z.boolean().optional(),
});
export type TaskPayload = z.output<typeof taskPayload>;

export interface TaskResult {
  /** superseded: a newer task for the same tag has come, or its rule is gone; withheld: it lacks what `attached.require` names. */
  outcome: "copied" | "unchanged" | "kept" | "withheld" | "superseded";
  digest?: Digest;
  sentBytes: Bytes;
  mountedBytes: Bytes;
  /** Was there already. */
  presentBytes: Bytes;
  notes: string[];
}

/** What the tasks of a run came to, and what the run itself did. */
export interface RunResult {
  copied: number;
  unchanged: number;
  kept: number;
  withheld: number;
  failed: number;
  deleted: number;
  sentBytes: Bytes;
  mountedBytes: Bytes;
  presentBytes: Bytes;
  /** The first hundred. */
  faults: PlanFault[];
}

/** What happens right now, for those who watch. */
export type FeedEvent =
  | {
      type: "run";
      run: number;
      rule: string;
      state: "planning" | "copying" | "moving" | "deleting" | "undoing" | "done" | "failed" | "cancelled" | "stopped";
      tasks: number;
      ended: number;
      message?: string;
    }
  | {
      type: "task";
      task: number;
      run?: number;
      rule: string;
      /** `dr mirror/library/node:18`. */
      subject: string;
      state: "running" | "done" | "waiting" | "dead" | "cancelled" | "stopped";
      /** This and the bytes of a task that is done. */
      outcome?: TaskResult["outcome"];
      sentBytes?: Bytes;
      mountedBytes?: Bytes;
      message?: string;
    }
  | {
      type: "progress";
      task: number;
      run?: number;
      rule: string;
      subject: string;
      doneBytes: Bytes;
      totalBytes: Bytes;
      sentBytes: Bytes;
    };

/** Of one rule, one target tag and one digest, one task at most is unfinished. */
export function taskKey({ rule, target, tag, digest, staged }: TaskPayload): string {
  return `${keysOf(rule)}${target}:${tag ?? ""} ${digest ?? "newest"}${staged ? " staged" : ""}`;
}

/** What the keys of a rule's tasks for one tag of a target begin with. Without a tag, each digest is one of its own. */
export function tagKey({ rule, target, tag, digest }: TaskPayload): string {
  return `${keysOf(rule)}${target}:${tag ?? ""} ${tag === undefined ? (digest ?? "") : ""}`;
}

/** What the keys of a rule's tasks begin with; a rule's name has no space. */
export function keysOf(rule: string): string {
  return `${rule} `;
}

/** What a task is about, as lists show it: `dr mirror/library/node:18`. */
export function taskSubject({
  registry,
  target,
  tag,
  digest,
}: Pick<TaskPayload, "registry" | "target" | "tag" | "digest">): string {
  return `${registry} ${target}${tag === undefined ? `@${digest ?? ""}` : `:${tag}`}`;
}
