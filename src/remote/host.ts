import type { Dispatcher } from "undici";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import { retry, type RetryPolicy } from "../base/retry.ts";
import { Breaker, type Pass } from "./breaker.ts";
import {
  exchange,
  headerOf,
  isStream,
  type Answer,
  type AnswerHeaders,
  type Body,
  type Method,
  type Patience,
  type Payload,
} from "./exchange.ts";
import type { Pace, Turns } from "./pace.ts";
import { RemoteError, type RemoteFault } from "./remote-error.ts";

export type RemoteKind = "manifest" | "blob" | "tags" | "referrers" | "token" | "ping" | "upload";

export interface RemoteObserver {
  /** One request on the wire, repetitions and redirects included. @param seconds from the request to the head of its answer */
  request(kind: RemoteKind, method: string, code: number | "error", seconds: number): void;
  /** Bytes of any body. */
  received(bytes: number): void;
}

/** What a registry says about its limit. Source: docs.docker.com, "Docker Hub pull usage and limits" */
export interface RateLimit {
  limit: number;
  remaining: number;
  windowSeconds: number | undefined;
  /** When it said so, milliseconds since 1970. */
  at: Milliseconds;
}

export interface HostRequest {
  kind: RemoteKind;
  method: Method;
  url: URL;
  headers: Record<string, string>;
  body?: Payload | undefined;
  /** In place of the endpoint's own deadline: some registries prove a large blob before they answer. */
  answerWithinMs?: Milliseconds | undefined;
  /** How many bytes a 2xx body may have that is read at once; "stream" hands it out unread. */
  take: number | "stream";
  patience: Patience;
}

export interface HostAnswer {
  status: number;
  headers: AnswerHeaders;
  /** The body where it was to be read; of an error its first 16 KiB, or nothing. */
  bytes: Buffer;
  /** The body of a 2xx answer to a request that takes a stream. */
  body: Body | undefined;
}

export interface HostLimits {
  clock: Clock;
  log: Logger;
  observe: RemoteObserver;
  policy: RetryPolicy;
  pace: Pace | undefined;
  /** Of requests to this host; undefined: as many as there are. */
  turns: Turns | undefined;
  firstByteMs: Milliseconds;
  progressMs: Milliseconds;
}

const MAX_ERROR_BYTES = 16 * 1024;
/** A longer Retry-After is not waited for: the caller is told. */
const SHORT_RETRY_AFTER_SECONDS = 2;
const MAX_PAUSE_MS = 3_600_000;
const COUNTED: ReadonlySet<RemoteFault> = new Set(["unreachable", "timeout", "server"]);
const REPEATED: ReadonlySet<RemoteFault> = new Set(["unreachable", "timeout", "server", "interrupted"]);

/**
 * One origin as a registry, its token realm or its storage: repeats what may succeed the next time, stops asking a host that
 * fails or that has asked for a pause. A pause (429 with a Retry-After) is for its kind of request only: Docker Hub limits
 * manifests, and an image whose manifest is here already still needs its layers.
 */
export class Host {
  /** host, with its port unless that is the scheme's own. */
  readonly name: string;
  readonly #limits: HostLimits;
  readonly #breaker: Breaker;
  readonly #pausedUntilMs = new Map<RemoteKind, Milliseconds>();
  #rateLimit: RateLimit | undefined;

  constructor(name: string, limits: HostLimits) {
    this.name = name;
    this.#limits = limits;
    this.#breaker = new Breaker(limits.clock);
  }

  get up(): boolean {
    return this.#breaker.closed;
  }

  get rateLimit(): RateLimit | undefined {
    return this.#rateLimit;
  }

