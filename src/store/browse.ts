import { setImmediate as turn } from "node:timers/promises";
import type { Bytes, Milliseconds } from "../base/clock.ts";
import type { Database } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import { MEDIA_TYPES } from "../oci/manifest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { after, type Sight } from "./visible.ts";

export interface RepositoryEntry {
  name: RepositoryName;
  /** Undefined: it is hosted. */
  upstream: string | undefined;
  createdAtMs: Milliseconds;
  /** At most {@link MOST_COUNTED} are counted. */
  tags: number;
}

export interface RepositoryTotals {
  tags: number;
  manifests: number;
  blobs: number;
  /** Of manifests and blobs, each once. */
  bytes: Bytes;
}

export interface RepositoryFilter {
  /** What the name begins with. */
  prefix: string;
  /** What the name holds, in lower case; empty: anything. */
  text: string;
  kind: "hosted" | "cached" | undefined;
}

export interface TagEntry {
  name: Tag;
  digest: Digest;
  mediaType: string;
  /** Of the manifest itself. */
  sizeBytes: Bytes;
  /** Of all that the manifest points to, itself or through its manifests, as far as they are known here and claim a size. */
  contentBytes: Bytes;
  pushedAtMs: Milliseconds;
  /** Undefined where it was never pulled, or is not noted. */
  pulledAtMs: Milliseconds | undefined;
}

export interface ManifestEntry {
  mediaType: string;
  sizeBytes: Bytes;
  upstream: string | undefined;
  linkedAtMs: Milliseconds;
}

export interface CachedContent {
  digest: Digest;
  sizeBytes: Bytes;
  upstream: string;
  cachedAtMs: Milliseconds;
  usedAtMs: Milliseconds;
}

/** Where a page of cached contents goes on. */
export interface CachedKey {
  /** What they are sorted by. */
  by: number;
  row: number;
}

/** Tags of a repository are counted up to here where many repositories are listed. */
export const MOST_COUNTED = 100;

/** So many names are looked at a turn of the event loop, and so many for one page. */
const NAMES_PER_TURN = 500;
const NAMES_PER_PAGE = 4_000;
/** Repositories or tags that are looked into a turn. */
const ENTRIES_PER_TURN = 20;
/** Above every character of a name. */
const AFTER_ALL = "\u{10ffff}";

function names(kind: string): string {
  return `
    SELECT id, name, upstream, created_at AS "createdAtMs" FROM repositories
    WHERE ${kind} name >= :from AND name >= :prefix AND name < :end ORDER BY name LIMIT :rows`;
}

const ALL_NAMES = names("");
const HOSTED_NAMES = names("upstream IS NULL AND");
const CACHED_NAMES = names("upstream IS NOT NULL AND");
const HOLDS_ANYTHING = "EXISTS (SELECT 1 FROM repository_content c WHERE c.repository_id = :id)";
const COUNT_SOME = `
  SELECT count(*) AS tags, ${HOLDS_ANYTHING} AS held
  FROM (SELECT 1 FROM tags WHERE repository_id = :id LIMIT ${MOST_COUNTED})`;
const FIND_REPOSITORY = `
  SELECT id, name, upstream, created_at AS "createdAtMs" FROM repositories r
  WHERE name = :repository AND EXISTS (SELECT 1 FROM repository_content c WHERE c.repository_id = r.id)`;
const COUNT_TAGS = "SELECT count(*) AS tags FROM tags WHERE repository_id = :id";
const COUNT_CONTENT = `
  SELECT count(m.digest) AS manifests, count(b.digest) AS blobs, COALESCE(sum(COALESCE(b.size, m.size)), 0) AS bytes
  FROM repository_content c LEFT JOIN blobs b ON b.digest = c.digest LEFT JOIN manifests m ON m.digest = c.digest
  WHERE c.repository_id = :id`;
const TAG = `
  SELECT t.name, t.digest, t.updated_at AS "pushedAtMs", t.pulled_at AS "pulledAtMs",
    m.media_type AS "mediaType", m.size AS "sizeBytes"
  FROM repositories r JOIN tags t ON t.repository_id = r.id JOIN manifests m ON m.digest = t.digest
  WHERE r.name = :repository`;
const LIST_TAGS = `${TAG} AND t.name > :last AND t.name >= :prefix AND t.name < :end ORDER BY t.name LIMIT :rows`;
const FIND_TAG = `${TAG} AND t.name = :tag`;
const SUM_CHILDREN = "SELECT COALESCE(sum(size), 0) AS bytes FROM manifest_children WHERE parent = :digest";
const SUM_GRANDCHILDREN = `
  SELECT COALESCE(sum(e.size), 0) + COALESCE(sum((SELECT sum(g.size) FROM manifest_children g WHERE g.parent = e.child)), 0) AS bytes
  FROM manifest_children e WHERE e.parent = :digest`;
