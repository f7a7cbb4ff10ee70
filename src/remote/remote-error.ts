/**
 * What went wrong between Entrepot and another registry.
 * - unreachable: no connection, or it broke before the answer's head; timeout: the deadline for connect, first byte or progress passed
 * - interrupted: the connection broke within a body
 * - circuitOpen: not asked, because it failed too often just now; rateLimited: 429, or not asked because of an earlier one
 * - unauthorized: 401 although credentials were tried, or none are configured; denied: 403
 * - server: 5xx; protocol: an answer that no registry may give (a lying length, broken JSON, too many bytes, a bad redirect)
 * - refused: Entrepot itself does not dial there (a private address, a foreign token realm)
 */
export type RemoteFault =
  | "unreachable"
  | "timeout"
  | "interrupted"
  | "circuitOpen"
  | "rateLimited"
  | "unauthorized"
  | "denied"
  | "server"
  | "protocol"
  | "refused";

export interface RemoteErrorOptions {
  cause?: unknown;
  status?: number | undefined;
  retryAfterSeconds?: number | undefined;
  code?: string | undefined;
}

/** A failed request to another registry. The message names host, cause and remedy; it never holds a secret or a query string. */
export class RemoteError extends Error {
  override readonly name = "RemoteError";
  readonly fault: RemoteFault;
  /** The host (with its port, unless that is the scheme's own) that the fault is about: the registry, its token realm, a redirect's target. */
  readonly endpoint: string;
  /** The HTTP status, where there was an answer. */
  readonly status: number | undefined;
  readonly retryAfterSeconds: number | undefined;
  /** The code in the body of an OCI error, where there was one: `MANIFEST_BLOB_UNKNOWN`. */
  readonly code: string | undefined;

  /** @param predicate goes on after the host's name: `cannot be reached` */
  constructor(fault: RemoteFault, endpoint: string, predicate: string, options: RemoteErrorOptions = {}) {
    super(`${endpoint} ${predicate}`, { cause: options.cause });
    this.fault = fault;
    this.endpoint = endpoint;
    this.status = options.status;
    this.retryAfterSeconds = options.retryAfterSeconds;
    this.code = options.code;
  }

  /** Whether another endpoint or a stale copy may answer instead. Not so where the registry has said no to whom it asked. */
  get othersMayAnswer(): boolean {
    return this.fault !== "unauthorized" && this.fault !== "denied";
  }
}
