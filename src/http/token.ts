/**
 * The token service: whoever has credentials, or none, gets a token for what of the asked they may do.
 * Source: distribution/distribution, docs/spec/auth/{token,oauth}.md; RFC 6749 §4.3, §5
 */
import type { IncomingMessage } from "node:http";
import { setImmediate as turn } from "node:timers/promises";
import { Router } from "@koa/router";
import type Koa from "koa";
import type { Authenticator } from "../access/authenticate.ts";
import { ANONYMOUS, type Caller, type Verb } from "../access/principal.ts";
import { isAdmin, isLoggedIn } from "../access/rights.ts";
import { parseScopes, type Scope } from "../access/scope.ts";
import type { Grant, Tokens } from "../access/tokens.ts";
import type { Metrics } from "../base/metrics.ts";
import { RegistryError } from "../oci/errors.ts";
import { isRepositoryName } from "../oci/reference.ts";
import type { Gate } from "../registry/gate.ts";
import { Problem } from "./api/problem.ts";
import { readBody } from "./body.ts";
import { basicChallenge, TOKEN_PATH } from "./challenge.ts";
import { stateOf } from "./exchange.ts";
import type { ProgressRule } from "./send.ts";

export interface TokenDeps {
  authenticator: Pick<Authenticator, "authenticate">;
  gate: Pick<Gate, "rights" | "rightsToName">;
  tokens: Tokens;
  metrics: Metrics;
  progress: ProgressRule;
  /** Services of other registries that tokens are issued for; read whenever it is needed: it can be reloaded. */
  audiences: () => readonly string[];
}

/** What is asked for, and by whom. */
interface Request {
  caller: Caller;
  params: URLSearchParams;
}

const MAX_BODY_BYTES = 64 * 1024;
/** After that the event loop has its turn. */
const TURN_MS = 2;
const FORM = "application/x-www-form-urlencoded";

const VERBS_OF: ReadonlyMap<string, readonly Verb[]> = new Map([
  ["pull", ["pull"]],
  ["push", ["create", "push"]],
  ["delete", ["delete"]],
  ["*", ["pull", "create", "push", "delete"]],
]);

/** A request that is refused as RFC 6749 §5.2 has it. */
class TokenRefusal extends Error {
  override readonly name = "TokenRefusal";
  readonly code: "invalid_request" | "unsupported_grant_type";

  constructor(code: TokenRefusal["code"], message: string) {
    super(message);
    this.code = code;
  }
}

/** `/token`, and what other registries need to take its tokens. */
export function tokenRoutes(deps: TokenDeps): Koa.Middleware {
  const { tokens } = deps;
  const router = new Router({ prefix: TOKEN_PATH });
  router.all("/", (ctx) => answer(ctx, deps));
  router.get("/jwks.json", (ctx) => {
    stateOf(ctx).note({ handler: "token" });
    ctx.body = tokens.jwks();
    ctx.type = "application/jwk-set+json";
  });
  router.get("/certificates.pem", (ctx) => {
    stateOf(ctx).note({ handler: "token" });
    ctx.body = tokens.certificates();
    ctx.type = "application/x-pem-file";
  });
  return router.routes() as Koa.Middleware;
}

async function answer(ctx: Koa.Context, deps: TokenDeps): Promise<void> {
  const { note } = stateOf(ctx);
  const { tokens, metrics } = deps;
  note({ handler: "token" });
  ctx.set("cache-control", "no-store");
  let result = "failed";
  try {
    const request = ctx.method === "POST" ? await readForm(ctx, deps) : await readQuery(ctx, deps);
    const audience = audienceOf(request, deps);
    const issued = await tokens.issue(await decide(request, audience, deps));
    result = "issued";
    ctx.body = {
      token: issued.token,
      access_token: issued.token,
      token_type: "Bearer",
      expires_in: issued.expiresInSeconds,
      issued_at: new Date(issued.issuedAtMs).toISOString(),
    };
  } catch (error) {
    if (error instanceof TokenRefusal) {
      result = "invalid";
      refuse(ctx, error.code, new RegistryError("UNSUPPORTED", error.message, { status: 400 }));
    } else if (error instanceof RegistryError && (error.status === 401 || error.status === 429)) {
      result = error.status === 401 ? "unauthorized" : "slowed";
      if (error.status === 401) ctx.set("www-authenticate", basicChallenge(tokens.service));
      if (error.retryAfterSeconds !== undefined) ctx.set("retry-after", String(Math.ceil(error.retryAfterSeconds)));
      refuse(ctx, error.status === 401 ? "invalid_grant" : "temporarily_unavailable", error);
    } else {
      if (error instanceof RegistryError && error.status < 500) result = "invalid";
      throw error;
    }
  } finally {
    note({ handler: "token", result });
    metrics.tokensIssued.inc({ result });
  }
}

/** In the words of RFC 6749, and in those that docker tells its user. */
function refuse(ctx: Koa.Context, code: string, error: RegistryError): void {
  ctx.status = error.status;
  ctx.body = { error: code, error_description: error.message, ...error.toJSON() };
}

async function readQuery(ctx: Koa.Context, deps: TokenDeps): Promise<Request> {
  if (ctx.method !== "GET") {
    throw new Problem("method-not-allowed", `${ctx.method} is not supported here`, { allow: ["GET", "POST"] });
  }
  const [, query = ""] = (ctx.req.url ?? "").split("?", 2);
  const params = new URLSearchParams(query);
  const caller = await orNobody(stateOf(ctx).authenticate(), params, deps);
  // Else a stolen token would last for ever.
  if (caller.granted) {
    throw new RegistryError("UNAUTHORIZED", "a token does not get another one: send a name and password");
  }
  return { caller, params };
}

