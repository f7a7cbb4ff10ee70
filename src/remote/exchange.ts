import { Readable } from "node:stream";
import { errors, type Dispatcher } from "undici";
import type { Milliseconds } from "../base/clock.ts";
import { arrived } from "../base/garbage.ts";
import type { Pace } from "./pace.ts";
import { RemoteError } from "./remote-error.ts";

export type AnswerHeaders = Readonly<Record<string, string | string[] | undefined>>;

/** How long a caller waits. */
export interface Patience {
  /** Ends everything, the body included, with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Ends the wait for an answer's head as a timeout; a body that has begun goes on. */
  deadline?: AbortSignal | undefined;
}

export type Method = "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE";

/** What a request carries. A stream can be read once: its request is never repeated. */
export type Payload = string | Uint8Array | AsyncIterable<Uint8Array>;

/** Whether it is a stream. */
export function isStream(payload: Payload | undefined): payload is AsyncIterable<Uint8Array> {
  return typeof payload === "object" && Symbol.asyncIterator in payload;
}

export interface ExchangeOptions {
  method: Method;
  url: URL;
  headers: Record<string, string>;
  body?: Payload | undefined;
  patience: Patience;
  firstByteMs: Milliseconds;
  progressMs: Milliseconds;
  pace: Pace | undefined;
  /** Told of every piece of the body. */
  received: (bytes: number) => void;
}

export interface Answer {
  status: number;
  headers: AnswerHeaders;
  body: Body;
}

// Two to four socket reads: fewer pauses of the connection than with Node's 64 KiB.
const BUFFER_BYTES = 256 * 1024;
/** A body that brings less than this in a whole `progress` interval stands still: a byte a second must not hold a connection for ever. */
const LEAST_PROGRESS_BYTES = 1024;

/** The first value of a header. */
export function headerOf(headers: AnswerHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/**
 * Sends one request and resolves with the head of its answer.
 * @throws RemoteError unreachable, timeout, protocol, or refused from the dispatcher's lookup; the signal's reason
 */
export function exchange(dispatcher: Dispatcher, options: ExchangeOptions): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const handler = new ExchangeHandler(options, resolve, reject);
    if (handler.over) return;
    const { url, method, headers, firstByteMs } = options;
    // undici takes async iterables, too; its types do not say so.
    const body = (options.body ?? null) as Dispatcher.DispatchOptions["body"] & {};
    dispatcher.dispatch(
      {
        origin: url.origin,
        path: url.pathname + url.search,
        method,
        headers,
        body,
        headersTimeout: firstByteMs,
        bodyTimeout: 0,
        // Without this undici closes the connection after every HEAD, and each check of a tag would cost a TLS handshake.
        reset: false,
      },
      handler,
    );
  });
}

class ExchangeHandler implements Dispatcher.DispatchHandler {
  readonly #options: ExchangeOptions;
  readonly #resolve: (answer: Answer) => void;
  readonly #reject: (reason: unknown) => void;
  #controller: Dispatcher.DispatchController | undefined;
  #body: Body | undefined;
  over = false;

