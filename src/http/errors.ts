import type { ServerResponse } from "node:http";
import { RegistryError } from "../oci/errors.ts";
import { writeProblem } from "./api/problem.ts";
import { API_VERSION } from "./exchange.ts";

/** An error as the client sees it: what is not meant for it becomes an opaque 500 with the request's id. */
export function toClientError(error: unknown, requestId: string): RegistryError {
  if (error instanceof RegistryError) return error;
  return new RegistryError("UNKNOWN", `internal error; the log has the cause under request id ${requestId}`, {
    cause: error,
  });
}

/** Writes an error: OCI's shape under `/v2/`, problem+json (RFC 9457) elsewhere. Once a head is out, only the connection can tell. */
export function writeError(response: ServerResponse, path: string, method: string, error: RegistryError): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  if (!path.startsWith("/v2")) {
    writeProblem(response, method, error);
    return;
  }
  const body = Buffer.from(JSON.stringify(error));
  const headers: Record<string, string | number> = {
    ...API_VERSION,
    "content-type": "application/json",
    "content-length": body.length,
  };
  // Source: RFC 9110 §15.5.6: a 405 names what is allowed.
  if (error.status === 405) headers["allow"] = "GET, HEAD";
  if (error.retryAfterSeconds !== undefined) headers["retry-after"] = Math.ceil(error.retryAfterSeconds);
  response.writeHead(error.status, headers);
  response.end(method === "HEAD" ? undefined : body);
}
