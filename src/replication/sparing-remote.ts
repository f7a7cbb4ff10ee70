import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { ManifestHead, Remote, RemoteBody, RemoteManifest, RemoteOptions, RemoteState } from "../remote/remote.ts";
import { PullLine, pullsAtMs } from "./budget.ts";

export interface Sparing {
  /** As rules call the registry. */
  name: string;
  /** Pulls of its rate limit that are left to others. */
  keep: number;
  clock: Clock;
  /** What is thrown instead of a pull that would touch the reserve. */
  spent: (message: string, atMs: Milliseconds) => Error;
}

/** A registry as copies ask it: their questions are counted, and the reserve of its rate limit is left to others. GETs of manifests are pulls. */
export class SparingRemote implements Remote {
  readonly #remote: Remote;
  readonly #sparing: Sparing;
  readonly #line = new PullLine();
  #asked = 0;
  #pulling = 0;

  constructor(remote: Remote, sparing: Sparing) {
    this.#remote = remote;
    this.#sparing = sparing;
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

  /** When so many pulls may be made; undefined: now. Who is told to wait has a place in line. */
  mayPullAtMs(pulls: number): Milliseconds | undefined {
    const { rateLimit, pausedUntilMs } = this.#remote.state;
    const { keep, clock } = this.#sparing;
    const nowMs = clock.now();
    const atMs = pullsAtMs(rateLimit, { keep, taken: this.#pulling, pulls }, nowMs);
    if (rateLimit && atMs !== undefined) return this.#line.join(atMs, rateLimit, pulls, nowMs);
    return pausedUntilMs !== undefined && pausedUntilMs > nowMs ? pausedUntilMs : undefined;
  }

  async getManifest(
    repository: string,
    reference: string,
    options?: RemoteOptions,
  ): Promise<RemoteManifest | undefined> {
    this.#keepReserve();
    this.#asked++;
    this.#pulling++;
    try {
      return await this.#remote.getManifest(repository, reference, options);
    } finally {
      this.#pulling--;
    }
  }

  headManifest(
    repository: string,
    reference: string,
    options?: RemoteOptions & { ifNoneMatch?: string | undefined },
  ): Promise<ManifestHead | "notModified" | undefined> {
    this.#asked++;
    return this.#remote.headManifest(repository, reference, options);
  }

  headBlob(
    repository: string,
    digest: Digest,
    options?: RemoteOptions,
  ): Promise<{ sizeBytes: number | undefined } | undefined> {
    this.#asked++;
    return this.#remote.headBlob(repository, digest, options);
  }

  openBlob(
    repository: string,
    digest: Digest,
    options?: RemoteOptions & { firstByte?: number | undefined; lastByte?: number | undefined },
  ): Promise<RemoteBody | undefined> {
    this.#asked++;
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

  #keepReserve(): void {
    const { rateLimit } = this.#remote.state;
    const { name, keep, clock, spent } = this.#sparing;
    const nowMs = clock.now();
    const atMs = pullsAtMs(rateLimit, { keep, taken: this.#pulling, pulls: 1 }, nowMs);
    if (!rateLimit || atMs === undefined) return;
    throw spent(
      `${name} has ${rateLimit.remaining} pulls left, and replication.registries.${name}.quota.keep is ${keep}`,
      this.#line.join(atMs, rateLimit, 1, nowMs),
    );
  }
}
