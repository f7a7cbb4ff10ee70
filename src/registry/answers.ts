import type { CacheResult } from "../base/metrics.ts";
import type { Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import type { Origin } from "../oci/origin.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { BlobReader } from "../store/blobs.ts";
import { DigestMismatch, NotAtSource } from "../transfer/source.ts";

/** A manifest as it is answered. */
export interface ManifestAnswer {
  digest: Digest;
  mediaType: string;
  sizeBytes: number | undefined;
  /** Absent where only the head was asked for. */
  bytes: Buffer | undefined;
  /** Of a tag of a hosted repository: the push that has brought it here. */
  origin?: Origin | undefined;
  /** Text of a `Warning: 299` header: the answer may be out of date. */
  warning: string | undefined;
  /** undefined for hosted repositories */
  upstream: string | undefined;
  result: CacheResult;
}

/** A blob as it is answered; the one who gets it closes its reader. */
export interface BlobAnswer {
  digest: Digest;
  /** Undefined where upstream tells no length. */
  sizeBytes: number | undefined;
  /** Bytes in memory, or a reader, or nothing where only the head was asked for. */
  content: Buffer | BlobReader | undefined;
  upstream: string | undefined;
  result: CacheResult;
}

export interface ListAnswer<T> {
  items: T[];
  /** Whether more follow after the last one. */
  more?: boolean;
  warning: string | undefined;
  upstream: string | undefined;
  result: CacheResult;
}

/** The text of a `Warning` header. */
export function staleWarning(reason: string): string {
  return `served from the cache, which may be out of date: ${reason}`;
}

/** What a client is told when an upstream could not be asked, or what it sent was not to be used. */
export function toRegistryError(error: unknown, upstream: string, what: string): unknown {
  const detail = { upstream };
  if (error instanceof RemoteError) {
    const message = `${what} could not be fetched from ${upstream}: ${error.message}`;
    switch (error.fault) {
      case "rateLimited":
        return new RegistryError("TOOMANYREQUESTS", message, {
          cause: error,
          detail,
          ...(error.retryAfterSeconds === undefined ? {} : { retryAfterSeconds: error.retryAfterSeconds }),
        });
      case "unauthorized":
      case "denied":
        return new RegistryError("DENIED", message, { cause: error, detail });
      case "timeout":
        return new RegistryError("UNAVAILABLE", message, { cause: error, detail, status: 504 });
      default:
        return new RegistryError("UNAVAILABLE", message, { cause: error, detail, status: 502 });
    }
  }
  if (error instanceof NotAtSource)
    return new RegistryError("BLOB_UNKNOWN", `${what} is not at ${upstream}`, { cause: error, detail });
  if (error instanceof DigestMismatch) {
    return new RegistryError("UNAVAILABLE", `${what} was refused: ${error.message}`, {
      cause: error,
      detail,
      status: 502,
    });
  }
  return error;
}