  constructor(options: ExchangeOptions, resolve: (answer: Answer) => void, reject: (reason: unknown) => void) {
    this.#options = options;
    this.#resolve = resolve;
    this.#reject = reject;
    const { signal, deadline } = options.patience;
    signal?.addEventListener("abort", this.#aborted);
    deadline?.addEventListener("abort", this.#late);
    if (signal?.aborted) this.#aborted();
    else if (deadline?.aborted) this.#late();
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    // Given up while it waited for a connection.
    if (this.over) controller.abort(new Error("given up"));
  }

  onResponseStart(controller: Dispatcher.DispatchController, status: number, headers: AnswerHeaders): void {
    if (status < 200 || this.over) return;
    const { signal } = this.#options.patience;
    const body = new Body(this.#options, controller);
    this.#body = body;
    this.#finish();
    if (signal) {
      const abort = (): void => void body.destroy(signal.reason as Error);
      signal.addEventListener("abort", abort);
      body.once("close", () => signal.removeEventListener("abort", abort));
    }
    this.#resolve({ status, headers, body });
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#body?.arrived(chunk) === false) controller.pause();
  }

  onResponseEnd(): void {
    this.#body?.ended();
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    const { url, firstByteMs, body } = this.#options;
    if (this.#body) this.#body.destroy(translateError(error, url.host, "interrupted"));
    else this.#fail(translateError(error, url.host, isStream(body) ? "interrupted" : "unreachable", firstByteMs));
  }

  readonly #aborted = (): void => {
    this.#fail(this.#options.patience.signal?.reason);
  };

  readonly #late = (): void => {
    this.#fail(new RemoteError("timeout", this.#options.url.host, "did not answer in time for a quick check"));
  };

  #fail(reason: unknown): void {
    if (this.over) return;
    this.#finish();
    this.#reject(reason);
    this.#controller?.abort(new Error("given up"));
  }

  #finish(): void {
    this.over = true;
    this.#options.patience.signal?.removeEventListener("abort", this.#aborted);
    this.#options.patience.deadline?.removeEventListener("abort", this.#late);
  }
}

/**
 * The bytes of an answer as they arrive, with backpressure down to the socket, within the bandwidth limit. Ends cleanly only
 * if the answer did; else fails with RemoteError interrupted, timeout or protocol. Destroying it closes the connection.
 */
export class Body extends Readable {
  readonly #options: ExchangeOptions;
  readonly #controller: Dispatcher.DispatchController;
  #complete = false;
  #missingBytes: number | undefined;
  /** Whether the reader has room. */
  #wanted = true;
  #paceTimer: NodeJS.Timeout | undefined;
  readonly #progressTimer: NodeJS.Timeout;
  #progressBytes = 0;
  /** Whether reading paused within the current progress interval: then nobody is to blame. */
  #pausedMeanwhile = false;

  constructor(options: ExchangeOptions, controller: Dispatcher.DispatchController) {
    super({ highWaterMark: BUFFER_BYTES });
    this.#options = options;
    this.#controller = controller;
    this.#progressTimer = setInterval(() => this.#checkProgress(), options.progressMs);
    // Whoever holds the body may drop it at any time: an error that nobody listens to must not end the process.
    this.on("error", () => {});
  }

