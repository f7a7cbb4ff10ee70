/**
 * The one table of error codes: code → HTTP status and meaning.
 * Source: OCI distribution-spec, "Error Codes" (code-1 to code-14); UNAVAILABLE and UNKNOWN are
 * what docker's and containerd's error parsers know for faults that are not the client's; TAG_NEWER is Entrepot's own, for copies.
 */
const TABLE = {
  BLOB_UNKNOWN: 404,
  BLOB_UPLOAD_INVALID: 400,
  BLOB_UPLOAD_UNKNOWN: 404,
  DIGEST_INVALID: 400,
  MANIFEST_BLOB_UNKNOWN: 404,
  MANIFEST_INVALID: 400,
  MANIFEST_UNKNOWN: 404,
  NAME_INVALID: 400,
  NAME_UNKNOWN: 404,
  SIZE_INVALID: 400,
  TAG_NEWER: 409,
  UNAUTHORIZED: 401,
  DENIED: 403,
  UNSUPPORTED: 405,
  TOOMANYREQUESTS: 429,
  UNAVAILABLE: 503,
  UNKNOWN: 500,
} as const;

export type ErrorCode = keyof typeof TABLE;

export interface RegistryErrorOptions {
  cause?: unknown;
  /** Facts for a program: digests, sizes, the upstream's name. Never a secret. */
  detail?: Record<string, unknown>;
  /** Overrides the table's status, as 502 and 504 do for UNAVAILABLE. */
  status?: number;
  /** Sent as `Retry-After`. */
  retryAfterSeconds?: number;
  /** More of the same, told in the same answer. */
  others?: readonly RegistryError[];
}

/** An error that a client is told as it is: `message` names the cause and, where there is one, the remedy. */
export class RegistryError extends Error {
  override readonly name = "RegistryError";
  readonly code: ErrorCode;
  readonly status: number;
  readonly detail: Record<string, unknown> | undefined;
  readonly retryAfterSeconds: number | undefined;
  readonly #others: readonly RegistryError[];

  constructor(code: ErrorCode, message: string, options: RegistryErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.code = code;
    this.status = options.status ?? TABLE[code];
    this.detail = options.detail;
    this.retryAfterSeconds = options.retryAfterSeconds;
    this.#others = options.others ?? [];
  }

  /** The body of an answer under `/v2/`. */
  toJSON(): { errors: { code: ErrorCode; message: string; detail?: Record<string, unknown> }[] } {
    return {
      errors: [this, ...this.#others].map(({ code, message, detail }) => ({
        code,
        message,
        ...(detail ? { detail } : {}),
      })),
    };
  }
}
