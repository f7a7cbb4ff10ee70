/**
 * This registry as a source of copies, without HTTP: what is hosted here, by its name, and what is cached, by its full name
 * (`ghcr.io/owner/app`), brought here through the mirror where it is not. A copy is no pull: none is recorded, and no retention counts it.
 */
import { givingWay } from "../base/give-way.ts";
import { isDigest, type Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import type { Reference, RepositoryName } from "../oci/reference.ts";
import type { BlobAnswer, ManifestAnswer } from "../registry/answers.ts";
import type { HostedPulls } from "../registry/hosted-pulls.ts";
import type { Mirror } from "../registry/mirror.ts";
import type { Names } from "../registry/names.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { ManifestHead, Remote, RemoteBody, RemoteManifest, RemoteOptions, RemoteState } from "../remote/remote.ts";
import { bodyOf } from "./reader-body.ts";

export interface LocalRemoteParts {
  names: Pick<Names, "full">;
  hosted: HostedPulls;
  mirror: Pick<Mirror, "manifest" | "blob" | "tags" | "referrers">;
  /** Repositories that hold anything, hosted ones and those of configured upstreams, in order, after `last` (exclusive). */
  repositories: (last: string, limit: number) => Promise<{ items: RepositoryName[]; more: boolean }>;
}

const NAME = "self";
const PAGE = 1000;

export class LocalRemote implements Remote {
  readonly name = NAME;
  readonly state: RemoteState = { up: true, rateLimit: undefined, pausedUntilMs: undefined };
  readonly #parts: LocalRemoteParts;
  /** What SQLite answers is there at once: without it, a plan of many tags would be one long turn. */
  readonly #giveWay = givingWay();

  constructor(parts: LocalRemoteParts) {
    this.#parts = parts;
  }

  async headManifest(
    repository: string,
    reference: string,
    options: RemoteOptions = {},
  ): Promise<ManifestHead | undefined> {
    const found = await this.#manifest(repository, reference as Reference, true, options);
    if (!found) return undefined;
    const { digest, mediaType, sizeBytes, origin } = found;
    return { digest, mediaType, sizeBytes, etag: undefined, origin };
  }

  async getManifest(
    repository: string,
    reference: string,
    options: RemoteOptions = {},
  ): Promise<RemoteManifest | undefined> {
    const head = isDigest(reference)
      ? { digest: reference, origin: undefined }
      : await this.#manifest(repository, reference as Reference, true, options);
    // By its digest: a tag that is read counts as pulled.
    const found = head && (await this.#manifest(repository, head.digest, false, options));
    if (!head || !found?.bytes) return undefined;
    const { bytes, mediaType, digest } = found;
    return { bytes, contentType: mediaType, digestHeader: digest, etag: undefined, origin: head.origin };
  }

  async headBlob(
    repository: string,
    digest: Digest,
    options: RemoteOptions = {},
  ): Promise<{ sizeBytes: number | undefined } | undefined> {
    return await this.#reading(options, () => this.#blob(repository, digest, true));
  }

  async openBlob(
    repository: string,
    digest: Digest,
    options: RemoteOptions & { firstByte?: number | undefined; lastByte?: number | undefined } = {},
  ): Promise<RemoteBody | undefined> {
    return await this.#reading(options, () => bodyOf(NAME, this.#blob(repository, digest, false), options));
  }

  async listRepositories({ signal }: RemoteOptions = {}): Promise<RepositoryName[]> {
    const names: RepositoryName[] = [];
    for (;;) {
      signal?.throwIfAborted();
      const { items, more } = await this.#parts.repositories(names.at(-1) ?? "", PAGE);
      names.push(...items);
      if (!more) return names;
    }
  }

  async listTags(repository: string, options: RemoteOptions = {}): Promise<string[] | undefined> {
    const located = this.#parts.names.full(repository as RepositoryName);
    const { mirror, hosted } = this.#parts;
    return await this.#reading(options, async () => {
      if (located.kind === "cached") return (await mirror.tags(located)).items;
      const tags: string[] = [];
      for (;;) {
        options.signal?.throwIfAborted();
        const { items, more } = await hosted.tags(located, tags.at(-1) ?? "", PAGE);
        tags.push(...items);
        if (!more) return tags;
      }
    });
  }

  async referrers(
    repository: string,
    digest: Digest,
    options: RemoteOptions = {},
  ): Promise<Record<string, unknown>[] | undefined> {
    const located = this.#parts.names.full(repository as RepositoryName);
    const { mirror, hosted } = this.#parts;
    return await this.#reading(options, async () => {
      if (located.kind === "cached") return (await mirror.referrers(located, digest)).items;
      const found: Record<string, unknown>[] = [];
      let last = "";
      for (;;) {
        options.signal?.throwIfAborted();
        const { items, more } = await hosted.referrers(located, digest, undefined, last, PAGE);
        found.push(...items);
        last = items.at(-1)?.["digest"] as string;
        if (!more) return found;
      }
    });
  }

  async ping(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}

  async #manifest(
    repository: string,
    reference: Reference,
    head: boolean,
    options: RemoteOptions,
  ): Promise<ManifestAnswer | undefined> {
    const located = this.#parts.names.full(repository as RepositoryName);
    const { mirror, hosted } = this.#parts;
    return await this.#reading(options, () =>
      located.kind === "cached" ? mirror.manifest(located, reference, head) : hosted.manifest(located, reference, head),
    );
  }

  #blob(repository: string, digest: Digest, head: boolean): Promise<BlobAnswer> {
    const located = this.#parts.names.full(repository as RepositoryName);
    const { mirror, hosted } = this.#parts;
    return located.kind === "cached" ? mirror.blob(located, digest, head) : hosted.blob(located, digest, head);
  }

  /** @returns undefined for what is not here @throws RemoteError; the signal's reason */
  async #reading<T>({ signal }: RemoteOptions, work: () => Promise<T>): Promise<T | undefined> {
    await this.#giveWay();
    signal?.throwIfAborted();
    try {
      const found = await work();
      signal?.throwIfAborted();
      return found;
    } catch (error) {
      if (!(error instanceof RegistryError)) throw error;
      if (error.status === 404) return undefined;
      // What the upstream of a cached repository said is told as it said it.
      if (error.cause instanceof RemoteError) throw error.cause;
      const { code, status, message } = error;
      const fault = code === "DENIED" ? "denied" : status >= 500 ? "server" : "protocol";
      throw new RemoteError(fault, NAME, `can't read it: ${message}`, { cause: error, status, code });
    }
  }
}
