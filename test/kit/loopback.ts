import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";

/** A request as the wire saw it, updated while it is answered. Times are those of `performance.now()`. */
export interface LoggedRequest {
  readonly method: string;
  /** Without the query, percent-encoding kept. */
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: IncomingHttpHeaders;
  readonly atMs: number;
  /** Undefined until the headers are sent. */
  status: number | undefined;
  firstByteAtMs: number | undefined;
  /** Bytes of the body that the system has taken, in steps of one write (at most 256 KiB). */
  bytesSent: number;
  /** "cut": the connection ended before the answer did, whoever ended it. */
  state: "open" | "complete" | "cut";
}

const WAIT_MS = 20_000;

/** A server on 127.0.0.1 that logs each request. A test that forgets to dispose of it does not end. */
export abstract class LoopbackServer implements AsyncDisposable {
  #port = 0;
  #requests: LoggedRequest[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #running = new Set<Promise<void>>();
  readonly #waiting = new Set<() => void>();
  readonly #server = createServer({ keepAliveTimeout: 0 }, (request, response) => {
    const work = this.#serve(request, response).finally(() => this.#running.delete(work));
    this.#running.add(work);
  });

  constructor() {
    this.#server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => {
        this.#sockets.delete(socket);
        this.changed();
      });
      this.changed();
    });
  }

  get port(): number {
    return this.#port;
  }

  /** As in `http://127.0.0.1:40123`, without a slash at the end. */
  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** In the order in which they came. */
  get requests(): readonly LoggedRequest[] {
    return this.#requests;
  }

  /** How many are open now. */
  get connections(): number {
    return this.#sockets.size;
  }

  /** How many requests came, of that method and with `part` (a digest, a tag's path) in their path. */
  hits(method?: string, part = ""): number {
    return this.#select(method, part).length;
  }

  /** How many bytes of bodies went out for requests with `part` in their path. */
  bytesSent(part = ""): number {
    return this.#select(undefined, part).reduce((total, request) => total + request.bytesSent, 0);
  }

  /** Forgets the log. Requests still under way are counted no more. */
  resetCounters(): void {
    this.#requests = [];
  }

  /**
   * Waits for a condition on the log or the connections, checked after each event of a request or a connection.
   * @throws Error with the log, after 20 seconds
   */
  async waitFor(condition: () => boolean): Promise<void> {
    if (condition()) return;
    await new Promise<void>((resolve, reject) => {
      const end = (): void => {
        this.#waiting.delete(check);
        clearTimeout(timer);
      };
      const timer = setTimeout(() => {
        end();
        const log = this.#requests.map(
          (one) => `${one.method} ${one.path} ${one.status} ${one.bytesSent} bytes, ${one.state}`,
        );
        reject(new Error(`waited ${WAIT_MS} ms in vain for ${condition.toString()}; requests:\n${log.join("\n")}`));
      }, WAIT_MS);
      const check = (): void => {
        try {
          if (!condition()) return;
          end();
          resolve();
        } catch (error) {
          end();
          reject(error);
        }
      };
      this.#waiting.add(check);
    });
  }

  /** Listens, on the port of before if there was one. */
  async start(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(this.#port, "127.0.0.1", () => {
        this.#server.off("error", reject);
        this.#port = (this.#server.address() as AddressInfo).port;
        resolve();
      });
    });
  }

  /** Cuts all connections; the port refuses from then on. */
  async stop(): Promise<void> {
    if (!this.#server.listening) return;
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      for (const socket of this.#sockets) socket.destroy();
    });
    await Promise.all(this.#running);
  }

  async restart(): Promise<void> {
    await this.stop();
    await this.start();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  /** Answers one request. The signal fires when the answer is over or its connection gone. */
  protected abstract answer(logged: LoggedRequest, response: ServerResponse, signal: AbortSignal): Promise<void>;

  /** To be called whenever a condition may have come true. */
  protected changed(): void {
    for (const check of this.#waiting) check();
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    request.resume();
    const [path = "", query] = (request.url ?? "").split(/\?(.*)/s);
    const logged: LoggedRequest = {
      method: request.method ?? "",
      path,
      query: new URLSearchParams(query),
      headers: request.headers,
      atMs: performance.now(),
      status: undefined,
      firstByteAtMs: undefined,
      bytesSent: 0,
      state: "open",
    };
    this.#requests.push(logged);
    const gone = new AbortController();
    response.on("close", () => {
      logged.state = response.writableFinished ? "complete" : "cut";
      gone.abort();
      this.changed();
    });
    this.changed();
    try {
      await this.answer(logged, response, gone.signal);
    } catch (error) {
      if (gone.signal.aborted) return;
      if (response.headersSent) response.destroy();
      else response.writeHead(500).end(`fault of the test kit: ${String(error)}`);
    }
  }

  #select(method: string | undefined, part: string): LoggedRequest[] {
    return this.#requests.filter((one) => (method === undefined || one.method === method) && one.path.includes(part));
  }
}
