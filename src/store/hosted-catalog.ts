import { setImmediate as turn } from "node:timers/promises";
import type { Database, Reader, Writer } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { originOfCopy, originOfPush, type Marked, type Origin } from "../oci/origin.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import {
  ensureRepository,
  insertManifest,
  link,
  ROWS_PER_TURN,
  type Catalog,
  type NewManifest,
  type Removed,
} from "./catalog.ts";
import { asAllowed, type Allowance } from "./namespaces.ts";

/** A manifest that refers to another one, as the list of that one's referrers tells it. */
export interface Referrer {
  digest: Digest;
  mediaType: string;
  sizeBytes: number;
  artifactType: string | undefined;
  annotations: Record<string, string> | undefined;
}

/** Who decides, within the transaction, whether a tag may move. Throws to refuse; then nothing of the transaction happens. */
export type TagGuard = (tag: Tag, current: Digest | undefined) => void;

/** Tags that are to point to a manifest. */
export interface Tagging {
  tags: readonly Tag[];
  guard: TagGuard;
  /** Of a copy: the push that it is a copy of. Undefined: it is a push itself. */
  origin: Origin | undefined;
}

/** Run in a change's own transaction, after it: what it writes is kept with the change or not at all, and if it throws, nothing happens. */
export type Within<Change> = (tx: Writer, change: Change) => Promise<void>;

/** The manifest that a tag pointed to. */
export interface RemovedTag {
  digest: Digest;
  mediaType: string;
  sizeBytes: number;
}

export interface RemovedManifest {
  mediaType: string;
  sizeBytes: number;
  /** Those that went with it. */
  tags: readonly Tag[];
}

export interface RemovedBlob {
  sizeBytes: number;
}

/** What a manifest points to and its repository has to hold. */
export interface Required {
  blobs: readonly Digest[];
  manifests: readonly Digest[];
}

/** A namespace that a first push makes a hosted one, unless the mirror knows a repository under a name that would change its meaning. */
export interface Claims {
  namespace: string;
  /** A repository, and the beginning of others. */
  rivals: { repository: string; prefix: string } | undefined;
  /** The user whose own it becomes; without one it is global. */
  ownerUserId?: number;
}

/** A hosted repository to write to. */
export interface Place {
  repository: RepositoryName;
  claims?: Claims;
  /** Undefined: its namespace may hold as much as there is room for. */
  allowance?: Allowance;
}

/** A namespace can't be hosted: the mirror holds this repository. */
export class NamespaceTaken extends Error {
  override readonly name = "NamespaceTaken";
  readonly namespace: string;
  readonly rival: RepositoryName;

  constructor(namespace: string, rival: RepositoryName) {
    super(`the mirror holds ${rival}`);
    this.namespace = namespace;
    this.rival = rival;
  }
}

/** The blob to be mounted is not where it should come from. */
export class NotMounted extends Error {
  override readonly name = "NotMounted";
}

/** A copy may not move a tag: what it leads to was pushed later. */
export class TagIsNewer extends Error {
  override readonly name = "TagIsNewer";
  readonly tag: Tag;
  readonly present: Marked;

  constructor(tag: Tag, present: Marked) {
    super(`${tag} leads to ${present.digest}, which was pushed later`);
    this.tag = tag;
    this.present = present;
  }
}

/** A manifest can't be stored: these are not in its repository. */
export class MissingReferences extends Error {
  override readonly name = "MissingReferences";
  readonly digests: readonly Digest[];

  constructor(digests: readonly Digest[]) {
    super(`${digests.length} of the contents that the manifest points to are not in its repository`);
    this.digests = digests;
  }
}

type Row = Record<string, string | number | null>;

const REPOSITORY_ID = "SELECT id FROM repositories WHERE name = :repository";
const HOLDS_BLOB = `
  SELECT b.size AS "sizeBytes" FROM repository_content c JOIN blobs b ON b.digest = c.digest
  WHERE c.repository_id = :repositoryId AND c.digest = :digest`;
const HOLDS_MANIFEST = `
  SELECT m.media_type AS "mediaType", m.size AS "sizeBytes" FROM repository_content c JOIN manifests m ON m.digest = c.digest
  WHERE c.repository_id = :repositoryId AND c.digest = :digest`;
