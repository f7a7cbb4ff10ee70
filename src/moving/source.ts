import type { Digest } from "../oci/digest.ts";
import type { Manifest } from "../oci/manifest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import type { ForeignFile } from "../store/file-threads.ts";

/** A manifest whose bytes are what its digest says. */
export interface FoundManifest {
  digest: Digest;
  bytes: Uint8Array;
  manifest: Manifest;
}

/** Content that a repository of the source should have and has not. */
export interface Absent {
  kind: "blob" | "manifest";
  digest: Digest;
  reason: string;
}

/**
 * A piece of one repository. The pieces of a repository follow each other, and in them what a manifest points to comes before it (as a
 * file, a manifest or absent), and a manifest before its tags.
 */
export interface Portion {
  /** As the source calls it; empty where it has no names: only tags. */
  repository: RepositoryName | "";
  files: ForeignFile[];
  manifests: FoundManifest[];
  absent: Absent[];
  tags: { tag: Tag; digest: Digest }[];
}

/** What a source tells while it is read. */
export type Found =
  /** How much there is, in contents: an estimate. */
  | { type: "total"; contents: number }
  | { type: "portion"; portion: Portion }
  /** Something damaged or strange, beside what is absent from a portion. */
  | { type: "damage"; where: string; reason: string }
  /** Something that the source itself did not serve any more, or not yet. */
  | { type: "unserved"; where: string; reason: string };

/** So much a portion holds, about. */
export const PORTION_FILES = 1000;
export const PORTION_MANIFESTS = 200;
export const PORTION_TAGS = 1000;

export function emptyPortion(repository: RepositoryName | ""): Portion {
  return { repository, files: [], manifests: [], absent: [], tags: [] };
}

/** A name as a disk gives it, for a message: no control characters, and not without end. */
export function quoted(name: string): string {
  // JSON leaves those above 0x7e as they are: some terminals obey U+009B.
  return JSON.stringify(name.length > 200 ? `${name.slice(0, 200)}…` : name).replaceAll(/\p{Cc}/gu, "?");
}
