import { setImmediate as turn } from "node:timers/promises";
import type { Database, Writer } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import type { Descriptor, Manifest } from "../oci/manifest.ts";
import type { Origin } from "../oci/origin.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { Remembered } from "./remembered.ts";

/** Content as the catalog knows it. */
export interface StoredBlob {
  sizeBytes: number;
  /** The upstream it was cached from; undefined: it was pushed, and is never evicted. */
  upstream: string | undefined;
  /** Whether the repository asked for may reach it. */
  linked: boolean;
}

export interface StoredManifest {
  mediaType: string;
  sizeBytes: number;
  upstream: string | undefined;
  linked: boolean;
}

export interface StoredTag {
  digest: Digest;
  mediaType: string;
  sizeBytes: number;
  etag: string | undefined;
  /** When upstream last said that the tag points to this digest. */
  checkedAtMs: number;
  /** Of a hosted repository: the push that has brought it to this digest. */
  origin: Origin;
}

export interface NewManifest {
  digest: Digest;
  mediaType: string;
  bytes: Buffer;
  children: readonly Pick<Descriptor, "digest" | "sizeBytes">[];
  /** What it refers to, as the list of that one's referrers tells it. */
  referrer?: { subject: Digest; artifactType: string | undefined; annotations: Record<string, string> | undefined };
}

/** A manifest as it is stored, with what it points to. */
export function newManifest(digest: Digest, bytes: Buffer, manifest: Manifest): NewManifest {
  const { mediaType, config, layers, manifests, subject, artifactType, annotations } = manifest;
  return {
    digest,
    mediaType,
    bytes,
    children: [...(config ? [config] : []), ...layers, ...manifests],
    ...(subject ? { referrer: { subject: subject.digest, artifactType, annotations } } : {}),
  };
}

/** The repository a change belongs to; upstream is undefined for a hosted one. */
export interface Owner {
  repository: RepositoryName;
  upstream: string | undefined;
}

/** A tag of a hosted repository that was pulled. */
export interface PulledTag {
  repository: RepositoryName;
  tag: Tag;
  atMs: number;
}

/** A candidate of eviction, oldest use first. */
export interface EvictionCandidate {
  digest: Digest;
  kind: "blob" | "manifest";
  sizeBytes: number;
  upstream: string;
}

/** Content that the catalog has forgotten. */
export interface Removed {
  sizeBytes: number;
  /** null: it was pushed */
  upstream: string | null;
}

/** Keeps the count of what is cached. */
export interface Ledger {
  added(upstream: string, bytes: number): void;
  /** @param rows what was really removed: two who find the same damage remove it once */
  removed(rows: readonly Removed[]): void;
}

export interface Listing {
  body: string;
  fetchedAtMs: number;
}

type Row = Record<string, string | number | Buffer | null>;

/** So many rows a turn of the event loop: a manifest of thousands of layers holds up nobody. */
export const ROWS_PER_TURN = 200;

const FIND_TAG = `
  SELECT t.digest, t.etag, t.checked_at, m.media_type, m.size,
    COALESCE(t.origin_at, t.updated_at) AS origin_at, COALESCE(t.origin_by, (SELECT id FROM site)) AS origin_by
  FROM repositories r JOIN tags t ON t.repository_id = r.id JOIN manifests m ON m.digest = t.digest
  WHERE r.name = :repository AND t.name = :tag`;
const LINKED = `
  EXISTS (SELECT 1 FROM repositories r JOIN repository_content c ON c.repository_id = r.id
          WHERE r.name = :repository AND c.digest = :digest) AS linked`;
const FIND_BLOB = `SELECT size, upstream, ${LINKED} FROM blobs WHERE digest = :digest`;
const FIND_MANIFEST = `SELECT media_type, size, upstream, ${LINKED} FROM manifests WHERE digest = :digest`;
// What was pushed since it was chosen stays.
const EVICT_BLOB = `DELETE FROM blobs WHERE digest = :digest AND upstream IS NOT NULL RETURNING size AS "sizeBytes", upstream`;
const EVICT_MANIFEST = `DELETE FROM manifests WHERE digest = :digest AND upstream IS NOT NULL RETURNING size AS "sizeBytes", upstream`;
const RETIRE_BLOB = `DELETE FROM blobs WHERE digest = :digest RETURNING size AS "sizeBytes", upstream`;
const HOSTED_LINK = `
  SELECT 1 FROM repository_content c JOIN repositories r ON r.id = c.repository_id
  WHERE c.digest = :digest AND r.upstream IS NULL LIMIT 1`;
