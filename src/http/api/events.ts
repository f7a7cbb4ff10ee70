import { z } from "zod";
import { ACTIONS, OUTCOMES, type StoredEvent } from "../../events/event.ts";
import type { Journal } from "../../events/journal.ts";
import { isoTime, operation, pageOf, paging, readCursor, writeCursor, type Operation } from "./operation.ts";
import { amount, digest, repositoryName, tagName, time } from "./schemas.ts";

const event = z
  .object({
    id: z.int().min(1).describe("Grows in the order in which events were recorded."),
    at: time,
    action: z.enum(ACTIONS),
    outcome: z
      .enum(OUTCOMES)
      .describe("denied: a rule forbade it; failed: it could not be done, though it should have."),
    repository: z.string(),
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
      .describe("Of a delete: tag, manifest or blob; of a mount: where from; of what was refused: why."),
  })
  .meta({ id: "Event", description: "What happened to a repository." });

const AN_EXAMPLE = "expected a time such as 2026-01-31T12:00:00Z";
const moment = z.iso
  .datetime({ offset: true, error: AN_EXAMPLE })
  .refine((text) => Number.isFinite(Date.parse(text)), AN_EXAMPLE);

const position = z.strictObject({ atMs: z.int(), id: z.int().min(0) });

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
        repository: repositoryName.optional(),
        actor: z.string().min(1).max(256).optional(),
        action: z.enum(ACTIONS).optional(),
        outcome: z.enum(OUTCOMES).optional(),
        tag: tagName.optional(),
        digest: digest.optional(),
        since: moment.optional().describe("Inclusive, ISO 8601."),
        until: moment.optional().describe("Exclusive, ISO 8601."),
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
  ];
}

function msOf(time: string | undefined): number | undefined {
  return time === undefined ? undefined : Date.parse(time);
}

function answerOf({ id, atMs, ...event }: StoredEvent): object {
  return { id, at: isoTime(atMs), ...event };
}
