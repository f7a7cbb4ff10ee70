/**
 * One operation of the JSON API, as data: `routes.ts` checks access, parses the input, answers and words what goes wrong; `openapi.ts`
 * describes it; the fuzz test walks it. A resource is a file beside this one that exports one function of its collaborators:
 *
 * ```ts
 * export function widgetOperations({ widgets }: { widgets: Widgets }): Operation[] {
 *   return [
 *     operation({
 *       id: "listWidgets", method: "GET", path: "/widgets", tag: "widgets", summary: "Lists widgets, newest first",
 *       query: { ...paging, color: z.enum(["red", "blue"]).optional() },
 *       answers: { 200: { description: "A page of widgets", schema: pageOf(widget) } },
 *       handle: async ({ query: { limit, cursor, color } }) => {
 *         const before = readCursor(z.int(), cursor);
 *         const items = await widgets.list(color, before, limit);
 *         return { status: 200, body: pageBody(items.map(widgetAnswer), limit, () => items.at(-1)?.id) };
 *       },
 *     }),
 *   ];
 * }
 * ```
 *
 * and is named where app-http.ts makes the routes. Schemas of answers are in `schemas.ts` (`z.object`, with `.meta({ id: "Widget" })` to become a
 * component); times are ISO 8601 texts (`isoTime(ms)`), sizes are bytes. Parameters and bodies are strict: what an operation does not
 * name is refused. A parameter of the query is a text: use `wholeNumber(min, max)` for a number.
 * A repository's name in a path is one segment, its slashes written %2F: `/repositories/docker.io%2Flibrary%2Falpine/tags`.
 * A handler throws `Problem` (`problem.ts`) or a `RegistryError`, and names the kinds that a client may meet in `problems`.
 * What takes long answers `events`, one JSON object a line, and has `streams: true`; what `handle` throws before it returns is a problem still.
 * What goes on for ever answers `serverSent`, which browsers read by themselves.
 */
import { z } from "zod";
import type { Milliseconds } from "../../base/clock.ts";
import type { Caller, Verb } from "../../access/principal.ts";
import type { Requester } from "../../events/event.ts";
import { RegistryError } from "../../oci/errors.ts";
import { Problem, type ProblemKind } from "./problem.ts";
import type { ServerSent } from "./server-sent.ts";

export type Method = "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
export type Shape = Record<string, z.ZodType>;
type Parsed<S extends Shape> = { [Key in keyof S]: z.output<S[Key]> };

/** A request, parsed. */
export interface Input<Params extends Shape, Query extends Shape, Body extends z.ZodType> {
  params: Parsed<Params>;
  query: Parsed<Query>;
  /** Of an operation without a body: an empty object. */
  body: z.output<Body>;
  /** Call it before a change with the tag of what is there. @throws Problem precondition-failed where If-Match names another one */
  checkMatch: (etag: string | undefined) => void;
  /** Raised when the client has left. */
  signal: AbortSignal;
  /** What a client of server-sent events had been told when it lost them; undefined: it is new. */
  lastEventId: string | undefined;
  /** Of If-Match, for what checks it in the change's own transaction. */
  ifMatch: readonly string[] | "any" | undefined;
  /** The client, as events name it. */
  by: Requester;
  /** The client, as rights are decided. */
  caller: Caller;
}

/** @returns when the event is on its way, at the client's pace */
export type Tell = (event: object) => Promise<void>;

export type Reply =
  | {
      status: number;
      /** JSON; undefined: no body. */
      body?: object;
      /** The state of what the answer tells, without quotes: sent as ETag. */
      etag?: string;
      /** Where what was made is found. */
      location?: string;
    }
  | {
      status: 200;
      /** Resolves when the work is over. What it throws after its first event cuts the answer. */
      events: (tell: Tell, signal: AbortSignal) => Promise<void>;
    }
  | {
      status: 200;
      /** Goes on until the client leaves, or the events end. */
      serverSent: AsyncGenerator<ServerSent, void, void>;
    }
  | {
      status: 200;
      contentType: string;
      /** What browsers save it as. */
      fileName: string;
      /** Read at the client's pace. What it throws after its first text cuts the answer. */
      texts: AsyncIterable<string>;
    };

export interface AnswerKind {
  description: string;
  /** Of the JSON body, or of each line of a stream, or of what each event says; undefined: there is no body. */
  schema?: z.ZodType;
  /** The type of a text that it may be in place of JSON: `text/csv`. */
  text?: string;
}

