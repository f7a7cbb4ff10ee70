/**
 * The JSON API under /api/v1: one place for access, input, answers and what goes wrong. The operations are data (`operation.ts`).
 * Every answer that is no success is a problem (`problem.ts`).
 */
import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import type Koa from "koa";
import { z } from "zod";
import type { Config } from "../../config/schema.ts";
import type { Requester } from "../../events/event.ts";
import { readBody } from "../body.ts";
import { isOnThisMachine } from "../client-address.ts";
import { guardEnd, type ProgressRule } from "../send.ts";
import { openApiOperation } from "./openapi.ts";
import type { Operation, Reply } from "./operation.ts";
import { Problem, type InputFault } from "./problem.ts";

export interface ApiDeps {
  /** Who may use it; read whenever it is needed: it can be reloaded. */
  from: () => Config["admin"]["from"];
  /** Whether a Host header is a name of this server. */
  isOwnHost: (host: string | undefined) => boolean;
  progress: ProgressRule;
  operations: readonly Operation[];
}

const PREFIX = "/api/v1";
const MAX_BODY_BYTES = 1024 * 1024;
const MOST_FAULTS = 20;
const NO_BODY = z.strictObject({});

/** What the API takes of the server. */
interface RequestState {
  requester: () => Requester;
  note: (facts: { handler: string }) => void;
}

interface Route {
  operation: Operation;
  segments: readonly string[];
  params: z.ZodType<Record<string, unknown>>;
  query: z.ZodType<Record<string, unknown>>;
  queryNames: readonly string[];
}

/** @param deps its operations are answered beside the document that describes them. @throws Error where two operations claim one path and method */
export function apiRoutes({ from, isOwnHost, progress, operations }: ApiDeps): Koa.Middleware {
  const routes = [...operations, openApiOperation(operations)].map(routeOf);
  return async (ctx, next) => {
    // Not Koa's path: that one throws on a target that is no path.
    const [path = "", ...rest] = (ctx.req.url ?? "/").split("?");
    if (path !== "/api" && !path.startsWith("/api/")) {
      await next();
      return;
    }
    const { requester, note } = ctx.state as RequestState;
    note({ handler: "api" });
    const by = requester();
    checkAccess(from(), by.address);
    // A Unix socket is out of a browser's reach.
    if (from() === "loopback" && by.address !== "") checkHost(ctx.req.headers.host, isOwnHost);
    const { route, segments } = find(routes, path, ctx.method);
    ctx.respond = false;
    await answer(ctx.req, ctx.res, route, segments, rest.join("?"), by, progress);
  };
}

function routeOf(operation: Operation): Route {
  const query = operation.query ?? {};
  return {
    operation,
    segments: operation.path.split("/").slice(1),
    params: z.strictObject(operation.params ?? {}),
    query: z.strictObject(query),
    queryNames: Object.keys(query),
  };
}

function checkAccess(from: Config["admin"]["from"], client: string): void {
  if (from === "anywhere" || (from === "loopback" && isOnThisMachine(client))) return;
  throw new Problem(
    "forbidden",
    `admin.from is ${from}, and this request comes from ${client || "a socket of this machine"}: set it to anywhere where everybody who reaches this address may look after the registry`,
  );
}

function checkHost(host: string | undefined, isOwnHost: ApiDeps["isOwnHost"]): void {
  if (isOwnHost(host)) return;
  throw new Problem(
    "forbidden",
    `this server is not known as ${String(host).slice(0, 300)}, and a web page could have let that name lead here: ask for it by its address or as localhost, or make that name its server.publicUrl`,
  );
}

function find(routes: readonly Route[], path: string, method: string): { route: Route; segments: string[] } {
  const segments = path.startsWith(`${PREFIX}/`) ? path.slice(PREFIX.length + 1).split("/") : [];
  const there = routes.filter((route) => fits(route.segments, segments));
  // A literal segment goes before a parameter.
  const [closest] = there.toSorted((a, b) => parameterCount(a) - parameterCount(b));
  if (!closest)
    throw new Problem(
      "not-found",
      `the API has no such path: ${PREFIX}/openapi.json names those that it has; a repository's name is one segment, its slashes written %2F`,
    );
  const alike = there.filter(({ operation }) => operation.path === closest.operation.path);
  const route = alike.find(({ operation }) => operation.method === (method === "HEAD" ? "GET" : method));
  if (route) return { route, segments };
  const allow = alike.flatMap(({ operation }) => (operation.method === "GET" ? ["GET", "HEAD"] : [operation.method]));
  throw new Problem("method-not-allowed", `${method} is not supported here: ${allow.join(", ")} may be sent`, {
    allow,
  });
}

function fits(template: readonly string[], segments: readonly string[]): boolean {
  return (
    template.length === segments.length &&
    template.every((part, at) => part === segments[at] || (part.startsWith("{") && segments[at] !== ""))
  );
}

function parameterCount({ segments }: Route): number {
  return segments.filter((segment) => segment.startsWith("{")).length;
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  route: Route,
  segments: readonly string[],
  queryText: string,
  by: Requester,
  progress: ProgressRule,
): Promise<void> {
  const { operation } = route;
  const params = parse("path", route.params, pathValues(route.segments, segments));
  const query = parse("query", route.query, queryValues(queryText, route.queryNames));
  const body = operation.method === "GET" ? {} : await readInput(request, operation, progress);
  const ifMatch = tagsOf(request.headers["if-match"]);
  const gone = new AbortController();
  response.once("close", () => gone.abort());
  const reply = await operation.handle({
    params,
    query,
    body,
    checkMatch: (etag) => checkMatch(ifMatch, etag),
    ifMatch,
    signal: gone.signal,
    by,
  });
  if ("events" in reply) return tellEvents(response, reply.events, gone.signal);
  write(request, response, reply);
  guardEnd(response, progress);
}