/** Tags of a manifest, and of the indexes of its repository that lead to it. CROSS: from the manifest up, never through a whole repository. */
const TAGS_ABOVE = `
  WITH RECURSIVE above (digest) AS (
    SELECT :digest
    UNION
    SELECT e.parent FROM above a CROSS JOIN manifest_children e CROSS JOIN repository_content c
    WHERE e.child = a.digest AND c.digest = e.parent AND c.repository_id = :repositoryId)
  SELECT t.name, t.digest FROM above a CROSS JOIN tags t WHERE t.digest = a.digest AND t.repository_id = :repositoryId`;
const HOLDERS = `
  SELECT r.name FROM repository_content c JOIN repositories r ON r.id = c.repository_id
  WHERE c.digest = :digest AND (:from IS NULL OR r.name = :from)`;
const HOSTED_HOLDERS = `${HOLDERS} AND r.upstream IS NULL LIMIT 100`;
const CACHED_HOLDERS = `${HOLDERS} AND r.upstream IS NOT NULL LIMIT 100`;
const TAGGED = `
  SELECT t.digest, m.media_type AS "mediaType", m.size AS "sizeBytes" FROM tags t JOIN manifests m ON m.digest = t.digest
  WHERE t.repository_id = :repositoryId AND t.name = :tag`;
/** Also where there is no such tag. */
const MARKED = `
  SELECT s.id AS site, t.digest, COALESCE(t.origin_at, t.updated_at) AS "atMs", COALESCE(t.origin_by, s.id) AS "by"
  FROM site s LEFT JOIN tags t ON t.repository_id = :repositoryId AND t.name = :tag`;
const SET_TAG = `
  INSERT INTO tags (repository_id, name, digest, etag, updated_at, checked_at, origin_at, origin_by)
  VALUES (:repositoryId, :tag, :digest, NULL, :now, :now, :atMs, :by)
  ON CONFLICT (repository_id, name) DO UPDATE SET digest = excluded.digest, etag = NULL, updated_at = excluded.updated_at,
    checked_at = excluded.checked_at, origin_at = excluded.origin_at, origin_by = excluded.origin_by`;
const REFERRERS = `
  SELECT m.digest, m.media_type, m.size, m.artifact_type, m.annotations FROM manifests m
  WHERE m.subject = :subject AND m.digest > :last AND (:artifactType IS NULL OR m.artifact_type = :artifactType)
    AND EXISTS (SELECT 1 FROM repositories r JOIN repository_content c ON c.repository_id = r.id
                WHERE r.name = :repository AND c.digest = m.digest)
  ORDER BY m.digest LIMIT :limit`;

/**
 * What pushes add to hosted repositories, what deletes take away, and their lists. Every write is durable when its promise resolves.
 * What has been pushed has no upstream, and is never evicted; content that was cached before is pinned by a push or a mount.
 */
export class HostedCatalog {
  readonly #db: Database;
  readonly #catalog: Catalog;

  /** @param catalog remembers rows, and is told of every change */
  constructor(db: Database, catalog: Catalog) {
    this.#db = db;
    this.#catalog = catalog;
  }

  // ---- namespaces ----

  /** Hosted namespaces that pushes or somebody have made, and those that hold what was under way when they were removed. */
  async namespaces(): Promise<string[]> {
    const sql = "SELECT name FROM namespaces UNION SELECT namespace FROM namespace_usage WHERE bytes > 0";
    return (await this.#db.all<{ name: string }>(sql)).map(({ name }) => name);
  }

  /** @throws NamespaceTaken */
  async checkClaims({ claims }: Place): Promise<void> {
    if (claims) await refuseRival(this.#db, claims);
  }

  // ---- pushes ----

  /**
   * Records a blob that was pushed, and whose file is in place.
   * @returns as what it was cached until now
   * @throws NamespaceTaken, AllowanceExceeded
   */
  async addBlob(place: Place, digest: Digest, sizeBytes: number, nowMs: number): Promise<Removed | undefined> {
    const { repository } = place;
    const cached = await this.#push(place, nowMs, async (tx) => {
      const known = await tx.get<Removed>(
        `SELECT size AS "sizeBytes", upstream FROM blobs WHERE digest = :digest AND upstream IS NOT NULL`,
        { digest },
      );
      await tx.run(
        `INSERT INTO blobs (digest, size, upstream, created_at, used_at) VALUES (:digest, :size, NULL, :now, :now)
         ON CONFLICT (digest) DO UPDATE SET size = excluded.size, used_at = excluded.used_at, upstream = NULL`,
        { digest, size: sizeBytes, now: nowMs },
      );
      await link(tx, { repository, upstream: undefined }, digest, nowMs);
      return known;
    });
    this.#catalog.forget(repository, digest);
    return cached;
  }