const TOUCH_BLOB = "UPDATE blobs SET used_at = :now WHERE digest = :digest";
const TOUCH_MANIFEST = "UPDATE manifests SET used_at = :now WHERE digest = :digest";

/**
 * Which repositories, tags, manifests and blobs exist, and which repository may reach what: how it is found, and what the mirror adds.
 * What pushes add and deletes take away is in hosted-catalog.ts.
 * A tag always points to a manifest that is stored and linked to its repository.
 */
export class Catalog {
  readonly #db: Database;
  readonly #tags = new Remembered<StoredTag>();
  readonly #blobs = new Remembered<StoredBlob>();
  readonly #manifests = new Remembered<StoredManifest>();

  constructor(db: Database) {
    this.#db = db;
  }

  async findTag(repository: RepositoryName, tag: Tag): Promise<StoredTag | undefined> {
    return this.#tags.get(`${repository}:${tag}`, async () => {
      const row = await this.#db.get<Row>(FIND_TAG, { repository, tag });
      return (
        row && {
          digest: row["digest"] as Digest,
          mediaType: row["media_type"] as string,
          sizeBytes: row["size"] as number,
          etag: (row["etag"] as string | null) ?? undefined,
          checkedAtMs: row["checked_at"] as number,
          origin: { atMs: row["origin_at"] as number, by: row["origin_by"] as string },
        }
      );
    });
  }

  async findBlob(repository: RepositoryName, digest: Digest): Promise<StoredBlob | undefined> {
    return this.#blobs.get(`${repository}@${digest}`, async () => {
      const row = await this.#db.get<Row>(FIND_BLOB, { repository, digest });
      return row && { sizeBytes: row["size"] as number, upstream: upstreamOf(row), linked: row["linked"] === 1 };
    });
  }

  async findManifest(repository: RepositoryName, digest: Digest): Promise<StoredManifest | undefined> {
    return this.#manifests.get(`${repository}@${digest}`, async () => {
      const row = await this.#db.get<Row>(FIND_MANIFEST, { repository, digest });
      return (
        row && {
          mediaType: row["media_type"] as string,
          sizeBytes: row["size"] as number,
          upstream: upstreamOf(row),
          linked: row["linked"] === 1,
        }
      );
    });
  }

  async readManifest(digest: Digest): Promise<Buffer | undefined> {
    const row = await this.#db.get<Row>("SELECT bytes FROM manifests WHERE digest = :digest", { digest });
    return row?.["bytes"] as Buffer | undefined;
  }

  /** The size that some stored manifest claims for a digest: a hint, since a manifest may lie about content it does not own. */
  async claimedSizeBytes(digest: Digest): Promise<number | undefined> {
    const row = await this.#db.get<Row>("SELECT size FROM manifest_children WHERE child = :digest LIMIT 1", { digest });
    return row?.["size"] as number | undefined;
  }

  /** Cached repositories with a manifest that points to the digest: places from which it may be fetched. */
  async repositoriesWith(digest: Digest): Promise<{ repository: RepositoryName }[]> {
    return this.#db.all(
      `SELECT DISTINCT r.name AS repository FROM manifest_children m
       JOIN repository_content c ON c.digest = m.parent JOIN repositories r ON r.id = c.repository_id
       WHERE m.child = :digest AND r.upstream IS NOT NULL LIMIT 8`,
      { digest },
    );
  }

  /**
   * Records a blob whose file is in place, and lets the repositories reach it. What a hosted repository may reach was pushed or mounted,
   * and lost since: it is pinned, as it was.
   * @returns whether it is new among what is cached
   */
  async addBlob(owners: readonly Owner[], digest: Digest, sizeBytes: number, nowMs: number): Promise<boolean> {
    const isNew = await this.#db.transaction("lazy", async (tx) => {
      const known = await tx.get("SELECT 1 FROM blobs WHERE digest = :digest", { digest });
      const pinned = known === undefined && (await tx.get(HOSTED_LINK, { digest })) !== undefined;
      await tx.run(
        `INSERT INTO blobs (digest, size, upstream, created_at, used_at) VALUES (:digest, :size, :upstream, :now, :now)
         ON CONFLICT (digest) DO UPDATE SET size = excluded.size, used_at = excluded.used_at`,
        { digest, size: sizeBytes, upstream: pinned ? null : (owners[0]?.upstream ?? null), now: nowMs },
      );
      for (const owner of owners) await link(tx, owner, digest, nowMs);
      return known === undefined && !pinned;
    });
    for (const { repository } of owners) this.#blobs.forget(`${repository}@${digest}`);
    return isNew;
  }

  /** Lets a repository reach content that is stored already. */
  async link(owner: Owner, digest: Digest, nowMs: number): Promise<void> {
    await this.#db.transaction("lazy", (tx) => link(tx, owner, digest, nowMs));
    this.forget(owner.repository, digest);
  }

  /**
   * Stores a manifest that has been verified.
   * @returns whether it is new
   */
  async addManifest(owner: Owner, manifest: NewManifest, nowMs: number): Promise<boolean> {
    const isNew = await this.#db.transaction("lazy", async (tx) => {
      const known = await tx.get("SELECT 1 FROM manifests WHERE digest = :digest", { digest: manifest.digest });
      await insertManifest(tx, manifest, owner.upstream, nowMs);
      await link(tx, owner, manifest.digest, nowMs);
      return known === undefined;
    });
    this.#manifests.forget(`${owner.repository}@${manifest.digest}`);
    return isNew;
  }

  /** To be called after a write that changes what a repository may reach under a digest. */
  forget(repository: RepositoryName, digest: Digest): void {
    this.#blobs.forget(`${repository}@${digest}`);
    this.#manifests.forget(`${repository}@${digest}`);
  }

  /** To be called after a write that moves or removes a tag. */
  forgetTag(repository: RepositoryName, tag: Tag): void {
    this.#tags.forget(`${repository}:${tag}`);
  }

  /** To be called after a write that changes content for every repository that may reach it. */
  forgetAll(): void {
    this.#blobs.forgetAll();
    this.#manifests.forgetAll();
    this.#tags.forgetAll();
  }

  /** Points a tag to a manifest that is stored and linked, or confirms that it still does. */
  async setTag(owner: Owner, tag: Tag, digest: Digest, etag: string | undefined, nowMs: number): Promise<void> {
    await this.#db.transaction("lazy", async (tx) => {
      await tx.run(
        `INSERT INTO tags (repository_id, name, digest, etag, updated_at, checked_at)
         SELECT r.id, :tag, :digest, :etag, :now, :now FROM repositories r WHERE r.name = :repository
         ON CONFLICT (repository_id, name) DO UPDATE SET
           updated_at = CASE WHEN tags.digest = excluded.digest THEN tags.updated_at ELSE excluded.updated_at END,
           digest = excluded.digest, etag = excluded.etag, checked_at = excluded.checked_at`,
        { repository: owner.repository, tag, digest, etag: etag ?? null, now: nowMs },
      );
    });
    this.#tags.forget(`${owner.repository}:${tag}`);
  }

  async removeTag(repository: RepositoryName, tag: Tag): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        "DELETE FROM tags WHERE name = :tag AND repository_id = (SELECT id FROM repositories WHERE name = :repository)",
        { repository, tag },
      ),
    );
    this.#tags.forget(`${repository}:${tag}`);
  }

  /**
   * Forgets cached blobs and who may reach them. The caller removes the files afterwards.
   * @returns those that were there
   */
  async evictBlobs(digests: readonly Digest[]): Promise<Removed[]> {
    const removed = await this.#db.transaction("lazy", async (tx) => {
      const rows = [];
      for (const digest of digests) {
        const row = await tx.get<Removed>(EVICT_BLOB, { digest });
        if (!row) continue;
        rows.push(row);
        await tx.run("DELETE FROM repository_content WHERE digest = :digest", { digest });
      }
      return rows;
    });
    this.#blobs.forgetAll();
    return removed;
  }

  /** Forgets a blob that is damaged, but not who may reach it: whoever brings it again repairs it for all of them. */
  async retireBlob(digest: Digest): Promise<Removed[]> {
    const removed = await this.#db.transaction("lazy", (tx) => tx.get<Removed>(RETIRE_BLOB, { digest }));
    this.#blobs.forgetAll();
    return removed ? [removed] : [];
  }

  /** Forgets cached manifests, the tags that point to them and their edges. @returns those that were there */
  async evictManifests(digests: readonly Digest[]): Promise<Removed[]> {
    const removed = await this.#db.transaction("lazy", async (tx) => {
      const rows = [];
      for (const digest of digests) {
        const row = await tx.get<Removed>(EVICT_MANIFEST, { digest });
        if (!row) continue;
        rows.push(row);
        await tx.run("DELETE FROM tags WHERE digest = :digest", { digest });
        await tx.run("DELETE FROM repository_content WHERE digest = :digest", { digest });
        await tx.run("DELETE FROM manifest_children WHERE parent = :digest", { digest });
      }
      return rows;
    });
    this.#manifests.forgetAll();
    this.#tags.forgetAll();
    return removed;
  }

  /** Notes that contents were used now. One statement each; callers batch. */
  async touch(digests: Iterable<Digest>, nowMs: number): Promise<void> {
    await this.#db.transaction("lazy", async (tx) => {
      for (const digest of digests) {
        if ((await tx.run(TOUCH_BLOB, { digest, now: nowMs })) === 0)
          await tx.run(TOUCH_MANIFEST, { digest, now: nowMs });
      }
    });
  }

  /** Notes when tags were pulled. One statement each; callers batch. */
  async touchTags(pulled: Iterable<PulledTag>): Promise<void> {
    await this.#db.transaction("lazy", async (tx) => {
      for (const { repository, tag, atMs } of pulled) {
        await tx.run(
          `UPDATE tags SET pulled_at = :atMs
           WHERE name = :tag AND repository_id = (SELECT id FROM repositories WHERE name = :repository)`,
          { repository, tag, atMs },
        );
      }
    });
  }

  /** Cached content, least recently used first. */
  async evictionCandidates(limit: number): Promise<EvictionCandidate[]> {
    return this.#db.all<EvictionCandidate>(
      `SELECT * FROM (
         SELECT digest, 'blob' AS kind, size AS "sizeBytes", upstream, used_at FROM
           (SELECT * FROM blobs WHERE upstream IS NOT NULL ORDER BY used_at LIMIT :limit)
         UNION ALL
         SELECT digest, 'manifest' AS kind, size AS "sizeBytes", upstream, used_at FROM
           (SELECT * FROM manifests WHERE upstream IS NOT NULL ORDER BY used_at LIMIT :limit))
       ORDER BY used_at LIMIT :limit`,
      { limit },
    );
  }

  /** Bytes of cached content per upstream. Reads every row: for the start only. */
  async cachedBytes(): Promise<Map<string, number>> {
    const rows = await this.#db.all<{ upstream: string; bytes: number }>(
      `SELECT upstream, SUM(size) AS bytes FROM (
         SELECT upstream, size FROM blobs WHERE upstream IS NOT NULL
         UNION ALL SELECT upstream, size FROM manifests WHERE upstream IS NOT NULL)
       GROUP BY upstream`,
    );
    return new Map(rows.map((row) => [row.upstream, row.bytes]));
  }

  async hasBlob(digest: Digest): Promise<boolean> {
    return (await this.#db.get("SELECT 1 FROM blobs WHERE digest = :digest", { digest })) !== undefined;
  }

  async findListing(
    repository: RepositoryName,
    kind: "tags" | "referrers",
    subject: string,
  ): Promise<Listing | undefined> {
    return this.#db.get<Listing>(
      `SELECT l.body, l.fetched_at AS "fetchedAtMs" FROM listings l JOIN repositories r ON r.id = l.repository_id
       WHERE r.name = :repository AND l.kind = :kind AND l.subject = :subject`,
      { repository, kind, subject },
    );
  }

  async setListing(
    owner: Owner,
    kind: "tags" | "referrers",
    subject: string,
    body: string,
    nowMs: number,
  ): Promise<void> {
    await this.#db.transaction("lazy", async (tx) => {
      const repositoryId = await ensureRepository(tx, owner, nowMs);
      await tx.run(
        `INSERT INTO listings (repository_id, kind, subject, body, fetched_at) VALUES (:repositoryId, :kind, :subject, :body, :now)
         ON CONFLICT (repository_id, kind, subject) DO UPDATE SET body = excluded.body, fetched_at = excluded.fetched_at`,
        { repositoryId, kind, subject, body, now: nowMs },
      );
    });
  }

  /** Forgets lists that were fetched before a moment: nothing serves them any more. */
  async removeListings(beforeMs: number): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run("DELETE FROM listings WHERE fetched_at < :beforeMs", { beforeMs }),
    );
  }

  /** Repositories that hold anything, in order of their names, after `last` (exclusive). */
  async listRepositories(last: string, limit: number): Promise<RepositoryName[]> {
    const rows = await this.#db.all<{ name: RepositoryName }>(
      `SELECT name FROM repositories r WHERE name > :last
         AND EXISTS (SELECT 1 FROM repository_content c WHERE c.repository_id = r.id) ORDER BY name LIMIT :limit`,
      { last, limit },
    );
    return rows.map((row) => row.name);
  }
}

