/**
 * Another registry as a source of copies. What it calls by a name that may change (tags, lists, referrers) is always asked of the registry
 * itself. What has a digest comes through the mirror: from the cache, or over the one download of it that is under way, which fills the
 * cache, serves those who pull it, and feeds every target. With a full disk it is passed through.
 */
import { isDigest, type Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { isRepositoryName } from "../oci/reference.ts";
import type { BlobAnswer, ManifestAnswer } from "../registry/answers.ts";
import type { Target, Upstream } from "../registry/upstream.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { Remote, RemoteBody, RemoteManifest, RemoteOptions } from "../remote/remote.ts";
import { DigestMismatch, NotAtSource } from "../transfer/source.ts";
import { bodyOf } from "./reader-body.ts";
import { RelayedRemote } from "./relayed-remote.ts";

/** Content by its digest, kept on the way. */
export interface Flights {
  /** @throws RegistryError MANIFEST_UNKNOWN; RemoteError */
  manifestFrom(target: Target, digest: Digest): Promise<ManifestAnswer>;
  /** @throws RegistryError BLOB_UNKNOWN; RemoteError, NotAtSource, DigestMismatch */
  blobFrom(target: Target, digest: Digest): Promise<BlobAnswer>;
  /** Whether a blob is here. */
  hasBlob(target: Target, digest: Digest): Promise<boolean>;
}

export interface FlightRemoteParts {
  remote: Remote;
  /** The registry as the mirror asks it. As it is now: a reload changes its policy. */
  upstream: () => Upstream;
  flights: Flights;
}

export class FlightRemote extends RelayedRemote {
  readonly #upstream: () => Upstream;
  readonly #flights: Flights;

  constructor({ remote, upstream, flights }: FlightRemoteParts) {
    super(remote);
    this.#upstream = upstream;
    this.#flights = flights;
  }

  override async getManifest(
    repository: string,
    reference: string,
    options: RemoteOptions = {},
  ): Promise<RemoteManifest | undefined> {
    const target = this.#target(repository);
    try {
      if (!isDigest(reference) || !target) return await super.getManifest(repository, reference, options);
      const { bytes, mediaType, digest } = await this.#flights.manifestFrom(target, reference);
      options.signal?.throwIfAborted();
      if (!bytes) throw new TypeError(`the manifest ${digest} was read without its bytes`);
      return { bytes, contentType: mediaType, digestHeader: digest, etag: undefined };
    } catch (error) {
      if (error instanceof RegistryError && error.code === "MANIFEST_UNKNOWN") return undefined;
      throw error;
    }
  }

  /** Whether a blob is read without asking the registry. */
  async keeps(repository: string, digest: Digest): Promise<boolean> {
    const target = this.#target(repository);
    return target !== undefined && (await this.#flights.hasBlob(target, digest));
  }

  override async openBlob(
    repository: string,
    digest: Digest,
    options: RemoteOptions & { firstByte?: number | undefined; lastByte?: number | undefined } = {},
  ): Promise<RemoteBody | undefined> {
    const target = this.#target(repository);
    if (!target) return await super.openBlob(repository, digest, options);
    try {
      return await bodyOf(this.name, this.#flights.blobFrom(target, digest), options);
    } catch (error) {
      if (error instanceof NotAtSource) return undefined;
      if (error instanceof RegistryError && error.code === "BLOB_UNKNOWN") return undefined;
      if (error instanceof DigestMismatch) {
        throw new RemoteError("protocol", this.name, `sent bytes that are not ${digest}`, { cause: error });
      }
      throw error;
    }
  }

  /** @returns undefined where its name in the cache would be longer than names are: then nothing is kept of it */
  #target(remoteName: string): Target | undefined {
    const upstream = this.#upstream();
    const repository = `${upstream.name}/${remoteName}`;
    if (!isRepositoryName(repository) || !isRepositoryName(remoteName)) return undefined;
    return { repository, remoteName, upstream };
  }
}
