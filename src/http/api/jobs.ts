import { z } from "zod";
import { JOB_STATES, type Job } from "../../jobs/job.ts";
import type { JobQueue } from "../../jobs/queue.ts";
import type { JobRunner } from "../../jobs/runner.ts";
import { isoTime, operation, pageBody, pageOf, paging, readCursor, wholeNumber, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { amount, time } from "./schemas.ts";

const job = z
  .object({
    id: z.int().min(1),
    kind: z.string().describe("What it does: `gc`, `scrub`, …"),
    state: z.enum(JOB_STATES).describe("paused: until somebody resumes it. dead: it failed for the last time."),
    subject: z.string().optional().describe("What it is about."),
    parent: z.int().min(1).optional().describe("The job that it is a part of, which may be forgotten."),
    dedupe: z.string().optional().describe("Of a kind, at most one unfinished job has this key."),
    priority: z.int().describe("Higher first, within its kind."),
    attempts: amount.describe("Runs that it has begun, without those that cost nothing."),
    payload: z.unknown().describe("What it was given; its shape depends on the kind."),
    progress: z.unknown().optional().describe("How far it is, a second ago at most; its shape depends on the kind."),
    result: z.unknown().optional().describe("What a job that is done has done."),
    error: z.string().optional().describe("Of the last run that failed."),
    createdAt: time,
    runAt: time.describe("Not before."),
    startedAt: time.optional().describe("Of the last run."),
    endedAt: time.optional(),
  })
  .meta({ id: "Job", description: "Work that survives a restart. What has ended is forgotten after 30 days." });

const line = z
  .object({ id: z.int().min(1), at: time, text: z.string() })
  .meta({ id: "JobLine", description: "What a run has told. The newest 1,000 of a job are kept." });

const id = wholeNumber(1, Number.MAX_SAFE_INTEGER);
/** On either side of 0, which is what jobs begin with. */
const MOST_PRIORITY = 1_000_000;

export interface JobOperationsDeps {
  queue: JobQueue;
  runner: JobRunner;
}

/** The queue of work that survives a restart. */
export function jobOperations({ queue, runner }: JobOperationsDeps): Operation[] {
  const found = async (jobId: number): Promise<Job> => {
    const there = await queue.get(jobId);
    if (!there) throw new Problem("not-found", `there is no job ${jobId}: it may be forgotten, 30 days after its end`);
    return there;
  };
  return [
    operation({
      id: "listJobs",
      method: "GET",
      path: "/jobs",
      tag: "jobs",
      summary: "Lists jobs, newest first",
      query: {
        ...paging,
        kind: z.string().min(1).max(100).optional(),
        state: z.enum(JOB_STATES).optional(),
        subject: z.string().min(1).max(1000).optional().describe("In full."),
        parent: id.optional(),
      },
      answers: { 200: { description: "A page of jobs", schema: pageOf(job) } },
      handle: async ({ query: { limit, cursor, ...filter } }) => {
        const jobs = await queue.list({ ...filter, before: readCursor(z.int(), cursor), limit });
        return { status: 200, body: pageBody(jobs.map(jobAnswer), limit, () => jobs.at(-1)?.id) };
      },
    }),
    operation({
      id: "getJob",
      method: "GET",
      path: "/jobs/{id}",
      tag: "jobs",
      summary: "Tells how a job is",
      params: { id },
      answers: { 200: { description: "The job", schema: job } },
      problems: ["not-found"],
      handle: async ({ params }) => ({ status: 200, body: jobAnswer(await found(params.id)) }),
    }),
    operation({
      id: "listJobLines",
      method: "GET",
      path: "/jobs/{id}/lines",
      tag: "jobs",
      summary: "Lists what a job has told, oldest first",
      params: { id },
      query: paging,
      answers: { 200: { description: "A page of lines", schema: pageOf(line) } },
      problems: ["not-found"],
      handle: async ({ params, query: { limit, cursor } }) => {
        await found(params.id);
        const lines = await queue.lines(params.id, readCursor(z.int(), cursor) ?? 0, limit);
        const items = lines.map(({ atMs, ...rest }) => ({ ...rest, at: isoTime(atMs) }));
        return { status: 200, body: pageBody(items, limit, () => lines.at(-1)?.id) };
      },
    }),
    operation({
      id: "cancelJob",
      method: "POST",
      path: "/jobs/{id}/cancel",
      tag: "jobs",
      summary: "Cancels what is queued or paused, and ends what runs",
      params: { id },
      answers: {
        200: { description: "It waited, and is cancelled", schema: job },
        202: { description: "It runs, and is told to end: soon it is cancelled", schema: job },
      },
      problems: ["not-found", "conflict"],
      handle: async ({ params }) => {
        const cancelled = await runner.cancel(params.id);
        const body = await found(params.id);
        if (!cancelled) throw new Problem("conflict", `job ${params.id} has ended: it is ${body.state}`);
        return { status: cancelled === "running" ? 202 : 200, body: jobAnswer(body) };
      },
    }),
    operation({
      id: "pauseJob",
      method: "POST",
      path: "/jobs/{id}/pause",
      tag: "jobs",
      summary: "Pauses what is queued, and ends what runs until it is resumed",
      params: { id },
      answers: {
        200: { description: "It was queued, and is paused", schema: job },
        202: { description: "It runs, and is told to end: soon it is paused. The run costs no attempt", schema: job },
      },
      problems: ["not-found", "conflict"],
      handle: async ({ params }) => {
        const paused = await runner.pause(params.id);
        const body = await found(params.id);
        if (paused) return { status: paused === "running" ? 202 : 200, body: jobAnswer(body) };
        const reason = body.state === "running" ? "it was cancelled, and is about to end" : `it is ${body.state}`;
        throw new Problem("conflict", `job ${params.id} can't be paused: ${reason}`);
      },
    }),
    operation({
      id: "resumeJob",
      method: "POST",
      path: "/jobs/{id}/resume",
      tag: "jobs",
      summary: "Queues what is paused; it runs no earlier than it would have",
      params: { id },
      answers: { 200: { description: "It is queued; or it still runs, and is not paused with its end", schema: job } },
      problems: ["not-found", "conflict"],
      handle: async ({ params }) => {
        const isResumed = await queue.resume(params.id);
        const body = await found(params.id);
        if (!isResumed)
          throw new Problem("conflict", `job ${params.id} stays as it is: it is ${body.state}, and not paused`);
        runner.wake(body.kind);
        return { status: 200, body: jobAnswer(body) };
      },
    }),
    operation({
      id: "prioritiseJob",
      method: "POST",
      path: "/jobs/{id}/prioritise",
      tag: "jobs",
      summary: "Changes when it is the turn of what is queued or paused",
      params: { id },
      body: z.strictObject({
        priority: z
          .int()
          .min(-MOST_PRIORITY)
          .max(MOST_PRIORITY)
          .optional()
          .describe("Higher first; without it, ahead of all others of its kind that are queued."),
      }),
      answers: { 200: { description: "It has that priority", schema: job } },
      problems: ["not-found", "conflict"],
      handle: async ({ params, body: { priority } }) => {
        const isChanged = await queue.prioritise(params.id, priority);
        const body = await found(params.id);
        if (isChanged) return { status: 200, body: jobAnswer(body) };
        throw new Problem(
          "conflict",
          `job ${params.id} stays as it is: it is ${body.state}, and only what is queued or paused waits for its turn`,
        );
      },
    }),
    operation({
      id: "retryJob",
      method: "POST",
      path: "/jobs/{id}/retry",
      tag: "jobs",
      summary: "Queues what is dead or cancelled once more, with all its attempts",
      params: { id },
      answers: { 200: { description: "It is queued", schema: job } },
      problems: ["not-found", "conflict"],
      handle: async ({ params }) => {
        const { kind, state } = await found(params.id);
        if (await queue.retry(params.id)) {
          runner.wake(kind);
          return { status: 200, body: jobAnswer(await found(params.id)) };
        }
        const reason =
          state === "dead" || state === "cancelled"
            ? `another ${kind} with its key is unfinished: wait for its end`
            : `it is ${state}: only what is dead or cancelled can be queued once more`;
        throw new Problem("conflict", `job ${params.id} stays as it is: ${reason}`);
      },
    }),
  ];
}

type JobTimes = Pick<Job, "createdAtMs" | "runAtMs" | "startedAtMs" | "endedAtMs">;

/** A job, or what is told of one, with its times as answers write them. */
export function jobAnswer({ createdAtMs, runAtMs, startedAtMs, endedAtMs, ...rest }: JobTimes): object {
  return {
    ...rest,
    createdAt: isoTime(createdAtMs),
    runAt: isoTime(runAtMs),
    ...(startedAtMs === undefined ? {} : { startedAt: isoTime(startedAtMs) }),
    ...(endedAtMs === undefined ? {} : { endedAt: isoTime(endedAtMs) }),
  };
}