const FIND_MANIFEST = `
  SELECT m.media_type AS "mediaType", m.size AS "sizeBytes", m.upstream, c.linked_at AS "linkedAtMs"
  FROM repositories r JOIN repository_content c ON c.repository_id = r.id JOIN manifests m ON m.digest = c.digest
  WHERE r.name = :repository AND c.digest = :digest`;
const TAGS_OF = `
  SELECT t.name FROM repositories r JOIN tags t ON t.repository_id = r.id
  WHERE r.name = :repository AND t.digest = :digest ORDER BY t.name LIMIT :rows`;
const IS_HERE = `
  SELECT 1 FROM repositories r JOIN repository_content c ON c.repository_id = r.id
  WHERE r.name = :repository AND c.digest = :digest
    AND (EXISTS (SELECT 1 FROM blobs b WHERE b.digest = c.digest) OR EXISTS (SELECT 1 FROM manifests m WHERE m.digest = c.digest))`;
const CACHED = `SELECT rowid AS row, digest, size AS "sizeBytes", upstream, created_at AS "cachedAtMs", used_at AS "usedAtMs" FROM blobs`;
const LEAST_USED = `
  ${CACHED} WHERE upstream IS NOT NULL AND (used_at, rowid) > (:by, :row) ORDER BY used_at, rowid LIMIT :rows`;
const LARGEST = `
  ${CACHED} WHERE upstream IS NOT NULL AND (size, rowid) < (:by, :row) ORDER BY size DESC, rowid DESC LIMIT :rows`;

const INDEXES: ReadonlySet<string> = new Set([MEDIA_TYPES.ociIndex, MEDIA_TYPES.dockerList]);

interface RepositoryRow {
  id: number;
  name: RepositoryName;
  upstream: string | null;
  createdAtMs: Milliseconds;
}

/**
 * What is stored, as a person looks through it: pages by key, none of which costs more for all that is there. What has to look at many
 * rows does so in turns of the event loop, or through the background.
 */
export class Browse {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /**
   * Repositories that hold anything and that somebody sees, in order of their names, after `last` (exclusive).
   * @returns `next` after which to go on; with a filter that few fit, a page may hold less than `limit`, even nothing, before the last one
   */
  async repositories(
    { prefix, text, kind }: RepositoryFilter,
    last: string,
    limit: number,
    { sees, ahead }: Sight,
  ): Promise<{ items: RepositoryEntry[]; next: string | undefined }> {
    const items: RepositoryEntry[] = [];
    const sql = kind === undefined ? ALL_NAMES : kind === "hosted" ? HOSTED_NAMES : CACHED_NAMES;
    let reached = last;
    for (let seen = 0; seen < NAMES_PER_PAGE;) {
      const begin = after(reached);
      const from = ahead(begin < prefix ? prefix : begin);
      if (from === undefined) return { items, next: undefined };
      const rows = text === "" ? Math.min(NAMES_PER_TURN, limit - items.length) : NAMES_PER_TURN;
      const found = await this.#db.all<RepositoryRow>(sql, { from, prefix, end: prefix + AFTER_ALL, rows });
      for (const row of found) {
        reached = row.name;
        seen += 1;
        if (!row.name.includes(text) || !sees(row.name, row.upstream ?? undefined)) continue;
        const entry = await this.#entry(row);
        if (!entry) continue;
        items.push(entry);
        if (items.length === limit) return { items, next: reached };
        if (items.length % ENTRIES_PER_TURN === 0) await turn();
      }
      if (found.length < rows) return { items, next: undefined };
      await turn();
    }
    return { items, next: reached };
  }

