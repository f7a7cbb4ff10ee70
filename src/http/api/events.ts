import { z } from "zod";
import { CSV_HEAD, csvOf } from "../../events/csv.ts";
import { ACTIONS, OUTCOMES, type StoredEvent } from "../../events/event.ts";
import type { Journal } from "../../events/journal.ts";
import {
  isoTime,
  operation,
  pageOf,
  paging,
  readCursor,
  wholeNumber,
  writeCursor,
  type Operation,
} from "./operation.ts";
import { amount, digest, repositoryName, tagName, time } from "./schemas.ts";

const event = z
  .object({
    id: z.int().min(1).describe("Grows in the order in which events were recorded."),
    at: time,
    action: z.enum(ACTIONS),
    outcome: z
      .enum(OUTCOMES)
      .describe("denied: a rule forbade it; failed: it could not be done, though it should have."),
    repository: z.string().optional().describe("Absent where it is about none."),
    subject: z
      .string()
      .optional()
      .describe(
        "Whom or what a login or a change of rights is about: user:alice, team:backend, namespace:team, robot:ci, rule:base.",
      ),
    tag: z.string().optional().describe("Absent where it was asked for by digest."),
    digest: z.string().optional(),
    mediaType: z.string().optional(),
    sizeBytes: amount.optional(),
    actor: z.string().optional().describe("Who did it; absent where nobody had logged in."),
    address: z.string().optional().describe("The client's; empty on a Unix socket, absent for the daemon's own work."),
    agent: z.string().optional().describe("What the client called itself, cut."),
    requestId: z.string().optional().describe("As the log names the request."),
    detail: z
      .string()
      .optional()
      .describe(
        "Of a delete: tag, manifest or blob; of a mount: where from; of what was refused: why; of a change of rights: which.",
      ),
  })
  .meta({ id: "Event", description: "What happened: to a repository, to a login, to rights." });

const AN_EXAMPLE = "expected a time such as 2026-01-31T12:00:00Z";
const moment = z.iso
  .datetime({ offset: true, error: AN_EXAMPLE })
  .refine((text) => Number.isFinite(Date.parse(text)), AN_EXAMPLE);

const filters = {
  repository: repositoryName.optional(),
  subject: z.string().min(1).max(256).optional(),
  actor: z.string().min(1).max(256).optional(),
  action: z.enum(ACTIONS).optional(),
  outcome: z.enum(OUTCOMES).optional(),
  tag: tagName.optional(),
  digest: digest.optional(),
  since: moment.optional().describe("Inclusive, ISO 8601."),
  until: moment.optional().describe("Exclusive, ISO 8601."),
};

const position = z.strictObject({ atMs: z.int(), id: z.int().min(0) });

const MOST = 1_000_000_000;

/** The record of what happened. */
export function eventOperations({ journal }: { journal: Journal }): Operation[] {
  return [
    operation({
      id: "listEvents",
      method: "GET",
      path: "/events",
      tag: "events",
      summary: "Lists what happened, newest first",
      description:
        "All filters given have to hold. 1,500 events at most are looked at for a page: one with `next` may hold fewer than `limit`, even none.",
      query: {
        ...paging,
        ...filters,
      },
      answers: { 200: { description: "A page of events", schema: pageOf(event) } },
      handle: async ({ query: { limit, cursor, since, until, ...filter } }) => {
        const before = readCursor(position, cursor);
        const { items, next } = await journal.list(
          { ...filter, sinceMs: msOf(since), untilMs: msOf(until) },
          before,
          limit,
        );
        return {
          status: 200,
          body: { items: items.map(answerOf), ...(next === undefined ? {} : { next: writeCursor(next) }) },
        };
      },
    }),
    operation({
      id: "exportEvents",
      method: "GET",
      path: "/events/export",
      tag: "events",
      summary: "Writes down what happened, newest first, all of it",
      description:
        "All filters given have to hold. As CSV (RFC 4180) the first line names the columns; a text that a spreadsheet would take for a formula gets an apostrophe before it. As JSON, nothing is changed. What happens meanwhile is not among it.",
      query: {
        format: z.enum(["csv", "json"]).default("json"),
        limit: wholeNumber(1, MOST).optional().describe("How many events at most; without it, all of them."),
        ...filters,
      },
      streams: true,
      answers: { 200: { description: "The events", schema: event, text: "text/csv" } },
      handle: ({ query: { format, limit = MOST, since, until, ...filter } }) => {
        const steps = journal.walk({ ...filter, sinceMs: msOf(since), untilMs: msOf(until) });
        return format === "csv"
          ? {
              status: 200,
              contentType: "text/csv; charset=utf-8; header=present",
              fileName: "events.csv",
              texts: textsOf(CSV_HEAD, steps, limit, csvOf),
            }
          : {
              status: 200,
              contentType: "application/x-ndjson",
              fileName: "events.ndjson",
              texts: textsOf("", steps, limit, (one) => `${JSON.stringify(answerOf(one))}\n`),
            };
      },
    }),
  ];
}

/** A text for each step; the first one begins with the head. */
async function* textsOf(
  head: string,
  steps: AsyncIterable<StoredEvent[]>,
  limit: number,
  write: (event: StoredEvent) => string,
): AsyncGenerator<string> {
  let left = limit;
  let before = head;
  for await (const events of steps) {
    const wanted = events.slice(0, left);
    yield before + wanted.map(write).join("");
    before = "";
    left -= wanted.length;
    if (left === 0) return;
  }
}

function msOf(time: string | undefined): number | undefined {
  return time === undefined ? undefined : Date.parse(time);
}

function answerOf({ id, atMs, ...event }: StoredEvent): object {
  return { id, at: isoTime(atMs), ...event };
}
