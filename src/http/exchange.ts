import type { IncomingMessage, ServerResponse } from "node:http";
import type Koa from "koa";
import type { Caller } from "../access/principal.ts";
import type { Requester } from "../events/event.ts";

/** What the log line of a request says beside what HTTP tells. */
export interface Facts {
  handler?: string;
  /** Whoever logged in to send it. */
  actor?: string | undefined;
  /** How a pull was answered; `mounted` where a push needed no bytes. */
  result?: string;
  /** Of the answer's body, or of a body that was pushed: as many as came. */
  bytes?: number;
  upstream?: string | undefined;
  /** What was pushed: the path names an upload or a tag. */
  digest?: string;
}

/** What the server gives to every route, under `/v2/` or not. */
export interface RequestState {
  /** Looks up who sends it, anew each time. @throws RegistryError UNAUTHORIZED, TOOMANYREQUESTS, DENIED */
  authenticate: () => Promise<Caller>;
  /** Who sends it, for the record of what happens; with its name once it has been looked up. */
  requester: () => Requester;
  /** What the log line and the metrics say of it. */
  note: (facts: Facts) => void;
}

export function stateOf(ctx: Koa.Context): RequestState {
  return ctx.state;
}

/** A request under `/v2/` and its answer. */
export interface Exchange extends RequestState {
  request: IncomingMessage;
  response: ServerResponse;
  method: string;
  path: string;
  query: URLSearchParams;
  /** Who sends it, as rights are decided. */
  caller: Caller;
}

export const API_VERSION = {
  "docker-distribution-api-version": "registry/2.0",
  "x-content-type-options": "nosniff",
} as const;

/** A text as the value of a `Warning` header. Source: OCI distribution-spec, "Warnings": code 299, agent -, no date, at most 4096 bytes */
export function warningValue(text: string): string {
  return `299 - "${text
    .replaceAll(/[^\x20-\x7e]/g, " ")
    .replaceAll(/["\\]/g, "'")
    .slice(0, 1000)}"`;
}
