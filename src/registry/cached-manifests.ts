import type { Clock } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { CacheResult, Metrics } from "../base/metrics.ts";
import { algorithmOf, digestOf, isDigest, type Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { bareMediaType, isManifestType, parseManifest, type Manifest } from "../oci/manifest.ts";
import type { Reference, Tag } from "../oci/reference.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { Remote } from "../remote/remote.ts";
import { newManifest, type Catalog, type Ledger, type StoredTag } from "../store/catalog.ts";
import type { MemoryCache } from "../store/memory.ts";
import { DigestMismatch } from "../transfer/source.ts";
import { staleWarning } from "./answers.ts";
import { freshness, mayServeStale } from "./freshness.ts";
import { attempt, Beliefs, Shared } from "./shared.ts";
import { ownerOf, type Target } from "./upstream.ts";

export interface ManifestDeps {
  catalog: Catalog;
  memory: MemoryCache;
  clock: Clock;
  log: Logger;
  metrics: Metrics;
  /** Keeps the count of what is cached. */
  ledger: Ledger;
  /** A failure of the cache that no client notices. */
  onFault: (operation: string, error: unknown) => void;
}

/** What a reference stands for. */
export interface Resolved {
  digest: Digest;
  mediaType: string;
  sizeBytes: number | undefined;
  /** Where they are at hand already. */
  bytes: Buffer | undefined;
  warning: string | undefined;
  result: CacheResult;
}

interface Fetched {
  digest: Digest;
  mediaType: string;
  sizeBytes: number;
  bytes: Buffer;
}

/**
 * Tags and manifests of cached repositories: what is believed, what is asked of the upstream.
 * A manifest is verified before it is stored or sent; a tag is moved after its manifest is stored.
 */
export class CachedManifests {
  readonly #deps: ManifestDeps;
  readonly #resolutions = new Shared<Resolved>();
  readonly #fetches = new Shared<Fetched>();
  readonly #absent = new Beliefs();

  constructor(deps: ManifestDeps) {
    this.#deps = deps;
  }

  /**
   * @param head only the head is wanted: a digest that is not here costs a HEAD upstream
   * @throws RegistryError MANIFEST_UNKNOWN absent upstream; RemoteError where upstream can't be asked
   */
  resolve(target: Target, reference: Reference, head: boolean): Promise<Resolved> {
    return isDigest(reference) ? this.#byDigest(target, reference, head) : this.#byTag(target, reference);
  }

  /** The bytes of a digest that has been resolved for this repository. @throws as {@link resolve} */
  async read(target: Target, digest: Digest): Promise<Buffer> {
    return (await this.#stored(digest)) ?? (await this.#fetch(target, digest)).bytes;
  }

  /** Resolves when nothing is asked of any upstream. */
  async idle(): Promise<void> {
    await Promise.all([this.#resolutions.idle(), this.#fetches.idle()]);
  }

  // ---- tags ----

  async #byTag(target: Target, tag: Tag): Promise<Resolved> {
    const { upstream } = target;
    const { tagTtl, maxStale, rateLimit, whenGone } = upstream.config;
    const stored = await this.#attempt("find tag", () => this.#deps.catalog.findTag(target.repository, tag));
    const nowMs = this.#deps.clock.now();
    const key = `${target.repository}:${tag}`;
    const knownAbsent = this.#absent.holds(key, nowMs);
    if (stored && knownAbsent && whenGone === "stale" && mayServeStale(nowMs - stored.checkedAtMs, maxStale)) {
      return stale(stored, `${upstream.name} has it no more`);
    }
    const verdict = freshness({
      nowMs,
      checkedAtMs: stored?.checkedAtMs,
      knownAbsent,
      tagTtl,
      maxStale,
      mayAsk: upstream.mayAsk(nowMs),
      rateRemaining: upstream.rateRemaining(nowMs),
      rateKeep: rateLimit.keep,
    });
    if (verdict === "negative") throw this.#remembered(target, tag);
    if (stored && verdict === "fresh") return fromStored(stored, "hit");
    if (stored && verdict === "stale") return stale(stored, `${upstream.name} is not asked to spare its rate limit`);
    return this.#resolutions.run(key, () => this.#askForTag(target, tag, stored));
  }

  /** Asks upstream where a tag points; serves what is stored where it can't tell. */
  async #askForTag(target: Target, tag: Tag, stored: StoredTag | undefined): Promise<Resolved> {
    const { upstream, repository } = target;
    const { catalog, clock, log } = this.#deps;
    const nowMs = clock.now();
    const usable = stored && mayServeStale(nowMs - stored.checkedAtMs, upstream.config.maxStale) ? stored : undefined;
    let failure: RemoteError;
    try {
      const resolved = await this.#followTag(target, tag, usable, nowMs);
      if (resolved) return resolved;
      this.#absent.believe(`${repository}:${tag}`, nowMs, upstream.config.notFoundTtl);
      if (usable && upstream.config.whenGone === "stale") return stale(usable, `${upstream.name} has it no more`);
      if (stored) await this.#attempt("remove tag", () => catalog.removeTag(repository, tag));
      throw unknownManifest(target, tag, `${upstream.name} has no such tag or repository`);
    } catch (error) {
      if (!(error instanceof RemoteError) || !usable) throw error;
      failure = error;
    }
    // 401 is also how Docker Hub says "no such repository" to strangers: as with a tag that is gone, policy decides.
    if (!failure.othersMayAnswer && upstream.config.whenGone === "notFound") throw failure;
    log.warn({ upstream: upstream.name, repository, tag, err: failure }, "serving a stale tag");
    return stale(usable, failure.message);
  }

  /**
   * Asks by HEAD where a tag points, and brings the manifest here before the tag is moved.
   * @returns undefined where upstream has no such tag
   */
  async #followTag(
    target: Target,
    tag: Tag,
    usable: StoredTag | undefined,
    nowMs: number,
  ): Promise<Resolved | undefined> {
    const { catalog } = this.#deps;
    const found = await target.upstream.ask((remote) =>
      remote.headManifest(target.remoteName, tag, { urgent: usable !== undefined, ifNoneMatch: usable?.etag }),
    );
    if (!found) return undefined;
    const { answer, remote } = found;
    if (usable && (answer === "notModified" || answer.digest === usable.digest)) {
      const etag = answer === "notModified" ? usable.etag : answer.etag;
      await this.#attempt("confirm tag", () => catalog.setTag(ownerOf(target), tag, usable.digest, etag, nowMs));
      return fromStored(usable, "revalidated");
    }
    if (answer === "notModified") {
      throw new RemoteError("protocol", remote.name, "answered 304 to an unconditional request");
    }
    // Without a digest in the head (some registries), only the body tells it.
    const fetched = answer.digest
      ? await this.#bring(target, answer.digest, remote)
      : await this.#fetch(target, tag, remote);
    await this.#attempt("set tag", () => catalog.setTag(ownerOf(target), tag, fetched.digest, answer.etag, nowMs));
    return { ...fetched, warning: undefined, result: "miss" };
  }

  /** The manifest of a digest that this repository's upstream has just named. */
  async #bring(target: Target, digest: Digest, remote: Remote): Promise<Fetched> {
    const { catalog, clock } = this.#deps;
    const known = await this.#attempt("find manifest", () => catalog.findManifest(target.repository, digest));
    const bytes = known && (await this.#stored(digest));
    if (!known || !bytes) {
      try {
        return await this.#fetch(target, digest, remote);
      } catch (cause) {
        if (!(cause instanceof RegistryError)) throw cause;
        throw new RemoteError("protocol", remote.name, `says that a tag points to ${digest}, and does not have it`, {
          cause,
        });
      }
    }
    if (!known.linked) await this.#attempt("link manifest", () => catalog.link(ownerOf(target), digest, clock.now()));
    return { digest, mediaType: known.mediaType, sizeBytes: known.sizeBytes, bytes };
  }

  // ---- digests ----

  async #byDigest(target: Target, digest: Digest, head: boolean): Promise<Resolved> {
    const { catalog, clock } = this.#deps;
    const known = await this.#attempt("find manifest", () => catalog.findManifest(target.repository, digest));
    if (known?.linked) return fromStored({ ...known, digest }, "hit");
    if (this.#absent.holds(`${target.repository}@${digest}`, clock.now())) throw this.#remembered(target, digest);
    if (head || known) {
      // Another repository brought it here, or only its head is wanted: does this repository's upstream have it?
      const found = await target.upstream.ask((remote) => remote.headManifest(target.remoteName, digest, {}));
      if (!found || found.answer === "notModified") throw this.#nowAbsent(target, digest);
      if (known) {
        await this.#attempt("link manifest", () => catalog.link(ownerOf(target), digest, clock.now()));
        return fromStored({ ...known, digest }, "revalidated");
      }
      const { sizeBytes } = found.answer;
      const mediaType = bareMediaType(found.answer.mediaType);
      // A head must say what a GET will say; where upstream's own does not, the manifest tells.
      if (sizeBytes !== undefined && mediaType !== undefined && isManifestType(mediaType)) {
        return { digest, mediaType, sizeBytes, bytes: undefined, warning: undefined, result: "miss" };
      }
    }
    const fetched = await this.#fetch(target, digest);
    return { ...fetched, warning: undefined, result: "miss" };
  }

  /** @returns undefined where it is not here, or is no longer what its digest says */
  async #stored(digest: Digest): Promise<Buffer | undefined> {
    const { memory, catalog, ledger, onFault } = this.#deps;
    const remembered = memory.get(digest);
    if (remembered) return remembered;
    const bytes = await this.#attempt("read manifest", () => catalog.readManifest(digest));
    if (!bytes) return undefined;
    if (digestOf(bytes, algorithmOf(digest)) !== digest) {
      onFault("read manifest", new DigestMismatch(`the stored bytes of ${digest} are damaged`));
      await this.#attempt("remove manifest", async () => ledger.removed(await catalog.evictManifests([digest])));
      return undefined;
    }
    memory.set(digest, bytes);
    return bytes;
  }

  /** @param first the address that is known to have it */
  #fetch(target: Target, reference: Reference, first?: Remote): Promise<Fetched> {
    const { upstream, repository } = target;
    return this.#fetches.run(`${repository}@${reference}`, async () => {
      const found = await upstream.ask(async (remote) => {
        const answer = await remote.getManifest(target.remoteName, reference, {});
        return answer && this.#verify(upstream.name, remote, reference, answer);
      }, first);
      if (!found) throw this.#nowAbsent(target, reference);
      const { manifest, ...fetched } = found.answer;
      const stored = newManifest(fetched.digest, fetched.bytes, manifest);
      const { catalog, clock, ledger, memory } = this.#deps;
      memory.set(fetched.digest, fetched.bytes);
      await this.#attempt("store manifest", async () => {
        const isNew = await catalog.addManifest(ownerOf(target), stored, clock.now());
        if (isNew) ledger.added(upstream.name, fetched.sizeBytes);
      });
      return fetched;
    });
  }

  #verify(
    upstream: string,
    remote: Remote,
    reference: Reference,
    { bytes, contentType }: { bytes: Buffer; contentType: string | undefined },
  ): Fetched & { manifest: Manifest } {
    const digest = isDigest(reference) ? reference : digestOf(bytes);
    if (digestOf(bytes, algorithmOf(digest)) !== digest) {
      this.#deps.metrics.digestMismatches.inc({ upstream });
      throw new RemoteError("protocol", remote.name, `sent a manifest that is not ${digest}`);
    }
    try {
      const manifest = parseManifest(bytes, contentType);
      return { digest, mediaType: manifest.mediaType, sizeBytes: bytes.length, bytes, manifest };
    } catch (cause) {
      throw new RemoteError("protocol", remote.name, `sent what can't be used: ${(cause as Error).message}`, { cause });
    }
  }

  // ---- absence ----

  #nowAbsent(target: Target, reference: Reference): RegistryError {
    const { repository, upstream } = target;
    if (isDigest(reference)) {
      this.#absent.believe(`${repository}@${reference}`, this.#deps.clock.now(), upstream.config.notFoundTtl);
    }
    return unknownManifest(target, reference, `${upstream.name} does not have it`);
  }

  #remembered(target: Target, reference: Reference): RegistryError {
    this.#deps.metrics.cacheRequests.inc({ upstream: target.upstream.name, kind: "manifest", result: "negative" });
    return unknownManifest(target, reference, `${target.upstream.name} said so a moment ago`);
  }

  #attempt<T>(operation: string, work: () => Promise<T>): Promise<T | undefined> {
    return attempt(this.#deps.onFault, operation, work);
  }
}

function fromStored(
  { digest, mediaType, sizeBytes }: Pick<StoredTag, "digest" | "mediaType" | "sizeBytes">,
  result: CacheResult,
): Resolved {
  return { digest, mediaType, sizeBytes, bytes: undefined, warning: undefined, result };
}

function stale(stored: StoredTag, reason: string): Resolved {
  return { ...fromStored(stored, "stale"), warning: staleWarning(reason) };
}

function unknownManifest({ repository }: Target, reference: Reference, reason: string): RegistryError {
  return new RegistryError("MANIFEST_UNKNOWN", `${repository} has no manifest ${reference}: ${reason}`, {
    detail: { repository, reference },
  });
}
