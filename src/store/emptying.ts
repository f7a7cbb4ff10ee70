import type { Bytes } from "../base/clock.ts";
import type { Database, Writer } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import type { Catalog } from "./catalog.ts";
import type { TagGuard, Within } from "./hosted-catalog.ts";

/** What goes out of a repository. */
export interface Leaving {
  digest: Digest;
  /** Undefined: it is no tag, but what is stored. */
  tag: Tag | undefined;
  /** Undefined: it is a blob. */
  mediaType: string | undefined;
  sizeBytes: Bytes;
}

export interface Step {
  left: readonly Leaving[];
  /** The last key that was looked at; undefined: there is no other. */
  last: string | undefined;
}

/** What one transaction looks at: its sync of the disk costs more than its rows. */
const ROWS = 200;

const REPOSITORY_ID = "SELECT id FROM repositories WHERE name = :repository";
const TAGS = `
  SELECT t.name AS tag, t.digest, m.media_type AS "mediaType", m.size AS "sizeBytes"
  FROM tags t JOIN manifests m ON m.digest = t.digest
  WHERE t.repository_id = (${REPOSITORY_ID}) AND t.name > :after ORDER BY t.name LIMIT ${ROWS}`;
const REMOVE_TAG =
  "DELETE FROM tags WHERE repository_id = (SELECT id FROM repositories WHERE name = :repository) AND name = :tag";
const LINKS = `
  SELECT digest FROM repository_content
  WHERE repository_id = (${REPOSITORY_ID}) AND digest > :after ORDER BY digest LIMIT ${ROWS}`;
/** Of a link `c`: no tag and no manifest of its repository needs it. */
const FREE = `
  NOT EXISTS (SELECT 1 FROM tags t WHERE t.digest = c.digest AND t.repository_id = c.repository_id)
  AND NOT EXISTS (SELECT 1 FROM manifest_children e JOIN repository_content p ON p.digest = e.parent
                  WHERE e.child = c.digest AND p.repository_id = c.repository_id)`;
const FREE_CONTENT = `
  SELECT c.digest, NULL AS tag, m.media_type AS "mediaType", COALESCE(m.size, b.size, 0) AS "sizeBytes"
  FROM (SELECT repository_id, digest FROM repository_content
        WHERE repository_id = (${REPOSITORY_ID}) AND digest > :after ORDER BY digest LIMIT ${ROWS}) c
  LEFT JOIN manifests m ON m.digest = c.digest LEFT JOIN blobs b ON b.digest = c.digest
  WHERE ${FREE}`;
const UNLINK =
  "DELETE FROM repository_content WHERE repository_id = (SELECT id FROM repositories WHERE name = :repository) AND digest = :digest";
const REMOVE_LISTINGS =
  "DELETE FROM listings WHERE repository_id = (SELECT id FROM repositories WHERE name = :repository)";

interface Row {
  digest: Digest;
  tag: Tag | null;
  mediaType: string | null;
  sizeBytes: Bytes;
}

/**
 * Empties repositories, a stretch of keys at a time. Tags go first, then what no tag and no manifest of the repository needs any more: so
 * what is pushed meanwhile is whole. Files are left to whoever collects them.
 */
export class Emptying {
  readonly #db: Database;
  readonly #catalog: Catalog;

  /** @param catalog remembers rows, and is told of every change */
  constructor(db: Database, catalog: Catalog) {
    this.#db = db;
    this.#catalog = catalog;
  }

  /** Removes the next tags after a name. @throws whatever `guard` throws: then none of them goes */
  async tags(
    repository: RepositoryName,
    after: string,
    guard: TagGuard,
    within: Within<readonly Leaving[]>,
  ): Promise<Step> {
    const rows = await this.#db.background.transaction("durable", async (tx) => {
      const found = await tx.all<Row>(TAGS, { repository, after });
      for (const { tag, digest } of found) if (tag !== null) guard(tag, digest);
      await Promise.all(found.map(({ tag }) => tx.run(REMOVE_TAG, { repository, tag })));
      if (found.length > 0) await within(tx, found.map(leaving));
      return found;
    });
    for (const { tag } of rows) if (tag !== null) this.#catalog.forgetTag(repository, tag);
    return { left: rows.map(leaving), last: rows.length < ROWS ? undefined : (rows.at(-1)?.tag ?? undefined) };
  }

  /** Takes what nothing in the repository needs out of it, among the next contents after a digest. To be repeated until a round takes nothing. */
  async content(repository: RepositoryName, after: string, within: Within<readonly Leaving[]>): Promise<Step> {
    const { rows, last } = await this.#db.background.transaction("durable", async (tx) => {
      const keys = await tx.all<{ digest: Digest }>(LINKS, { repository, after });
      const free = await tx.all<Row>(FREE_CONTENT, { repository, after });
      await this.#unlink(tx, repository, free);
      if (free.length > 0) await within(tx, free.map(leaving));
      return { rows: free, last: keys.length < ROWS ? undefined : keys.at(-1)?.digest };
    });
    for (const { digest } of rows) this.#catalog.forget(repository, digest);
    return { left: rows.map(leaving), last };
  }

  async #unlink(tx: Writer, repository: RepositoryName, rows: readonly Row[]): Promise<void> {
    await Promise.all(rows.map(({ digest }) => tx.run(UNLINK, { repository, digest })));
  }

  /** Forgets which tags and referrers the upstream of a cached repository listed. */
  async listings(repository: RepositoryName): Promise<void> {
    await this.#db.background.transaction("lazy", (tx) => tx.run(REMOVE_LISTINGS, { repository }));
  }
}

function leaving({ digest, tag, mediaType, sizeBytes }: Row): Leaving {
  return { digest, tag: tag ?? undefined, mediaType: mediaType ?? undefined, sizeBytes };
}
