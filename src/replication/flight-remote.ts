/**
 * Another registry as a source of copies. What it calls by a name that may change (tags, lists, referrers) is always asked of the registry
 * itself. What has a digest comes through the mirror: from the cache, or over the one download of it that is under way, which fills the
 * cache, serves those who pull it, and feeds every target. With a full disk it is passed through.
 */
import { isDigest, type Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { isRepositoryName, type RepositoryName } from "../oci/reference.ts";
import type { BlobAnswer, ManifestAnswer } from "../registry/answers.ts";
import type { Target, Upstream } from "../registry/upstream.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { ManifestHead, Remote, RemoteBody, RemoteManifest, RemoteOptions, RemoteState } from "../remote/remote.ts";
import { DigestMismatch, NotAtSource } from "../transfer/source.ts";
import { bodyOf } from "./reader-body.ts";

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

export class FlightRemote implements Remote {
  readonly #remote: Remote;
  readonly #upstream: () => Upstream;
  readonly #flights: Flights;

  constructor({ remote, upstream, flights }: FlightRemoteParts) {
    this.#remote = remote;
    this.#upstream = upstream;
    this.#flights = flights;
  }

  get name(): string {
    return this.#remote.name;
  }

  get state(): RemoteState {
    return this.#remote.state;
  }

  headManifest(
    repository: string,
    reference: string,
    options?: RemoteOptions & { ifNoneMatch?: string | undefined },
  ): Promise<ManifestHead | "notModified" | undefined> {
    return this.#remote.headManifest(repository, reference, options);
  }

  async getManifest(
    repository: string,
    reference: string,
    options: RemoteOptions = {},
  ): Promise<RemoteManifest | undefined> {
    const target = this.#target(repository);
    try {
      if (!isDigest(reference) || !target) return await this.#remote.getManifest(repository, reference, options);
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

  headBlob(
    repository: string,
    digest: Digest,
    options?: RemoteOptions,
  ): Promise<{ sizeBytes: number | undefined } | undefined> {
    return this.#remote.headBlob(repository, digest, options);
  }

  async openBlob(
    repository: string,
    digest: Digest,
    options: RemoteOptions & { firstByte?: number | undefined; lastByte?: number | undefined } = {},
  ): Promise<RemoteBody | undefined> {
    const target = this.#target(repository);
    if (!target) return await this.#remote.openBlob(repository, digest, options);
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

  listRepositories(options?: RemoteOptions): Promise<RepositoryName[] | undefined> {
    return this.#remote.listRepositories(options);
  }

  listTags(repository: string, options?: RemoteOptions): Promise<string[] | undefined> {
    return this.#remote.listTags(repository, options);
  }

  referrers(
    repository: string,
    digest: Digest,
    options?: RemoteOptions,
  ): Promise<Record<string, unknown>[] | undefined> {
    return this.#remote.referrers(repository, digest, options);
  }

  ping(options?: RemoteOptions): Promise<void> {
    return this.#remote.ping(options);
  }

  /** The registry's own connections belong to whoever has opened them. */
  async [Symbol.asyncDispose](): Promise<void> {}

  /** @returns undefined where its name in the cache would be longer than names are: then nothing is kept of it */
  #target(remoteName: string): Target | undefined {
    const upstream = this.#upstream();
    const repository = `${upstream.name}/${remoteName}`;
    if (!isRepositoryName(repository) || !isRepositoryName(remoteName)) return undefined;
    return { repository, remoteName, upstream };
  }
}
