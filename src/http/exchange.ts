import type { IncomingMessage, ServerResponse } from "node:http";

/** What the log line of a request says beside what HTTP tells. */
export interface Facts {
  handler?: string;
  /** How a pull was answered; `mounted` where a push needed no bytes. */
  result?: string;
  /** Of the answer's body, or of a body that was pushed: as many as came. */
  bytes?: number;
  upstream?: string | undefined;
  /** What was pushed: the path names an upload or a tag. */
  digest?: string;
}

/** A request under `/v2/` and its answer. */
export interface Exchange {
  request: IncomingMessage;
  response: ServerResponse;
  method: string;
  path: string;
  query: URLSearchParams;
  /** The client's address, or that which a trusted proxy tells. */
  client(): string;
  /** What the log line and the metrics say of it. */
  note(facts: Facts): void;
}

export const API_VERSION = {
  "docker-distribution-api-version": "registry/2.0",
  "x-content-type-options": "nosniff",
} as const;