export interface Definition<Params extends Shape, Query extends Shape, Body extends z.ZodType> {
  /** Unique, in camel case: what generated clients call it. */
  id: string;
  method: Method;
  /** Below /api/v1: `/repositories/{repository}/tags`. */
  path: string;
  tag: string;
  /** One line, without a full stop. */
  summary: string;
  /** What a reader has to know beside the schemas. */
  description?: string;
  /** A schema for each `{name}` of the path. */
  params?: Params;
  query?: Query;
  body?: Body;
  /**
   * Who may: everybody; whoever has logged in, of whom the handler decides by `caller` then; whoever may do that to the repository that
   * `{repository}` names. Undefined: administrators.
   */
  allows?: "anyone" | "user" | { repository: Verb };
  answers: Readonly<Record<number, AnswerKind>>;
  /** Beside those that every operation may answer with: malformed-request, invalid-input, unauthorized, forbidden, internal, unavailable. */
  problems?: readonly ProblemKind[];
  /** The answer carries an ETag: a GET honours If-None-Match. */
  etag?: boolean;
  /** It honours If-Match by `checkMatch`. */
  matches?: boolean;
  /** The answer is NDJSON. */
  streams?: boolean;
  /** The answer is server-sent events; it honours Last-Event-ID by `lastEventId`. */
  serverSent?: boolean;
  handle(input: Input<Params, Query, Body>): Promise<Reply> | Reply;
}

export type Operation = Definition<Shape, Shape, z.ZodType>;

/** A definition whose handler knows the types of its input. */
export function operation<
  Params extends Shape = Record<string, never>,
  Query extends Shape = Record<string, never>,
  Body extends z.ZodType = z.ZodObject<Record<string, never>>,
>(definition: Definition<Params, Query, Body>): Operation {
  return definition;
}

/** A whole number in a query, written in decimal digits. */
export function wholeNumber(min: number, max: number): z.ZodType<number, string> {
  return z
    .string()
    .regex(/^[0-9]{1,16}$/, `expected a whole number from ${min} to ${max}`)
    .transform(Number)
    .pipe(z.int().min(min).max(max));
}

/** The parameters of every list. */
export const paging = {
  limit: wholeNumber(1, 1000).default(100).describe("How many items a page has at most."),
  cursor: z.string().max(4096).optional().describe("Where the page begins: what `next` of the page before said."),
};

/** A page of a list. */
export function pageOf<T extends z.ZodType>(item: T) {
  return z.object({
    items: z.array(item),
    next: z.string().optional().describe("The cursor of the next page; absent on the last one."),
  });
}

/**
 * The body of a page.
 * @param limit what was asked for: a shorter page is the last one
 * @param last the key of the last item, from which `readCursor` goes on
 */
export function pageBody<T>(
  items: readonly T[],
  limit: number,
  last: () => unknown,
): { items: readonly T[]; next?: string } {
  return items.length < limit ? { items } : { items, next: writeCursor(last()) };
}

/** A key as an opaque text. */
export function writeCursor(key: unknown): string {
  return Buffer.from(JSON.stringify(key)).toString("base64url");
}

/** @returns undefined for the first page @throws Problem invalid-input for a cursor of something else */
export function readCursor<Key>(schema: z.ZodType<Key>, cursor: string | undefined): Key | undefined {
  if (cursor === undefined) return undefined;
  try {
    return schema.parse(JSON.parse(Buffer.from(cursor, "base64url").toString("utf8")));
  } catch (cause) {
    const message = "is none that this list has given: leave it out to begin anew";
    throw new Problem("invalid-input", `cursor: ${message}`, {
      cause,
      errors: [{ in: "query", at: "cursor", message }],
    });
  }
}

/** Milliseconds since 1970 as answers write them. */
export function isoTime(ms: Milliseconds): string {
  return new Date(ms).toISOString();
}

/**
 * Work of which the last event is `done` with what it resolves with, or `failed` with what a client may be told.
 * @param work is told to tell how far it is
 */
export function toldToTheEnd<Counts extends object>(
  work: (tell: (counts: Counts) => Promise<void>, signal: AbortSignal) => Promise<Counts>,
): (tell: Tell, signal: AbortSignal) => Promise<void> {
  return async (tell, signal) => {
    try {
      await tell({ type: "done", ...(await work((counts) => tell({ type: "progress", ...counts }), signal)) });
    } catch (error) {
      // The client has left: nobody is there to be told.
      if (signal.aborted) return;
      if (!(error instanceof RegistryError)) throw error;
      await tell({ type: "failed", message: error.message });
    }
  };
}