async function readInput(request: IncomingMessage, operation: Operation, progress: ProgressRule): Promise<unknown> {
  // What a page of another origin can send without asking is a POST with a form's types; all else, its browser asks about first.
  if (operation.method === "DELETE" && !operation.body) return {};
  const type = request.headers["content-type"] ?? "";
  if (!/^application\/json(?:\s*;|$)/i.test(type)) {
    throw new Problem("unsupported-media-type", "send content-type: application/json, also where the body is empty");
  }
  const tooLarge = (): Problem => new Problem("too-large", `the body is larger than ${MAX_BODY_BYTES} bytes`);
  const bytes = await readBody(request, MAX_BODY_BYTES, progress, tooLarge);
  const given = bytes.length === 0 && !operation.body ? {} : parseJson(bytes);
  return parse("body", operation.body ?? NO_BODY, given);
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new Problem("malformed-request", "the body is not JSON in UTF-8", { cause });
  }
}

function pathValues(template: readonly string[], segments: readonly string[]): Record<string, string> {
  const values: Record<string, string> = {};
  for (const [at, part] of template.entries()) {
    if (!part.startsWith("{")) continue;
    try {
      values[part.slice(1, -1)] = decodeURIComponent(segments[at] ?? "");
    } catch (cause) {
      throw new Problem("malformed-request", "the path's percent-encoding is not UTF-8", { cause });
    }
  }
  return values;
}

/** @throws Problem invalid-input that names the parameters that there are */
function queryValues(text: string, names: readonly string[]): Record<string, string> {
  const values: Record<string, string> = {};
  const errors: InputFault[] = [];
  for (const [name, value] of new URLSearchParams(text)) {
    const at = name.slice(0, 100);
    if (!names.includes(name)) {
      const known = names.length === 0 ? "it takes none" : `it takes ${names.join(", ")}`;
      errors.push({ in: "query", at, message: `is no parameter of this operation: ${known}` });
    } else if (name in values) errors.push({ in: "query", at, message: "is given twice" });
    else values[name] = value;
  }
  if (errors.length > 0) throw invalidInput(errors);
  return values;
}

function parse<T>(where: InputFault["in"], schema: z.ZodType<T>, value: unknown): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw invalidInput(
    parsed.error.issues.map(({ path, message }) => ({ in: where, at: path.join(".").slice(0, 300), message })),
  );
}

function invalidInput(faults: readonly InputFault[]): Problem {
  const errors = faults.slice(0, MOST_FAULTS).map((fault) => ({ ...fault, message: fault.message.slice(0, 300) }));
  const detail = errors.map(({ in: where, at, message }) => `${at === "" ? where : at}: ${message}`).join("; ");
  return new Problem("invalid-input", detail, { errors });
}

/** Weak tags are none that match. Source: RFC 9110 §13.1.1 */
function tagsOf(header: string | undefined): readonly string[] | "any" | undefined {
  if (header === undefined) return undefined;
  return header.trim() === "*" ? "any" : [...header.matchAll(/(?<!W\/)"([^"]*)"/g)].map(([, tag = ""]) => tag);
}

function checkMatch(wanted: readonly string[] | "any" | undefined, etag: string | undefined): void {
  if (wanted === undefined) return;
  if (etag !== undefined && (wanted === "any" || wanted.includes(etag))) return;
  throw new Problem(
    "precondition-failed",
    etag === undefined
      ? "If-Match is given, and there is nothing"
      : `If-Match is not the ETag of what is there, "${etag}": look at it anew`,
  );
}

function write(request: IncomingMessage, response: ServerResponse, reply: Exclude<Reply, { events: unknown }>): void {
  const { status, body, etag, location } = reply;
  const headers = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    ...(etag === undefined ? {} : { etag: `"${etag}"`, "cache-control": "no-cache" }),
    ...(location === undefined ? {} : { location }),
  };
  // Source: RFC 9110 §13.1.2: compared weakly.
  const known = tagsOf(request.headers["if-none-match"]?.replaceAll("W/", ""));
  const reads = request.method === "GET" || request.method === "HEAD";
  const unchanged = reads && etag !== undefined && known !== undefined && (known === "any" || known.includes(etag));
  if (body === undefined || unchanged) {
    response.writeHead(unchanged ? 304 : status, headers).end();
    return;
  }
  const bytes = Buffer.from(JSON.stringify(body));
  response.writeHead(status, { ...headers, "content-type": "application/json", "content-length": bytes.length });
  response.end(request.method === "HEAD" ? undefined : bytes);
}

/**
 * Answers with what the work tells, one JSON object a line.
 * @param work is told by the signal that the client has left; what it throws before its first event is answered as a problem
 */
async function tellEvents(
  response: ServerResponse,
  work: Extract<Reply, { events: unknown }>["events"],
  gone: AbortSignal,
): Promise<void> {
  const begin = (): void => {
    response.writeHead(200, { "content-type": "application/x-ndjson", "x-content-type-options": "nosniff" });
  };
  const working = work(async (event) => {
    if (response.destroyed) return;
    if (!response.headersSent) begin();
    if (!response.write(`${JSON.stringify(event)}\n`))
      await once(response, "drain", { signal: gone }).catch(() => undefined);
  }, gone);
  if (!response.headersSent) begin();
  await working;
  response.end();
}
