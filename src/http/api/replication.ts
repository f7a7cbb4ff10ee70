import { z } from "zod";
import type { Added } from "../../jobs/queue.ts";
import type { Feed } from "../../replication/feed.ts";
import type { History, Run } from "../../replication/history.ts";
import type { RulePlan } from "../../replication/plan.ts";
import { RuleRefused, type KnownRule, type RuleBook } from "../../replication/rule-book.ts";
import type { RuleStatus } from "../../replication/status.ts";
import type { Trigger } from "../../replication/tasks.ts";
import { jobAnswer } from "./jobs.ts";
import { operation, pageBody, pageOf, paging, readCursor, wholeNumber, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import {
  faultyRule,
  feedEvent,
  knownRule,
  rulePlan,
  ruleStatus,
  run,
  runDetails,
  STATES,
  statusAnswer,
  task,
  taskAnswer,
} from "./replication-schemas.ts";
import type { ServerSent } from "./server-sent.ts";

/** Then who watches has to come back, and to say who he is. */
const LONGEST_WATCH_MS = 3_600_000;

/** What the operations need of the replicator. */
export interface Replication {
  readonly rules: RuleBook;
  readonly feed: Feed;
  plan(rule: string, options: { sizes: boolean }, signal: AbortSignal): Promise<RulePlan>;
  run(rule: string, trigger: Trigger): Promise<Added>;
  undo(run: number): Promise<Added>;
  pause(rule: string, why: string): Promise<void>;
  resume(rule: string): Promise<void>;
  status(): Promise<RuleStatus[]>;
}

export interface ReplicationOperationsDeps {
  replicator: Replication;
  history: History;
}

const id = wholeNumber(1, Number.MAX_SAFE_INTEGER);
const ruleName = z.string().min(1).max(100);
const state = z.enum(STATES).optional();
const started = z
  .object({
    run: z.int().min(1),
    joined: z.boolean().describe("A run that is unfinished was there already: it is that one."),
  })
  .meta({ id: "StartedReplication" });

/** Rules of replication, what they do, and what they have done. */
export function replicationOperations({ replicator, history }: ReplicationOperationsDeps): Operation[] {
  const { rules, feed } = replicator;
  const foundRule = (name: string): KnownRule => {
    const found = rules.get(name);
    if (found) return found;
    const faults = rules.faulty().find((one) => one.name === name)?.faults;
    if (faults) throw refusedOf(new RuleRefused(name, faults), "conflict");
    const names = rules.all().map(({ rule }) => rule.name);
    throw new Problem("not-found", `there is no rule ${name}; there are ${names.join(", ") || "none"}`);
  };
  const foundRun = async (runId: number): Promise<Run> => {
    const found = await history.run(runId);
    if (!found)
      throw new Problem("not-found", `there is no run ${runId}: it may be forgotten, some time after its end`);
    return found;
  };
  const startedAnswer = ({ id: runId, joined }: Added) => ({
    status: 202,
    body: { run: runId, joined },
    location: `/api/v1/replication/runs/${runId}`,
  });
  return [
    operation({
      id: "listReplicationRules",
      method: "GET",
      path: "/replication/rules",
      tag: "replication",
      summary: "Lists rules with how far their copies are",
      query: paging,
      answers: {
        200: {
          description: "A page of rules, and those that do not run",
          schema: pageOf(ruleStatus).extend({ faulty: z.array(faultyRule) }),
        },
      },
      handle: async ({ query: { limit, cursor } }) => {
        const first = readCursor(z.int().min(0), cursor) ?? 0;
        const items = (await replicator.status()).slice(first, first + limit).map(statusAnswer);
        return {
          status: 200,
          body: { ...pageBody(items, limit, () => first + limit), faulty: rules.faulty() },
        };
      },
    }),
    operation({
      id: "getReplicationRule",
      method: "GET",
      path: "/replication/rules/{rule}",
      tag: "replication",
      summary: "Shows a rule",
      params: { rule: ruleName },
      answers: { 200: { description: "The rule", schema: knownRule } },
      problems: ["not-found", "conflict"],
      etag: true,
      handle: ({ params }) => ruleAnswer(200, foundRule(params.rule)),
    }),
    operation({
      id: "putReplicationRule",
      method: "PUT",
      path: "/replication/rules/{rule}",
      tag: "replication",
      summary: "Makes or replaces a rule beside those of the configuration",
      params: { rule: ruleName },
      body: z.looseObject({}).describe("As under replication.rules of the configuration, with or without its name."),
      answers: {
        200: { description: "It is replaced", schema: knownRule },
        201: { description: "It is made", schema: knownRule },
      },
      etag: true,
      matches: true,
      handle: async ({ params, body, checkMatch, by }) => {
        let isNew = true;
        const put = rules.put(params.rule, body, by, (etag) => {
          isNew = etag === undefined;
          checkMatch(etag);
        });
        const known = await put.catch((error: unknown) => {
          throw error instanceof RuleRefused ? refusedOf(error, "invalid-input") : error;
        });
        return ruleAnswer(isNew ? 201 : 200, known);
      },
    }),
    operation({
      id: "deleteReplicationRule",
      method: "DELETE",
      path: "/replication/rules/{rule}",
      tag: "replication",
      summary: "Removes a rule that the API has made; its copies stay",
      params: { rule: ruleName },
      answers: { 204: { description: "It is gone" } },
      problems: ["not-found", "conflict"],
      matches: true,
      handle: async ({ params, checkMatch, by }) => {
        if (await rules.remove(params.rule, by, checkMatch)) return { status: 204 };
        foundRule(params.rule);
        throw new Problem("conflict", `the rule ${params.rule} stands in the configuration: remove it there`);
      },
    }),
    operation({
      id: "planReplication",
      method: "POST",
      path: "/replication/rules/{rule}/plan",
      tag: "replication",
      summary: "Tells what a rule would copy if it ran now; nothing is written anywhere",
      params: { rule: ruleName },
      body: z.strictObject({
        sizes: z
          .boolean()
          .default(false)
          .describe("Read what would be copied, too, and tell its bytes. On Docker Hub, these reads are pulls."),
      }),
      answers: { 200: { description: "The plan", schema: rulePlan } },
      problems: ["not-found", "conflict", "upstream-failed", "upstream-late"],
      handle: async ({ params, body, signal }) => {
        foundRule(params.rule);
        return { status: 200, body: await replicator.plan(params.rule, body, signal) };
      },
    }),
    operation({
      id: "runReplication",
      method: "POST",
      path: "/replication/rules/{rule}/run",
      tag: "replication",
      summary: "Starts a run of a rule",
      params: { rule: ruleName },
      answers: { 202: { description: "It runs, or will soon", schema: started } },
      problems: ["not-found", "conflict"],
      handle: async ({ params }) => {
        foundRule(params.rule);
        return startedAnswer(await replicator.run(params.rule, "hand"));
      },
    }),
    operation({
      id: "pauseReplication",
      method: "POST",
      path: "/replication/rules/{rule}/pause",
      tag: "replication",
      summary: "Keeps a rule from starting anything by itself, and its copies waiting",
      params: { rule: ruleName },
      body: z.strictObject({ why: z.string().min(1).max(300).default("by hand") }),
      answers: { 204: { description: "It is paused" } },
      problems: ["not-found", "conflict"],
      handle: async ({ params, body: { why } }) => {
        foundRule(params.rule);
        await replicator.pause(params.rule, why);
        return { status: 204 };
      },
    }),
    operation({
      id: "resumeReplication",
      method: "POST",
      path: "/replication/rules/{rule}/resume",
      tag: "replication",
      summary: "Lets a paused rule go on",
      params: { rule: ruleName },
      answers: { 204: { description: "It goes on" } },
      problems: ["not-found", "conflict"],
      handle: async ({ params }) => {
        foundRule(params.rule);
        await replicator.resume(params.rule);
        return { status: 204 };
      },
    }),
    operation({
      id: "listReplicationRuns",
      method: "GET",
      path: "/replication/runs",
      tag: "replication",
      summary: "Lists runs, newest first",
      query: { ...paging, rule: ruleName.optional() },
      answers: { 200: { description: "A page of runs", schema: pageOf(run) } },
      handle: async ({ query: { limit, cursor, rule } }) => {
        const runs = await history.runs({ rule, before: readCursor(z.int(), cursor), limit });
        return { status: 200, body: pageBody(runs.map(jobAnswer), limit, () => runs.at(-1)?.id) };
      },
    }),
    operation({
      id: "getReplicationRun",
      method: "GET",
      path: "/replication/runs/{run}",
      tag: "replication",
      summary: "Tells how a run is",
      params: { run: id },
      answers: { 200: { description: "The run", schema: runDetails } },
      problems: ["not-found"],
      handle: async ({ params }) => ({
        status: 200,
        body: { ...jobAnswer(await foundRun(params.run)), tasks: await history.counts(params.run) },
      }),
    }),
    operation({
      id: "listReplicationRunTasks",
      method: "GET",
      path: "/replication/runs/{run}/tasks",
      tag: "replication",
      summary: "Lists the copies of a run, newest first",
      params: { run: id },
      query: { ...paging, state },
      answers: { 200: { description: "A page of copies", schema: pageOf(task) } },
      problems: ["not-found"],
      handle: async ({ params, query: { limit, cursor, ...filter } }) => {
        await foundRun(params.run);
        const before = readCursor(z.int(), cursor);
        const tasks = await history.tasks({ ...filter, run: params.run, before, limit });
        return { status: 200, body: pageBody(tasks.map(taskAnswer), limit, () => tasks.at(-1)?.id) };
      },
    }),
    operation({
      id: "undoReplicationRun",
      method: "POST",
      path: "/replication/runs/{run}/undo",
      tag: "replication",
      summary: "Takes back what a run has moved, and pauses its rule",
      description: "Tags that others have moved since stay as they are.",
      params: { run: id },
      answers: { 202: { description: "A run takes them back, or will soon", schema: started } },
      problems: ["not-found", "conflict"],
      handle: async ({ params }) => {
        await foundRun(params.run);
        const undone = replicator.undo(params.run).catch((error: unknown) => {
          throw error instanceof RangeError ? new Problem("conflict", error.message, { cause: error }) : error;
        });
        return startedAnswer(await undone);
      },
    }),
    operation({
      id: "listReplicationTasks",
      method: "GET",
      path: "/replication/tasks",
      tag: "replication",
      summary: "Lists copies, newest first",
      query: {
        ...paging,
        rule: ruleName.optional(),
        state,
        registry: z.string().min(1).max(100).optional().describe("Of the target."),
      },
      answers: { 200: { description: "A page of copies", schema: pageOf(task) } },
      handle: async ({ query: { limit, cursor, ...filter } }) => {
        const tasks = await history.tasks({ ...filter, before: readCursor(z.int(), cursor), limit });
        return { status: 200, body: pageBody(tasks.map(taskAnswer), limit, () => tasks.at(-1)?.id) };
      },
    }),
    operation({
      id: "watchReplication",
      method: "GET",
      path: "/replication/stream",
      tag: "replication",
      summary: "Tells what replication does, as it happens",
      description:
        "An event's kind is the `type` of its data. After an hour the answer ends; a browser comes back by itself, and says by Last-Event-ID what it has been told.",
      answers: { 200: { description: "Server-sent events", schema: feedEvent } },
      serverSent: true,
      handle: ({ lastEventId, signal }) => {
        const ends = AbortSignal.any([signal, AbortSignal.timeout(LONGEST_WATCH_MS)]);
        return { status: 200, serverSent: sentOf(feed.subscribe(ends, placeOf(lastEventId))) };
      },
    }),
  ];
}

async function* sentOf(told: ReturnType<Feed["subscribe"]>): AsyncGenerator<ServerSent, void, void> {
  for await (const { id: place, event } of told) yield { id: place, event: event.type, data: event };
}

/** What is no place of a feed is one that nobody remembers. */
function placeOf(lastEventId: string | undefined): number | undefined {
  if (lastEventId === undefined) return undefined;
  return /^[0-9]{1,16}$/.test(lastEventId) ? Number(lastEventId) : 0;
}

function ruleAnswer(status: number, { rule, origin, etag }: KnownRule) {
  return { status, body: { origin, rule }, etag };
}

function refusedOf(error: RuleRefused, kind: "invalid-input" | "conflict"): Problem {
  const errors = error.faults.map(({ path, cause, remedy }) => ({
    in: "body" as const,
    at: path,
    message: `${cause}; ${remedy}`,
  }));
  return new Problem(kind, error.message, { cause: error, errors });
}