  async #entry({ id, name, upstream, createdAtMs }: RepositoryRow): Promise<RepositoryEntry | undefined> {
    const counted = await this.#db.get<{ tags: number; held: number }>(COUNT_SOME, { id });
    if (counted?.held !== 1) return undefined;
    return { name, upstream: upstream ?? undefined, createdAtMs, tags: counted.tags };
  }

  /** What a name stands for in storage. @returns undefined where it holds nothing */
  async find(name: RepositoryName): Promise<{ upstream: string | undefined } | undefined> {
    const row = await this.#db.get<RepositoryRow>(FIND_REPOSITORY, { repository: name });
    return row && { upstream: row.upstream ?? undefined };
  }

  /** One repository, counted in full. @returns undefined where it holds nothing */
  async repository(name: RepositoryName): Promise<(RepositoryEntry & RepositoryTotals) | undefined> {
    const row = await this.#db.get<RepositoryRow>(FIND_REPOSITORY, { repository: name });
    if (!row) return undefined;
    const { id, upstream, createdAtMs } = row;
    const { background } = this.#db;
    const [tags, content] = await Promise.all([
      background.get<{ tags: number }>(COUNT_TAGS, { id }),
      background.get<Omit<RepositoryTotals, "tags">>(COUNT_CONTENT, { id }),
    ]);
    return {
      name,
      upstream: upstream ?? undefined,
      createdAtMs,
      tags: tags?.tags ?? 0,
      manifests: content?.manifests ?? 0,
      blobs: content?.blobs ?? 0,
      bytes: content?.bytes ?? 0,
    };
  }

  /** Tags in order of their names, after `last` (exclusive), that begin with `prefix`. */
  async tags(repository: RepositoryName, prefix: string, last: string, limit: number): Promise<TagEntry[]> {
    const entries: TagEntry[] = [];
    const end = prefix + AFTER_ALL;
    for (let after = last; entries.length < limit;) {
      const rows = Math.min(ENTRIES_PER_TURN, limit - entries.length);
      const found = await this.#db.all<TagRow>(LIST_TAGS, { repository, last: after, prefix, end, rows });
      for (const row of found) entries.push(await this.#tagEntry(row));
      if (found.length < rows) break;
      after = found.at(-1)?.name ?? after;
      await turn();
    }
    return entries;
  }

  async tag(repository: RepositoryName, tag: Tag): Promise<TagEntry | undefined> {
    const row = await this.#db.get<TagRow>(FIND_TAG, { repository, tag });
    return row && this.#tagEntry(row);
  }

  async #tagEntry({ pulledAtMs, ...row }: TagRow): Promise<TagEntry> {
    const { mediaType, digest } = row;
    return { ...row, pulledAtMs: pulledAtMs ?? undefined, contentBytes: await this.contentBytes(digest, mediaType) };
  }

  /** As {@link TagEntry} has it. */
  async contentBytes(digest: Digest, mediaType: string): Promise<Bytes> {
    const sum = INDEXES.has(mediaType) ? SUM_GRANDCHILDREN : SUM_CHILDREN;
    return (await this.#db.get<{ bytes: Bytes }>(sum, { digest }))?.bytes ?? 0;
  }

  async manifest(repository: RepositoryName, digest: Digest): Promise<ManifestEntry | undefined> {
    const row = await this.#db.get<Omit<ManifestEntry, "upstream"> & { upstream: string | null }>(FIND_MANIFEST, {
      repository,
      digest,
    });
    return row && { ...row, upstream: row.upstream ?? undefined };
  }

  /** The first tags that point to a digest. */
  async tagsOf(repository: RepositoryName, digest: Digest, limit: number): Promise<Tag[]> {
    return (await this.#db.all<{ name: Tag }>(TAGS_OF, { repository, digest, rows: limit })).map(({ name }) => name);
  }

  /** Those that are stored, and that the repository may reach. */
  async present(repository: RepositoryName, digests: readonly Digest[]): Promise<Set<Digest>> {
    const here = new Set<Digest>();
    for (const [index, digest] of digests.entries()) {
      if (index % NAMES_PER_TURN === NAMES_PER_TURN - 1) await turn();
      if (await this.#db.get(IS_HERE, { repository, digest })) here.add(digest);
    }
    return here;
  }

  /** Cached blobs: those that are used least recently, or the largest. Uses of the last half minute may be missing. */
  async cached(
    order: "leastUsed" | "largest",
    after: CachedKey | undefined,
    limit: number,
  ): Promise<{ items: CachedContent[]; last: CachedKey | undefined }> {
    const first =
      order === "largest" ? { by: Number.MAX_SAFE_INTEGER, row: 0 } : { by: Number.MIN_SAFE_INTEGER, row: 0 };
    const rows = await this.#db.all<CachedContent & { row: number }>(order === "largest" ? LARGEST : LEAST_USED, {
      ...(after ?? first),
      rows: limit,
    });
    const last = rows.at(-1);
    return {
      items: rows.map(({ digest, sizeBytes, upstream, cachedAtMs, usedAtMs }) => {
        return { digest, sizeBytes, upstream, cachedAtMs, usedAtMs };
      }),
      last: last && { by: order === "largest" ? last.sizeBytes : last.usedAtMs, row: last.row },
    };
  }
}

type TagRow = Omit<TagEntry, "contentBytes" | "pulledAtMs"> & { pulledAtMs: Milliseconds | null };
