import { setImmediate as turn } from "node:timers/promises";
import type { Params, Transactions, Writer } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import { ROWS_PER_TURN, type Catalog, type Removed } from "./catalog.ts";

/** Content that nothing needs. */
export interface Garbage extends Removed {
  digest: Digest;
}

/** What a repository may reach, and need not. */
export interface Link {
  repositoryId: number;
  digest: Digest;
}

/** A stretch of a table in the order of its keys. */
export interface Span<Key> {
  rows: number;
  last: Key;
}

/** Of two statements that look at the same rows, the second one decides: it is what removes them. */
export interface Terms {
  /** What was used or linked since then stays. */
  beforeMs: number;
  /** Asked at the last moment: whether somebody uses it now. */
  inUse: (digest: Digest) => boolean;
}

const BLOB_KEYS = "SELECT digest FROM blobs WHERE digest > :after ORDER BY digest LIMIT :rows";
const MANIFEST_KEYS = "SELECT digest FROM manifests WHERE digest > :after ORDER BY digest LIMIT :rows";
const REPOSITORY_KEYS = "SELECT id FROM repositories WHERE id > :after ORDER BY id LIMIT :rows";
const LINK_KEYS = `
  SELECT repository_id, digest, linked_at FROM repository_content
  WHERE (repository_id, digest) > (:repositoryId, :digest) ORDER BY repository_id, digest LIMIT :rows`;

const BLOB_SPAN = `SELECT count(*) AS rows, max(digest) AS last FROM (${BLOB_KEYS}) k`;
const MANIFEST_SPAN = `SELECT count(*) AS rows, max(digest) AS last FROM (${MANIFEST_KEYS}) k`;
const REPOSITORY_SPAN = `SELECT count(*) AS rows, max(id) AS last FROM (${REPOSITORY_KEYS}) k`;
const LINK_SPAN = `
  SELECT repository_id AS "repositoryId", digest, count(*) OVER () AS rows FROM (${LINK_KEYS}) k
  ORDER BY repository_id DESC, digest DESC LIMIT 1`;

/** Of a manifest `m`. A tag without a link is a fault of ours: then the manifest stays, and scrub tells. */
const UNLINKED = `
  NOT EXISTS (SELECT 1 FROM repository_content c WHERE c.digest = m.digest)
  AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.digest = m.digest)`;
/**
 * Of a blob `b`. Every edge counts: those of a manifest go together with its row, and one whose row is gone while it is linked waits
 * for its repair.
 */
const UNUSED = `
  b.upstream IS NULL AND b.used_at < :beforeMs
  AND NOT EXISTS (SELECT 1 FROM repository_content c WHERE c.digest = b.digest AND c.linked_at >= :beforeMs)`;
const UNNEEDED = `NOT EXISTS (SELECT 1 FROM manifest_children e WHERE e.child = b.digest) AND ${UNUSED}`;
const HOSTED = "EXISTS (SELECT 1 FROM repositories r WHERE r.id = c.repository_id AND r.upstream IS NULL)";
const UNTAGGED = "NOT EXISTS (SELECT 1 FROM tags t WHERE t.digest = c.digest AND t.repository_id = c.repository_id)";
/** Of the link `c` of a manifest `m`. */
const FORGOTTEN = `c.linked_at < :beforeMs AND m.used_at < :beforeMs AND ${HOSTED} AND ${UNTAGGED}`;
const LOOSE = `
  ${FORGOTTEN}
  AND NOT EXISTS (SELECT 1 FROM manifest_children e JOIN repository_content p ON p.digest = e.parent
                  WHERE e.child = c.digest AND p.repository_id = c.repository_id)
  AND NOT EXISTS (SELECT 1 FROM repository_content s WHERE s.repository_id = c.repository_id AND s.digest = m.subject)`;
/**
 * Of the link `c` of a blob, but for manifests that point to it. Of a blob that was damaged there may be no row: the link goes if
 * nothing here would need it once repaired.
 */
const UNTOUCHED = `
  ${HOSTED} AND ${UNTAGGED}
  AND NOT EXISTS (SELECT 1 FROM blobs b WHERE b.digest = c.digest AND b.used_at >= :beforeMs)
  AND NOT EXISTS (SELECT 1 FROM manifests m WHERE m.digest = c.digest)
  AND NOT EXISTS (SELECT 1 FROM manifest_children o WHERE o.parent = c.digest)`;
/** Of a blob with more parents not all are looked at, which would hold everybody up: it keeps its links. */
const MOST_PARENTS = 256;
const FIRST_PARENTS = `
  SELECT f.parent FROM manifest_children f WHERE f.child = c.digest LIMIT ${MOST_PARENTS + 1}`;
