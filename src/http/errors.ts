import type { ServerResponse } from "node:http";
import { RegistryError } from "../oci/errors.ts";

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
  const registry = path.startsWith("/v2");
  const body = Buffer.from(
    JSON.stringify(
      registry
        ? error
        : {
            type: `urn:entrepot:error:${error.code.toLowerCase()}`,
            title: error.code,
            status: error.status,
            detail: error.message,
          },
    ),
  );
  const headers: Record<string, string | number> = {
    "content-type": registry ? "application/json" : "application/problem+json",
    "content-length": body.length,
    "x-content-type-options": "nosniff",
  };
  if (registry) headers["docker-distribution-api-version"] = "registry/2.0";
  // Source: RFC 9110 §15.5.6: a 405 names what is allowed.
  if (error.status === 405) headers["allow"] = "GET, HEAD";
  if (error.retryAfterSeconds !== undefined) headers["retry-after"] = Math.ceil(error.retryAfterSeconds);
  response.writeHead(error.status, headers);
  response.end(method === "HEAD" ? undefined : body);
}