  /**
   * Repositories that reach a digest; of many, a few.
   * @param from only that one
   */
  async holders(
    digest: Digest,
    kind: "hosted" | "cached",
    from: RepositoryName | undefined,
  ): Promise<RepositoryName[]> {
    const rows = await this.#db.all<{ name: RepositoryName }>(kind === "hosted" ? HOSTED_HOLDERS : CACHED_HOLDERS, {
      digest,
      from: from ?? null,
    });
    return rows.map(({ name }) => name);
  }

  /**
   * Lets a repository reach a blob of another one, and pins it.
   * @returns as what it was cached until now; undefined: it was pushed
   * @throws NotMounted where the other has none; NamespaceTaken, AllowanceExceeded
   */
  async mountBlob(
    place: Place,
    from: RepositoryName,
    digest: Digest,
    nowMs: number,
    within: Within<void>,
  ): Promise<Removed | undefined> {
    const { repository } = place;
    const mounted = await this.#push(place, nowMs, async (tx) => {
      const row = await tx.get<Removed>(
        `SELECT b.size AS "sizeBytes", b.upstream FROM blobs b WHERE b.digest = :digest AND EXISTS (
           SELECT 1 FROM repository_content c JOIN repositories r ON r.id = c.repository_id
           WHERE c.digest = b.digest AND r.name = :from)`,
        { digest, from },
      );
      if (!row) throw new NotMounted();
      await tx.run("UPDATE blobs SET upstream = NULL, used_at = :now WHERE digest = :digest", { digest, now: nowMs });
      await link(tx, { repository, upstream: undefined }, digest, nowMs);
      await within(tx);
      return row.upstream === null ? undefined : row;
    });
    this.#catalog.forget(repository, digest);
    return mounted;
  }

  /**
   * Stores a manifest that has been verified, then points the tags to it.
   * @returns as what it was cached until now
   * @throws MissingReferences, NamespaceTaken, AllowanceExceeded, TagIsNewer; whatever `guard` throws
   */
  async addManifest(
    place: Place,
    manifest: NewManifest,
    required: Required,
    { tags, guard, origin }: Tagging,
    nowMs: number,
    within: Within<void>,
  ): Promise<Removed | undefined> {
    const { repository } = place;
    const owner = { repository, upstream: undefined };
    const cached = await this.#push(place, nowMs, async (tx) => {
      const repositoryId = await ensureRepository(tx, owner, nowMs);
      const missing = [
        ...(await absent(tx, HOLDS_BLOB, repositoryId, required.blobs)),
        ...(await absent(tx, HOLDS_MANIFEST, repositoryId, required.manifests)),
      ];
      if (missing.length > 0) throw new MissingReferences(missing);
      const { digest } = manifest;
      const known = await tx.get<Removed>(
        `SELECT size AS "sizeBytes", upstream FROM manifests WHERE digest = :digest AND upstream IS NOT NULL`,
        { digest },
      );
      await insertManifest(tx, manifest, undefined, nowMs);
      await link(tx, owner, digest, nowMs);
      for (const tag of tags) {
        const { site, present } = await markedTag(tx, repositoryId, tag);
        guard(tag, present?.digest);
        const mark = origin
          ? originOfCopy(present, { digest, origin }, nowMs)
          : originOfPush(present?.origin, site, nowMs);
        if (!mark) throw new TagIsNewer(tag, present as Marked);
        await tx.run(SET_TAG, { repositoryId, tag, digest, now: nowMs, ...mark });
      }
      await within(tx);
      return known;
    });
    this.#catalog.forget(repository, manifest.digest);
    for (const tag of tags) this.#catalog.forgetTag(repository, tag);
    return cached;
  }

  /**
   * A write that may make the repository's namespace a hosted one: with the write, or not at all.
   * @throws NamespaceTaken, AllowanceExceeded
   */
  #push<T>(place: Place, nowMs: number, work: (tx: Writer) => Promise<T>): Promise<T> {
    return this.#db.transaction("durable", async (tx) => {
      if (place.claims) {
        await claimNamespace(tx, place.claims, nowMs);
      }
      return place.allowance ? asAllowed(tx, place.allowance, () => work(tx)) : work(tx);
    });
  }

  // ---- deletes ----

  /** @returns whether there was such a tag @throws whatever `guard` throws */
  async removeTag(repository: RepositoryName, tag: Tag, guard: TagGuard, within: Within<RemovedTag>): Promise<boolean> {
    const removed = await this.#db.transaction("durable", async (tx) => {
      const repositoryId = await findRepository(tx, repository);
      const current = repositoryId === undefined ? undefined : await tx.get<RemovedTag>(TAGGED, { repositoryId, tag });
      if (repositoryId === undefined || current === undefined) return false;
      guard(tag, current.digest);
      await tx.run("DELETE FROM tags WHERE repository_id = :repositoryId AND name = :tag", { repositoryId, tag });
      await within(tx, current);
      return true;
    });
    this.#catalog.forgetTag(repository, tag);
    return removed;
  }

  /**
   * Takes a manifest and its tags out of a repository.
   * @param guard is asked for its tags, and for those of the indexes that need it
   * @returns whether it was there
   * @throws whatever `guard` throws
   */
  async removeManifest(
    repository: RepositoryName,
    digest: Digest,
    guard: TagGuard,
    within: Within<RemovedManifest>,
  ): Promise<boolean> {
    const tags = await this.#db.transaction("durable", async (tx) => {
      const repositoryId = await findRepository(tx, repository);
      const held =
        repositoryId === undefined
          ? undefined
          : await tx.get<Omit<RemovedManifest, "tags">>(HOLDS_MANIFEST, { repositoryId, digest });
      if (repositoryId === undefined || !held) return undefined;
      const rows = await tx.all<{ name: Tag; digest: Digest }>(TAGS_ABOVE, { repositoryId, digest });
      for (const tag of rows) guard(tag.name, tag.digest);
      await tx.run("DELETE FROM tags WHERE digest = :digest AND repository_id = :repositoryId", {
        repositoryId,
        digest,
      });
      await unlink(tx, repositoryId, digest);
      const removed = rows.filter((tag) => tag.digest === digest).map(({ name }) => name);
      await within(tx, { ...held, tags: removed });
      return removed;
    });
    if (!tags) return false;
    this.#catalog.forget(repository, digest);
    for (const tag of tags) this.#catalog.forgetTag(repository, tag);
    return true;
  }

  /**
   * Takes a blob out of a repository, unless one of its manifests needs it.
   * @returns that manifest, or whether the blob was there
   */
  async removeBlob(
    repository: RepositoryName,
    digest: Digest,
    within: Within<RemovedBlob>,
  ): Promise<boolean | { neededBy: Digest }> {
    const removed = await this.#db.transaction("durable", async (tx) => {
      const repositoryId = await findRepository(tx, repository);
      const held =
        repositoryId === undefined ? undefined : await tx.get<RemovedBlob>(HOLDS_BLOB, { repositoryId, digest });
      if (repositoryId === undefined || !held) return false;
      const parent = await tx.get<{ parent: Digest }>(
        `SELECT e.parent FROM manifest_children e JOIN repository_content c ON c.digest = e.parent
         WHERE e.child = :digest AND c.repository_id = :repositoryId LIMIT 1`,
        { repositoryId, digest },
      );
      if (parent) return { neededBy: parent.parent };
      await unlink(tx, repositoryId, digest);
      await within(tx, held);
      return true;
    });
    this.#catalog.forget(repository, digest);
    return removed;
  }

  // ---- lists ----

  async hasRepository(repository: RepositoryName): Promise<boolean> {
    const row = await this.#db.get(
      `SELECT 1 FROM repositories r WHERE r.name = :repository
         AND EXISTS (SELECT 1 FROM repository_content c WHERE c.repository_id = r.id)`,
      { repository },
    );
    return row !== undefined;
  }

  /** Tags in order of their names, after `last` (exclusive). */
  async listTags(repository: RepositoryName, last: string, limit: number): Promise<Tag[]> {
    const rows = await this.#db.all<{ name: Tag }>(
      `SELECT t.name FROM tags t WHERE t.repository_id = (${REPOSITORY_ID}) AND t.name > :last ORDER BY t.name LIMIT :limit`,
      { repository, last, limit },
    );
    return rows.map(({ name }) => name);
  }

  /** Manifests of a repository whose subject is that digest, in order of their own, after `last` (exclusive). */
  async listReferrers(
    repository: RepositoryName,
    subject: Digest,
    artifactType: string | undefined,
    last: string,
    limit: number,
  ): Promise<Referrer[]> {
    const rows = await this.#db.all<Row>(REFERRERS, {
      repository,
      subject,
      artifactType: artifactType ?? null,
      last,
      limit,
    });
    return rows.map((row) => ({
      digest: row["digest"] as Digest,
      mediaType: row["media_type"] as string,
      sizeBytes: row["size"] as number,
      artifactType: (row["artifact_type"] as string | null) ?? undefined,
      annotations:
        typeof row["annotations"] === "string" ? (JSON.parse(row["annotations"]) as Record<string, string>) : undefined,
    }));
  }
}

