import type { Database } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import type { Catalog, EvictionCandidate } from "./catalog.ts";

/** Content that is cached for one repository alone. */
export type HeldContent = EvictionCandidate;

const ROWS = 200;

const REPOSITORY_ID = "SELECT id FROM repositories WHERE name = :repository AND upstream IS NOT NULL";
const HELD = `
  SELECT c.digest, CASE WHEN m.digest IS NULL THEN 'blob' ELSE 'manifest' END AS kind,
    COALESCE(m.size, b.size) AS "sizeBytes", COALESCE(m.upstream, b.upstream) AS upstream,
    EXISTS (SELECT 1 FROM repository_content o WHERE o.digest = c.digest AND o.repository_id <> c.repository_id) AS shared
  FROM repository_content c LEFT JOIN manifests m ON m.digest = c.digest LEFT JOIN blobs b ON b.digest = c.digest
  WHERE c.repository_id = (${REPOSITORY_ID}) AND c.digest > :after ORDER BY c.digest LIMIT ${ROWS}`;
const REMOVE_TAGS = `
  DELETE FROM tags WHERE digest = :digest AND repository_id = (SELECT id FROM repositories WHERE name = :repository) RETURNING name`;
const UNLINK = `
  DELETE FROM repository_content WHERE digest = :digest
    AND repository_id = (SELECT id FROM repositories WHERE name = :repository)`;
const FIND = `
  SELECT digest, 'blob' AS kind, size AS "sizeBytes", upstream FROM blobs WHERE digest = :digest
  UNION ALL SELECT digest, 'manifest' AS kind, size AS "sizeBytes", upstream FROM manifests WHERE digest = :digest LIMIT 1`;

type Row = Omit<HeldContent, "upstream"> & { upstream: string | null };

/** Which repositories hold what is cached, for whoever takes it out of one of them. */
export class CachedHolders {
  readonly #db: Database;
  readonly #catalog: Catalog;

  /** @param catalog remembers rows, and is told of every change */
  constructor(db: Database, catalog: Catalog) {
    this.#db = db;
    this.#catalog = catalog;
  }

  /** @returns upstream undefined: it was pushed */
  async find(digest: Digest): Promise<(Omit<HeldContent, "upstream"> & { upstream: string | undefined }) | undefined> {
    const row = await this.#db.get<Row>(FIND, { digest });
    return row && { ...row, upstream: row.upstream ?? undefined };
  }

  /**
   * Takes out of a cached repository what others hold, too, among the next contents after a digest.
   * @returns what it holds alone, which the caller evicts; `last` is where to go on
   */
  async leave(repository: RepositoryName, after: string): Promise<{ alone: HeldContent[]; last: Digest | undefined }> {
    const tags: Tag[] = [];
    const rows = await this.#db.background.transaction("lazy", async (tx) => {
      const held = await tx.all<Row & { shared: number }>(HELD, { repository, after });
      for (const { digest, upstream, shared } of held) {
        if (upstream !== null && shared === 0) continue;
        const [removed] = await Promise.all([
          tx.all<{ name: Tag }>(REMOVE_TAGS, { repository, digest }),
          tx.run(UNLINK, { repository, digest }),
        ]);
        tags.push(...removed.map(({ name }) => name));
      }
      return held;
    });
    for (const { digest } of rows) this.#catalog.forget(repository, digest);
    for (const tag of tags) this.#catalog.forgetTag(repository, tag);
    const alone: HeldContent[] = [];
    for (const { shared, upstream, ...content } of rows)
      if (shared === 0 && upstream !== null) alone.push({ ...content, upstream });
    return { alone, last: rows.length < ROWS ? undefined : rows.at(-1)?.digest };
  }
}
