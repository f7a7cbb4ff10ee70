import type { IncomingMessage, ServerResponse } from "node:http";
import { ClientGone, guardEnd, paced, sendTexts, type ProgressRule } from "../send.ts";
import { tagsOf } from "./etag.ts";
import type { Reply } from "./operation.ts";
import { EVENT_STREAM, serverSentTexts } from "./server-sent.ts";

/**
 * Sends what an operation answers, in its form: JSON, texts one after the other, server-sent events, or one JSON object a line.
 * @param gone ends when the client has left
 * @throws what the work throws; before its first byte is sent, that can still be answered as a problem
 */
export async function sendReply(
  request: IncomingMessage,
  response: ServerResponse,
  reply: Reply,
  gone: AbortSignal,
  progress: ProgressRule,
): Promise<void> {
  if ("events" in reply) return tellEvents(response, reply.events, gone, progress);
  if ("texts" in reply) return answerTexts(request, response, reply, progress);
  if ("serverSent" in reply) return answerServerSent(request, response, reply, progress);
  write(request, response, reply);
  guardEnd(response, progress);
}

function write(
  request: IncomingMessage,
  response: ServerResponse,
  reply: Exclude<Reply, { events: unknown } | { texts: unknown } | { serverSent: unknown }>,
): void {
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

/** What the texts throw before the first of them is answered as a problem. */
async function answerTexts(
  request: IncomingMessage,
  response: ServerResponse,
  { status, contentType, fileName, texts }: Extract<Reply, { texts: unknown }>,
  progress: ProgressRule,
): Promise<void> {
  const begin = (): void => {
    response.writeHead(status, {
      "content-type": contentType,
      "content-disposition": `attachment; filename="${fileName}"`,
      "cache-control": "no-store",
      "x-content-type-options": "nosniff",
    });
  };
  if (request.method !== "HEAD") await sendTexts(response, begin, texts, progress);
  if (!response.headersSent) begin();
  response.end();
}

async function answerServerSent(
  request: IncomingMessage,
  response: ServerResponse,
  { status, serverSent }: Extract<Reply, { serverSent: unknown }>,
  progress: ProgressRule,
): Promise<void> {
  const begin = (): void => {
    response.writeHead(status, {
      "content-type": EVENT_STREAM,
      "cache-control": "no-store",
      "x-content-type-options": "nosniff",
      // Source: nginx, ngx_http_proxy_module: else it keeps events back until it has a buffer full of them.
      "x-accel-buffering": "no",
    });
  };
  if (request.method === "HEAD") begin();
  else await sendTexts(response, begin, serverSentTexts(serverSent), progress);
  response.end();
}

/**
 * Answers with what the work tells, one JSON object a line.
 * @param work is told by the signal that the client has left, also one that takes nothing: it is cut; what it throws before its first event is answered as a problem
 */
async function tellEvents(
  response: ServerResponse,
  work: Extract<Reply, { events: unknown }>["events"],
  gone: AbortSignal,
  progress: ProgressRule,
): Promise<void> {
  const hand = paced(response, progress);
  const begin = (): void => {
    response.writeHead(200, { "content-type": "application/x-ndjson", "x-content-type-options": "nosniff" });
  };
  const working = work(async (event) => {
    if (response.destroyed) return;
    if (!response.headersSent) begin();
    await hand(Buffer.from(`${JSON.stringify(event)}\n`));
  }, gone);
  if (!response.headersSent) begin();
  await working;
  if (gone.aborted) throw new ClientGone("the client closed the connection");
  response.end();
}
