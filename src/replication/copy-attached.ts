/** What refers to an image: by its subject (the API, or the tag that stands in for it), or by a tag that is made of its digest. */
import { digestOf, type Digest } from "../oci/digest.ts";
import { parseManifest } from "../oci/manifest.ts";
import type { Origin } from "../oci/origin.ts";
import { referrersTag, type Tag } from "../oci/reference.ts";
import { RemoteError } from "../remote/remote-error.ts";
import { CopyError } from "./copy-error.ts";
import { allOf, type CopySource, type Job, type Node } from "./copy-job.ts";
import { proveManifest, readPointers, type Pointer, type ProvenManifest } from "./copy-manifests.ts";
import type { Again } from "./copy-retry.ts";
import { DigestTags, usualDigestTags } from "./tag-filter.ts";

interface AttachmentParts {
  source: CopySource;
  again: Again;
  /** Has a manifest with all below it at the target. */
  copy: (job: Job, pointer: Pointer, found?: ProvenManifest) => Promise<Node>;
  /** Moves a tag of the target. */
  tag: (job: Job, tag: Tag, found: ProvenManifest, origin: Origin | undefined) => Promise<unknown>;
}

export class Attachments {
  readonly #parts: AttachmentParts;
  /** By the repositories and digest. */
  readonly #copied = new Map<string, Promise<Node[]>>();
  /** By repository; undefined where they can't be listed. */
  readonly #tags = new Map<string, Promise<DigestTags | undefined>>();
  /** Repositories of the source that answer without the API. */
  readonly #withoutApi = new Set<string>();

  constructor(parts: AttachmentParts) {
    this.#parts = parts;
  }

  /** Copies what refers to the nodes and to all below them, and what refers to that. The nodes themselves are at the target. */
  async copyAll(job: Job, nodes: readonly Node[]): Promise<void> {
    const seen = new Set<Digest>();
    // In waves, not by recursion: a tag can be made to lead back to what it is about.
    for (let wave = unseen(nodes, seen); wave.length > 0;) {
      const found = await allOf(wave.map((digest) => this.#copyOnce(job, digest)));
      wave = unseen(found.flat(), seen);
    }
  }

  #copyOnce(job: Job, subject: Digest): Promise<Node[]> {
    const key = `${job.from} ${job.to} ${subject}`;
    const known = this.#copied.get(key);
    if (known) return known;
    const work = this.#copyFor(job, subject);
    this.#copied.set(key, work);
    work.catch(() => this.#copied.delete(key));
    return work;
  }

  async #copyFor(job: Job, subject: Digest): Promise<Node[]> {
    const tags = await this.#tagsOf(job);
    const [referrers, tagged] = await allOf([
      this.#referrersOf(job, subject, tags),
      tags ? tags.of(subject) : usualDigestTags(subject),
    ]);
    const nodes = await allOf([
      ...referrers.map((pointer) => this.#copyReferrer(job, pointer, subject)),
      ...tagged.map((tag) => this.#copyTag(job, tag)),
    ]);
    return nodes.flat();
  }

  async #copyReferrer(job: Job, pointer: Pointer, subject: Digest): Promise<Node[]> {
    try {
      return [await this.#parts.copy(job, pointer)];
    } catch (error) {
      if (!(error instanceof CopyError && error.fault === "missing")) throw error;
      job.result.notes.push(`${pointer.digest}, which refers to ${subject}, is listed and is not there`);
      return [];
    }
  }

  async #copyTag(job: Job, tag: Tag): Promise<Node[]> {
    const { source, again, copy } = this.#parts;
    const { from, signal } = job;
    const got = await again(() => source.getManifest(from, tag, { signal }), signal);
    if (!got) return [];
    const found = proveManifest(`${source.name}/${from}`, { digest: digestOf(got.bytes) }, got);
    const node = await copy(job, { digest: found.digest }, found);
    await this.#parts.tag(job, tag, found, got.origin);
    return [node];
  }

  async #referrersOf({ from, signal }: Job, subject: Digest, tags: DigestTags | undefined): Promise<Pointer[]> {
    const { source, again } = this.#parts;
    if (!this.#withoutApi.has(from)) {
      const listed = await again(() => source.referrers(from, subject, { signal }), signal).catch(noApi);
      if (listed) return readPointers(listed);
      this.#withoutApi.add(from);
    }
    const tag = referrersTag(subject);
    if (tags?.has(tag) === false) return [];
    const got = await again(() => source.getManifest(from, tag, { signal }), signal);
    return got ? parseManifest(got.bytes, got.contentType).manifests : [];
  }

  #tagsOf({ from, signal }: Job): Promise<DigestTags | undefined> {
    const { source, again } = this.#parts;
    const known = this.#tags.get(from);
    if (known) return known;
    const work = again(() => source.listTags(from, { signal }), signal).then(
      (tags) => tags && new DigestTags(tags),
      (error: unknown) => {
        if (error instanceof RemoteError && (error.fault === "denied" || error.fault === "protocol")) return undefined;
        throw error;
      },
    );
    this.#tags.set(from, work);
    work.catch(() => this.#tags.delete(from));
    return work;
  }
}

/** Some registries have other words than 404 for what they do not know. */
function noApi(error: unknown): undefined {
  if (error instanceof RemoteError && error.fault === "protocol" && (error.status ?? 0) >= 400) return undefined;
  throw error;
}

/** The digests of nodes and all below them, each once. */
function unseen(nodes: readonly Node[], seen: Set<Digest>): Digest[] {
  return nodes.flatMap(({ digest, children }) => {
    if (seen.has(digest)) return [];
    seen.add(digest);
    return [digest, ...unseen(children, seen)];
  });
}
