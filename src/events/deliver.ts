/**
 * One POST to one endpoint. Where it may go is checked by the guard of addresses, at the connect itself; redirects are not followed; the
 * whole exchange has one deadline. It is delivered as soon as the head of a 2xx answer has come.
 */
import { createHmac } from "node:crypto";
import type { Readable } from "node:stream";
import { Agent, errors, request } from "undici";
import type { Bytes, Clock, Milliseconds } from "../base/clock.ts";
import { VERSION } from "../base/version.ts";
import type { WebhookConfig } from "../config/schema.ts";
import { headerOf, type AnswerHeaders } from "../remote/exchange.ts";
import { Guard } from "../remote/guard.ts";
import { readRetryAfter } from "../remote/host.ts";
import { RemoteError } from "../remote/remote-error.ts";

export interface Delivery {
  /** The same for every try. */
  id: string;
  contentType: string;
  body: string;
}

/** The endpoint did not take a delivery. The message names cause and remedy, without the secret or the query of the URL. */
export class DeliveryError extends Error {
  override readonly name = "DeliveryError";
  /** How long it asked to be left alone. */
  readonly retryAfterMs: Milliseconds | undefined;

  constructor(message: string, options: { cause?: unknown; retryAfterMs?: Milliseconds | undefined } = {}) {
    super(message, { cause: options.cause });
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** An answer says yes or no by its status; more of its body than this is not even read. */
const MAX_ANSWER_BYTES: Bytes = 64 * 1024;
/** What of it is told as the reason of a failure, in characters. */
const MAX_REASON = 200;

/**
 * The value of `X-Entrepot-Signature-256`.
 * @param timestamp that of `X-Entrepot-Timestamp`: seconds since 1970 in decimal digits
 */
export function signatureOf(secret: string, timestamp: string, body: string): string {
  return `sha256=${createHmac("sha256", secret).update(`${timestamp}.`).update(body).digest("hex")}`;
}

/** The connections to one endpoint. */
export class Receiver implements AsyncDisposable {
  readonly #config: WebhookConfig;
  readonly #url: URL;
  readonly #guard: Guard;
  readonly #clock: Clock;
  readonly #agent: Agent;

  constructor(config: WebhookConfig, clock: Clock) {
    const { url, timeout, allowPrivate } = config;
    this.#config = config;
    this.#url = new URL(url);
    this.#clock = clock;
    this.#guard = new Guard({ url, realms: [], trustedHosts: [], allowPrivate, neverMetadata: true });
    this.#agent = new Agent({
      allowH2: false,
      // One for what happens, four for what is sent again by hand, one for pings: who waits for a connection would seem to wait for an answer.
      connections: 6,
      connect: { timeout, lookup: this.#guard.lookup },
      // The deadline of the exchange counts.
      headersTimeout: 0,
      bodyTimeout: 0,
    });
  }

  /** @throws DeliveryError where it was not taken; the signal's reason */
  async post(delivery: Delivery, signal: AbortSignal, timeout: Milliseconds = this.#config.timeout): Promise<void> {
    const deadline = AbortSignal.timeout(timeout);
    try {
      this.#guard.checkUrl(this.#url);
      const answer = await request(this.#url, {
        method: "POST",
        dispatcher: this.#agent,
        headers: this.#headers(delivery),
        body: delivery.body,
        signal: AbortSignal.any([signal, deadline]),
      });
      const { statusCode: status, headers } = answer;
      const start = await startOf(answer.body);
      if (status < 200 || status > 299) throw this.#refusal(status, headers, start);
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof DeliveryError) throw error;
      if (deadline.aborted) throw new DeliveryError(`${this.#url.host} did not answer within ${timeout} ms`);
      throw new DeliveryError(this.#reasonOf(error), { cause: error });
    }
  }

  /** Cuts all connections. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agent.destroy();
  }

  #headers({ id, contentType, body }: Delivery): Record<string, string> {
    const timestamp = String(Math.floor(this.#clock.now() / 1000));
    const { secret } = this.#config;
    return {
      "content-type": contentType,
      "user-agent": `entrepot/${VERSION}`,
      "x-entrepot-delivery": id,
      "x-entrepot-timestamp": timestamp,
      ...(secret === undefined ? {} : { "x-entrepot-signature-256": signatureOf(secret, timestamp, body) }),
    };
  }

  #refusal(status: number, headers: AnswerHeaders, start: string): DeliveryError {
    const location = headerOf(headers, "location");
    if (status >= 300 && status < 400 && location !== undefined && URL.canParse(location, this.#config.url)) {
      const { origin, pathname } = new URL(location, this.#url);
      return new DeliveryError(
        `${this.#url.host} redirects (${status}) to ${origin}${pathname}: redirects are not followed, so configure where it leads`,
      );
    }
    const seconds = readRetryAfter(headerOf(headers, "retry-after"), this.#clock.now());
    return new DeliveryError(`${this.#url.host} answered ${status}${start === "" ? "" : ` (${start})`}`, {
      retryAfterMs: seconds === undefined ? undefined : seconds * 1000,
    });
  }

  #reasonOf(error: unknown): string {
    const causes = causesOf(error);
    const refused = causes.find((cause) => cause instanceof RemoteError);
    if (refused) return refused.message;
    const why = lineOf(causes.map(({ message }) => message).find((message) => message !== "") ?? String(error));
    const codes = causes.map((cause) => (cause as NodeJS.ErrnoException).code ?? "");
    if (codes.some((code) => code === "UND_ERR_CONNECT_TIMEOUT")) {
      return `${this.#url.host} cannot be reached within ${this.#config.timeout} ms`;
    }
    if (causes.some((cause) => cause instanceof errors.HTTPParserError)) {
      return `${this.#url.host} does not speak proper HTTP (${why})`;
    }
    return `${this.#url.host} cannot be reached, or broke off (${why})`;
  }
}

/** The first characters of an answer as one printable line. Closes the connection of one that goes on for too long, or breaks. */
async function startOf(body: Readable): Promise<string> {
  const pieces: Buffer[] = [];
  let sizeBytes = 0;
  try {
    for await (const piece of body as AsyncIterable<Buffer>) {
      pieces.push(piece);
      sizeBytes += piece.length;
      if (sizeBytes > MAX_ANSWER_BYTES) break;
    }
  } catch {
    // The status has said what there is to say.
  }
  return lineOf(Buffer.concat(pieces).toString("utf8", 0, MAX_REASON * 4));
}

function lineOf(text: string): string {
  const printable = text.replaceAll(/[^\p{L}\p{M}\p{N}\p{P}\p{S}]+/gu, " ");
  return printable.trim().slice(0, MAX_REASON);
}

/** The error, what it wraps, and the attempts of a connect to several addresses. */
function causesOf(error: unknown, depth = 0): Error[] {
  if (!(error instanceof Error) || depth > 5) return [];
  const attempts = error instanceof AggregateError ? error.errors : [];
  return [error, ...[...attempts, error.cause].flatMap((cause) => causesOf(cause, depth + 1))];
}
