import type { Digest } from "./digest.ts";
import { parseDigest } from "./digest.ts";
import { RegistryError } from "./errors.ts";
import { parseReference, parseRepositoryName, type Reference, type RepositoryName } from "./reference.ts";

/** What a path under `/v2/` means, every part of it checked. The method is the caller's matter. */
export type Route =
  | { kind: "base" }
  | { kind: "catalog" }
  | { kind: "manifest"; name: RepositoryName; reference: Reference }
  | { kind: "blob"; name: RepositoryName; digest: Digest }
  | { kind: "uploads"; name: RepositoryName }
  | { kind: "upload"; name: RepositoryName; id: string }
  | { kind: "tags"; name: RepositoryName }
  | { kind: "referrers"; name: RepositoryName; digest: Digest };

const UPLOAD_ID = /^[A-Za-z0-9_-]{1,128}$/;

/**
 * Parses a request's path (still percent-encoded, without the query). Names may hold words like `blobs`, so the path is read from its end.
 * @returns undefined for a path that is no endpoint of the specification
 * @throws RegistryError NAME_INVALID, DIGEST_INVALID, MANIFEST_INVALID
 * Source: OCI distribution-spec, "Endpoints"
 */
export function parseRoute(encodedPath: string): Route | undefined {
  if (encodedPath === "/v2/" || encodedPath === "/v2") return { kind: "base" };
  if (!encodedPath.startsWith("/v2/")) return undefined;
  const path = decode(encodedPath).slice("/v2/".length);
  if (path === "_catalog") return { kind: "catalog" };

  const parts = path.split("/");
  const last = parts.at(-1) ?? "";
  const verb = parts.at(-2);
  const name = (dropped: number): RepositoryName => parseRepositoryName(parts.slice(0, -dropped).join("/"));

  if (verb === "uploads" && parts.at(-3) === "blobs") {
    if (last === "") return { kind: "uploads", name: name(3) };
    if (!UPLOAD_ID.test(last)) throw new RegistryError("BLOB_UPLOAD_UNKNOWN", "no such upload");
    return { kind: "upload", name: name(3), id: last };
  }
  if (verb === "blobs" && last === "uploads") return { kind: "uploads", name: name(2) };
  if (verb === "manifests") return { kind: "manifest", name: name(2), reference: parseReference(last) };
  if (verb === "blobs") return { kind: "blob", name: name(2), digest: parseDigest(last) };
  if (verb === "tags" && last === "list") return { kind: "tags", name: name(2) };
  if (verb === "referrers") return { kind: "referrers", name: name(2), digest: parseDigest(last) };
  return undefined;
}

function decode(path: string): string {
  if (!path.includes("%")) return path;
  try {
    return decodeURIComponent(path);
  } catch (cause) {
    throw new RegistryError("NAME_INVALID", "the path holds a broken percent escape", { cause });
  }
}
