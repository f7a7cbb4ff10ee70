import type { Digest } from "../oci/digest.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { ManifestHead, Remote, RemoteBody, RemoteManifest, RemoteOptions, RemoteState } from "../remote/remote.ts";

/** Passes every question on, and counts them. What does something else on the way says only that. */
export class RelayedRemote implements Remote {
  protected readonly remote: Remote;
  #asked = 0;

  constructor(remote: Remote) {
    this.remote = remote;
  }

  get name(): string {
    return this.remote.name;
  }

  get state(): RemoteState {
    return this.remote.state;
  }

  /** How many questions were passed on. */
  get asked(): number {
    return this.#asked;
  }

  headManifest(
    repository: string,
    reference: string,
    options?: RemoteOptions & { ifNoneMatch?: string | undefined },
  ): Promise<ManifestHead | "notModified" | undefined> {
    this.#asked++;
    return this.remote.headManifest(repository, reference, options);
  }

  getManifest(repository: string, reference: string, options?: RemoteOptions): Promise<RemoteManifest | undefined> {
    this.#asked++;
    return this.remote.getManifest(repository, reference, options);
  }

  headBlob(
    repository: string,
    digest: Digest,
    options?: RemoteOptions,
  ): Promise<{ sizeBytes: number | undefined } | undefined> {
    this.#asked++;
    return this.remote.headBlob(repository, digest, options);
  }

  openBlob(
    repository: string,
    digest: Digest,
    options?: RemoteOptions & { firstByte?: number | undefined; lastByte?: number | undefined },
  ): Promise<RemoteBody | undefined> {
    this.#asked++;
    return this.remote.openBlob(repository, digest, options);
  }

  listRepositories(options?: RemoteOptions): Promise<RepositoryName[] | undefined> {
    this.#asked++;
    return this.remote.listRepositories(options);
  }

  listTags(repository: string, options?: RemoteOptions): Promise<string[] | undefined> {
    this.#asked++;
    return this.remote.listTags(repository, options);
  }

  referrers(
    repository: string,
    digest: Digest,
    options?: RemoteOptions,
  ): Promise<Record<string, unknown>[] | undefined> {
    this.#asked++;
    return this.remote.referrers(repository, digest, options);
  }

  ping(options?: RemoteOptions): Promise<void> {
    this.#asked++;
    return this.remote.ping(options);
  }

  /** Its connections belong to whoever has opened them. */
  async [Symbol.asyncDispose](): Promise<void> {}
}
