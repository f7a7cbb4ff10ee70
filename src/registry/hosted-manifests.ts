import type { Clock } from "../base/clock.ts";
import type { Config } from "../config/schema.ts";
import type { NewEvent, Requester } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import { algorithmOf, digestOf, isDigest, type Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { bareMediaType, isManifestType, parseManifest, requiredBy, type Manifest } from "../oci/manifest.ts";
import { formatOrigin, type Origin } from "../oci/origin.ts";
import type { Reference, RepositoryName, Tag } from "../oci/reference.ts";
import { newManifest } from "../store/catalog.ts";
import { MissingReferences, TagIsNewer, type HostedCatalog } from "../store/hosted-catalog.ts";
import type { MemoryCache } from "../store/memory.ts";
import type { HostedPlaces } from "./hosted-places.ts";
import type { Hosted } from "./names.ts";
import { immutableTags } from "./policy.ts";
import { guardOfPush, type TagCondition } from "./tag-guard.ts";

export interface HostedManifestDeps {
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Config["hosted"];
  hosted: HostedCatalog;
  places: HostedPlaces;
  memory: MemoryCache;
  journal: Journal;
  clock: Clock;
}

/** A manifest that a client pushes. */
export interface PushedManifest {
  bytes: Buffer;
  contentType: string | undefined;
  /** Tags to point to it, beside the reference. */
  tags: readonly Tag[];
  /** Whether a tag may be moved from another manifest to this one. */
  mayMove: boolean;
  condition: TagCondition;
  /** Of a copy: the push that it is a copy of. It moves no tag that was pushed later. */
  origin: Origin | undefined;
}

/** So many missing contents are named; a manifest may lack thousands. */
const MAX_NAMED = 100;

/** How manifests come into hosted repositories, and tags to point to them. */
export class HostedManifests {
  readonly #deps: HostedManifestDeps;

  constructor(deps: HostedManifestDeps) {
    this.#deps = deps;
  }

  /**
   * Stores a manifest, then points the tags to it.
   * @returns its digest, and the subject that it was filed under
   * @throws RegistryError MANIFEST_INVALID, DIGEST_INVALID, MANIFEST_BLOB_UNKNOWN (one for each content that is not there), DENIED for an
   * immutable tag or a quota, or with status 412 where the condition does not hold; TAG_NEWER for a copy of what was pushed before
   */
  async push(
    located: Hosted,
    reference: Reference,
    { bytes, contentType, tags, mayMove, condition, origin }: PushedManifest,
    by: Requester,
  ): Promise<{ digest: Digest; subject: Digest | undefined }> {
    const { hosted, places, memory, clock, journal, config } = this.#deps;
    const { repository } = located;
    const digest = isDigest(reference) ? reference : digestOf(bytes);
    if (digestOf(bytes, algorithmOf(digest)) !== digest) {
      throw new RegistryError(
        "DIGEST_INVALID",
        `the manifest is ${digestOf(bytes, algorithmOf(digest))}, not ${digest}`,
      );
    }
    const manifest = parseManifest(bytes, contentType);
    checkType(manifest, contentType);
    const immutable = immutableTags(config().immutableTags);
    const guard = guardOfPush({ repository, reference, condition, immutable }, digest, mayMove);
    const moved = isDigest(reference) ? tags : [...new Set([reference, ...tags])];
    const event: NewEvent = {
      action: "push",
      outcome: "done",
      repository,
      digest,
      mediaType: manifest.mediaType,
      sizeBytes: bytes.length,
      by,
    };
    try {
      await places.write(located, undefined, (place) =>
        hosted.addManifest(
          place,
          newManifest(digest, bytes, manifest),
          requiredBy(manifest),
          { tags: moved, guard, origin },
          clock.now(),
          (tx) => journal.recordWithin(tx, moved.length === 0 ? [event] : moved.map((tag) => ({ ...event, tag }))),
        ),
      );
      journal.recorded();
    } catch (error) {
      if (error instanceof TagIsNewer) throw tagIsNewer(repository, error);
      throw error instanceof MissingReferences ? missingReferences(repository, error.digests) : error;
    }
    memory.set(digest, bytes);
    return { digest, subject: manifest.subject?.digest };
  }
}

/** @throws RegistryError MANIFEST_INVALID: a type that is none of a manifest, or another one than the body's */
function checkType({ mediaType }: Manifest, contentType: string | undefined): void {
  const sent = bareMediaType(contentType);
  if (!isManifestType(mediaType)) {
    throw new RegistryError("MANIFEST_INVALID", `${mediaType} is no media type of a manifest that is known here`);
  }
  if (sent !== undefined && sent !== mediaType) {
    throw new RegistryError(
      "MANIFEST_INVALID",
      `the manifest is a ${mediaType}, but was sent as ${sent.slice(0, 140)}`,
    );
  }
}

function missingReferences(repository: RepositoryName, digests: readonly Digest[]): RegistryError {
  const [first, ...others] = digests.slice(0, MAX_NAMED).map((digest) => ({ digest }));
  const fault = (detail: { digest: Digest } | undefined, more: readonly RegistryError[] = []): RegistryError =>
    new RegistryError(
      "MANIFEST_BLOB_UNKNOWN",
      `${repository} has no ${detail?.digest}, which the manifest points to: push that first`,
      { ...(detail ? { detail } : {}), others: more },
    );
  return fault(
    first,
    others.map((detail) => fault(detail)),
  );
}

function tagIsNewer(repository: RepositoryName, { tag, present: { digest, origin } }: TagIsNewer): RegistryError {
  const mark = formatOrigin(origin);
  return new RegistryError(
    "TAG_NEWER",
    `${repository}:${tag} points to ${digest}, which was pushed later (${mark}) than what this is a copy of: it stays; to go back to that, push it without Entrepot-Origin`,
    { detail: { repository, tag, digest, origin: mark } },
  );
}