/** @throws NamespaceTaken */
export async function refuseRival(db: Reader, { namespace, rivals }: Claims): Promise<void> {
  if (!rivals) return;
  const rival = await db.get<{ name: RepositoryName }>(
    "SELECT name FROM repositories WHERE name = :repository OR (name >= :first AND name < :end) LIMIT 1",
    // "0" follows "/".
    { repository: rivals.repository, first: `${rivals.prefix}/`, end: `${rivals.prefix}0` },
  );
  if (rival) throw new NamespaceTaken(namespace, rival.name);
}

/** Makes the namespace a hosted one, unless it is one by now. @throws NamespaceTaken; RegistryError DENIED where it is not its user's own by now */
export async function claimNamespace(tx: Writer, claims: Claims, nowMs: number): Promise<void> {
  await refuseRival(tx, claims);
  const { namespace: name, ownerUserId } = claims;
  await tx.run(
    "INSERT INTO namespaces (name, user_id, created_at) VALUES (:name, :user, :now) ON CONFLICT DO NOTHING",
    { name, user: ownerUserId ?? null, now: nowMs },
  );
  if (ownerUserId === undefined) return;
  const made = await tx.get<{ user_id: number | null }>("SELECT user_id FROM namespaces WHERE name = :name", { name });
  if (made?.user_id !== ownerUserId)
    throw new RegistryError("DENIED", `the namespace ${name} has become somebody else's meanwhile`);
}

