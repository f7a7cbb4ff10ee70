import { setImmediate as turn } from "node:timers/promises";
import type { Clock } from "../base/clock.ts";
import type { Config } from "../config/schema.ts";
import type { NewEvent, Requester } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import { algorithmOf, digestOf, isDigest, type Digest, type DigestAlgorithm } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { bareMediaType, isManifestType, ownBlobs, parseManifest, type Manifest } from "../oci/manifest.ts";
import { formatOrigin, type Origin } from "../oci/origin.ts";
import { referrersTag, type Reference, type RepositoryName, type Tag } from "../oci/reference.ts";
import { BlobFault, type BlobStore } from "../store/blobs.ts";
import { newManifest, type Catalog, type Ledger, type StoredBlob } from "../store/catalog.ts";
import {
  MissingReferences,
  NamespaceTaken,
  NotMounted,
  TagIsNewer,
  type HostedCatalog,
  type Place,
  type Referrer,
  type TagGuard,
} from "../store/hosted-catalog.ts";
import type { MemoryCache } from "../store/memory.ts";
import { AllowanceExceeded } from "../store/namespaces.ts";
import type { Placement, Upload, Uploads } from "../store/uploads.ts";
import type { Usage } from "../store/usage.ts";
import type { BlobAnswer, ManifestAnswer } from "./answers.ts";
import type { Hosted as Located } from "./names.ts";
import type { Page } from "./page.ts";
import { immutableTags } from "./policy.ts";
import { QuotaExceeded, refusal, type Asked, type Quotas } from "./quota.ts";
import type { StoredBlobs } from "./stored-blobs.ts";

export interface HostedDeps {
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Config["hosted"];
  /** A push has made a namespace: from now on it is hosted. */
  host: (namespace: string) => Promise<void>;
  catalog: Catalog;
  hosted: HostedCatalog;
  blobs: BlobStore;
  stored: StoredBlobs;
  uploads: Uploads;
  quotas: Quotas;
  memory: MemoryCache;
  usage: Usage;
  journal: Journal;
  clock: Clock;
  /** Whether the globs of its upstream let clients see a cached repository. */
  isOpen: (repository: RepositoryName) => boolean;
  /** Keeps the count of what is cached: what is pushed is cached no more. */
  ledger: Ledger;
  onFault: (operation: string, error: unknown) => void;
}

/** What a client makes a change to a tag depend on. Source: RFC 9110 §13.1 */
export interface TagCondition {
  /** The tag must point to one of these digests now; "any": to something. */
  ifMatch?: readonly string[] | "any";
  /** The tag must point to none of these; "any": it must not exist. */
  ifNoneMatch?: readonly string[] | "any";
}

/** A manifest that a client pushes. */
export interface PushedManifest {
  bytes: Buffer;
  contentType: string | undefined;
  /** Tags to point to it, beside the reference. */
  tags: readonly Tag[];
  /** Whether a tag may be moved from another manifest to this one. */
  mayMove: boolean;
  condition: TagCondition;
  /** Of a copy: the push that it is a copy of. It moves no tag that was pushed later. */
  origin: Origin | undefined;
}

const REFERRERS_BATCH = 16;
/** About what a list of referrers holds at most: the size that every client takes as a manifest. Source: distribution-spec, "Listing Referrers" */
const REFERRERS_BYTES = 3 * 1024 * 1024;
/** So many missing contents are named; a manifest may lack thousands. */
const MAX_NAMED = 100;

/**
 * Repositories that live here. What is answered as pushed is on the disk: the file, its name, then its row. A tag moves last.
 *
 * Content is stored once and reached per repository. Whoever reads a blob notes its use before looking, and waits while somebody is alone
 * with its digest: so garbage collection, which looks at the uses when it is alone, never takes what a client has just been told is there.
 */
export class HostedRepositories {
  readonly #deps: HostedDeps;

  constructor(deps: HostedDeps) {
    this.#deps = deps;
  }

  // ---- pulls ----

