import { setImmediate as turn } from "node:timers/promises";
import { algorithmOf, digestOf, isDigest, type Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { referrersTag, type Reference, type RepositoryName } from "../oci/reference.ts";
import { BlobFault, type BlobStore } from "../store/blobs.ts";
import type { Catalog, StoredBlob } from "../store/catalog.ts";
import type { HostedCatalog, Referrer } from "../store/hosted-catalog.ts";
import type { MemoryCache } from "../store/memory.ts";
import type { Usage } from "../store/usage.ts";
import type { BlobAnswer, ManifestAnswer } from "./answers.ts";
import type { Hosted } from "./names.ts";
import type { Page } from "./page.ts";
import type { StoredBlobs } from "./stored-blobs.ts";

export interface HostedPullDeps {
  catalog: Catalog;
  hosted: HostedCatalog;
  blobs: BlobStore;
  stored: StoredBlobs;
  memory: MemoryCache;
  usage: Usage;
  onFault: (operation: string, error: unknown) => void;
}

const REFERRERS_BATCH = 16;
/** About what a list of referrers holds at most: the size that every client takes as a manifest. Source: distribution-spec, "Listing Referrers" */
const REFERRERS_BYTES = 3 * 1024 * 1024;

/** What hosted repositories have: manifests, blobs, lists of tags and of referrers. */
export class HostedPulls {
  readonly #deps: HostedPullDeps;

  constructor(deps: HostedPullDeps) {
    this.#deps = deps;
  }

  /** @throws RegistryError MANIFEST_UNKNOWN, NAME_UNKNOWN */
  async manifest({ repository }: Hosted, reference: Reference, head: boolean): Promise<ManifestAnswer> {
    const { catalog, usage } = this.#deps;
    const tagged = isDigest(reference) ? undefined : await catalog.findTag(repository, reference);
    const digest = isDigest(reference) ? reference : tagged?.digest;
    if (digest !== undefined) usage.touch(digest);
    const found = digest && (await catalog.findManifest(repository, digest));
    if (digest === undefined || !found?.linked) throw await unknownManifest(this.#deps.hosted, repository, reference);
    const bytes = head ? undefined : await this.#read(repository, digest);
    if (!head && !isDigest(reference)) usage.touchTag(repository, reference);
    const { mediaType, sizeBytes } = found;
    const { origin } = tagged ?? {};
    return { digest, mediaType, sizeBytes, bytes, origin, warning: undefined, upstream: undefined, result: "hit" };
  }

  /** @throws RegistryError BLOB_UNKNOWN, NAME_UNKNOWN; UNAVAILABLE where the file can't be read */
  async blob({ repository }: Hosted, digest: Digest, head: boolean): Promise<BlobAnswer> {
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
  async tags({ repository }: Hosted, last: string, limit: number): Promise<Page<string>> {
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
    { repository }: Hosted,
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

  async #findBlob(repository: RepositoryName, digest: Digest): Promise<StoredBlob> {
    const { catalog, blobs, usage } = this.#deps;
    usage.touch(digest);
    await blobs.settled(digest);
    const found = await catalog.findBlob(repository, digest);
    if (!found?.linked) throw await unknownBlob(this.#deps.hosted, repository, digest);
    return found;
  }

  async #read(repository: RepositoryName, digest: Digest): Promise<Buffer> {
    const { memory, catalog, onFault } = this.#deps;
    const remembered = memory.get(digest);
    if (remembered) return remembered;
    const bytes = await catalog.readManifest(digest);
    if (!bytes) throw await unknownManifest(this.#deps.hosted, repository, digest);
    if (digestOf(bytes, algorithmOf(digest)) !== digest) {
      const message = `the stored bytes of ${digest} are damaged: push it again to repair it`;
      onFault("read manifest", new Error(message));
      throw new RegistryError("UNAVAILABLE", message, { status: 500 });
    }
    memory.set(digest, bytes);
    return bytes;
  }
}

/** Why there is no such manifest: MANIFEST_UNKNOWN, or NAME_UNKNOWN where the repository is not there either. */
export async function unknownManifest(
  hosted: HostedCatalog,
  repository: RepositoryName,
  reference: Reference,
): Promise<RegistryError> {
  if (!(await hosted.hasRepository(repository))) return unknownName(repository);
  return new RegistryError("MANIFEST_UNKNOWN", `${repository} has no manifest ${reference}`, {
    detail: { repository, reference },
  });
}

/** Why there is no such blob: BLOB_UNKNOWN, or NAME_UNKNOWN where the repository is not there either. */
export async function unknownBlob(
  hosted: HostedCatalog,
  repository: RepositoryName,
  digest: Digest,
): Promise<RegistryError> {
  if (!(await hosted.hasRepository(repository))) return unknownName(repository);
  return new RegistryError("BLOB_UNKNOWN", `${repository} has no blob ${digest}`, { detail: { digest } });
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

function descriptorOf({ digest, mediaType, sizeBytes, artifactType, annotations }: Referrer): Record<string, unknown> {
  return {
    mediaType,
    digest,
    size: sizeBytes,
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(annotations === undefined ? {} : { annotations }),
  };
}
