import { HostedDeletion, type HostedDeletionDeps } from "./hosted-deletion.ts";
import { HostedManifests, type HostedManifestDeps } from "./hosted-manifests.ts";
import { HostedPlaces, type HostedPlaceDeps } from "./hosted-places.ts";
import { HostedPulls, type HostedPullDeps } from "./hosted-pulls.ts";
import { HostedUploads, type HostedUploadDeps } from "./hosted-uploads.ts";

/** What its parts need, but for what they have in common. */
export type HostedDeps = HostedPullDeps &
  HostedPlaceDeps &
  Omit<HostedUploadDeps, "places"> &
  Omit<HostedManifestDeps, "places"> &
  HostedDeletionDeps;

/**
 * Repositories that live here, by what clients do with them.
 *
 * - What is answered as pushed is on the disk: the file, its name, then its row. A tag moves last.
 * - Content is stored once and reached per repository.
 * - Whoever reads or mounts a blob notes its use before looking, and waits while somebody is alone with its digest: so garbage collection,
 *   which looks at the uses when it is alone, never takes what a client has just been told is there.
 */
export class HostedRepositories {
  /** Manifests, blobs, and lists of tags and referrers. */
  readonly pulls: HostedPulls;
  /** Blobs that come in, and mounts of what is here already. */
  readonly uploads: HostedUploads;
  /** Manifests that come in, with their tags. */
  readonly manifests: HostedManifests;
  readonly deletion: HostedDeletion;

  constructor(deps: HostedDeps) {
    const places = new HostedPlaces(deps);
    this.pulls = new HostedPulls(deps);
    this.uploads = new HostedUploads({ ...deps, places });
    this.manifests = new HostedManifests({ ...deps, places });
    this.deletion = new HostedDeletion(deps);
  }
}
