/**
 * What goes wrong under /api, as problem+json. Source: RFC 9457.
 * `type` is stable, relative and one of {@link PROBLEMS}: a program decides by it, a person reads `detail`.
 */
import type { ServerResponse } from "node:http";
import { RegistryError, type ErrorCode, type RegistryErrorOptions } from "../../oci/errors.ts";

/** Every kind of problem: its status, what it is called, and the code of the log line. */
export const PROBLEMS = {
  "invalid-input": [400, "The input is not what this operation takes", "UNSUPPORTED"],
  "malformed-request": [400, "The request can't be read", "UNSUPPORTED"],
  unauthorized: [401, "Say who you are", "UNAUTHORIZED"],
  forbidden: [403, "That is not allowed", "DENIED"],
  "not-found": [404, "There is nothing here", "UNKNOWN"],
  "method-not-allowed": [405, "The method is not supported here", "UNSUPPORTED"],
  conflict: [409, "The state of things does not allow it", "DENIED"],
  "precondition-failed": [412, "It has changed meanwhile", "UNSUPPORTED"],
  "too-large": [413, "The body is too large", "SIZE_INVALID"],
  "unsupported-media-type": [415, "The body is not application/json", "UNSUPPORTED"],
  "too-many-requests": [429, "There were too many requests: wait as Retry-After says", "TOOMANYREQUESTS"],
  internal: [500, "Something failed here", "UNKNOWN"],
  "upstream-failed": [502, "The upstream did not answer as it should", "UNAVAILABLE"],
  unavailable: [503, "It can't be done at the moment", "UNAVAILABLE"],
  "upstream-late": [504, "The upstream did not answer in time", "UNAVAILABLE"],
  "storage-full": [507, "There is no room left", "UNAVAILABLE"],
} as const satisfies Record<string, readonly [status: number, title: string, code: ErrorCode]>;

export type ProblemKind = keyof typeof PROBLEMS;

/** One fault of the input. */
export interface InputFault {
  in: "path" | "query" | "body" | "header";
  /** The parameter's name, or the path to the value in the body, joined by dots; empty for the body itself. */
  at: string;
  message: string;
}

export interface ProblemOptions extends Pick<RegistryErrorOptions, "cause" | "retryAfterSeconds"> {
  errors?: readonly InputFault[];
  /** The methods of a 405. */
  allow?: readonly string[];
}

/** An error that a client of the API is told as it is; `detail` names the cause and, where there is one, the remedy. */
export class Problem extends RegistryError {
  readonly kind: ProblemKind;
  readonly errors: readonly InputFault[] | undefined;
  readonly allow: readonly string[] | undefined;

  constructor(kind: ProblemKind, detail: string, { errors, allow, ...options }: ProblemOptions = {}) {
    const [status, , code] = PROBLEMS[kind];
    super(code, detail, { ...options, status });
    this.kind = kind;
    this.errors = errors;
    this.allow = allow;
  }
}

const KIND_BY_STATUS = new Map<number, ProblemKind>(
  // The first of a status stands for it.
  Object.entries(PROBLEMS)
    .toReversed()
    .map(([kind, [status]]) => [status, kind as ProblemKind]),
);

function kindOf(error: RegistryError): ProblemKind {
  if (error instanceof Problem) return error.kind;
  // The method is one that the API has: what a layer below calls unsupported, it refuses for the state of things.
  if (error.status === 405) return "conflict";
  return KIND_BY_STATUS.get(error.status) ?? "internal";
}

/** Writes an error of any layer as a problem. The head must not be out yet. */
export function writeProblem(response: ServerResponse, method: string, error: RegistryError): void {
  const kind = kindOf(error);
  const [status, title] = PROBLEMS[kind];
  const allow = error instanceof Problem ? error.allow : undefined;
  const body = Buffer.from(
    JSON.stringify({
      type: `/problems/${kind}`,
      title,
      status,
      detail: error.message,
      instance: response.getHeader("x-request-id"),
      ...(error instanceof Problem && error.errors ? { errors: error.errors } : {}),
    }),
  );
  const headers: Record<string, string | number> = {
    "content-type": "application/problem+json",
    "content-length": body.length,
    "x-content-type-options": "nosniff",
  };
  // Source: RFC 9110 §15.5.6: a 405 names what is allowed.
  if (status === 405) headers["allow"] = (allow ?? ["GET", "HEAD"]).join(", ");
  if (error.retryAfterSeconds !== undefined) headers["retry-after"] = Math.ceil(error.retryAfterSeconds);
  response.writeHead(status, headers);
  response.end(method === "HEAD" ? undefined : body);
}
