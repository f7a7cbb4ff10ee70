import type { Bytes } from "../base/clock.ts";
import type { Config } from "../config/schema.ts";
import type { NewEvent, Requester } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import { isDigest, type Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import type { Reference, RepositoryName, Tag } from "../oci/reference.ts";
import type { HostedCatalog } from "../store/hosted-catalog.ts";
import { unknownBlob, unknownManifest } from "./hosted-pulls.ts";
import type { Hosted } from "./names.ts";
import { immutableTags } from "./policy.ts";
import { guardOfDeletion, type TagCondition } from "./tag-guard.ts";

export interface HostedDeletionDeps {
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Config["hosted"];
  hosted: HostedCatalog;
  journal: Journal;
}

/** Takes tags, manifests and blobs out of hosted repositories. Garbage collection gives the room back; `removal.ts` takes whole repositories. */
export class HostedDeletion {
  readonly #deps: HostedDeletionDeps;

  constructor(deps: HostedDeletionDeps) {
    this.#deps = deps;
  }

  /** @throws RegistryError MANIFEST_UNKNOWN, NAME_UNKNOWN; DENIED for an immutable tag */
  async manifest({ repository }: Hosted, reference: Reference, condition: TagCondition, by: Requester): Promise<void> {
    const { hosted, journal, config } = this.#deps;
    this.#checkDelete();
    const immutable = immutableTags(config().immutableTags);
    const guard = guardOfDeletion({ repository, reference, condition, immutable });
    const removed = isDigest(reference)
      ? await hosted.removeManifest(repository, reference, guard, (tx, { tags, ...content }) =>
          journal.recordWithin(tx, [
            ...tags.map((tag) => deletionOf(repository, { tag, digest: reference, ...content }, by)),
            deletionOf(repository, { digest: reference, ...content }, by),
          ]),
        )
      : await hosted.removeTag(repository, reference, guard, (tx, content) =>
          journal.recordWithin(tx, [deletionOf(repository, { tag: reference, ...content }, by)]),
        );
    if (!removed) throw await unknownManifest(hosted, repository, reference);
    journal.recorded();
  }

  /** @throws RegistryError BLOB_UNKNOWN, NAME_UNKNOWN; UNSUPPORTED while a manifest of the repository needs it */
  async blob({ repository }: Hosted, digest: Digest, by: Requester): Promise<void> {
    const { hosted, journal } = this.#deps;
    this.#checkDelete();
    const removed = await hosted.removeBlob(repository, digest, (tx, content) =>
      journal.recordWithin(tx, [deletionOf(repository, { digest, ...content }, by)]),
    );
    if (typeof removed === "object") {
      throw new RegistryError("UNSUPPORTED", `${digest} belongs to manifest ${removed.neededBy}: delete that first`, {
        detail: { digest, manifest: removed.neededBy },
      });
    }
    if (!removed) throw await unknownBlob(hosted, repository, digest);
    journal.recorded();
  }

  #checkDelete(): void {
    if (!this.#deps.config().delete)
      throw new RegistryError("UNSUPPORTED", "hosted.delete is off: nothing can be deleted");
  }
}

/**
 * What the journal tells of a tag or of content that a repository has no more.
 * @param gone with a tag: the tag; else with a media type: a manifest; else a blob
 */
export function deletionOf(
  repository: RepositoryName,
  gone: { digest: Digest; tag?: Tag | undefined; mediaType?: string | undefined; sizeBytes: Bytes },
  by: Requester,
): NewEvent {
  const { digest, tag, mediaType, sizeBytes } = gone;
  return {
    action: "delete",
    outcome: "done",
    repository,
    digest,
    sizeBytes,
    ...(tag === undefined ? {} : { tag }),
    ...(mediaType === undefined ? {} : { mediaType }),
    by,
    detail: tag !== undefined ? "tag" : mediaType !== undefined ? "manifest" : "blob",
  };
}