// In the order of how many links each leaves to the next: of most, a parent is found at once.
const IDLE = `
  CASE
    WHEN c.linked_at >= :beforeMs THEN FALSE
    WHEN EXISTS (SELECT 1 FROM (${FIRST_PARENTS}) e JOIN repository_content p ON p.digest = e.parent
                 WHERE p.repository_id = c.repository_id) THEN FALSE
    WHEN (SELECT count(*) FROM (${FIRST_PARENTS}) e) > ${MOST_PARENTS} THEN FALSE
    ELSE ${UNTOUCHED}
  END`;
/** Of a repository `r`. */
const BARE = `
  r.created_at < :beforeMs
  AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.repository_id = r.id)
  AND NOT EXISTS (SELECT 1 FROM listings l WHERE l.repository_id = r.id)`;
const EMPTY = `${BARE} AND NOT EXISTS (SELECT 1 FROM repository_content c WHERE c.repository_id = r.id)`;

const FIND_UNLINKED = `
  SELECT m.digest, m.size AS "sizeBytes", m.upstream FROM (${MANIFEST_KEYS}) k JOIN manifests m ON m.digest = k.digest
  WHERE ${UNLINKED}`;
const FIND_UNNEEDED = `
  SELECT b.digest, b.size AS "sizeBytes", b.upstream FROM (${BLOB_KEYS}) k JOIN blobs b ON b.digest = k.digest
  WHERE ${UNNEEDED}`;
const FIND_LOOSE = `
  SELECT c.repository_id AS "repositoryId", c.digest FROM (${MANIFEST_KEYS}) k
  JOIN manifests m ON m.digest = k.digest JOIN repository_content c ON c.digest = k.digest
  WHERE ${LOOSE}`;
const FIND_IDLE = `
  SELECT c.repository_id AS "repositoryId", c.digest FROM (${LINK_KEYS}) c WHERE ${IDLE}`;
const FIND_EMPTY = `
  SELECT r.id FROM (${REPOSITORY_KEYS}) k JOIN repositories r ON r.id = k.id WHERE ${EMPTY}`;

const REMOVE_MANIFEST = `
  DELETE FROM manifests AS m WHERE m.digest = :digest AND ${UNLINKED} RETURNING digest, size AS "sizeBytes", upstream`;
const REMOVE_EDGES = `
  DELETE FROM manifest_children WHERE parent = :digest AND child IN
    (SELECT child FROM manifest_children WHERE parent = :digest LIMIT ${ROWS_PER_TURN})`;
const REMOVE_BLOB = `
  DELETE FROM blobs AS b WHERE b.digest = :digest AND ${UNNEEDED} RETURNING digest, size AS "sizeBytes", upstream`;
const UNLINK_LOOSE = `
  DELETE FROM repository_content AS c WHERE c.repository_id = :repositoryId AND c.digest = :digest
    AND EXISTS (SELECT 1 FROM manifests m WHERE m.digest = c.digest AND ${LOOSE})`;
const UNLINK_IDLE = `
  DELETE FROM repository_content AS c WHERE c.repository_id = :repositoryId AND c.digest = :digest AND ${IDLE}`;
const LINKED_CHILDREN = `
  SELECT e.child AS digest FROM manifest_children e JOIN repository_content c ON c.digest = e.child
  WHERE e.parent = :digest AND c.repository_id = :repositoryId AND e.child > :after ORDER BY e.child LIMIT :rows`;
const REFERRERS = `
  SELECT m.digest FROM manifests m JOIN repository_content c ON c.digest = m.digest
  WHERE m.subject = :digest AND c.repository_id = :repositoryId AND m.digest > :after ORDER BY m.digest LIMIT :rows`;

const CHILDREN = `
  SELECT child AS key FROM manifest_children WHERE parent = :digest AND child > :after ORDER BY child LIMIT ${ROWS_PER_TURN}`;
const PARENTS = `
  SELECT parent AS key FROM manifest_children WHERE child = :digest AND parent > :after ORDER BY parent LIMIT ${ROWS_PER_TURN}`;
const REACHERS = `
  SELECT repository_id AS key FROM repository_content
  WHERE digest = :digest AND repository_id > :after ORDER BY repository_id LIMIT ${ROWS_PER_TURN}`;
const CONTENTS = `
  SELECT digest AS key FROM repository_content
  WHERE repository_id = :repositoryId AND digest > :after ORDER BY digest LIMIT ${ROWS_PER_TURN}`;
const LINK = "SELECT 1 FROM repository_content c WHERE c.repository_id = :repositoryId AND c.digest = :digest";

/**
 * What nothing needs any more: how it is found, a stretch of keys at a time, and how it goes. Whoever removes asks again in the same
 * statement, since what was found may have been pushed, tagged or used meanwhile.
 */
export class GarbageCatalog {
  readonly #db: Transactions;
  readonly #catalog: Catalog;

