/**
 * What images of a source are made of, and when they were made: read by digest, proven, each manifest once for a whole plan. Docker Hub counts
 * these reads as pulls: none is made that would leave fewer than the registry's `quota.keep`.
 */
import type { Bytes, Milliseconds } from "../base/clock.ts";
import { algorithmOf, digestOf, isDigest, type Digest } from "../oci/digest.ts";
import { ownBlobs, parseManifest, type Descriptor, type Manifest } from "../oci/manifest.ts";
import { referrersTag, type Reference, type RepositoryName, type Tag } from "../oci/reference.ts";
import { wanted } from "../registry/warm.ts";
import type { PlanRegistry } from "./plan-registry.ts";

/** All that an image needs. */
export interface Closure {
  manifests: Set<Digest>;
  blobs: Map<Digest, Bytes>;
}

const CREATED = "org.opencontainers.image.created";
/** An attestation of BuildKit stands in the index beside the image that it is about. */
const ATTESTED = "vnd.docker.reference.digest";
const IMAGE_CONFIG = /^application\/vnd\.(?:oci\.image\.config|docker\.container\.image)\.v1\+json$/;
const MOST_CONFIG_BYTES = 1024 * 1024;

export class SourceContent {
  readonly #registry: PlanRegistry;
  readonly #platforms: readonly string[];
  readonly #signal: AbortSignal;
  readonly #manifests = new Map<string, Promise<Manifest>>();

  /** @param platforms of an index, only what is for these; none: all */
  constructor(registry: PlanRegistry, platforms: readonly string[], signal: AbortSignal) {
    this.#registry = registry;
    this.#platforms = platforms;
    this.#signal = signal;
  }

  /** @throws RemoteError; Error: it is not there, is something else, has nothing for the platforms, the budget is spent */
  async closure(repository: RepositoryName, digest: Digest, into: Closure): Promise<void> {
    if (into.manifests.has(digest)) return;
    into.manifests.add(digest);
    const manifest = await this.#manifest(repository, digest);
    for (const blob of ownBlobs(manifest)) into.blobs.set(blob.digest, blob.sizeBytes);
    const children = this.#chosen(manifest, `${repository}@${digest}`);
    await Promise.all(children.map((child) => this.closure(repository, child.digest, into)));
  }

  /**
   * When an image was made: by its annotation, or else by the configuration of its first platform.
   * @returns undefined where it does not say, as what is built reproducibly (in 1970) does not
   */
  async madeAt(repository: RepositoryName, digest: Digest): Promise<Milliseconds | undefined> {
    const manifest = await this.#manifest(repository, digest);
    const annotated = manifest.annotations?.[CREATED];
    if (annotated !== undefined) return timeOf(annotated);
    const [first] = this.#chosen(manifest, `${repository}@${digest}`);
    if (first) return this.madeAt(repository, first.digest);
    const { config } = manifest;
    if (!config || !IMAGE_CONFIG.test(config.mediaType) || config.sizeBytes > MOST_CONFIG_BYTES) return undefined;
    const bytes = await this.#blob(repository, config.digest);
    try {
      const { created } = JSON.parse(bytes.toString()) as { created?: unknown };
      return typeof created === "string" ? timeOf(created) : undefined;
    } catch {
      return undefined;
    }
  }

  /** What refers to a digest, also where only the tag of the fallback lists it. @param listed the repository's tags; undefined: not known */
  async referrers(
    repository: RepositoryName,
    subject: Digest,
    listed: ReadonlySet<string> | undefined,
  ): Promise<{ digest: Digest; artifactType: string | undefined }[]> {
    const { queue, remote } = this.#registry;
    const found = await queue.add(() => remote.referrers(repository, subject, { signal: this.#signal }));
    if (found) {
      return found.flatMap(({ digest, artifactType }) =>
        typeof digest === "string" && isDigest(digest)
          ? [{ digest, artifactType: typeof artifactType === "string" ? artifactType : undefined }]
          : [],
      );
    }
    const fallback = referrersTag(subject);
    const isThere = listed
      ? listed.has(fallback)
      : await queue.add(() => remote.headManifest(repository, fallback, { signal: this.#signal }));
    if (isThere === undefined || isThere === false) return [];
    const { manifests } = await this.#manifest(repository, fallback);
    return manifests.map(({ digest, artifactType }) => ({ digest, artifactType }));
  }

  /** What a tag points to, where the registry's HEAD does not tell: by its bytes. */
  async digestOf(repository: RepositoryName, tag: Tag): Promise<Digest> {
    const { bytes } = await this.#get(repository, tag);
    return digestOf(bytes);
  }

  #manifest(repository: RepositoryName, reference: Reference): Promise<Manifest> {
    const key = `${repository} ${reference}`;
    let found = this.#manifests.get(key);
    if (!found) {
      found = this.#get(repository, reference).then(({ bytes, contentType }) => parseManifest(bytes, contentType));
      this.#manifests.set(key, found);
    }
    return found;
  }

  #get(repository: RepositoryName, reference: Reference) {
    const { name, queue, remote, keep } = this.#registry;
    return queue.add(async () => {
      const { rateLimit } = remote.state;
      if (rateLimit && rateLimit.remaining <= keep) {
        throw new Error(
          `${name} has ${rateLimit.remaining} pulls left, and replication.registries.${name}.quota.keep is ${keep}: wait, or lower it`,
        );
      }
      const found = await remote.getManifest(repository, reference, { signal: this.#signal });
      if (!found) throw new Error(`${name} does not have ${repository}@${reference}, which it points to`);
      if (isDigest(reference) && digestOf(found.bytes, algorithmOf(reference)) !== reference) {
        throw new Error(`${name} sent something else as ${repository}@${reference}`);
      }
      return found;
    });
  }

  #chosen({ manifests }: Manifest, name: string): Descriptor[] {
    if (this.#platforms.length === 0 || manifests.length === 0) return manifests;
    const chosen = manifests.filter(({ platform }) => !platform || wanted(this.#platforms, platform));
    const digests = new Set<string>(chosen.map(({ digest }) => digest));
    const kept = manifests.filter((one) => digests.has(one.digest) || digests.has(one.annotations?.[ATTESTED] ?? ""));
    if (kept.length === 0) throw new Error(`${name} has nothing for ${this.#platforms.join(", ")}`);
    return kept;
  }

  async #blob(repository: RepositoryName, digest: Digest): Promise<Buffer> {
    const { name, queue, remote } = this.#registry;
    return queue.add(async () => {
      const opened = await remote.openBlob(repository, digest, { signal: this.#signal });
      if (!opened) throw new Error(`${name} does not have the configuration ${digest} of ${repository}`);
      const chunks: Buffer[] = [];
      let sizeBytes = 0;
      for await (const chunk of opened.body) {
        sizeBytes += chunk.length;
        if (sizeBytes > MOST_CONFIG_BYTES) break;
        chunks.push(chunk);
      }
      const bytes = Buffer.concat(chunks);
      if (digestOf(bytes, algorithmOf(digest)) !== digest) throw new Error(`${name} sent something else as ${digest}`);
      return bytes;
    });
  }
}

/** 1970 and before is what tools write that leave the time out. */
function timeOf(text: string): Milliseconds | undefined {
  const atMs = Date.parse(text);
  return Number.isNaN(atMs) || atMs <= 86_400_000 ? undefined : atMs;
}
