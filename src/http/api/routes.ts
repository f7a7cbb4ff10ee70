/**
 * The JSON API under /api/v1: one place for access, input, answers and what goes wrong. The operations are data (`operation.ts`).
 * Every answer that is no success is a problem (`problem.ts`).
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import type Koa from "koa";
import { z } from "zod";
import type { Caller } from "../../access/principal.ts";
import { isAdmin, isLoggedIn } from "../../access/rights.ts";
import type { NewEvent, Requester } from "../../events/event.ts";
import type { Journal } from "../../events/journal.ts";
import { RegistryError } from "../../oci/errors.ts";
import type { RepositoryName } from "../../oci/reference.ts";
import type { Gate } from "../../registry/gate.ts";
import type { Names } from "../../registry/names.ts";
import { readBody } from "../body.ts";
import { isOnThisMachine } from "../client-address.ts";
import { stateOf } from "../exchange.ts";
import { isOwnOrigin, strangerText } from "../own-host.ts";
import type { ProgressRule } from "../send.ts";
import { checkMatch, tagsOf } from "./etag.ts";
import { openApiOperation } from "./openapi.ts";
import type { Operation } from "./operation.ts";
import { Problem, type InputFault } from "./problem.ts";
import { sendReply } from "./send-reply.ts";

export interface ApiDeps {
  gate: Gate;
  names: Names;
  /** Is told what is denied. */
  journal: Pick<Journal, "note">;
  /** Whether a Host header is a name of this server. */
  isOwnHost: (host: string | undefined) => boolean;
  progress: ProgressRule;
  operations: readonly Operation[];
}

const PREFIX = "/api/v1";
const MAX_BODY_BYTES = 1024 * 1024;
const MOST_FAULTS = 20;
const NO_BODY = z.strictObject({});

interface Route {
  operation: Operation;
  segments: readonly string[];
  params: z.ZodType<Record<string, unknown>>;
  query: z.ZodType<Record<string, unknown>>;
  queryNames: readonly string[];
}

/** @param deps its operations are answered beside the document that describes them. @throws Error where two operations claim one path and method */
export function apiRoutes(deps: ApiDeps): Koa.Middleware {
  const { isOwnHost, journal, progress, operations } = deps;
  const routes = [...operations, openApiOperation(operations)].map(routeOf);
  return async (ctx, next) => {
    // Not Koa's path: that one throws on a target that is no path.
    const [path = "", ...rest] = (ctx.req.url ?? "/").split("?");
    if (path !== "/api" && !path.startsWith("/api/")) {
      await next();
      return;
    }
    const { requester, authenticate, note } = stateOf(ctx);
    note({ handler: "api" });
    const caller = await authenticate();
    const by = requester();
    let wanted: Pick<NewEvent, "action" | "repository"> = { action: "access" };
    try {
      checkPage(ctx.req, caller, by, isOwnHost);
      const { route, segments } = find(routes, path, ctx.method);
      const params = parse("path", route.params, pathValues(route.segments, segments));
      wanted = wantedBy(route.operation, params);
      authorize(route.operation, params, caller, deps);
      ctx.respond = false;
      const renew = async (): Promise<Caller> => {
        const renewed = await authenticate();
        authorize(route.operation, params, renewed, deps);
        return renewed;
      };
      await answer(ctx.req, ctx.res, { route, params, queryText: rest.join("?"), caller, renew, by, progress });
    } catch (error) {
      if (error instanceof RegistryError && error.status === 403) {
        const detail = `${ctx.method} ${path.slice(0, 200)}: ${error.message.slice(0, 300)}`;
        journal.note({ ...wanted, outcome: "denied", by, detail });
      }
      throw error;
    }
  };
}

/** As an event names it. */
function wantedBy({ allows }: Operation, params: Record<string, unknown>): Pick<NewEvent, "action" | "repository"> {
  if (typeof allows !== "object") return { action: "access" };
  const { repository: verb } = allows;
  return { action: verb === "create" ? "push" : verb, repository: params["repository"] as RepositoryName };
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

/** A page of a stranger may not use what its reader's browser may: neither for being on this machine, nor with what it knows of passwords. */
function checkPage(
  { method, headers }: IncomingMessage,
  { principal }: Caller,
  { address }: Requester,
  isOwnHost: ApiDeps["isOwnHost"],
): void {
  const { host, origin } = headers;
  // A Unix socket is out of a browser's reach.
  if (principal.kind === "everybody" && isOnThisMachine(address) && address !== "" && !isOwnHost(host)) {
    throw new Problem("forbidden", strangerText(host));
  }
  const reads = method === "GET" || method === "HEAD";
  if (reads || origin === undefined) return;
  const from = URL.canParse(origin) ? new URL(origin).host : origin;
  // A page of the very name that is asked: what a browser knows of passwords, it knows by name.
  if (from === host || isOwnOrigin(origin, host, isOwnHost)) return;
  throw new Problem("forbidden", `a web page of ${origin.slice(0, 300)} sends this: only pages of this server may`);
}

/** @throws Problem unauthorized, forbidden; RegistryError UNAUTHORIZED, DENIED */
function authorize(
  { allows }: Operation,
  params: Record<string, unknown>,
  caller: Caller,
  { gate, names }: ApiDeps,
): void {
  if (allows === "anyone") return;
  const { principal, granted } = caller;
  if (typeof allows === "object") {
    const repository = params["repository"] as RepositoryName;
    gate.check(caller, names.full(repository), allows.repository);
    return;
  }
  if (!isLoggedIn(principal) || granted) {
    throw new Problem(
      "unauthorized",
      granted
        ? "a token of the token service is for the registry alone: log in with a name and password, or with a personal token"
        : "log in with a name and password, or with a personal token: on the daemon's own machine, the command line does",
    );
  }
  if (allows !== "user" && !isAdmin(principal)) {
    throw new Problem("forbidden", "only administrators may do this");
  }
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

interface Asked {
  route: Route;
  params: Record<string, unknown>;
  queryText: string;
  caller: Caller;
  /** Who asks, looked up anew. @throws as {@link authorize} */
  renew: () => Promise<Caller>;
  by: Requester;
  progress: ProgressRule;
}

async function answer(request: IncomingMessage, response: ServerResponse, asked: Asked): Promise<void> {
  const { route, params, queryText, renew, by, progress } = asked;
  const { operation } = route;
  const query = parse("query", route.query, queryValues(queryText, route.queryNames));
  const body = operation.method === "GET" ? {} : await readInput(request, operation, progress);
  // A body may take half an hour: meanwhile, who sends it may have lost its rights.
  const caller = operation.method === "GET" ? asked.caller : await renew();
  const ifMatch = tagsOf(request.headers["if-match"]);
  const gone = new AbortController();
  response.once("close", () => gone.abort());
  const reply = await operation.handle({
    params,
    query,
    body,
    checkMatch: (etag) => checkMatch(ifMatch, etag),
    ifMatch,
    lastEventId: request.headers["last-event-id"]?.toString(),
    signal: gone.signal,
    by,
    caller,
  });
  await sendReply(request, response, reply, gone.signal, progress);
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