  /** @param catalog remembers rows, and is told of every change */
  constructor(db: Transactions, catalog: Catalog) {
    this.#db = db;
    this.#catalog = catalog;
  }

  // ---- what is there, in the order of its keys; undefined after the last ----

  blobs(after: string, rows: number): Promise<Span<Digest> | undefined> {
    return this.#span(BLOB_SPAN, { after, rows });
  }

  manifests(after: string, rows: number): Promise<Span<Digest> | undefined> {
    return this.#span(MANIFEST_SPAN, { after, rows });
  }

  repositories(after: number, rows: number): Promise<Span<number> | undefined> {
    return this.#span(REPOSITORY_SPAN, { after, rows });
  }

  async links(after: Link, rows: number): Promise<Span<Link> | undefined> {
    const row = await this.#db.get<Link & { rows: number }>(LINK_SPAN, { ...after, rows });
    return row && { rows: row.rows, last: { repositoryId: row.repositoryId, digest: row.digest } };
  }

  async lastRepository(): Promise<number> {
    return (await this.#db.get<{ id: number | null }>("SELECT max(id) AS id FROM repositories"))?.id ?? 0;
  }

  async #span<Key>(sql: string, params: Params): Promise<Span<Key> | undefined> {
    const row = await this.#db.get<Span<Key>>(sql, params);
    return row && row.rows > 0 ? row : undefined;
  }

  // ---- what of it is garbage ----

  /** Manifests that no repository reaches. */
  unlinkedManifests(after: string, rows: number): Promise<Garbage[]> {
    return this.#db.all(FIND_UNLINKED, { after, rows });
  }

  /** Pushed blobs that no manifest points to. */
  unneededBlobs(after: string, rows: number, beforeMs: number): Promise<Garbage[]> {
    return this.#db.all(FIND_UNNEEDED, { after, rows, beforeMs });
  }

  /** Links of manifests without a tag, which belong to no index and refer to nothing in their hosted repository. */
  looseManifests(after: string, rows: number, beforeMs: number): Promise<Link[]> {
    return this.#db.all(FIND_LOOSE, { after, rows, beforeMs });
  }

  /** Links of blobs that no manifest of their hosted repository points to. */
  idleLinks(after: Link, rows: number, beforeMs: number): Promise<Link[]> {
    return this.#db.all(FIND_IDLE, { ...after, rows, beforeMs });
  }

  /** Repositories that hold nothing. */
  async emptyRepositories(after: number, rows: number, beforeMs: number): Promise<number[]> {
    return (await this.#db.all<{ id: number }>(FIND_EMPTY, { after, rows, beforeMs })).map(({ id }) => id);
  }

  /** What a manifest points to, and what refers to it, in its repository. */
  async *relatives({ repositoryId, digest }: Link): AsyncGenerator<Link[]> {
    for (const sql of [LINKED_CHILDREN, REFERRERS]) {
      for (let after = ""; ;) {
        const found = await this.#db.all<{ digest: Digest }>(sql, { repositoryId, digest, after, rows: ROWS_PER_TURN });
        if (found.length > 0) yield found.map((one) => ({ repositoryId, digest: one.digest }));
        if (found.length < ROWS_PER_TURN) break;
        after = found.at(-1)?.digest ?? after;
      }
    }
  }

  // ---- what would be garbage if other garbage were gone: for whoever only pretends to remove it ----

  /** @returns its subject, where nothing but its relatives keeps it */
  async forgottenManifest(link: Link, beforeMs: number): Promise<{ subject: Digest | null } | undefined> {
    return this.#db.get(
      `SELECT m.subject FROM repository_content c JOIN manifests m ON m.digest = c.digest
       WHERE c.repository_id = :repositoryId AND c.digest = :digest AND ${FORGOTTEN}`,
      { ...link, beforeMs },
    );
  }