  /** Makes any other length than this an error, where the answer's framing does not prove it. To be called before reading. */
  expectBytes(bytes: number): void {
    this.#missingBytes = bytes - this.readableLength;
    if (this.#missingBytes < 0) this.#destroyForLength();
    else if (this.#complete && this.#missingBytes > 0) this.destroy(this.#shortage());
  }

  /** Reads all of it. @throws RemoteError protocol beyond `maxBytes` */
  async readAll(maxBytes: number): Promise<Buffer> {
    const pieces: Buffer[] = [];
    let sizeBytes = 0;
    for await (const piece of this as AsyncIterable<Buffer>) {
      sizeBytes += piece.byteLength;
      if (sizeBytes > maxBytes) {
        throw new RemoteError(
          "protocol",
          this.#options.url.host,
          `sends more than ${maxBytes} bytes where that is the most`,
        );
      }
      pieces.push(piece);
    }
    return pieces.length === 1 && pieces[0] ? pieces[0] : Buffer.concat(pieces);
  }

  /** @returns whether to go on reading from the connection */
  arrived(piece: Buffer): boolean {
    if (this.destroyed) return false;
    arrived(piece.byteLength);
    this.#options.received(piece.byteLength);
    this.#progressBytes += piece.byteLength;
    if (this.#missingBytes !== undefined) {
      this.#missingBytes -= piece.byteLength;
      if (this.#missingBytes < 0) {
        this.#destroyForLength();
        return false;
      }
    }
    this.#wanted = this.push(piece);
    const restMs = this.#options.pace?.book(piece.byteLength) ?? 0;
    if (restMs > 0) {
      this.#paceTimer = setTimeout(() => {
        this.#paceTimer = undefined;
        if (this.#wanted) this.#controller.resume();
      }, restMs);
    }
    const goOn = this.#wanted && this.#paceTimer === undefined;
    if (!goOn) this.#pausedMeanwhile = true;
    return goOn;
  }

  /** The answer is complete. */
  ended(): void {
    this.#complete = true;
    this.#stopTimers();
    if (this.#missingBytes !== undefined && this.#missingBytes > 0) this.destroy(this.#shortage());
    else this.push(null);
  }

  override _read(): void {
    this.#wanted = true;
    if (this.#paceTimer === undefined) this.#controller.resume();
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#stopTimers();
    if (!this.#complete) this.#controller.abort(error ?? new Error("given up"));
    callback(error);
  }

  #checkProgress(): void {
    const idle = !this.#pausedMeanwhile && this.#progressBytes < LEAST_PROGRESS_BYTES;
    this.#progressBytes = 0;
    this.#pausedMeanwhile = this.#paceTimer !== undefined || !this.#wanted;
    if (!idle) return;
    const { progressMs, url } = this.#options;
    this.destroy(new RemoteError("timeout", url.host, `sent next to nothing of a body for ${progressMs} ms`));
  }

  #destroyForLength(): void {
    this.destroy(new RemoteError("protocol", this.#options.url.host, "sends more bytes than it announced"));
  }

  #shortage(): RemoteError {
    return new RemoteError("interrupted", this.#options.url.host, "ended a body before the length that it announced");
  }

  #stopTimers(): void {
    clearInterval(this.#progressTimer);
    clearTimeout(this.#paceTimer);
  }
}

function translateError(
  error: Error,
  endpoint: string,
  phase: "unreachable" | "interrupted",
  firstByteMs?: Milliseconds,
): RemoteError {
  const causes = causesOf(error);
  const own = causes.find((cause) => cause instanceof RemoteError);
  if (own) return own;
  const codes = causes.map((cause) => (cause as NodeJS.ErrnoException).code ?? "");
  const matches = (pattern: RegExp): boolean => codes.some((code) => pattern.test(code));
  const why = causes.map((cause) => cause.message).find((message) => message !== "") ?? error.name;
  if (matches(/^UND_ERR_HEADERS_TIMEOUT$/)) {
    return new RemoteError("timeout", endpoint, `did not answer within ${firstByteMs} ms`, { cause: error });
  }
  if (matches(/^(?:UND_ERR_CONNECT_TIMEOUT|ETIMEDOUT)$/)) {
    return new RemoteError("timeout", endpoint, `cannot be reached in time (${why})`, { cause: error });
  }
  // A connection that ends within a chunk is a parser's error, too; only its text tells.
  const garbled = causes.some((cause) => cause instanceof errors.HTTPParserError && !cause.message.includes("EOF"));
  if (garbled || matches(/^(?:UND_ERR_HEADERS_OVERFLOW|UND_ERR_INVALID_ARG)$/)) {
    return new RemoteError("protocol", endpoint, `does not speak proper HTTP (${why})`, { cause: error });
  }
  if (phase === "interrupted") {
    return new RemoteError("interrupted", endpoint, `broke off within a body (${why})`, { cause: error });
  }
  const remedy = matches(/^(?:CERT_|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|HOSTNAME_MISMATCH|ERR_TLS_|ERR_SSL_)/)
    ? "check its certificate, and name its authority under tls.ca"
    : "check its url, the network and the proxy";
  return new RemoteError("unreachable", endpoint, `cannot be reached (${why}): ${remedy}`, { cause: error });
}

/** The error, what it wraps, and the attempts of a connect to several addresses. */
function causesOf(error: unknown, depth = 0): Error[] {
  if (!(error instanceof Error) || depth > 5) return [];
  const attempts = error instanceof AggregateError ? error.errors : [];
  return [error, ...[...attempts, error.cause].flatMap((cause) => causesOf(cause, depth + 1))];
}