async function findRepository(tx: Writer, repository: RepositoryName): Promise<number | undefined> {
  return (await tx.get<{ id: number }>(REPOSITORY_ID, { repository }))?.id;
}

/** Where a tag leads to now, and what this registry is called. */
async function markedTag(
  tx: Writer,
  repositoryId: number,
  tag: Tag,
): Promise<{ site: string; present: Marked | undefined }> {
  const row = await tx.get<{ site: string; digest: Digest | null; atMs: number; by: string }>(MARKED, {
    repositoryId,
    tag,
  });
  if (!row) throw new Error("the table site has lost its row: restore the database from a backup");
  const { site, digest, atMs, by } = row;
  return { site, present: digest === null ? undefined : { digest, origin: { atMs, by } } };
}

async function absent(tx: Writer, holds: string, repositoryId: number, digests: readonly Digest[]): Promise<Digest[]> {
  const missing = [];
  for (const [index, digest] of digests.entries()) {
    if (index % ROWS_PER_TURN === ROWS_PER_TURN - 1) await turn();
    if (!(await tx.get(holds, { repositoryId, digest }))) missing.push(digest);
  }
  return missing;
}

async function unlink(tx: Writer, repositoryId: number, digest: Digest): Promise<void> {
  await tx.run("DELETE FROM repository_content WHERE repository_id = :repositoryId AND digest = :digest", {
    repositoryId,
    digest,
  });
}