  /** Where nothing but a manifest keeps it. */
  async unusedBlob(digest: Digest, beforeMs: number): Promise<Garbage | undefined> {
    return this.#db.get(
      `SELECT b.digest, b.size AS "sizeBytes", b.upstream FROM blobs b WHERE b.digest = :digest AND ${UNUSED}`,
      { digest, beforeMs },
    );
  }

  /** Whether nothing but a manifest of the repository keeps the link of a blob. */
  async untouchedLink(link: Link, beforeMs: number): Promise<boolean> {
    return (
      (await this.#db.get(`${LINK} AND c.linked_at < :beforeMs AND ${UNTOUCHED}`, { ...link, beforeMs })) !== undefined
    );
  }

  /** Whether nothing but content keeps a repository. */
  async bareRepository(id: number, beforeMs: number): Promise<boolean> {
    return (
      (await this.#db.get(`SELECT 1 FROM repositories r WHERE r.id = :id AND ${BARE}`, { id, beforeMs })) !== undefined
    );
  }

  async manifest(digest: Digest): Promise<Garbage | undefined> {
    return this.#db.get(`SELECT digest, size AS "sizeBytes", upstream FROM manifests WHERE digest = :digest`, {
      digest,
    });
  }

  async isLinked(link: Link): Promise<boolean> {
    return (await this.#db.get(LINK, { ...link })) !== undefined;
  }

  children(digest: Digest): AsyncGenerator<Digest> {
    return this.#keys(CHILDREN, { digest }, "");
  }

  parents(digest: Digest): AsyncGenerator<Digest> {
    return this.#keys(PARENTS, { digest }, "");
  }

  /** Repositories that reach a digest. */
  reachers(digest: Digest): AsyncGenerator<number> {
    return this.#keys(REACHERS, { digest }, 0);
  }

  contents(repositoryId: number): AsyncGenerator<Digest> {
    return this.#keys(CONTENTS, { repositoryId }, "");
  }

  async *#keys<Key extends string | number>(sql: string, params: Params, first: string | number): AsyncGenerator<Key> {
    for (let after = first; ;) {
      const found = await this.#db.all<{ key: Key }>(sql, { ...params, after });
      // Also after a few: whoever walks many manifests holds up nobody.
      await turn();
      for (const { key } of found) yield key;
      if (found.length < ROWS_PER_TURN) return;
      after = found.at(-1)?.key ?? after;
    }
  }

  // ---- how it goes ----

  /** Takes manifests out of the reach of their repositories, where they are still loose. @returns those that went */
  async unlinkManifests(links: readonly Link[], terms: Terms): Promise<Link[]> {
    return this.#unlink(UNLINK_LOOSE, links, terms);
  }

  /** Takes blobs out of the reach of their repositories, where none of these needs them still. @returns those that went */
  async unlinkBlobs(links: readonly Link[], terms: Terms): Promise<Link[]> {
    return this.#unlink(UNLINK_IDLE, links, terms);
  }

  async #unlink(sql: string, links: readonly Link[], { beforeMs, inUse }: Terms): Promise<Link[]> {
    // Lazy, as all that takes no file away: what a power loss brings back is found again.
    const gone = await this.#db.transaction("lazy", async (tx) => {
      const idle = links.filter(({ digest }) => !inUse(digest));
      const unlinked = await Promise.all(idle.map((link) => tx.run(sql, { ...link, beforeMs })));
      return idle.filter((_, index) => unlinked[index] === 1);
    });
    if (gone.length > 0) this.#catalog.forgetAll();
    return gone;
  }

  /** Forgets manifests that no repository reaches still, with what they point to. @returns those that went */
  async removeManifests(digests: readonly Digest[]): Promise<Garbage[]> {
    const gone = await this.#db.transaction("lazy", async (tx) => {
      const gone = await present(digests.map((digest) => tx.get<Garbage>(REMOVE_MANIFEST, { digest })));
      await Promise.all(gone.map(({ digest }) => removeEdges(tx, digest)));
      return gone;
    });
    if (gone.length > 0) this.#catalog.forgetAll();
    return gone;
  }

  /**
   * Forgets pushed blobs that nothing needs still, and who may reach them. The caller is alone with them, and removes the files afterwards.
   * Durable: a row that a power loss brought back without its file would let a manifest in that can't be pulled.
   * @returns those that went
   */
  async removeBlobs(digests: readonly Digest[], { beforeMs, inUse }: Terms): Promise<Garbage[]> {
    const gone = await this.#db.transaction("durable", async (tx) => {
      const idle = digests.filter((digest) => !inUse(digest));
      const gone = await present(idle.map((digest) => tx.get<Garbage>(REMOVE_BLOB, { digest, beforeMs })));
      await Promise.all(
        gone.map(({ digest }) => tx.run("DELETE FROM repository_content WHERE digest = :digest", { digest })),
      );
      return gone;
    });
    if (gone.length > 0) this.#catalog.forgetAll();
    return gone;
  }

  /** Forgets repositories that hold nothing still. @returns how many went */
  async removeRepositories(ids: readonly number[], beforeMs: number): Promise<number> {
    return this.#db.transaction("lazy", async (tx) => {
      let gone = 0;
      for (const id of ids)
        gone += await tx.run(`DELETE FROM repositories AS r WHERE r.id = :id AND ${EMPTY}`, { id, beforeMs });
      return gone;
    });
  }
}

/** A part of them at a time: a manifest may point to thousands. */
async function removeEdges(tx: Writer, digest: Digest): Promise<void> {
  while ((await tx.run(REMOVE_EDGES, { digest })) === ROWS_PER_TURN);
}

async function present<T>(asked: Promise<T | undefined>[]): Promise<T[]> {
  return (await Promise.all(asked)).filter((one) => one !== undefined);
}