async function readForm(ctx: Koa.Context, deps: TokenDeps): Promise<Request> {
  const params = new URLSearchParams(await readText(ctx.req, deps.progress));
  const grantType = params.get("grant_type");
  if (grantType === null) throw new TokenRefusal("invalid_request", "grant_type is missing: send password");
  if (grantType !== "password") {
    throw new TokenRefusal(
      "unsupported_grant_type",
      "only grant_type=password is known here: refresh tokens are not given out",
    );
  }
  const username = params.get("username");
  const password = params.get("password");
  if (username === null || password === null) {
    throw new TokenRefusal("invalid_request", "username and password are needed with grant_type=password");
  }
  const { requester, note } = stateOf(ctx);
  const authorization = `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;
  const authenticated = deps.authenticator.authenticate({ authorization, certificateName: undefined }, requester());
  const caller = await orNobody(authenticated, params, deps);
  const { principal } = caller;
  if ("name" in principal) note({ handler: "token", actor: principal.name });
  return { caller, params };
}

/**
 * Who asks; nobody in particular where the credentials are refused, and all that is asked for is to pull what everybody may pull through here:
 * Docker shows a mirror what it logs in to Docker Hub with, and passes the mirror by where that is refused.
 */
async function orNobody(caller: Caller | Promise<Caller>, params: URLSearchParams, deps: TokenDeps): Promise<Caller> {
  try {
    return await caller;
  } catch (error) {
    const isRefused = error instanceof RegistryError && (error.status === 401 || error.status === 429);
    if (isRefused && isToMirror(params, deps)) return ANONYMOUS;
    throw error;
  }
}

/** Whether all that is asked for is to pull what is cached, or would be, of upstreams, and public. */
function isToMirror(params: URLSearchParams, { gate, tokens }: TokenDeps): boolean {
  if (![null, "", tokens.service].includes(params.get("service"))) return false;
  const scopes = parseScopes(params.getAll("scope"));
  const isPublic = ({ type, name, actions }: Scope): boolean =>
    type === "repository" &&
    isRepositoryName(name) &&
    actions.every((action) => action === "pull") &&
    gate.rightsToName(ANONYMOUS, name, undefined).some(({ kind, verbs }) => kind === "cached" && verbs.has("pull"));
  return scopes.length > 0 && scopes.every(isPublic);
}

async function readText(request: IncomingMessage, progress: ProgressRule): Promise<string> {
  const [type = ""] = (request.headers["content-type"] ?? "").split(";", 1);
  if (type.trim().toLowerCase() !== FORM) throw new TokenRefusal("invalid_request", `the body has to be ${FORM}`);
  const tooLarge = (): RegistryError =>
    new RegistryError("SIZE_INVALID", `a request for a token has at most ${MAX_BODY_BYTES} bytes`, { status: 413 });
  return (await readBody(request, MAX_BODY_BYTES, progress, tooLarge)).toString();
}

/** Whom the token is for: this registry, or one that the configuration names. */
function audienceOf({ params }: Request, { tokens, audiences }: TokenDeps): string {
  const service = params.get("service") ?? "";
  if (service === "" || service === tokens.service) return tokens.service;
  if (audiences().includes(service)) return service;
  throw new TokenRefusal(
    "invalid_request",
    `this token service issues no tokens for ${JSON.stringify(service.slice(0, 100))}: its own name is ${tokens.service}; others go into access.tokens.audiences`,
  );
}

/** What of the asked is granted: what the caller may. */
async function decide(
  { caller, params }: Request,
  audience: string,
  { gate, tokens }: TokenDeps,
): Promise<Parameters<Tokens["issue"]>[0]> {
  const { principal } = caller;
  const scopes = parseScopes(params.getAll("scope"));
  const own = audience === tokens.service;
  const catalog = scopes.some(({ type, name }) => type === "registry" && name === "catalog");
  const granted: Grant[] = [];
  let sinceMs = performance.now();
  for (const scope of scopes) {
    granted.push(...(own ? grantsHere(scope, caller, gate) : grantsElsewhere(scope, caller, gate)));
    if (performance.now() - sinceMs < TURN_MS) continue;
    // A hundred scopes against a hundred globs take a second.
    await turn();
    sinceMs = performance.now();
  }
  return {
    principal,
    audience,
    granted,
    // Another registry shows all its repositories to whoever may list any.
    catalog: catalog && (own ? isLoggedIn(principal) : isAdmin(principal)),
  };
}

function grantsHere({ type, name, actions }: Scope, caller: Caller, gate: TokenDeps["gate"]): Grant[] {
  if (type !== "repository" || !isRepositoryName(name)) return [];
  const asked = verbsOf(actions);
  return gate
    .rightsToName(caller, name, undefined)
    .map(({ repository, verbs }) => ({ name, repository, verbs: asked.intersection(verbs) }));
}

/** Another registry has hosted repositories only, and knows no push that may not move a tag. */
function grantsElsewhere({ type, name, actions }: Scope, caller: Caller, gate: TokenDeps["gate"]): Grant[] {
  if (type !== "repository" || !isRepositoryName(name)) return [];
  const verbs = verbsOf(actions).intersection(gate.rights(caller, { kind: "hosted", repository: name }));
  if (!verbs.has("push")) verbs.delete("create");
  return [{ name, repository: name, verbs }];
}

function verbsOf(actions: readonly string[]): Set<Verb> {
  return new Set(actions.flatMap((action) => VERBS_OF.get(action) ?? []));
}
