import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Remote, RemoteManifest, RemoteOptions } from "../remote/remote.ts";
import { PullLine, pullsAtMs } from "./budget.ts";
import { RelayedRemote } from "./relayed-remote.ts";

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
export class SparingRemote extends RelayedRemote {
  readonly #sparing: Sparing;
  readonly #line = new PullLine();
  #pulling = 0;

  constructor(remote: Remote, sparing: Sparing) {
    super(remote);
    this.#sparing = sparing;
  }

  /** When so many pulls may be made; undefined: now. Who is told to wait has a place in line. */
  mayPullAtMs(pulls: number): Milliseconds | undefined {
    const { rateLimit, pausedUntilMs } = this.remote.state;
    const { keep, clock } = this.#sparing;
    const nowMs = clock.now();
    const atMs = pullsAtMs(rateLimit, { keep, taken: this.#pulling, pulls }, nowMs);
    if (rateLimit && atMs !== undefined) return this.#line.join(atMs, rateLimit, pulls, nowMs);
    return pausedUntilMs !== undefined && pausedUntilMs > nowMs ? pausedUntilMs : undefined;
  }

  override async getManifest(
    repository: string,
    reference: string,
    options?: RemoteOptions,
  ): Promise<RemoteManifest | undefined> {
    this.#keepReserve();
    this.#pulling++;
    try {
      return await super.getManifest(repository, reference, options);
    } finally {
      this.#pulling--;
    }
  }

  #keepReserve(): void {
    const { rateLimit } = this.remote.state;
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
