import { RegistryError } from "./errors.ts";
import { algorithmOf, hexOf, isDigest, type Digest } from "./digest.ts";

/** A repository's name within the grammar of the OCI distribution-spec, at most 255 characters. */
export type RepositoryName = string & { readonly __brand: "RepositoryName" };
export type Tag = string & { readonly __brand: "Tag" };
export type Reference = Tag | Digest;

const COMPONENT = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
const HOST =
  /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::[0-9]{1,5})?$/;
const MAX_NAME = 255;

/** Whether the text is one component of a repository's name (`library`, `ghcr.io`). */
export function isComponent(text: string): boolean {
  return text.length <= MAX_NAME && COMPONENT.test(text);
}

export function isRepositoryName(text: string): text is RepositoryName {
  return text.length <= MAX_NAME && text.split("/").every((component) => COMPONENT.test(component));
}

/** The first component of a name: of a hosted repository, its namespace. */
export function namespaceOf(repository: RepositoryName): string {
  return repository.split("/", 1)[0] ?? repository;
}

/** @throws RegistryError NAME_INVALID */
export function parseRepositoryName(text: string): RepositoryName {
  if (isRepositoryName(text)) return text;
  throw new RegistryError(
    "NAME_INVALID",
    `"${text.slice(0, 300)}" is not a repository name: components of a-z, 0-9 and single . _ - between them, joined by /, at most ${MAX_NAME} characters`,
  );
}

/**
 * The tag under which clients keep an index of what refers to a digest, for registries without the referrers API.
 * Source: OCI distribution-spec, "Referrers Tag Schema": at most 64 of the hex digits
 */
export function referrersTag(subject: Digest): Tag {
  return `${algorithmOf(subject)}-${hexOf(subject).slice(0, 64)}` as Tag;
}

export function isTag(text: string): text is Tag {
  return TAG.test(text);
}

/** @throws RegistryError MANIFEST_INVALID for what is neither a tag; DIGEST_INVALID for what looks like a digest and is none. */
export function parseReference(text: string): Reference {
  if (isDigest(text) || isTag(text)) return text;
  if (text.includes(":")) {
    throw new RegistryError("DIGEST_INVALID", `"${text.slice(0, 140)}" is not a sha256 or sha512 digest`);
  }
  throw new RegistryError(
    "MANIFEST_INVALID",
    `"${text.slice(0, 140)}" is not a tag: 1 to 128 letters, digits, . _ - and no . or - at the start`,
  );
}

/** What a person types on a command line. */
export interface ImageReference {
  /** The registry's host, as in `ghcr.io` or `localhost:5000`; absent where the person named none. */
  host: string | undefined;
  repository: RepositoryName;
  reference: Reference;
}

/**
 * Parses `[HOST/]NAME[:TAG][@DIGEST]` by docker's rule: the first component is a host if it holds a `.` or a `:`, or is `localhost`.
 * A digest wins over a tag beside it; without either the tag is `latest`.
 * @throws RegistryError NAME_INVALID, MANIFEST_INVALID, DIGEST_INVALID
 * Source: distribution/reference, "Grammar"
 */
export function parseImageReference(text: string): ImageReference {
  let rest = text;
  let digest: string | undefined;
  const at = rest.indexOf("@");
  if (at >= 0) {
    digest = rest.slice(at + 1);
    rest = rest.slice(0, at);
  }
  let tag = "latest";
  const colon = rest.lastIndexOf(":");
  if (colon > rest.lastIndexOf("/")) {
    tag = rest.slice(colon + 1);
    rest = rest.slice(0, colon);
  }
  const slash = rest.indexOf("/");
  const first = slash < 0 ? "" : rest.slice(0, slash);
  const named = first.includes(".") || first.includes(":") || first === "localhost";
  if (named && (first.length > MAX_NAME || !HOST.test(first))) {
    throw new RegistryError(
      "NAME_INVALID",
      `"${first.slice(0, 140)}" is not a host: expected a name or an address, and a port where needed`,
    );
  }
  return {
    host: named ? first : undefined,
    repository: parseRepositoryName(named ? rest.slice(slash + 1) : rest),
    reference: parseReference(digest ?? tag),
  };
}
