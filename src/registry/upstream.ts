import picomatch from "picomatch";
import type { Milliseconds } from "../base/clock.ts";
import type { UpstreamConfig } from "../config/schema.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName } from "../oci/reference.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { Remote } from "../remote/remote.ts";
import type { Owner } from "../store/catalog.ts";
import type { BlobSource } from "../transfer/source.ts";

/** A rate limit without a window of its own: a reading of it counts for so long. */
const RATE_WINDOW_MS: Milliseconds = 3_600_000;

/** A cached repository, and whom to ask about it. */
export interface Target {
  /** `ghcr.io/owner/app`: the key in storage. */
  repository: RepositoryName;
  /** `owner/app`: what the upstream calls it. */
  remoteName: RepositoryName;
  upstream: Upstream;
}

/** The target as the catalog names it. */
export function ownerOf({ repository, upstream }: Target): Owner {
  return { repository, upstream: upstream.name };
}

/** One upstream: its policy, and the addresses at which it can be asked. */
export class Upstream {
  readonly name: string;
  readonly config: UpstreamConfig;
  /** The upstream's own address first, then its fallbacks. */
  readonly remotes: readonly [Remote, ...Remote[]];
  readonly #allowed: (repository: string) => boolean;
  readonly #denied: (repository: string) => boolean;

  constructor(name: string, config: UpstreamConfig, remotes: readonly [Remote, ...Remote[]]) {
    this.name = name;
    this.config = config;
    this.remotes = remotes;
    this.#allowed = picomatch([...config.allow]);
    this.#denied = config.deny.length > 0 ? picomatch([...config.deny]) : () => false;
  }

  /** Whether the globs let clients see the repository, by the upstream's own name for it. */
  allows(remoteName: RepositoryName): boolean {
    return this.#allowed(remoteName) && !this.#denied(remoteName);
  }

  /** Whether some address may be asked now: not all have answered 429 and told us to wait. */
  mayAsk(nowMs: Milliseconds): boolean {
    return this.remotes.some(({ state }) => (state.pausedUntilMs ?? 0) <= nowMs);
  }

  /**
   * Requests left in the rate limit of the upstream's own address; undefined where it told none within the limit's window: whoever
   * asks nothing learns nothing, and what was read before the window began anew must not keep tags from being checked for ever.
   */
  rateRemaining(nowMs: Milliseconds): number | undefined {
    const { rateLimit } = this.remotes[0].state;
    if (!rateLimit) return undefined;
    const ageMs = nowMs - rateLimit.at;
    const windowMs = rateLimit.windowSeconds === undefined ? RATE_WINDOW_MS : rateLimit.windowSeconds * 1000;
    return ageMs >= 0 && ageMs < windowMs ? rateLimit.remaining : undefined;
  }

  /**
   * Asks each address in turn, until one has it.
   * @param first the address that is known to have it
   * @returns undefined only if every address said that it does not have it
   * @throws RemoteError the first failure where nobody has it and somebody could not say so; at once for 401 and 403
   */
  async ask<T>(
    work: (remote: Remote) => Promise<T | undefined>,
    first?: Remote,
  ): Promise<{ answer: T; remote: Remote } | undefined> {
    let failure: RemoteError | undefined;
    for (const remote of this.#inOrder(first)) {
      try {
        const answer = await work(remote);
        if (answer !== undefined) return { answer, remote };
      } catch (error) {
        if (!(error instanceof RemoteError) || !error.othersMayAnswer) throw error;
        failure ??= error;
      }
    }
    if (failure) throw failure;
    return undefined;
  }

  /** Where a blob of a repository can be fetched. */
  sources(remoteName: RepositoryName, digest: Digest): BlobSource[] {
    return this.remotes.map((remote) => ({
      name: this.name,
      open: (firstByte, lastByte, signal) =>
        remote.openBlob(remoteName, digest, { firstByte, ...(lastByte === undefined ? {} : { lastByte }), signal }),
    }));
  }

  #inOrder(first: Remote | undefined): readonly Remote[] {
    return first ? [first, ...this.remotes.filter((remote) => remote !== first)] : this.remotes;
  }
}