  /** @throws RegistryError MANIFEST_UNKNOWN, NAME_UNKNOWN */
  async manifest({ repository }: Located, reference: Reference, head: boolean): Promise<ManifestAnswer> {
    const { catalog, usage } = this.#deps;
    const tagged = isDigest(reference) ? undefined : await catalog.findTag(repository, reference);
    const digest = isDigest(reference) ? reference : tagged?.digest;
    if (digest !== undefined) usage.touch(digest);
    const found = digest && (await catalog.findManifest(repository, digest));
    if (digest === undefined || !found?.linked) throw await this.#unknownManifest(repository, reference);
    const bytes = head ? undefined : await this.#read(repository, digest);
    if (!head && !isDigest(reference)) usage.touchTag(repository, reference);
    const { mediaType, sizeBytes } = found;
    const { origin } = tagged ?? {};
    return { digest, mediaType, sizeBytes, bytes, origin, warning: undefined, upstream: undefined, result: "hit" };
  }

  /** @throws RegistryError BLOB_UNKNOWN, NAME_UNKNOWN; UNAVAILABLE where the file can't be read */
  async blob({ repository }: Located, digest: Digest, head: boolean): Promise<BlobAnswer> {
    const { sizeBytes } = await this.#findBlob(repository, digest);
    try {
      const content = await this.#deps.stored.open(digest, sizeBytes, head);
      return { digest, sizeBytes, content, upstream: undefined, result: "hit" };
    } catch (cause) {
      this.#deps.onFault("open blob", cause);
      throw blobError(cause, repository, digest);
    }
  }

  /** @returns at most `limit` tags in order, after `last` @throws RegistryError NAME_UNKNOWN */
  async tags({ repository }: Located, last: string, limit: number): Promise<Page<string>> {
    const { hosted } = this.#deps;
    const found = await hosted.listTags(repository, last, limit + 1);
    if (found.length === 0 && !(await hosted.hasRepository(repository))) throw unknownName(repository);
    return { items: found.slice(0, limit), more: found.length > limit };
  }

  /**
   * Descriptors of what refers to a digest, in the order of their own: manifests with that subject, and those that an index under the
   * digest's fallback tag names (distribution-spec, "Referrers Tag Schema").
   * @param limit undefined: as many as fit into an answer
   */
  async referrers(
    { repository }: Located,
    subject: Digest,
    artifactType: string | undefined,
    last: string,
    limit = Infinity,
  ): Promise<Page<Record<string, unknown>>> {
    const items: Record<string, unknown>[] = [];
    let bytes = 0;
    for await (const descriptor of this.#referrers(repository, subject, artifactType, last)) {
      bytes += Buffer.byteLength(JSON.stringify(descriptor));
      if (items.length >= limit || (bytes > REFERRERS_BYTES && items.length > 0)) return { items, more: true };
      items.push(descriptor);
    }
    return { items, more: false };
  }

