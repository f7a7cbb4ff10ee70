import type { Digest } from "../oci/digest.ts";
import type { Garbage, GarbageCatalog, Link, Terms } from "../store/garbage.ts";
import type { Sweep } from "./sweep.ts";

/**
 * A collection that changes nothing. What it would have removed, it remembers; and since the database goes on to hold that, it finds out
 * itself what would have become garbage by it.
 */
export class Preview implements Sweep {
  readonly #garbage: GarbageCatalog;
  readonly #terms: Terms;
  readonly #manifests = new Set<Digest>();
  readonly #blobs = new Set<Digest>();
  readonly #loose: Link[] = [];
  /** Of manifests and of blobs, by repository. */
  readonly #links = new Map<number, Set<Digest>>();

  constructor(garbage: GarbageCatalog, terms: Terms) {
    this.#garbage = garbage;
    this.#terms = terms;
  }

  async unlinkManifests(links: readonly Link[]): Promise<Link[]> {
    const gone = [];
    for (const link of links) if (await this.#isLoose(link)) gone.push(this.#unlink(link));
    this.#loose.push(...gone);
    return gone;
  }

  async removeManifests(manifests: readonly Garbage[]): Promise<Garbage[]> {
    for (const { digest } of manifests) this.#manifests.add(digest);
    return [...manifests];
  }

  async *furtherManifests(): AsyncGenerator<Garbage> {
    for (const digest of new Set(this.#loose.map((link) => link.digest))) {
      if (!(await this.#every(this.#garbage.reachers(digest), (id) => this.#isUnlinked(id, digest)))) continue;
      const manifest = await this.#garbage.manifest(digest);
      if (manifest) yield manifest;
    }
  }

  async removeBlobs(blobs: readonly Garbage[]): Promise<Garbage[]> {
    const gone = blobs.filter(({ digest }) => !this.#terms.inUse(digest));
    for (const { digest } of gone) {
      this.#blobs.add(digest);
      for await (const repositoryId of this.#garbage.reachers(digest)) this.#unlink({ repositoryId, digest });
    }
    return gone;
  }

  async *furtherBlobs(): AsyncGenerator<Garbage> {
    for (const manifest of this.#manifests) {
      for await (const digest of this.#garbage.children(manifest)) {
        if (this.#blobs.has(digest)) continue;
        const blob = await this.#garbage.unusedBlob(digest, this.#terms.beforeMs);
        if (blob && (await this.#every(this.#garbage.parents(digest), (parent) => this.#manifests.has(parent))))
          yield blob;
      }
    }
  }

  async unlinkBlobs(links: readonly Link[]): Promise<Link[]> {
    const idle = links.filter(
      ({ repositoryId, digest }) => !this.#terms.inUse(digest) && !this.#isUnlinked(repositoryId, digest),
    );
    for (const link of idle) this.#unlink(link);
    return idle;
  }

  async *furtherLinks(): AsyncGenerator<Link> {
    for (const { repositoryId, digest: manifest } of this.#loose) {
      for await (const digest of this.#garbage.children(manifest)) {
        const link = { repositoryId, digest };
        if (this.#isUnlinked(repositoryId, digest) || !(await this.#garbage.untouchedLink(link, this.#terms.beforeMs)))
          continue;
        if (
          await this.#every(this.#garbage.parents(digest), (parent) => this.#isAbsent({ repositoryId, digest: parent }))
        )
          yield link;
      }
    }
  }

  async removeRepositories(ids: readonly number[]): Promise<number> {
    return ids.length;
  }

  async *furtherRepositories(): AsyncGenerator<number> {
    for (const [id, unlinked] of this.#links) {
      const bare = await this.#garbage.bareRepository(id, this.#terms.beforeMs);
      if (bare && (await this.#every(this.#garbage.contents(id), (digest) => unlinked.has(digest)))) yield id;
    }
  }

  async #isLoose(link: Link): Promise<boolean> {
    const { repositoryId, digest } = link;
    if (this.#terms.inUse(digest) || this.#isUnlinked(repositoryId, digest)) return false;
    const row = await this.#garbage.forgottenManifest(link, this.#terms.beforeMs);
    if (!row || (row.subject !== null && !(await this.#isAbsent({ repositoryId, digest: row.subject })))) return false;
    return this.#every(this.#garbage.parents(digest), (parent) => this.#isAbsent({ repositoryId, digest: parent }));
  }

  async #isAbsent(link: Link): Promise<boolean> {
    return this.#isUnlinked(link.repositoryId, link.digest) || !(await this.#garbage.isLinked(link));
  }

  #isUnlinked(repositoryId: number, digest: Digest): boolean {
    return this.#links.get(repositoryId)?.has(digest) === true;
  }

  #unlink(link: Link): Link {
    const unlinked = this.#links.get(link.repositoryId) ?? new Set();
    this.#links.set(link.repositoryId, unlinked.add(link.digest));
    return link;
  }

  async #every<T>(items: AsyncIterable<T>, holds: (item: T) => boolean | Promise<boolean>): Promise<boolean> {
    for await (const item of items) if (!(await holds(item))) return false;
    return true;
  }
}
