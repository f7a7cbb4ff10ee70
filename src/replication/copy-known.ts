import type { Digest } from "../oci/digest.ts";

/** What is tried next to have a blob in a repository of the target, the cheapest first. */
export type BlobStep = { step: "nothing" } | { step: "mount"; from: string } | { step: "send" };

/** Which blobs repositories of one target are believed to have. Shared by all that is copied there. */
export class KnownBlobs {
  readonly #holders = new Map<Digest, Set<string>>();
  /** A registry that refuses one mount refuses the others. */
  #mounts = true;

  add(repository: string, digest: Digest): void {
    const holders = this.#holders.get(digest) ?? new Set();
    holders.add(repository);
    this.#holders.set(digest, holders);
  }

  /** It turned out not to be there. */
  forget(repository: string, digest: Digest): void {
    this.#holders.get(digest)?.delete(repository);
  }

  mountRefused(): void {
    this.#mounts = false;
  }

  step(repository: string, digest: Digest): BlobStep {
    const holders = this.#holders.get(digest);
    if (holders?.has(repository)) return { step: "nothing" };
    const [from] = holders ?? [];
    return from === undefined || !this.#mounts ? { step: "send" } : { step: "mount", from };
  }
}