  /** When the last of its pauses ends, milliseconds since 1970. */
  get pausedUntilMs(): Milliseconds | undefined {
    const until = [...this.#pausedUntilMs.keys()].map((kind) => this.#pauseOf(kind)).filter((ms) => ms !== undefined);
    return until.length === 0 ? undefined : Math.max(...until);
  }

  /**
   * Sends a request that may be repeated, repeatedly if need be; with a deadline or a stream, once.
   * @returns any answer but 408, 429 and 5xx
   * @throws RemoteError unreachable, timeout, interrupted, circuitOpen, rateLimited, server, protocol, refused; the signal's reason
   */
  async send(dispatcher: Dispatcher, request: HostRequest): Promise<HostAnswer> {
    const { clock, policy } = this.#limits;
    const once = request.patience.deadline !== undefined || isStream(request.body);
    return await retry(
      () => this.#try(dispatcher, request),
      (error) => (once ? undefined : this.#pauseBeforeRetry(error)),
      policy,
      clock,
      request.patience.signal,
    );
  }

  #pauseBeforeRetry(error: unknown): Milliseconds | undefined {
    if (!(error instanceof RemoteError) || !this.up) return undefined;
    const seconds = error.retryAfterSeconds ?? 0;
    if (seconds > SHORT_RETRY_AFTER_SECONDS) return undefined;
    if (error.fault === "rateLimited" && error.retryAfterSeconds === undefined) return undefined;
    return REPEATED.has(error.fault) || error.fault === "rateLimited" ? seconds * 1000 : undefined;
  }

  async #try(dispatcher: Dispatcher, request: HostRequest): Promise<HostAnswer> {
    await this.#takeTurn(request.patience.signal);
    this.#refuseWhilePaused(request.kind);
    const pass = this.#enter();
    const { kind, method, take, answerWithinMs, ...sent } = request;
    const { observe, pace, progressMs } = this.#limits;
    const firstByteMs = answerWithinMs ?? this.#limits.firstByteMs;
    const startedMs = performance.now();
    const seconds = (): number => (performance.now() - startedMs) / 1000;
    let answer: Answer;
    try {
      const received = (bytes: number): void => observe.received(bytes);
      answer = await exchange(dispatcher, { ...sent, method, pace, firstByteMs, progressMs, received });
    } catch (error) {
      if (error instanceof RemoteError) observe.request(kind, method, "error", seconds());
      this.#settle(pass, error);
      throw error;
    }
    observe.request(kind, method, answer.status, seconds());
    this.#readRateLimit(answer.headers);
    const ok = answer.status >= 200 && answer.status < 300;
    if (ok && take === "stream") {
      this.#settle(pass, undefined);
      return { status: answer.status, headers: answer.headers, bytes: Buffer.alloc(0), body: answer.body };
    }
    const fault = faultOf(answer.status);
    if (fault === undefined) this.#settle(pass, undefined);
    const bytes = ok ? await answer.body.readAll(take as number) : await readSome(answer);
    if (fault === undefined) return { status: answer.status, headers: answer.headers, bytes, body: undefined };
    const error = this.#errorOf(fault, kind, answer, bytes);
    this.#settle(pass, error);
    throw error;
  }

