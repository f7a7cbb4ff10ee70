import PQueue from "p-queue";
import type { CacheKind, CacheResult } from "../base/metrics.ts";
import type { Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { ownBlobs, parseManifest, type Platform } from "../oci/manifest.ts";
import { isTag, referrersTag, type Reference, type RepositoryName } from "../oci/reference.ts";
import type { BlobSource } from "../transfer/source.ts";
import { toRegistryError, type BlobAnswer, type ListAnswer, type ManifestAnswer } from "./answers.ts";
import { CachedBlobs, type BlobDeps } from "./cached-blobs.ts";
import { CachedManifests, type ManifestDeps } from "./cached-manifests.ts";
import { Listings, type Asked, type ListingDeps } from "./listings.ts";
import type { Located, Names } from "./names.ts";
import { Beliefs } from "./shared.ts";
import type { Target, Upstream } from "./upstream.ts";

type Cached = Extract<Located, { kind: "cached" }>;

/** What its parts need, and where the upstreams are. */
export interface MirrorDeps extends ManifestDeps, ListingDeps, Omit<BlobDeps, "sourcesOf"> {
  upstreams: ReadonlyMap<string, Upstream>;
  names: Names;
}

/** Told of every blob before and after it is here. */
export type WarmObserver = (blob: { digest: Digest; sizeBytes: number; here: boolean }) => void;

/** How long a prefetch goes on before any client asks for the blob. */
const PREFETCH_PATIENCE_MS = 60_000;
const PREFETCH_CONCURRENCY = 4;
const PREFETCH_BACKLOG = 1000;
/** An index of indexes is rare; a chain of hundreds is an attack on whoever walks it. */
const MAX_WARM_DEPTH = 4;

/**
 * Cached repositories: what is served from here and what is asked of an upstream (`cached-manifests.ts`, `cached-blobs.ts`, `listings.ts`),
 * and what is fetched before anyone asks.
 *
 * - What the cache itself can't do (a locked database, a full disk, a damaged file) never fails a pull: it is reported, and upstream is asked.
 * - Content is stored once, and reached per repository.
 */
export class Mirror implements AsyncDisposable {
  readonly #deps: MirrorDeps;
  readonly #manifests: CachedManifests;
  readonly #blobs: CachedBlobs;
  readonly #listings: Listings;
  readonly #prefetches = new PQueue({ concurrency: PREFETCH_CONCURRENCY });
  /** Images whose content was looked after a moment ago. */
  readonly #prefetched = new Beliefs();

  constructor(deps: MirrorDeps) {
    this.#deps = deps;
    this.#manifests = new CachedManifests(deps);
    this.#blobs = new CachedBlobs({
      ...deps,
      sourcesOf: (repository, digest) => this.#sourcesOf(repository, digest),
    });
    this.#listings = new Listings(deps);
  }

  /**
   * @param head only the head is wanted: a digest that is not here costs a HEAD upstream
   * @throws RegistryError MANIFEST_UNKNOWN absent upstream; DENIED, TOOMANYREQUESTS, UNAVAILABLE where upstream can't be asked
   */
  async manifest(located: Cached, reference: Reference, head: boolean): Promise<ManifestAnswer> {
    const target = this.#target(located);
    try {
      const resolved = await this.#manifests.resolve(target, reference, head);
      this.#deps.usage.touch(resolved.digest);
      let bytes: Buffer | undefined;
      if (!head) {
        bytes = resolved.bytes ?? (await this.#manifests.read(target, resolved.digest));
        if (target.upstream.config.prefetch) this.#prefetch(target, { ...resolved, bytes });
      }
      this.#count(target, "manifest", resolved.result);
      return { ...resolved, bytes, upstream: target.upstream.name };
    } catch (error) {
      throw toRegistryError(error, target.upstream.name, `manifest ${reference} of ${target.repository}`);
    }
  }

  /**
   * @param head only the head is wanted: what is not here costs a HEAD upstream, no download
   * @throws RegistryError BLOB_UNKNOWN absent upstream; DENIED, TOOMANYREQUESTS, UNAVAILABLE where upstream can't be asked
   */
  async blob(located: Cached, digest: Digest, head: boolean): Promise<BlobAnswer> {
    const target = this.#target(located);
    try {
      const answer = await this.#blobs.open(target, digest, head);
      this.#count(target, "blob", answer.result);
      return answer;
    } catch (error) {
      throw toRegistryError(error, target.upstream.name, `blob ${digest} of ${target.repository}`);
    }
  }

  /**
   * A manifest for a copy of it elsewhere: from here, or brought here from any upstream, whatever its globs let clients see.
   * @throws RegistryError MANIFEST_UNKNOWN; RemoteError
   */
  async manifestFrom(target: Target, digest: Digest): Promise<ManifestAnswer> {
    const resolved = await this.#manifests.resolve(target, digest, false);
    this.#deps.usage.touch(resolved.digest);
    const bytes = resolved.bytes ?? (await this.#manifests.read(target, resolved.digest));
    return { ...resolved, bytes, upstream: target.upstream.name };
  }

  /** A blob as {@link manifestFrom}. @throws RegistryError BLOB_UNKNOWN; RemoteError, NotAtSource, DigestMismatch */
  blobFrom(target: Target, digest: Digest): Promise<BlobAnswer> {
    return this.#blobs.open(target, digest, false);
  }

  /** Whether a blob is read without asking its upstream. */
  hasBlob({ repository }: Target, digest: Digest): Promise<boolean> {
    return this.#blobs.has(repository, digest);
  }

  /** Brings a blob here, unless it is. @throws RegistryError as {@link blob}; the signal's reason */
  async bring(located: Cached, digest: Digest, signal: AbortSignal): Promise<void> {
    const target = this.#target(located);
    try {
      await this.#blobs.bring(target, digest, signal);
    } catch (error) {
      signal.throwIfAborted();
      throw toRegistryError(error, target.upstream.name, `blob ${digest} of ${target.repository}`);
    }
  }

  /** Every tag of a cached repository, in lexical order. @throws RegistryError NAME_UNKNOWN and as {@link manifest} */
  async tags(located: Cached): Promise<ListAnswer<string>> {
    const target = this.#target(located);
    const { items, ...listed } = await this.#list(target, "tags", "", async (urgent) => {
      const found = await target.upstream.ask((remote) => remote.listTags(target.remoteName, { urgent }));
      return found && { items: found.answer };
    });
    if (!items) throw new RegistryError("NAME_UNKNOWN", `${located.upstream} has no repository ${located.remoteName}`);
    return { ...listed, items: (items as string[]).filter(isTag).sort() };
  }

  /** Descriptors of what refers to a digest, as upstream sends them. An upstream without the referrers API is asked for its fallback tag. */
  async referrers(located: Cached, digest: Digest): Promise<ListAnswer<Record<string, unknown>>> {
    const target = this.#target(located);
    const { items, ...listed } = await this.#list(target, "referrers", digest, async (urgent) => {
      const found = await target.upstream.ask((remote) => remote.referrers(target.remoteName, digest, { urgent }));
      return found ? { items: found.answer } : this.#fallbackReferrers(located, digest);
    });
    return { ...listed, items: (items ?? []) as Record<string, unknown>[] };
  }

  async #fallbackReferrers(located: Cached, digest: Digest): Promise<Asked> {
    try {
      const { bytes, warning } = await this.manifest(located, referrersTag(digest), false);
      const index = JSON.parse(bytes?.toString("utf8") ?? "{}") as { manifests?: unknown[] };
      return { items: index.manifests ?? [], warning };
    } catch (error) {
      if (error instanceof RegistryError && error.code === "MANIFEST_UNKNOWN") return { items: [] };
      throw error;
    }
  }

  async #list(
    target: Target,
    kind: "tags" | "referrers",
    subject: string,
    ask: (urgent: boolean) => Promise<Asked | undefined>,
  ): Promise<Omit<ListAnswer<unknown>, "items"> & { items: unknown[] | undefined }> {
    try {
      const listed = await this.#listings.find(target, kind, subject, ask);
      this.#count(target, kind, listed.result);
      return { ...listed, upstream: target.upstream.name };
    } catch (error) {
      throw toRegistryError(error, target.upstream.name, `${kind} of ${target.repository}`);
    }
  }

  // ---- before anyone asks ----

  /** Lets the config and the layers of an image start to flow before the client asks for them. */
  #prefetch(target: Target, image: { digest: Digest; bytes: Buffer; mediaType: string }): void {
    const nowMs = this.#deps.clock.now();
    // A hit costs microseconds: what was looked after a moment ago is not looked after again.
    if (this.#prefetched.holds(image.digest, nowMs)) return;
    this.#prefetched.believe(image.digest, nowMs, PREFETCH_PATIENCE_MS);
    for (const { digest } of ownBlobs(parseManifest(image.bytes, image.mediaType))) {
      if (this.#prefetches.size >= PREFETCH_BACKLOG) return;
      void this.#prefetches.add(async () => {
        try {
          await this.#blobs.bringAhead(target, digest, AbortSignal.timeout(PREFETCH_PATIENCE_MS));
        } catch (error) {
          this.#deps.log.debug({ repository: target.repository, digest, err: error }, "prefetch failed");
        }
      });
    }
  }

  /**
   * Brings a manifest and all that it points to here, for the platforms wanted.
   * @throws RegistryError as {@link manifest} and {@link blob}; the signal's reason
   */
  async warm(
    located: Cached,
    reference: Reference,
    wants: (platform: Platform) => boolean,
    onBlob: WarmObserver,
    signal: AbortSignal,
    depth = 0,
  ): Promise<void> {
    signal.throwIfAborted();
    const { bytes, mediaType } = await this.manifest(located, reference, false);
    if (!bytes) throw new Error("a manifest without bytes");
    const manifest = parseManifest(bytes, mediaType);
    if (manifest.manifests.length > 0 && depth === MAX_WARM_DEPTH) {
      throw new RegistryError("MANIFEST_INVALID", `${located.repository} nests indexes deeper than ${MAX_WARM_DEPTH}`);
    }
    for (const child of manifest.manifests) {
      if (!child.platform || wants(child.platform)) {
        await this.warm(located, child.digest, wants, onBlob, signal, depth + 1);
      }
    }
    const target = this.#target(located);
    const lanes = new PQueue({ concurrency: PREFETCH_CONCURRENCY });
    const brought = await Promise.allSettled(
      ownBlobs(manifest).map(({ digest, sizeBytes }) =>
        lanes.add(async () => {
          onBlob({ digest, sizeBytes, here: false });
          await this.#blobs.bring(target, digest, signal);
          onBlob({ digest, sizeBytes, here: true });
        }),
      ),
    );
    const failed = brought.find((one) => one.status === "rejected");
    if (failed) throw toRegistryError(failed.reason, target.upstream.name, `a blob of ${target.repository}`);
  }

  // ---- common ----

  /** @throws RegistryError DENIED where the upstream's globs keep the repository out */
  #target({ repository, remoteName, upstream: name }: Cached): Target {
    const upstream = this.#deps.upstreams.get(name);
    if (!upstream) throw new RegistryError("NAME_UNKNOWN", `no upstream ${name} is configured`);
    if (!upstream.allows(remoteName)) {
      throw new RegistryError("DENIED", `${repository} is kept out by upstreams.${name}.allow or .deny`);
    }
    return { repository, remoteName, upstream };
  }

  #sourcesOf(repository: RepositoryName, digest: Digest): readonly BlobSource[] {
    const stored = this.#deps.names.stored(repository);
    const upstream = this.#deps.upstreams.get(stored?.upstream ?? "");
    return stored && upstream?.allows(stored.remoteName) ? upstream.sources(stored.remoteName, digest) : [];
  }

  #count(target: Target, kind: CacheKind, result: CacheResult): void {
    this.#deps.metrics.cacheRequests.inc({ upstream: target.upstream.name, kind, result });
  }

  /** Ends what runs in the background. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#prefetches.clear();
    await Promise.all([this.#manifests.idle(), this.#listings.idle()]);
  }
}
