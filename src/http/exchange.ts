import type { IncomingMessage, ServerResponse } from "node:http";

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
  note(facts: { handler?: string; result?: string; bytes?: number; upstream?: string | undefined }): void;
}

export const API_VERSION = {
  "docker-distribution-api-version": "registry/2.0",
  "x-content-type-options": "nosniff",
} as const;