  async #takeTurn(signal: AbortSignal | undefined): Promise<void> {
    const { turns, clock } = this.#limits;
    const waitMs = turns?.take() ?? 0;
    if (waitMs > 0) await clock.sleep(waitMs, signal);
  }

  #enter(): Pass {
    const pass = this.#breaker.enter();
    if (typeof pass !== "number") return pass;
    const retryAfterSeconds = Math.ceil(pass / 1000);
    const cause = this.#breaker.cause;
    throw new RemoteError(
      "circuitOpen",
      this.name,
      `failed repeatedly and is not asked for another ${retryAfterSeconds} s; the last time: ${cause?.message}`,
      { cause, retryAfterSeconds },
    );
  }

  #settle(pass: Pass, outcome: unknown): void {
    const { log } = this.#limits;
    if (outcome === undefined || (outcome instanceof RemoteError && outcome.fault === "rateLimited")) {
      if (this.#breaker.succeeded()) log.info({ endpoint: this.name }, "remote host answers again");
    } else if (outcome instanceof RemoteError && COUNTED.has(outcome.fault)) {
      if (this.#breaker.failed(pass, outcome)) {
        log.warn({ endpoint: this.name, cause: outcome.message }, "remote host failed repeatedly and rests");
      }
    } else {
      this.#breaker.abandoned(pass);
    }
  }

  #refuseWhilePaused(kind: RemoteKind): void {
    const untilMs = this.#pauseOf(kind);
    if (untilMs === undefined) return;
    const retryAfterSeconds = Math.ceil((untilMs - this.#limits.clock.now()) / 1000);
    throw new RemoteError(
      "rateLimited",
      this.name,
      `limits the rate of requests (429) and asked to be left alone for another ${retryAfterSeconds} s`,
      { status: 429, retryAfterSeconds },
    );
  }

  #pauseOf(kind: RemoteKind): Milliseconds | undefined {
    const untilMs = this.#pausedUntilMs.get(kind);
    if (untilMs === undefined) return undefined;
    const leftMs = untilMs - this.#limits.clock.now();
    // More is left than was ever set: the wall clock went back.
    return leftMs > 0 && leftMs <= MAX_PAUSE_MS ? untilMs : undefined;
  }

  #errorOf(fault: RemoteFault, kind: RemoteKind, { status, headers }: Answer, bytes: Buffer): RemoteError {
    const { clock } = this.#limits;
    const retryAfterSeconds = readRetryAfter(headerOf(headers, "retry-after"), clock.now());
    const code = errorCodeOf(bytes);
    const options = { status, retryAfterSeconds };
    if (fault !== "rateLimited") {
      return new RemoteError(fault, this.name, `answered ${status}${code}: its own log knows why`, options);
    }
    if (retryAfterSeconds !== undefined && retryAfterSeconds > SHORT_RETRY_AFTER_SECONDS) {
      this.#pausedUntilMs.set(kind, clock.now() + Math.min(MAX_PAUSE_MS, retryAfterSeconds * 1000));
    }
    const when = retryAfterSeconds === undefined ? "later" : `in ${retryAfterSeconds} s`;
    return new RemoteError(
      fault,
      this.name,
      `limits the rate of requests (429${code}): ask again ${when}, or configure credentials with a higher limit`,
      options,
    );
  }

  #readRateLimit(headers: AnswerHeaders): void {
    const limit = readQuota(headerOf(headers, "ratelimit-limit"));
    const remaining = readQuota(headerOf(headers, "ratelimit-remaining"));
    if (limit === undefined || remaining === undefined) return;
    const windowSeconds = limit.windowSeconds ?? remaining.windowSeconds;
    this.#rateLimit = { limit: limit.count, remaining: remaining.count, windowSeconds, at: this.#limits.clock.now() };
  }
}

/** Undefined for an answer that the caller judges. */
function faultOf(status: number): RemoteFault | undefined {
  if (status === 429) return "rateLimited";
  if (status === 408) return "timeout";
  // 501, 505 and 507 (no room left) are said for good, not in a bad moment.
  return status >= 500 && ![501, 505, 507].includes(status) ? "server" : undefined;
}

/** The body of an error or a redirect, so that its connection can be used again; a long one is cut off. */
async function readSome({ body }: Answer): Promise<Buffer> {
  try {
    return await body.readAll(MAX_ERROR_BYTES);
  } catch {
    return Buffer.alloc(0);
  }
}

/** The length of a body by its header, bytes. */
export function readLength(headers: AnswerHeaders): number | undefined {
  const text = headerOf(headers, "content-length");
  return text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : undefined;
}

/** Reads `100;w=21600`. */
function readQuota(text: string | undefined): { count: number; windowSeconds: number | undefined } | undefined {
  const match = /^\s*(\d{1,12})(?:\s*;\s*w=(\d{1,12}))?/.exec(text ?? "");
  if (!match) return undefined;
  return { count: Number(match[1]), windowSeconds: match[2] === undefined ? undefined : Number(match[2]) };
}

/** Seconds from now, whole and not negative; undefined for what is neither a number nor a date. Source: RFC 9110 §10.2.3 */
export function readRetryAfter(text: string | undefined, nowMs: Milliseconds): number | undefined {
  if (text === undefined) return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  const atMs = Date.parse(text);
  return Number.isNaN(atMs) ? undefined : Math.max(0, Math.ceil((atMs - nowMs) / 1000));
}

/** The code of an OCI error body, as in ` DENIED`; its message is left out, for it may say anything. */
export function errorCodeOf(bytes: Buffer): string {
  try {
    const code: unknown = JSON.parse(bytes.toString())?.errors?.[0]?.code;
    return typeof code === "string" && /^[A-Z_]{1,40}$/.test(code) ? ` ${code}` : "";
  } catch {
    return "";
  }
}