  async *#referrers(
    repository: RepositoryName,
    subject: Digest,
    artifactType: string | undefined,
    last: string,
  ): AsyncIterable<Record<string, unknown>> {
    const { hosted } = this.#deps;
    const fallback = (await this.#fallbackReferrers(repository, subject)).filter(
      (descriptor) =>
        descriptor.digest > last && (artifactType === undefined || descriptor["artifactType"] === artifactType),
    );
    for (let cursor = last; ;) {
      const rows = await hosted.listReferrers(repository, subject, artifactType, cursor, REFERRERS_BATCH);
      for (const row of rows) {
        while (fallback[0] && fallback[0].digest < row.digest) yield fallback.shift() as { digest: string };
        if (fallback[0]?.digest === row.digest) fallback.shift();
        yield descriptorOf(row);
      }
      if (rows.length < REFERRERS_BATCH) break;
      cursor = rows.at(-1)?.digest ?? cursor;
      // SQLite answers within the same turn: a subject of many thousands holds up nobody.
      await turn();
    }
    yield* fallback;
  }

  async #fallbackReferrers(
    repository: RepositoryName,
    subject: Digest,
  ): Promise<(Record<string, unknown> & { digest: string })[]> {
    const found = await this.#deps.catalog.findTag(repository, referrersTag(subject));
    if (!found) return [];
    const bytes = await this.#read(repository, found.digest);
    const { manifests } = JSON.parse(bytes.toString("utf8")) as { manifests?: { digest: string }[] };
    return [...new Map((manifests ?? []).map((one) => [one.digest, one])).values()].sort((a, b) =>
      a.digest < b.digest ? -1 : 1,
    );
  }

  // ---- uploads ----

  /** @throws RegistryError DENIED: the namespace can't be hosted */
  async startUpload(located: Located, algorithm: DigestAlgorithm): Promise<Upload> {
    await this.#checkClaims(located);
    return this.#deps.uploads.start(located.repository, algorithm);
  }

  /** @throws RegistryError BLOB_UPLOAD_UNKNOWN */
  findUpload({ repository }: Located, id: string): Promise<Upload> {
    return this.#deps.uploads.find(repository, id);
  }

  /** @throws RegistryError as `Uploads.append`; QuotaExceeded, the session is gone then */
  append(
    { repository }: Located,
    id: string,
    body: AsyncIterable<Buffer>,
    placement: Placement | undefined,
  ): Promise<Upload> {
    return this.#going(repository, id, undefined, body, placement, (admitted) =>
      this.#deps.uploads.append(repository, id, admitted, placement),
    );
  }

  /** Ends an upload: when the promise resolves, its blob is kept. @throws RegistryError as `Uploads.finish`; QuotaExceeded, the session is gone then */
  finishUpload(
    located: Located,
    id: string,
    digest: Digest,
    body: AsyncIterable<Buffer> | undefined,
    placement: Placement | undefined,
  ): Promise<void> {
    const { repository } = located;
    return this.#going(repository, id, digest, body, placement, (admitted) =>
      this.#deps.uploads.finish(repository, id, digest, admitted, placement, (sizeBytes) =>
        this.#record(located, id, digest, sizeBytes),
      ),
    );
  }

  /** Goes on with a session as far as the quota lets it. One that is refused is over: what came of it is given back. */
  async #going<T, Body extends AsyncIterable<Buffer> | undefined>(
    repository: RepositoryName,
    id: string,
    digest: Digest | undefined,
    body: Body,
    placement: Placement | undefined,
    work: (body: Body | AsyncIterable<Buffer>) => Promise<T>,
  ): Promise<T> {
    const { quotas, uploads } = this.#deps;
    if (!quotas.of(repository)) return work(body);
    const { sizeBytes: hereBytes } = await uploads.find(repository, id);
    // Bytes that belong elsewhere are not taken: the client is told so, and goes on.
    const misplaced = placement?.firstByte !== undefined && placement.firstByte !== hereBytes;
    const comingBytes = body && !misplaced ? placement?.lengthBytes : 0;
    try {
      return await quotas.taking(repository, id, { digest, hereBytes, comingBytes }, body, work);
    } catch (error) {
      // Where it was refused at its very end it is gone already; what can't be removed now expires.
      if (error instanceof QuotaExceeded) await uploads.cancel(repository, id).catch(() => undefined);
      throw error;
    }
  }

  /** Takes a whole blob in one request. @throws RegistryError as `Uploads.receive`; QuotaExceeded */
  async receive(
    located: Located,
    digest: Digest,
    body: AsyncIterable<Buffer>,
    lengthBytes: number | undefined,
  ): Promise<void> {
    await this.#checkClaims(located);
    const { quotas, uploads } = this.#deps;
    const upload = Symbol("an upload without a session");
    const asked: Asked = { digest, hereBytes: 0, comingBytes: lengthBytes };
    await quotas.taking(located.repository, upload, asked, body, (admitted) =>
      uploads.receive(digest, admitted, lengthBytes, (sizeBytes) => this.#record(located, upload, digest, sizeBytes)),
    );
  }

  /** @throws RegistryError BLOB_UPLOAD_UNKNOWN */
  async cancelUpload({ repository }: Located, id: string): Promise<void> {
    await this.#deps.uploads.cancel(repository, id);
    this.#deps.quotas.forget(id);
  }

  /**
   * Lets the repository reach a blob that another one has, hosted or cached.
   * @param from the full name of that one; undefined: whichever has it
   * @param mayRead whether the client may read a repository: of what it may not, it learns nothing
   * @returns false where it can't: the client sends the blob itself
   * @throws QuotaExceeded: nor can that
   */
  async mount(
    located: Located,
    digest: Digest,
    from: RepositoryName | undefined,
    mayRead: (repository: RepositoryName) => boolean,
    by: Requester,
  ): Promise<boolean> {
    const { hosted, blobs, catalog, clock, usage, ledger, journal, quotas } = this.#deps;
    usage.touch(digest);
    await blobs.settled(digest);
    const source = await this.#mountSource(digest, from, mayRead);
    if (source === undefined) return false;
    const known = await catalog.findBlob(source, digest);
    if (source === undefined || !known?.linked) return false;
    try {
      // Its row says that it is there; a client that sends nothing relies on its file.
      (await blobs.open(digest, known.sizeBytes)).close();
    } catch {
      return false;
    }
    try {
      const { repository } = located;
      const { sizeBytes } = known;
      const event: NewEvent = { action: "mount", outcome: "done", repository, digest, sizeBytes, by, detail: source };
      const upload = Symbol("a mount");
      const asked: Asked = { digest, hereBytes: 0, comingBytes: sizeBytes };
      const cached = await quotas.taking(repository, upload, asked, undefined, () =>
        this.#push(located, upload, (place) =>
          hosted.mountBlob(place, source, digest, clock.now(), (tx) => journal.recordWithin(tx, [event])),
        ),
      );
      journal.recorded();
      if (cached) ledger.removed([cached]);
      return true;
    } catch (error) {
      if (error instanceof NotMounted) return false;
      throw error;
    }
  }

  /** A repository from which a client could pull the blob, too. */
  async #mountSource(
    digest: Digest,
    from: RepositoryName | undefined,
    mayRead: (repository: RepositoryName) => boolean,
  ): Promise<RepositoryName | undefined> {
    const { hosted, isOpen } = this.#deps;
    const pushed = (await hosted.holders(digest, "hosted", from)).find(mayRead);
    if (pushed !== undefined) return pushed;
    return (await hosted.holders(digest, "cached", from)).find(
      (repository) => isOpen(repository) && mayRead(repository),
    );
  }

  async #record(located: Located, upload: string | symbol, digest: Digest, sizeBytes: number): Promise<void> {
    const { hosted, stored, catalog, blobs, clock, ledger } = this.#deps;
    try {
      const cached = await this.#push(located, upload, (place) =>
        hosted.addBlob(place, digest, sizeBytes, clock.now()),
      );
      if (cached) ledger.removed([cached]);
    } catch (error) {
      // Its file is in place by now, and may be somebody else's content, too.
      if (error instanceof QuotaExceeded && !(await catalog.hasBlob(digest))) await blobs.remove(digest);
      throw error;
    }
    stored.proven(digest);
  }

  /**
   * A write that makes the namespace of a first push a hosted one.
   * @param upload what ends with it
   * @throws RegistryError DENIED where it can't be; QuotaExceeded
   */
  async #push<T>(
    located: Located,
    upload: string | symbol | undefined,
    write: (place: Place) => Promise<T>,
  ): Promise<T> {
    const { host, quotas } = this.#deps;
    const { repository, claims } = located;
    const allowance = quotas.allowance(repository, upload);
    try {
      const written = await write({ ...located, ...(allowance ? { allowance } : {}) });
      if (claims) await host(claims.namespace);
      return written;
    } catch (error) {
      if (error instanceof AllowanceExceeded) throw quotaExceeded(error);
      throw error instanceof NamespaceTaken ? namespaceTaken(error) : error;
    }
  }

  /** @throws RegistryError DENIED: sooner than after a large upload */
  #checkClaims(located: Located): Promise<void> {
    return this.#deps.hosted.checkClaims(located).catch((error: unknown) => {
      throw error instanceof NamespaceTaken ? namespaceTaken(error) : error;
    });
  }

  // ---- manifests ----

  /**
   * Stores a manifest, then points the tags to it.
   * @returns its digest, and the subject that it was filed under
   * @throws RegistryError MANIFEST_INVALID, DIGEST_INVALID, MANIFEST_BLOB_UNKNOWN (one for each content that is not there), DENIED for an
   * immutable tag or a quota, or with status 412 where the condition does not hold; TAG_NEWER for a copy of what was pushed before
   */
  async pushManifest(
    located: Located,
    reference: Reference,
    { bytes, contentType, tags, mayMove, condition, origin }: PushedManifest,
    by: Requester,
  ): Promise<{ digest: Digest; subject: Digest | undefined }> {
    const { hosted, memory, clock, ledger, journal, config } = this.#deps;
    const { repository } = located;
    const digest = isDigest(reference) ? reference : digestOf(bytes);
    if (digestOf(bytes, algorithmOf(digest)) !== digest) {
      throw new RegistryError(
        "DIGEST_INVALID",
        `the manifest is ${digestOf(bytes, algorithmOf(digest))}, not ${digest}`,
      );
    }
    const manifest = parseManifest(bytes, contentType);
    checkType(manifest, contentType);
    const immutable = immutableTags(config().immutableTags);
    const guard: TagGuard = (tag, current) => {
      checkCondition(repository, tag, current, tag === reference ? condition : {});
      if (current === undefined || current === digest) return;
      if (immutable(repository, tag)) throw immutableTag(repository, tag);
      if (!mayMove) throw unmovedTag(repository, tag);
    };
    const moved = isDigest(reference) ? tags : [...new Set([reference, ...tags])];
    const event: NewEvent = {
      action: "push",
      outcome: "done",
      repository,
      digest,
      mediaType: manifest.mediaType,
      sizeBytes: bytes.length,
      by,
    };
    try {
      const cached = await this.#push(located, undefined, (place) =>
        hosted.addManifest(
          place,
          newManifest(digest, bytes, manifest),
          requiredBy(manifest),
          { tags: moved, guard, origin },
          clock.now(),
          (tx) => journal.recordWithin(tx, moved.length === 0 ? [event] : moved.map((tag) => ({ ...event, tag }))),
        ),
      );
      journal.recorded();
      if (cached) ledger.removed([cached]);
    } catch (error) {
      if (error instanceof TagIsNewer) throw tagIsNewer(repository, error);
      throw error instanceof MissingReferences ? missingReferences(repository, error.digests) : error;
    }
    memory.set(digest, bytes);
    return { digest, subject: manifest.subject?.digest };
  }

  // ---- deletes ----

  /** @throws RegistryError MANIFEST_UNKNOWN, NAME_UNKNOWN; DENIED for an immutable tag */
  async deleteManifest(
    { repository }: Located,
    reference: Reference,
    condition: TagCondition,
    by: Requester,
  ): Promise<void> {
    const { hosted, journal } = this.#deps;
    this.#checkDelete();
    const immutable = immutableTags(this.#deps.config().immutableTags);
    const guard: TagGuard = (tag, current) => {
      if (immutable(repository, tag)) throw immutableTag(repository, tag);
      checkCondition(repository, tag, current, tag === reference ? condition : {});
    };
    const removed = isDigest(reference)
      ? await hosted.removeManifest(repository, reference, guard, (tx, { tags, ...content }) =>
          journal.recordWithin(tx, [
            ...tags.map((tag) => deletion(repository, { tag, digest: reference, ...content }, "tag", by)),
            deletion(repository, { digest: reference, ...content }, "manifest", by),
          ]),
        )
      : await hosted.removeTag(repository, reference, guard, (tx, content) =>
          journal.recordWithin(tx, [deletion(repository, { tag: reference, ...content }, "tag", by)]),
        );
    if (!removed) throw await this.#unknownManifest(repository, reference);
    journal.recorded();
  }

  /** @throws RegistryError BLOB_UNKNOWN, NAME_UNKNOWN; UNSUPPORTED while a manifest of the repository needs it */
  async deleteBlob({ repository }: Located, digest: Digest, by: Requester): Promise<void> {
    const { hosted, journal } = this.#deps;
    this.#checkDelete();
    const removed = await hosted.removeBlob(repository, digest, (tx, content) =>
      journal.recordWithin(tx, [deletion(repository, { digest, ...content }, "blob", by)]),
    );
    if (typeof removed === "object") {
      throw new RegistryError("UNSUPPORTED", `${digest} belongs to manifest ${removed.neededBy}: delete that first`, {
        detail: { digest, manifest: removed.neededBy },
      });
    }
    if (!removed) throw await this.#unknownBlob(repository, digest);
    journal.recorded();
  }

  #checkDelete(): void {
    if (!this.#deps.config().delete)
      throw new RegistryError("UNSUPPORTED", "hosted.delete is off: nothing can be deleted");
  }

  // ---- what is there ----

  async #findBlob(repository: RepositoryName, digest: Digest): Promise<StoredBlob> {
    const { catalog, blobs, usage } = this.#deps;
    usage.touch(digest);
    await blobs.settled(digest);
    const found = await catalog.findBlob(repository, digest);
    if (!found?.linked) throw await this.#unknownBlob(repository, digest);
    return found;
  }

  async #read(repository: RepositoryName, digest: Digest): Promise<Buffer> {
    const { memory, catalog, onFault } = this.#deps;
    const remembered = memory.get(digest);
    if (remembered) return remembered;
    const bytes = await catalog.readManifest(digest);
    if (!bytes) throw await this.#unknownManifest(repository, digest);
    if (digestOf(bytes, algorithmOf(digest)) !== digest) {
      const message = `the stored bytes of ${digest} are damaged: push it again to repair it`;
      onFault("read manifest", new Error(message));
      throw new RegistryError("UNAVAILABLE", message, { status: 500 });
    }
    memory.set(digest, bytes);
    return bytes;
  }

  async #unknownManifest(repository: RepositoryName, reference: Reference): Promise<RegistryError> {
    if (!(await this.#deps.hosted.hasRepository(repository))) return unknownName(repository);
    return new RegistryError("MANIFEST_UNKNOWN", `${repository} has no manifest ${reference}`, {
      detail: { repository, reference },
    });
  }

  async #unknownBlob(repository: RepositoryName, digest: Digest): Promise<RegistryError> {
    if (!(await this.#deps.hosted.hasRepository(repository))) return unknownName(repository);
    return new RegistryError("BLOB_UNKNOWN", `${repository} has no blob ${digest}`, { detail: { digest } });
  }
}

function deletion(
  repository: RepositoryName,
  content: Pick<NewEvent, "tag" | "digest" | "mediaType" | "sizeBytes">,
  detail: "tag" | "manifest" | "blob",
  by: Requester,
): NewEvent {
  return { action: "delete", outcome: "done", repository, ...content, by, detail };
}

function quotaExceeded({ allowance, usedBytes, addedBytes }: AllowanceExceeded): QuotaExceeded {
  const { namespace, maxBytes } = allowance;
  return refusal({ namespace, maxBytes, usedBytes, underWayBytes: 0 }, addedBytes);
}

function namespaceTaken({ namespace, rival }: NamespaceTaken): RegistryError {
  return new RegistryError(
    "DENIED",
    `the mirror holds ${rival}, so a push can't change what names under ${namespace} mean: list ${namespace} under hosted.namespaces if it is to be hosted here, or choose another`,
    { detail: { namespace, repository: rival } },
  );
}

function unknownName(repository: RepositoryName): RegistryError {
  return new RegistryError("NAME_UNKNOWN", `${repository} is a hosted repository, and there is none of that name`, {
    detail: { repository },
  });
}

function blobError(cause: unknown, repository: RepositoryName, digest: Digest): unknown {
  if (!(cause instanceof BlobFault)) return cause;
  if (cause.fault === "unreadable") {
    return new RegistryError("UNAVAILABLE", `blob ${digest} of ${repository} can't be read from the disk`, { cause });
  }
  return new RegistryError(
    "BLOB_UNKNOWN",
    `blob ${digest} of ${repository} was damaged and has been taken out of the way: push it again to repair it`,
    { cause, detail: { digest } },
  );
}

/** @throws RegistryError MANIFEST_INVALID: a type that is none of a manifest, or another one than the body's */
function checkType({ mediaType }: Manifest, contentType: string | undefined): void {
  const sent = bareMediaType(contentType);
  if (!isManifestType(mediaType)) {
    throw new RegistryError("MANIFEST_INVALID", `${mediaType} is no media type of a manifest that is known here`);
  }
  if (sent !== undefined && sent !== mediaType) {
    throw new RegistryError(
      "MANIFEST_INVALID",
      `the manifest is a ${mediaType}, but was sent as ${sent.slice(0, 140)}`,
    );
  }
}

export function requiredBy(manifest: Manifest): { blobs: Digest[]; manifests: Digest[] } {
  const unique = (digests: Digest[]): Digest[] => [...new Set(digests)];
  return {
    blobs: unique(ownBlobs(manifest).map(({ digest }) => digest)),
    manifests: unique(manifest.manifests.map(({ digest }) => digest)),
  };
}

function missingReferences(repository: RepositoryName, digests: readonly Digest[]): RegistryError {
  const [first, ...others] = digests.slice(0, MAX_NAMED).map((digest) => ({ digest }));
  const fault = (detail: { digest: Digest } | undefined, more: readonly RegistryError[] = []): RegistryError =>
    new RegistryError(
      "MANIFEST_BLOB_UNKNOWN",
      `${repository} has no ${detail?.digest}, which the manifest points to: push that first`,
      { ...(detail ? { detail } : {}), others: more },
    );
  return fault(
    first,
    others.map((detail) => fault(detail)),
  );
}

function immutableTag(repository: RepositoryName, tag: Tag): RegistryError {
  return new RegistryError("DENIED", `${repository}:${tag} is immutable by hosted.immutableTags: push another tag`, {
    detail: { repository, tag },
  });
}

function tagIsNewer(repository: RepositoryName, { tag, present: { digest, origin } }: TagIsNewer): RegistryError {
  const mark = formatOrigin(origin);
  return new RegistryError(
    "TAG_NEWER",
    `${repository}:${tag} points to ${digest}, which was pushed later (${mark}) than what this is a copy of: it stays; to go back to that, push it without Entrepot-Origin`,
    { detail: { repository, tag, digest, origin: mark } },
  );
}

function unmovedTag(repository: RepositoryName, tag: Tag): RegistryError {
  return new RegistryError(
    "DENIED",
    `${repository}:${tag} points to another manifest, and these credentials make tags but move none: push another tag`,
    { detail: { repository, tag } },
  );
}

/** @throws RegistryError with status 412 */
function checkCondition(
  repository: RepositoryName,
  tag: Tag,
  current: Digest | undefined,
  { ifMatch, ifNoneMatch }: TagCondition,
): void {
  const isOneOf = (wanted: readonly string[] | "any"): boolean =>
    current !== undefined && (wanted === "any" || wanted.includes(current));
  if ((ifMatch === undefined || isOneOf(ifMatch)) && !(ifNoneMatch !== undefined && isOneOf(ifNoneMatch))) return;
  throw new RegistryError("DENIED", `${repository}:${tag} ${current ? `points to ${current}` : "does not exist"}`, {
    status: 412,
    detail: { repository, tag, digest: current ?? null },
  });
}

function descriptorOf({ digest, mediaType, sizeBytes, artifactType, annotations }: Referrer): Record<string, unknown> {
  return {
    mediaType,
    digest,
    size: sizeBytes,
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(annotations === undefined ? {} : { annotations }),
  };
}
