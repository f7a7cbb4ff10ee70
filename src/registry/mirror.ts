import PQueue from "p-queue";
import type { Clock } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { CacheResult, Metrics } from "../base/metrics.ts";
import { algorithmOf, digestOf, hexOf, isDigest, type Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { parseManifest, type Manifest, type Platform } from "../oci/manifest.ts";
import { isTag, type Reference, type Tag } from "../oci/reference.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { Remote } from "../remote/remote.ts";
import { BlobFault, type BlobReader, type BlobStore } from "../store/blobs.ts";
import type { Catalog, Listing, Owner, StoredTag } from "../store/catalog.ts";
import { MAX_ENTRY_BYTES, type MemoryCache } from "../store/memory.ts";
import type { Usage } from "../store/usage.ts";
import type { Downloads, FlightPlan } from "../transfer/download.ts";
import { DigestMismatch } from "../transfer/source.ts";
import { toRegistryError, type BlobAnswer, type ListAnswer, type ManifestAnswer } from "./answers.ts";
import { freshness, mayServeStale } from "./freshness.ts";
import type { Located, Names } from "./names.ts";
import { ExpiryMap, Shared } from "./shared.ts";
import type { Upstream } from "./upstream.ts";

type Cached = Extract<Located, { kind: "cached" }>;

export interface MirrorDeps {
  upstreams: ReadonlyMap<string, Upstream>;
  names: Names;
  catalog: Catalog;
  blobs: BlobStore;
  memory: MemoryCache;
  usage: Usage;
  downloads: Downloads;
  clock: Clock;
  log: Logger;
  metrics: Metrics;
  /** Keeps the count of what is cached. */
  ledger: { added(upstream: string, bytes: number): void; removed(upstream: string, bytes: number): void };
  /** A failure of the cache that no client notices. */
  onFault(operation: string, error: unknown): void;
}

/** How long a prefetch goes on before any client asks for the blob. */
const PREFETCH_PATIENCE_MS = 60_000;
const PREFETCH_CONCURRENCY = 4;
const PREFETCH_BACKLOG = 1000;

interface Resolved {
  digest: Digest;
  mediaType: string;
  sizeBytes: number | undefined;
  /** Where they are at hand already. */
  bytes: Buffer | undefined;
  warning: string | undefined;
  result: CacheResult;
}

/**
 * Cached repositories: decides what is served from here and what is asked of an upstream.
 *
 * - What the cache itself can't do (a locked database, a full disk, a damaged file) never fails a pull: it is reported, and upstream is asked.
 * - Content is stored once, and reached per repository: what another repository brought here is served only after this repository's
 *   own upstream said that it has it too.
 * - A manifest is verified before it is stored or sent; a tag is moved after its manifest is stored.
 */
export class Mirror implements AsyncDisposable {
  readonly #deps: MirrorDeps;
  readonly #resolutions = new Shared<Resolved>();
  readonly #fetches = new Shared<Fetched>();
  readonly #listings = new Shared<Listed>();
  readonly #absent = new ExpiryMap();
  /** Repositories whose own upstream has a blob that is on its way. */
  readonly #owners = new Map<Digest, Map<string, Owner>>();
  /** Images whose content was looked after, until when that is good. */
  readonly #prefetched = new ExpiryMap();
  readonly #prefetches = new PQueue({ concurrency: PREFETCH_CONCURRENCY });

  constructor(deps: MirrorDeps) {
    this.#deps = deps;
  }

  // ---- manifests ----

  /**
   * @param head only the head is wanted: a digest that is not here costs a HEAD upstream
   * @throws RegistryError MANIFEST_UNKNOWN absent upstream; DENIED, TOOMANYREQUESTS, UNAVAILABLE where upstream can't be asked
   */
  async manifest(located: Cached, reference: Reference, head: boolean): Promise<ManifestAnswer> {
    const upstream = this.#upstream(located);
    try {
      const resolved = isDigest(reference)
        ? await this.#byDigest(located, upstream, reference, head)
        : await this.#byTag(located, upstream, reference as Tag);
      this.#deps.usage.touch(resolved.digest);
      let { bytes } = resolved;
      if (!head) {
        bytes ??= await this.#storedManifest(upstream, resolved.digest);
        bytes ??= (await this.#fetchManifest(located, upstream, resolved.digest)).bytes;
        this.#prefetch(located, upstream, { digest: resolved.digest, bytes, mediaType: resolved.mediaType });
      }
      this.#count(located, "manifest", resolved.result);
      return { ...resolved, bytes: head ? undefined : bytes, upstream: upstream.name };
    } catch (error) {
      throw toRegistryError(error, upstream.name, `manifest ${reference} of ${located.repository}`);
    }
  }

  async #byTag(located: Cached, upstream: Upstream, tag: Tag): Promise<Resolved> {
    const { catalog, clock } = this.#deps;
    const stored = await this.#attempt("find tag", () => catalog.findTag(located.repository, tag));
    const { tagTtl, maxStale, rateLimit } = upstream.config;
    const nowMs = clock.now();
    const key = `${located.repository}:${tag}`;
    const verdict = freshness({
      nowMs,
      checkedAtMs: stored?.checkedAtMs,
      notFoundUntilMs: this.#absent.get(key),
      tagTtl,
      maxStale,
      mayAsk: upstream.mayAsk(nowMs),
      rateRemaining: upstream.rateRemaining,
      rateKeep: rateLimit.keep,
    });
    if (verdict === "negative") {
      this.#count(located, "manifest", "negative");
      throw unknownManifest(located, tag, "upstream said so a moment ago");
    }
    if (stored && verdict === "fresh") return fromStored(stored, "hit");
    if (stored && verdict === "stale") return stale(stored, `${upstream.name} is not asked to spare its rate limit`);
    return this.#resolutions.run(key, () => this.#askForTag(located, upstream, tag, stored));
  }

  /** Asks upstream by HEAD where a tag points, and brings the manifest here before the tag is moved. */
  async #askForTag(located: Cached, upstream: Upstream, tag: Tag, stored: StoredTag | undefined): Promise<Resolved> {
    const { catalog, clock } = this.#deps;
    const nowMs = clock.now();
    const usable = stored && mayServeStale(nowMs - stored.checkedAtMs, upstream.config.maxStale) ? stored : undefined;
    try {
      const found = await upstream.ask((remote) =>
        remote.headManifest(located.remoteName, tag, {
          urgent: usable !== undefined,
          ...(usable?.etag === undefined ? {} : { ifNoneMatch: usable.etag }),
        }),
      );
      if (!found) return await this.#tagIsGone(located, upstream, tag, usable, "it is not there");
      const { answer, remote } = found;
      if (usable && (answer === "notModified" || answer.digest === usable.digest)) {
        const etag = answer === "notModified" ? usable.etag : answer.etag;
        await this.#attempt("confirm tag", () => catalog.setTag(owner(located), tag, usable.digest, etag, nowMs));
        return fromStored(usable, "revalidated");
      }
      if (answer === "notModified")
        throw new RemoteError("protocol", remote.name, "answered 304 to an unconditional request");
      // Without a digest in the head (some registries), only the body tells it.
      const fetched = answer.digest
        ? await this.#bringManifest(located, upstream, answer.digest, remote)
        : await this.#fetchManifest(located, upstream, tag, remote);
      await this.#attempt("set tag", () => catalog.setTag(owner(located), tag, fetched.digest, answer.etag, nowMs));
      return { ...fetched, warning: undefined, result: "miss" };
    } catch (error) {
      if (!(error instanceof RemoteError)) throw error;
      // 401 is how Docker Hub says "no such repository" to strangers.
      if (!error.othersMayAnswer && usable)
        return this.#tagIsGone(located, upstream, tag, usable, error.message, error);
      if (!usable || !error.othersMayAnswer) throw error;
      this.#deps.log.warn(
        { upstream: upstream.name, repository: located.repository, tag, err: error },
        "serving a stale tag",
      );
      return stale(usable, error.message);
    }
  }

  async #tagIsGone(
    located: Cached,
    upstream: Upstream,
    tag: Tag,
    usable: StoredTag | undefined,
    reason: string,
    error?: RemoteError,
  ): Promise<Resolved> {
    const { clock, catalog } = this.#deps;
    if (usable && upstream.config.whenGone === "stale") return stale(usable, `${upstream.name}: ${reason}`);
    if (error) throw error;
    this.#absent.set(`${located.repository}:${tag}`, clock.now() + upstream.config.notFoundTtl);
    if (usable) await this.#attempt("remove tag", () => catalog.removeTag(located.repository, tag));
    throw unknownManifest(located, tag, `${upstream.name} has no such tag or repository`);
  }

  async #byDigest(located: Cached, upstream: Upstream, digest: Digest, head: boolean): Promise<Resolved> {
    const { catalog, clock } = this.#deps;
    const stored = await this.#attempt("find manifest", () => catalog.findManifest(located.repository, digest));
    if (stored?.linked) return { ...stored, digest, bytes: undefined, warning: undefined, result: "hit" };
    const key = `${located.repository}@${digest}`;
    if (clock.now() < (this.#absent.get(key) ?? 0)) {
      this.#count(located, "manifest", "negative");
      throw unknownManifest(located, digest, "upstream said so a moment ago");
    }
    if (!head && !stored) {
      const fetched = await this.#fetchManifest(located, upstream, digest);
      return { ...fetched, warning: undefined, result: "miss" };
    }
    // Another repository brought it here, or only its head is wanted: does this repository's upstream have it?
    const found = await upstream.ask((remote) => remote.headManifest(located.remoteName, digest, {}));
    if (!found || found.answer === "notModified") throw this.#absentManifest(located, upstream, digest);
    const { mediaType, sizeBytes } = found.answer;
    if (stored) {
      await this.#attempt("link manifest", () => catalog.link(owner(located), digest, clock.now()));
      return { ...stored, digest, bytes: undefined, warning: undefined, result: "revalidated" };
    }
    return {
      digest,
      mediaType: mediaType ?? "application/octet-stream",
      sizeBytes,
      bytes: undefined,
      warning: undefined,
      result: "miss",
    };
  }

  /** The manifest of a digest that this repository's upstream has just named. */
  async #bringManifest(located: Cached, upstream: Upstream, digest: Digest, remote: Remote): Promise<Fetched> {
    const { catalog, clock } = this.#deps;
    const stored = await this.#attempt("find manifest", () => catalog.findManifest(located.repository, digest));
    const bytes = stored && (await this.#storedManifest(upstream, digest));
    if (!stored || !bytes) return this.#fetchManifest(located, upstream, digest, remote);
    if (!stored.linked) await this.#attempt("link manifest", () => catalog.link(owner(located), digest, clock.now()));
    return { digest, mediaType: stored.mediaType, sizeBytes: stored.sizeBytes, bytes };
  }

  /** @returns undefined where it is not here, or is no longer what its digest says */
  async #storedManifest(upstream: Upstream, digest: Digest): Promise<Buffer | undefined> {
    const { memory, catalog } = this.#deps;
    const remembered = memory.get(digest);
    if (remembered) return remembered;
    const bytes = await this.#attempt("read manifest", () => catalog.readManifest(digest));
    if (!bytes) return undefined;
    if (digestOf(bytes, algorithmOf(digest)) !== digest) {
      this.#deps.onFault("read manifest", new DigestMismatch(`the stored bytes of ${digest} are damaged`));
      await this.#attempt("remove manifest", () => catalog.removeManifests([digest]));
      this.#deps.ledger.removed(upstream.name, bytes.length);
      return undefined;
    }
    memory.set(digest, bytes);
    return bytes;
  }

  #fetchManifest(located: Cached, upstream: Upstream, reference: Reference, first?: Remote): Promise<Fetched> {
    return this.#fetches.run(`${located.repository}@${reference}`, async () => {
      const found = await upstream.ask(async (remote) => {
        const answer = await remote.getManifest(located.remoteName, reference, {});
        return answer && this.#verify(upstream, remote, reference, answer.bytes, answer.contentType);
      }, first);
      if (!found) throw this.#absentManifest(located, upstream, reference);
      const { manifest, ...fetched } = found.answer;
      this.#deps.memory.set(fetched.digest, fetched.bytes);
      const children = [...(manifest.config ? [manifest.config] : []), ...manifest.layers, ...manifest.manifests];
      await this.#attempt("store manifest", async () => {
        const isNew = await this.#deps.catalog.addManifest(
          owner(located),
          { ...fetched, children },
          this.#deps.clock.now(),
        );
        if (isNew) this.#deps.ledger.added(upstream.name, fetched.sizeBytes);
      });
      return fetched;
    });
  }

  #verify(
    upstream: Upstream,
    remote: Remote,
    reference: Reference,
    bytes: Buffer,
    contentType: string | undefined,
  ): Fetched & { manifest: Manifest } {
    const digest = isDigest(reference) ? reference : digestOf(bytes);
    if (digestOf(bytes, algorithmOf(digest)) !== digest) {
      this.#deps.metrics.digestMismatches.inc({ upstream: upstream.name });
      throw new RemoteError("protocol", remote.name, `sent a manifest that is not ${digest}`);
    }
    try {
      const manifest = parseManifest(bytes, contentType);
      return { digest, mediaType: manifest.mediaType, sizeBytes: bytes.length, bytes, manifest };
    } catch (cause) {
      throw new RemoteError("protocol", remote.name, `sent what can't be used: ${(cause as Error).message}`, { cause });
    }
  }

  #absentManifest(located: Cached, upstream: Upstream, reference: Reference): RegistryError {
    const { clock } = this.#deps;
    if (isDigest(reference))
      this.#absent.set(`${located.repository}@${reference}`, clock.now() + upstream.config.notFoundTtl);
    return unknownManifest(located, reference, `${upstream.name} does not have it`);
  }

  // ---- blobs ----

  /**
   * @param head only the head is wanted: what is not here costs a HEAD upstream, no download
   * @throws RegistryError BLOB_UNKNOWN absent upstream; DENIED, TOOMANYREQUESTS, UNAVAILABLE where upstream can't be asked
   */
  async blob(located: Cached, digest: Digest, head: boolean): Promise<BlobAnswer> {
    const upstream = this.#upstream(located);
    try {
      const found = await this.#storedBlob(located, upstream, digest, head);
      const answer =
        found ??
        (head ? await this.#headBlob(located, upstream, digest) : await this.#download(located, upstream, digest));
      this.#count(located, "blob", answer.result);
      return answer;
    } catch (error) {
      throw toRegistryError(error, upstream.name, `blob ${digest} of ${located.repository}`);
    }
  }

  /** @returns undefined where it is not here, or not whole */
  async #storedBlob(
    located: Cached,
    upstream: Upstream,
    digest: Digest,
    head: boolean,
  ): Promise<BlobAnswer | undefined> {
    const { catalog, blobs, memory, usage } = this.#deps;
    const stored = await this.#attempt("find blob", () => catalog.findBlob(located.repository, digest));
    if (!stored) return undefined;
    let result: CacheResult = "hit";
    if (!stored.linked) {
      await this.#provePossession(located, upstream, digest);
      await this.#attempt("link blob", () => catalog.link(owner(located), digest, this.#deps.clock.now()));
      result = "revalidated";
    }
    usage.touch(digest);
    const answer = { digest, sizeBytes: stored.sizeBytes, upstream: upstream.name, result };
    const remembered = memory.get(digest);
    if (remembered) return { ...answer, content: head ? undefined : remembered };
    let reader: BlobReader | undefined;
    try {
      reader = await blobs.open(digest, stored.sizeBytes);
      if (head || stored.sizeBytes > MAX_ENTRY_BYTES) {
        if (head) reader.close();
        return { ...answer, content: head ? undefined : reader };
      }
      const bytes = await readAll(reader, stored.sizeBytes);
      reader.close();
      if (digestOf(bytes, algorithmOf(digest)) !== digest)
        throw new BlobFault("corrupt", `the file of ${digest} is damaged`);
      memory.set(digest, bytes);
      return { ...answer, content: bytes };
    } catch (error) {
      reader?.close();
      this.#deps.onFault("open blob", error);
      // Unreadable is not gone: the file stays for a disk that recovers, and this pull goes upstream.
      if (error instanceof BlobFault && error.fault !== "unreadable") {
        await this.#attempt("quarantine", async () => {
          await catalog.removeBlobs([digest]);
          this.#deps.ledger.removed(stored.upstream ?? upstream.name, stored.sizeBytes);
          await blobs.quarantine(digest);
        });
      }
      return undefined;
    }
  }

  async #headBlob(located: Cached, upstream: Upstream, digest: Digest): Promise<BlobAnswer> {
    const { sizeBytes } = await this.#provePossession(located, upstream, digest);
    return { digest, sizeBytes, content: undefined, upstream: upstream.name, result: "miss" };
  }

  /** This repository's own upstream says that it has the blob. @throws RegistryError BLOB_UNKNOWN, RemoteError */
  async #provePossession(
    located: Cached,
    upstream: Upstream,
    digest: Digest,
  ): Promise<{ sizeBytes: number | undefined }> {
    const found = await upstream.ask((remote) => remote.headBlob(located.remoteName, digest, {}));
    if (!found) {
      throw new RegistryError("BLOB_UNKNOWN", `${upstream.name} has no blob ${digest} in ${located.remoteName}`, {
        detail: { digest },
      });
    }
    return found.answer;
  }

  async #download(located: Cached, upstream: Upstream, digest: Digest): Promise<BlobAnswer> {
    const { downloads } = this.#deps;
    const joined = downloads.has(digest);
    if (joined && !this.#owners.get(digest)?.has(located.repository))
      await this.#provePossession(located, upstream, digest);
    const reader = await downloads.open(await this.#plan(located, upstream, digest));
    return {
      digest,
      sizeBytes: reader.sizeBytes,
      content: reader,
      upstream: upstream.name,
      result: joined ? "joined" : "miss",
    };
  }

  async #plan(located: Cached, upstream: Upstream, digest: Digest): Promise<FlightPlan> {
    const { catalog, clock } = this.#deps;
    const claimedSizeBytes = await this.#attempt("find size", () => catalog.claimedSizeBytes(digest));
    const elsewhere = (await this.#attempt("find holders", () => catalog.repositoriesWith(digest))) ?? [];
    const owners = this.#owners.get(digest) ?? new Map<string, Owner>();
    owners.set(located.repository, owner(located));
    this.#owners.set(digest, owners);
    return {
      digest,
      sources: upstream.sources(located.remoteName, digest),
      spares: elsewhere.flatMap(({ repository }) => {
        const other = repository === located.repository ? undefined : this.#deps.names.stored(repository);
        if (other?.kind !== "cached") return [];
        return this.#deps.upstreams.get(other.upstream)?.sources(other.remoteName, digest) ?? [];
      }),
      claimedSizeBytes,
      ranges: upstream.config.ranges,
      committed: async (sizeBytes) => {
        const isNew = await catalog.addBlob([...owners.values()], digest, sizeBytes, clock.now());
        if (isNew) this.#deps.ledger.added(upstream.name, sizeBytes);
      },
      ended: () => {
        if (this.#owners.get(digest) === owners) this.#owners.delete(digest);
      },
    };
  }

  /** Lets the config and the layers of an image start to flow before the client asks for them. */
  #prefetch(located: Cached, upstream: Upstream, image: { digest: Digest; bytes: Buffer; mediaType: string }): void {
    if (!upstream.config.prefetch) return;
    const { digest: imageDigest, bytes, mediaType } = image;
    const nowMs = this.#deps.clock.now();
    // A hit costs microseconds: what was looked after a moment ago is not looked after again.
    if (nowMs < (this.#prefetched.get(imageDigest) ?? 0)) return;
    this.#prefetched.set(imageDigest, nowMs + PREFETCH_PATIENCE_MS);
    const manifest = parseManifest(bytes, mediaType);
    for (const { digest, foreign } of [...(manifest.config ? [manifest.config] : []), ...manifest.layers]) {
      if (foreign || this.#prefetches.size >= PREFETCH_BACKLOG) continue;
      void this.#prefetches.add(() =>
        this.#fetchAhead(located, upstream, digest, PREFETCH_PATIENCE_MS).catch((error: unknown) => {
          this.#deps.log.debug({ repository: located.repository, digest, err: error }, "prefetch failed");
        }),
      );
    }
  }

  /** Brings a blob here without reading it; gives up interest after `patienceMs`, so that it goes on only while clients read it. */
  async #fetchAhead(located: Cached, upstream: Upstream, digest: Digest, patienceMs: number): Promise<void> {
    const { downloads, catalog } = this.#deps;
    if (downloads.has(digest) || (await catalog.hasBlob(digest))) return;
    const { release, proven } = downloads.start(await this.#plan(located, upstream, digest));
    const timer = setTimeout(release, patienceMs);
    timer.unref();
    try {
      await proven;
    } finally {
      clearTimeout(timer);
      release();
    }
  }

  /**
   * Brings a manifest and all that it points to here, for the platforms wanted.
   * @param onBlob told of every blob before and after it is here
   */
  async warm(
    located: Cached,
    reference: Reference,
    wants: (platform: Platform) => boolean,
    onBlob: WarmObserver,
  ): Promise<void> {
    const upstream = this.#upstream(located);
    const { bytes, mediaType } = await this.manifest(located, reference, false);
    if (!bytes) throw new Error("a manifest without bytes");
    const manifest = parseManifest(bytes, mediaType);
    for (const child of manifest.manifests) {
      if (!child.platform || wants(child.platform)) await this.warm(located, child.digest, wants, onBlob);
    }
    const blobs = [...(manifest.config ? [manifest.config] : []), ...manifest.layers].filter(({ foreign }) => !foreign);
    const lanes = new PQueue({ concurrency: PREFETCH_CONCURRENCY });
    await lanes.addAll(
      blobs.map(({ digest, sizeBytes }) => async () => {
        onBlob({ digest, sizeBytes, here: false });
        try {
          await this.#storedOrAhead(located, upstream, digest);
        } catch (error) {
          throw toRegistryError(error, upstream.name, `blob ${digest} of ${located.repository}`);
        }
        onBlob({ digest, sizeBytes, here: true });
      }),
    );
  }

  async #storedOrAhead(located: Cached, upstream: Upstream, digest: Digest): Promise<void> {
    const stored = await this.#storedBlob(located, upstream, digest, true);
    if (!stored) await this.#fetchAhead(located, upstream, digest, 2 ** 31 - 1);
  }

  // ---- lists ----

  /** Every tag of a cached repository, in lexical order. @throws RegistryError NAME_UNKNOWN and as {@link manifest} */
  async tags(located: Cached): Promise<ListAnswer<string>> {
    const listed = await this.#list(located, "tags", "", (upstream) =>
      upstream.ask((remote) => remote.listTags(located.remoteName, {})),
    );
    if (!listed.items)
      throw new RegistryError("NAME_UNKNOWN", `${located.upstream} has no repository ${located.remoteName}`);
    return { ...listed, items: (listed.items as string[]).filter(isTag).sort() };
  }

  /** Descriptors of what refers to a digest, as upstream sends them. An upstream without the referrers API is asked for its fallback tag. */
  async referrers(located: Cached, digest: Digest): Promise<ListAnswer<Record<string, unknown>>> {
    const listed = await this.#list(located, "referrers", digest, async (upstream) => {
      const found = await upstream.ask((remote) => remote.referrers(located.remoteName, digest, {}));
      return found ?? this.#fallbackReferrers(located, digest);
    });
    return { ...listed, items: (listed.items ?? []) as Record<string, unknown>[] };
  }

  /** Source: OCI distribution-spec, "Referrers Tag Schema" */
  async #fallbackReferrers(located: Cached, digest: Digest): Promise<{ answer: unknown[] } | undefined> {
    const tag = `${algorithmOf(digest)}-${hexOf(digest)}`.slice(0, 128) as Tag;
    try {
      const { bytes } = await this.manifest(located, tag, false);
      const index = JSON.parse(bytes?.toString("utf8") ?? "{}") as { manifests?: unknown[] };
      return { answer: index.manifests ?? [] };
    } catch (error) {
      if (error instanceof RegistryError && error.code === "MANIFEST_UNKNOWN") return { answer: [] };
      throw error;
    }
  }

  async #list(
    located: Cached,
    kind: "tags" | "referrers",
    subject: string,
    ask: (upstream: Upstream) => Promise<{ answer: unknown[] } | undefined>,
  ): Promise<Listed & { upstream: string }> {
    const { catalog, clock } = this.#deps;
    const upstream = this.#upstream(located);
    const stored = await this.#attempt("find listing", () => catalog.findListing(located.repository, kind, subject));
    const ageMs = clock.now() - (stored?.fetchedAtMs ?? 0);
    let listed: Listed;
    if (stored && ageMs >= 0 && ageMs < upstream.config.listTtl) {
      listed = { items: parseList(stored), warning: undefined, result: "hit" };
    } else {
      listed = await this.#listings.run(`${kind} ${located.repository} ${subject}`, async () => {
        try {
          const found = await ask(upstream);
          if (found) {
            const body = JSON.stringify(found.answer);
            await this.#attempt("set listing", () =>
              catalog.setListing(owner(located), kind, subject, body, clock.now()),
            );
          }
          return { items: found?.answer, warning: undefined, result: "miss" };
        } catch (error) {
          if (
            stored &&
            mayServeStale(ageMs, upstream.config.maxStale) &&
            !(error instanceof RemoteError && !error.othersMayAnswer)
          ) {
            return { items: parseList(stored), warning: warningText((error as Error).message), result: "stale" };
          }
          throw toRegistryError(error, upstream.name, `${kind} of ${located.repository}`);
        }
      });
    }
    this.#count(located, kind, listed.result);
    return { ...listed, upstream: upstream.name };
  }

  // ---- common ----

  /** @throws RegistryError DENIED where the upstream's globs keep the repository out */
  #upstream(located: Cached): Upstream {
    const upstream = this.#deps.upstreams.get(located.upstream);
    if (!upstream) throw new RegistryError("NAME_UNKNOWN", `no upstream ${located.upstream} is configured`);
    if (!upstream.allows(located.remoteName)) {
      throw new RegistryError(
        "DENIED",
        `${located.repository} is kept out by upstreams.${located.upstream}.allow or .deny`,
      );
    }
    return upstream;
  }

  /** What the cache can't do is reported, and is not the client's trouble. */
  async #attempt<T>(operation: string, work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      this.#deps.onFault(operation, error);
      return undefined;
    }
  }

  #count(located: Cached, kind: "manifest" | "blob" | "tags" | "referrers", result: CacheResult): void {
    this.#deps.metrics.cacheRequests.inc({ upstream: located.upstream, kind, result });
  }

  /** Ends what runs in the background. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#prefetches.clear();
    await Promise.all([this.#resolutions.idle(), this.#fetches.idle(), this.#listings.idle()]);
  }
}

export type WarmObserver = (blob: { digest: Digest; sizeBytes: number; here: boolean }) => void;

interface Fetched {
  digest: Digest;
  mediaType: string;
  sizeBytes: number;
  bytes: Buffer;
}

interface Listed {
  items: unknown[] | undefined;
  warning: string | undefined;
  result: CacheResult;
}

function owner(located: Cached): Owner {
  return { repository: located.repository, upstream: located.upstream };
}

function fromStored(stored: StoredTag, result: CacheResult): Resolved {
  return {
    digest: stored.digest,
    mediaType: stored.mediaType,
    sizeBytes: stored.sizeBytes,
    bytes: undefined,
    warning: undefined,
    result,
  };
}

function stale(stored: StoredTag, reason: string): Resolved {
  return { ...fromStored(stored, "stale"), warning: warningText(reason) };
}

function warningText(reason: string): string {
  return `served from the cache, which may be out of date: ${reason}`;
}

function unknownManifest(located: Cached, reference: Reference, reason: string): RegistryError {
  return new RegistryError("MANIFEST_UNKNOWN", `${located.repository} has no manifest ${reference}: ${reason}`, {
    detail: { repository: located.repository, reference },
  });
}

function parseList(listing: Listing): unknown[] {
  const parsed: unknown = JSON.parse(listing.body);
  return Array.isArray(parsed) ? parsed : [];
}

async function readAll(reader: BlobReader, sizeBytes: number): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(sizeBytes);
  for (let at = 0; at < sizeBytes;) at += await reader.read(bytes.subarray(at), at);
  return bytes;
}
