/**
 * What images of a source are made of, and when they were made: read by digest, proven, each manifest once for a whole plan. Docker Hub counts
 * these reads as pulls: none is made that would leave fewer than the registry's `quota.keep`.
 */
import type { Bytes, Milliseconds } from "../base/clock.ts";
import { algorithmOf, digestOf, isDigest, type Digest } from "../oci/digest.ts";
import { isIndexType, ownBlobs, parseManifest, type Descriptor } from "../oci/manifest.ts";
import { referrersTag, type Reference, type RepositoryName, type Tag } from "../oci/reference.ts";
import type { ReplicationRule } from "../config/schema.ts";
import { chooseChildren, type ProvenManifest } from "./copy-manifests.ts";
import type { PlanRegistry } from "./plan-registry.ts";
import { rewriteIndex, type RewriteMemory } from "./rewrite.ts";
import { platformsOf } from "./rules.ts";

/** All that an image needs. */
export interface Closure {
  manifests: Set<Digest>;
  blobs: Map<Digest, Bytes>;
}

const CREATED = "org.opencontainers.image.created";
const IMAGE_CONFIG = /^application\/vnd\.(?:oci\.image\.config|docker\.container\.image)\.v1\+json$/;
const MOST_CONFIG_BYTES = 1024 * 1024;

export class SourceContent {
  readonly #registry: PlanRegistry;
  readonly #platforms: readonly string[];
  readonly #rewrites: boolean;
  readonly #memory: RewriteMemory | undefined;
  readonly #signal: AbortSignal;
  readonly #manifests = new Map<string, Promise<ProvenManifest>>();

  /** @param memory of earlier plans */
  constructor(
    registry: PlanRegistry,
    rule: Pick<ReplicationRule, "platforms">,
    signal: AbortSignal,
    memory?: RewriteMemory,
  ) {
    this.#registry = registry;
    this.#platforms = platformsOf(rule);
    this.#rewrites = rule.platforms.index === "rewrite" && this.#platforms.length > 0;
    this.#memory = memory;
    this.#signal = signal;
  }

  /** @throws RemoteError; Error: it is not there, is something else, has nothing for the platforms, the budget is spent */
  async closure(repository: RepositoryName, digest: Digest, into: Closure): Promise<void> {
    if (into.manifests.has(digest)) return;
    into.manifests.add(digest);
    const { manifest } = await this.#manifest(repository, digest);
    for (const blob of ownBlobs(manifest)) into.blobs.set(blob.digest, blob.sizeBytes);
    const children = this.#chosen(manifest.manifests, `${repository}@${digest}`);
    await Promise.all(children.map((child) => this.closure(repository, child.digest, into)));
  }

  /**
   * What a digest becomes at a target: another one where its index is rewritten. That costs a pull, unless it was asked before.
   * @throws as {@link closure}
   */
  async atTarget(repository: RepositoryName, digest: Digest): Promise<Digest> {
    if (!this.#rewrites) return digest;
    const known = await this.#memory?.rewritten(digest, this.#platforms);
    if (known !== undefined) return known;
    const made = await this.#rewritten(repository, digest);
    await this.#memory?.remember(digest, this.#platforms, made.digest);
    return made.digest;
  }

  async #rewritten(repository: RepositoryName, digest: Digest): Promise<ProvenManifest> {
    const index = await this.#manifest(repository, digest);
    if (index.manifest.kind !== "index") return index;
    const chosen = this.#chosen(index.manifest.manifests, `${repository}@${digest}`);
    const nested = new Map<Digest, ProvenManifest>();
    await Promise.all(
      chosen.map(async (child) => {
        if (!isIndexType(child.mediaType)) return;
        const made = await this.#rewritten(repository, child.digest);
        if (made.digest !== child.digest) nested.set(child.digest, made);
      }),
    );
    return rewriteIndex(index, chosen, nested);
  }

  /**
   * When an image was made: by its annotation, or else by the configuration of its first platform.
   * @returns undefined where it does not say, as what is built reproducibly (in 1970) does not
   */
  async madeAt(repository: RepositoryName, digest: Digest): Promise<Milliseconds | undefined> {
    const { manifest } = await this.#manifest(repository, digest);
    const annotated = manifest.annotations?.[CREATED];
    if (annotated !== undefined) return timeOf(annotated);
    const [first] = this.#chosen(manifest.manifests, `${repository}@${digest}`);
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

  /** What refers to a digest, also where only the tag of the fallback lists it. @param named the repository's tags that are named after images; undefined: not known */
  async referrers(
    repository: RepositoryName,
    subject: Digest,
    named: Pick<ReadonlySet<string>, "has"> | undefined,
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
    const isThere = named
      ? named.has(fallback)
      : await queue.add(() => remote.headManifest(repository, fallback, { signal: this.#signal }));
    if (isThere === undefined || isThere === false) return [];
    const { manifest } = await this.#manifest(repository, fallback);
    return manifest.manifests.map(({ digest, artifactType }) => ({ digest, artifactType }));
  }

  /** What a tag points to, where the registry's HEAD does not tell: by its bytes. */
  async digestOf(repository: RepositoryName, tag: Tag): Promise<Digest> {
    const { bytes } = await this.#get(repository, tag);
    return digestOf(bytes);
  }

  /** @throws as {@link closure} */
  manifest(repository: RepositoryName, digest: Digest): Promise<ProvenManifest> {
    return this.#manifest(repository, digest);
  }

  #manifest(repository: RepositoryName, reference: Reference): Promise<ProvenManifest> {
    const key = `${repository} ${reference}`;
    let found = this.#manifests.get(key);
    if (!found) {
      found = this.#get(repository, reference).then(({ bytes, contentType }) => {
        const digest = isDigest(reference) ? reference : digestOf(bytes);
        return { digest, bytes, manifest: parseManifest(bytes, contentType) };
      });
      this.#manifests.set(key, found);
    }
    return found;
  }

  #get(repository: RepositoryName, reference: Reference) {
    const { name, queue, remote } = this.#registry;
    return queue.add(async () => {
      const found = await remote.getManifest(repository, reference, { signal: this.#signal });
      if (!found) throw new Error(`${name} does not have ${repository}@${reference}, which it points to`);
      if (isDigest(reference) && digestOf(found.bytes, algorithmOf(reference)) !== reference) {
        throw new Error(`${name} sent something else as ${repository}@${reference}`);
      }
      return found;
    });
  }

  #chosen(manifests: readonly Descriptor[], name: string): readonly Descriptor[] {
    return manifests.length === 0 ? [] : chooseChildren(name, manifests, this.#platforms).chosen;
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
