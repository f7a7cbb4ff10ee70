import type { Digest } from "../oci/digest.ts";
import { isDigest } from "../oci/digest.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { ManifestHead, Remote, RemoteBody, RemoteManifest, RemoteOptions, RemoteState } from "../remote/remote.ts";

/** A registry whose questions are counted, as one who asks them again would have to: what has a digest, and is kept by then, is none. */
export class AskedRemote implements Remote {
  readonly #remote: Remote;
  readonly #keeps: boolean;
  #asked = 0;

  /** @param keeps whether content is read once, and then kept */
  constructor(remote: Remote, keeps: boolean) {
    this.#remote = remote;
    this.#keeps = keeps;
  }

  get name(): string {
    return this.#remote.name;
  }

  get state(): RemoteState {
    return this.#remote.state;
  }

  /** How many questions were asked. */
  get asked(): number {
    return this.#asked;
  }

  headManifest(
    repository: string,
    reference: string,
    options?: RemoteOptions,
  ): Promise<ManifestHead | "notModified" | undefined> {
    this.#asked++;
    return this.#remote.headManifest(repository, reference, options);
  }

  getManifest(repository: string, reference: string, options?: RemoteOptions): Promise<RemoteManifest | undefined> {
    if (!this.#keeps || !isDigest(reference)) this.#asked++;
    return this.#remote.getManifest(repository, reference, options);
  }

  headBlob(
    repository: string,
    digest: Digest,
    options?: RemoteOptions,
  ): Promise<{ sizeBytes: number | undefined } | undefined> {
    this.#asked++;
    return this.#remote.headBlob(repository, digest, options);
  }

  openBlob(repository: string, digest: Digest, options?: RemoteOptions): Promise<RemoteBody | undefined> {
    if (!this.#keeps) this.#asked++;
    return this.#remote.openBlob(repository, digest, options);
  }

  listRepositories(options?: RemoteOptions): Promise<RepositoryName[] | undefined> {
    this.#asked++;
    return this.#remote.listRepositories(options);
  }

  listTags(repository: string, options?: RemoteOptions): Promise<string[] | undefined> {
    this.#asked++;
    return this.#remote.listTags(repository, options);
  }

  referrers(
    repository: string,
    digest: Digest,
    options?: RemoteOptions,
  ): Promise<Record<string, unknown>[] | undefined> {
    this.#asked++;
    return this.#remote.referrers(repository, digest, options);
  }

  ping(options?: RemoteOptions): Promise<void> {
    this.#asked++;
    return this.#remote.ping(options);
  }

  /** Its connections belong to whoever has opened them. */
  async [Symbol.asyncDispose](): Promise<void> {}
}
