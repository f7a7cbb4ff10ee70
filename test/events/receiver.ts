import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { until } from "../kit/registry.ts";

/** A request that came whole. */
export interface Received {
  headers: IncomingHttpHeaders;
  body: string;
  atMs: number;
}

export type Answering = (response: ServerResponse, received: Received, count: number) => void;

/** Somebody's server that takes webhooks; a real one, whose answers a test decides. */
export interface Receiver extends AsyncDisposable {
  readonly url: string;
  readonly received: Received[];
  /** What every request gets from now on. @param count 1 is the first request of all */
  answer(with_: Answering): void;
  /** The events in the requests that were answered 2xx, in the order in which they came. */
  readonly taken: Record<string, unknown>[];
  /** How many connections were opened so far. */
  readonly connections: number;
  /** Resolves once so many requests came. */
  arrived(count: number): Promise<void>;
  /** Resolves once so many events were taken. */
  took(count: number): Promise<void>;
  /** Cuts all connections; the port refuses. */
  stop(): Promise<void>;
  /** Listens again on the port of before. */
  start(): Promise<void>;
}

export const ok: Answering = (response) => void response.writeHead(204).end();

export function status(code: number, headers: Record<string, string> = {}, body = ""): Answering {
  return (response) => void response.writeHead(code, headers).end(body);
}

export async function startReceiver(answering: Answering = ok): Promise<Receiver> {
  let answer = answering;
  const received: Received[] = [];
  const taken: Record<string, unknown>[] = [];
  const server = createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8").on("data", (text: string) => (body += text));
    request.on("end", () => {
      const one = { headers: request.headers, body, atMs: performance.now() };
      received.push(one);
      answer(response, one, received.length);
      if (response.statusCode < 300 && response.headersSent) taken.push(...eventsIn(body));
    });
    request.on("error", () => undefined);
  });
  let connections = 0;
  server.on("connection", () => void connections++);
  let port = 0;
  const start = async (): Promise<void> => {
    await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
    ({ port } = server.address() as AddressInfo);
  };
  const stop = async (): Promise<void> => {
    if (!server.listening) return;
    await new Promise<void>((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
  };
  await start();
  return {
    url: `http://127.0.0.1:${port}/hook`,
    received,
    taken,
    get connections() {
      return connections;
    },
    answer: (with_) => (answer = with_),
    arrived: (count) => until(() => received.length >= count, `${count} requests came`),
    took: (count) => until(() => taken.length >= count, `${count} events were taken`),
    start,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

function eventsIn(body: string): Record<string, unknown>[] {
  const parsed = JSON.parse(body) as { events: Record<string, unknown>[] } | Record<string, unknown>[];
  return Array.isArray(parsed) ? parsed : parsed.events;
}

/** As docs/operations.md tells a receiver to. */
export function isSigned({ headers, body }: Received, secret: string): boolean {
  const timestamp = String(headers["x-entrepot-timestamp"]);
  const expected = `sha256=${createHmac("sha256", secret).update(`${timestamp}.${body}`).digest("hex")}`;
  const given = String(headers["x-entrepot-signature-256"]);
  const fresh = Math.abs(Date.now() / 1000 - Number(timestamp)) < 300;
  return fresh && given.length === expected.length && timingSafeEqual(Buffer.from(given), Buffer.from(expected));
}