function upstreamOf(row: Row): string | undefined {
  return (row["upstream"] as string | null) ?? undefined;
}

/** Stores a manifest, or marks it as used and mends it if its bytes were damaged; undefined as its upstream pins one that was cached. */
export async function insertManifest(
  tx: Writer,
  { digest, mediaType, bytes, children, referrer }: NewManifest,
  upstream: string | undefined,
  nowMs: number,
): Promise<void> {
  await tx.run(
    `INSERT INTO manifests (digest, media_type, size, bytes, subject, artifact_type, annotations, upstream, created_at, used_at)
     VALUES (:digest, :mediaType, :size, :bytes, :subject, :artifactType, :annotations, :upstream, :now, :now)
     ON CONFLICT (digest) DO UPDATE SET used_at = excluded.used_at, bytes = excluded.bytes,
       upstream = CASE WHEN excluded.upstream IS NULL THEN NULL ELSE manifests.upstream END`,
    {
      digest,
      mediaType,
      size: bytes.length,
      bytes,
      subject: referrer?.subject ?? null,
      artifactType: referrer?.artifactType ?? null,
      annotations: referrer?.annotations ? JSON.stringify(referrer.annotations) : null,
      upstream: upstream ?? null,
      now: nowMs,
    },
  );
  for (const [index, child] of children.entries()) {
    if (index % ROWS_PER_TURN === ROWS_PER_TURN - 1) await turn();
    await tx.run(
      "INSERT INTO manifest_children (parent, child, size) VALUES (:parent, :child, :size) ON CONFLICT DO NOTHING",
      { parent: digest, child: child.digest, size: child.sizeBytes },
    );
  }
}

export async function ensureRepository(tx: Writer, owner: Owner, nowMs: number): Promise<number> {
  const known = await tx.get<{ id: number }>("SELECT id FROM repositories WHERE name = :repository", {
    repository: owner.repository,
  });
  if (known) return known.id;
  const made = await tx.get<{ id: number }>(
    "INSERT INTO repositories (name, upstream, created_at) VALUES (:repository, :upstream, :now) RETURNING id",
    { repository: owner.repository, upstream: owner.upstream ?? null, now: nowMs },
  );
  if (!made) throw new Error(`could not create repository ${owner.repository}`);
  return made.id;
}

export async function link(tx: Writer, owner: Owner, digest: Digest, nowMs: number): Promise<void> {
  const repositoryId = await ensureRepository(tx, owner, nowMs);
  await tx.run(
    `INSERT INTO repository_content (repository_id, digest, linked_at) VALUES (:repositoryId, :digest, :now)
     ON CONFLICT DO UPDATE SET linked_at = excluded.linked_at`,
    { repositoryId, digest, now: nowMs },
  );
}
