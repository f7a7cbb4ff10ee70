import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { chmod, lstat, rm } from "node:fs/promises";
import type { Server as HttpsServer } from "node:https";
import { connect, type AddressInfo } from "node:net";
import Koa from "koa";
import type { Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import { parseListen, type Config } from "../config/schema.ts";
import { actorOf } from "../access/principal.ts";
import type { Requester } from "../events/event.ts";
import { RegistryError } from "../oci/errors.ts";
import type { Callers } from "./callers.ts";
import { clientAddressReader } from "./client-address.ts";
import { toClientError, writeError } from "./errors.ts";
import { secureHeaders } from "./secure-headers.ts";
import { ClientGone } from "./send.ts";
import { TlsServer, type ServedCertificate } from "./tls.ts";
import { stateOf, type Exchange, type Facts, type RequestState } from "./exchange.ts";
import type { V2 } from "./v2.ts";

export interface ServerDeps {
  callers: Callers;
  /** The value of WWW-Authenticate for a request that was answered 401. */
  challenge: (request: IncomingMessage, error: RegistryError) => string;
  config: Config["server"];
  /** Undefined: it speaks plain HTTP. */
  certificate: ServedCertificate | undefined;
  logRequests: boolean;
  log: Logger;
  metrics: Metrics;
  v2: V2;
  /** What lies outside of `/v2/`: health, metrics, the console. */
  routes: Koa.Middleware;
}

/** Headers of Koa answers; those under /v2/ write their own. */
const KEEP_ALIVE_MS: Milliseconds = 75_000;
/** How long a client that was answered may go on sending a body that nobody wants. */
const UNWANTED_BODY_MS: Milliseconds = 5_000;

/** How often a stopping server looks for connections that have nothing left to do. */
const SWEEP_MS: Milliseconds = 50;

/** Of what a client calls itself, so many characters are recorded. */
const MAX_AGENT = 256;

type Noted = Facts & { handler: string };

interface Answered {
  id: string;
  path: string;
  code: number;
  seconds: number;
  facts: Noted;
  failure: unknown;
}

/**
 * The HTTP server: an id, a clock, one log line and the metrics around every request, then `/v2/`, then the other routes.
 * Guards against slow clients: the head has to arrive within headersTimeout, bodies have to progress (`send.ts`).
 */
export class HttpServer {
  readonly #deps: ServerDeps;
  readonly #server: Server | HttpsServer;
  readonly #tls: TlsServer | undefined;
  readonly #secure: (response: ServerResponse) => void;
  readonly #clientAddress: (request: IncomingMessage) => string;
  readonly #idPrefix = Math.random().toString(36).slice(2, 8);
  #requests = 0;
  #socketPath: string | undefined;

  constructor(deps: ServerDeps) {
    this.#deps = deps;
    this.#clientAddress = clientAddressReader(deps.config.trustedProxies);
    this.#secure = secureHeaders(deps.config.publicUrl);
    const koa = new Koa();
    koa.use((ctx, next) => this.#observe(ctx, next));
    koa.use((ctx, next) => this.#v2(ctx, next));
    koa.use(deps.routes);
    koa.use(() => {
      throw new RegistryError("UNKNOWN", "there is nothing here", { status: 404 });
    });
    koa.on("error", (error: unknown) => {
      // Whoever leaves while he is answered, as those who watch a stream do, is no fault.
      if (error instanceof Error && "syscall" in error && error.syscall === "write") return;
      deps.log.error({ err: error }, "request failed outside of its handler");
    });
    const { headersTimeout } = deps.config;
    const answer = koa.callback();
    const handle = (request: IncomingMessage, response: ServerResponse): void => void answer(request, response);
    const options = {
      // A push of many GiB over a slow line is fine: it is its progress that is guarded.
      requestTimeout: 0,
      headersTimeout,
      keepAliveTimeout: KEEP_ALIVE_MS,
      connectionsCheckingInterval: Math.min(5_000, headersTimeout),
      highWaterMark: 1024 * 1024,
    };
    const { certificate, log } = deps;
    this.#tls =
      certificate && new TlsServer(certificate, { ...options, handshakeTimeout: headersTimeout, log }, handle);
    this.#server = this.#tls?.server ?? createServer(options, handle);
  }

  /** @returns where it listens, as a URL or `unix:/path` @throws Error naming the address and why it can't be taken */
  async listen(): Promise<string> {
    const address = parseListen(this.#deps.config.listen);
    if (!address) throw new Error(`server.listen: ${this.#deps.config.listen} is no address`);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#server.once("error", (cause: NodeJS.ErrnoException) => {
      const why =
        cause.code === "EADDRINUSE"
          ? "another program listens there: stop it, or set server.listen to another port"
          : cause.code === "EACCES"
            ? "this user may not listen there: take a port above 1023"
            : cause.message;
      reject(new Error(`cannot listen on ${this.#deps.config.listen}: ${why}`, { cause }));
    });
    this.#server.once("listening", resolve);
    if ("path" in address) {
      await removeStaleSocket(address.path);
      this.#server.listen(address.path);
    } else {
      this.#server.listen({
        port: address.port,
        ...(address.host === undefined ? {} : { host: address.host }),
        backlog: 1024,
      });
    }
    await promise;
    if ("path" in address) {
      this.#socketPath = address.path;
      await chmod(address.path, 0o660);
      return `unix:${address.path}`;
    }
    const { address: host, port, family } = this.#server.address() as AddressInfo;
    return `${this.#tls ? "https" : "http"}://${family === "IPv6" ? `[${host}]` : host}:${port}`;
  }

  /** Takes no more connections and lets what is under way end, until `drainMs` have passed. */
  async close(drainMs: Milliseconds): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    const sweepOnce = (): void => {
      this.#server.closeIdleConnections();
      this.#tls?.cutHandshakes();
    };
    sweepOnce();
    // A client that was answered meanwhile keeps its connection for the next request, and Node does not close it.
    const sweep = setInterval(sweepOnce, SWEEP_MS);
    const deadline = setTimeout(() => {
      this.#deps.log.warn({ drainMs }, "cut what had not ended by the drain timeout");
      this.#server.closeAllConnections();
    }, drainMs);
    await closed;
    clearInterval(sweep);
    clearTimeout(deadline);
    if (this.#socketPath !== undefined) await rm(this.#socketPath, { force: true });
  }

  async #observe(ctx: Koa.Context, next: Koa.Next): Promise<void> {
    const { metrics } = this.#deps;
    const started = performance.now();
    const id = `${this.#idPrefix}-${(++this.#requests).toString(36)}`;
    const facts: Noted = { handler: "other" };
    const requester = (): Requester => ({
      actor: facts.actor,
      address: this.#clientAddress(ctx.req),
      agent: ctx.req.headers["user-agent"]?.slice(0, MAX_AGENT),
      requestId: id,
    });
    const state: RequestState = {
      requester,
      authenticate: async () => {
        const found = this.#deps.callers.of(ctx.req, requester());
        const caller = found instanceof Promise ? await found : found;
        facts.actor = actorOf(caller.principal);
        return caller;
      },
      note: (more) => void Object.assign(facts, more),
    };
    Object.assign(ctx.state, state);
    ctx.res.setHeader("x-request-id", id);
    this.#secure(ctx.res);
    metrics.httpInFlight.inc();
    // Not Koa's: that one throws on a target that is no path.
    const path = (ctx.req.url ?? "/").split("?", 1)[0] ?? "/";
    let failure: unknown;
    try {
      if (!path.startsWith("/"))
        throw new RegistryError("UNKNOWN", "the request's target is not a path", { status: 400 });
      await next();
    } catch (error) {
      failure = error;
      ctx.respond = false;
      if (error instanceof ClientGone) ctx.res.destroy();
      else {
        const told = toClientError(error, id);
        if (told.status === 401 && !ctx.res.headersSent) {
          ctx.res.setHeader("www-authenticate", this.#deps.challenge(ctx.req, told));
        }
        writeError(ctx.res, path, ctx.method, told);
      }
    }
    if (!ctx.req.complete) discardBody(ctx.req, ctx.res);
    const seconds = (performance.now() - started) / 1000;
    const { method } = ctx;
    const code = failure instanceof ClientGone ? 499 : ctx.status;
    metrics.httpInFlight.dec();
    metrics.httpRequests.inc({ handler: facts.handler, method: knownMethod(method), code });
    metrics.httpDuration.observe({ handler: facts.handler, method: knownMethod(method) }, seconds);
    this.#logRequest(ctx, { id, path, code, seconds, facts, failure });
  }

  #logRequest(ctx: Koa.Context, { id, path, code, seconds, facts, failure }: Answered): void {
    const { log, logRequests } = this.#deps;
    const unexpected = failure !== undefined && !(failure instanceof RegistryError) && !(failure instanceof ClientGone);
    if (!logRequests && !unexpected) return;
    const line = {
      id,
      method: ctx.method,
      // The query may hold what is not ours to log; the path is the client's own words, cut.
      path: path.slice(0, 300),
      code,
      ms: Math.round(seconds * 10_000) / 10,
      ...facts,
      client: this.#clientAddress(ctx.req),
      agent: ctx.req.headers["user-agent"]?.slice(0, 120),
      // What a client did wrong needs no stack; what an upstream or this daemon did wrong does, with its causes.
      ...(failure instanceof RegistryError && code < 500
        ? { error: failure.code, reason: failure.message }
        : failure === undefined
          ? {}
          : { err: failure }),
    };
    if (unexpected) log.error(line, "request failed");
    else if (code >= 500) log.warn(line, "request");
    else log.info(line, "request");
  }

  async #v2(ctx: Koa.Context, next: Koa.Next): Promise<void> {
    const url = ctx.req.url ?? "/";
    if (!url.startsWith("/v2")) return next();
    const question = url.indexOf("?");
    const state = stateOf(ctx);
    const exchange: Exchange = {
      request: ctx.req,
      response: ctx.res,
      method: ctx.method,
      path: question < 0 ? url : url.slice(0, question),
      query: new URLSearchParams(question < 0 ? "" : url.slice(question + 1)),
      caller: await state.authenticate(),
      ...state,
    };
    if (!(await this.#deps.v2.handle(exchange))) return next();
    ctx.respond = false;
  }
}

/** A daemon that was killed leaves its socket behind, which nobody else will remove. */
async function removeStaleSocket(path: string): Promise<void> {
  const isSocket = await lstat(path).then(
    (stats) => stats.isSocket(),
    () => false,
  );
  if (!isSocket) return;
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  const probe = connect(path, () => resolve(undefined));
  probe.once("error", ({ code }: NodeJS.ErrnoException) => resolve(code));
  const code = await promise;
  probe.destroy();
  if (code === "ECONNREFUSED") await rm(path, { force: true });
}

const METHODS = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]);

/** A label's values are bounded, whatever a client invents. */
function knownMethod(method: string): string {
  return METHODS.has(method) ? method : "other";
}

/** The answer is out and the client is still sending: read on for a moment, so that it sees the answer, then cut. */
function discardBody(request: IncomingMessage, response: ServerResponse): void {
  request.resume();
  const timer = setTimeout(() => request.destroy(), UNWANTED_BODY_MS);
  timer.unref();
  request.once("close", () => clearTimeout(timer));
  if (!response.headersSent) response.setHeader("connection", "close");
}
