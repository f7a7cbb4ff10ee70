import type { Transactions, Writer } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import type { Catalog } from "./catalog.ts";

/** A repository that lives here. */
export interface HostedRepository {
  id: number;
  name: RepositoryName;
  /** How many there are. */
  tags: number;
}

export interface HostedTag {
  name: Tag;
  digest: Digest;
  /** When it was pushed last, if only to where it pointed already. */
  pushedAtMs: number;
  /** null: it never was. */
  pulledAtMs: number | null;
}

/** Digests from `first` (inclusive) to `end` (exclusive). */
export interface DigestSpan {
  first: string;
  end: string;
}

/** A tag that is to go. */
export interface Leaving extends HostedTag {
  /** It goes only if no other tag of its repository leads to one of these. */
  unlessTagged: DigestSpan | undefined;
}

const REPOSITORIES = `
  SELECT r.id, r.name, (SELECT count(*) FROM tags t WHERE t.repository_id = r.id) AS tags FROM repositories r
  WHERE r.upstream IS NULL AND r.name > :after ORDER BY r.name LIMIT :rows`;
const COLUMNS = `t.name, t.digest, t.updated_at AS "pushedAtMs", t.pulled_at AS "pulledAtMs"`;
const TAGS = `
  SELECT ${COLUMNS} FROM tags t WHERE t.repository_id = :repositoryId AND t.name > :after AND t.name < :before
  ORDER BY t.name LIMIT :rows`;
const TAGS_OF = `
  SELECT ${COLUMNS} FROM tags t WHERE t.digest = :digest AND t.repository_id = :repositoryId AND t.name > :after
  ORDER BY t.name LIMIT :rows`;
const TAGS_OF_ANY = `
  SELECT ${COLUMNS} FROM json_each(:digests) d CROSS JOIN tags t
  WHERE t.digest = d.value AND t.repository_id = :repositoryId LIMIT :rows`;
/**
 * Contents of a repository, the indexes that lead to them, and what they refer to; of several spans, each under its place among them.
 * CROSS: from the content up, never through a whole repository.
 */
const ABOVE = `
  WITH RECURSIVE above (place, digest) AS (
    SELECT s.key, c.digest FROM json_each(:spans) s CROSS JOIN repository_content c
    WHERE c.repository_id = :repositoryId AND c.digest >= s.value ->> 'first' AND c.digest < s.value ->> 'end'
    UNION
    SELECT a.place, e.parent FROM above a CROSS JOIN manifest_children e CROSS JOIN repository_content c
    WHERE e.child = a.digest AND c.digest = e.parent AND c.repository_id = :repositoryId
    UNION
    SELECT a.place, m.subject FROM above a CROSS JOIN manifests m WHERE m.digest = a.digest AND m.subject IS NOT NULL)`;
const SAME = `
  repository_id = :repositoryId AND name = :name AND digest = :digest AND updated_at = :pushedAtMs
  AND COALESCE(pulled_at, 0) <= :pulledAtMs`;
const REMOVE = `DELETE FROM tags WHERE ${SAME}`;
const REMOVE_UNLESS_TAGGED = `
  DELETE FROM tags WHERE ${SAME} AND NOT EXISTS (
    ${ABOVE} SELECT 1 FROM above a CROSS JOIN tags t
    WHERE t.digest = a.digest AND t.repository_id = :repositoryId AND t.name <> :name)`;

/** The tags of hosted repositories, a page at a time, and how they go. */
export class TagCatalog {
  readonly #db: Transactions;
  readonly #catalog: Catalog;

  /** @param catalog remembers tags, and is told of every one that goes */
  constructor(db: Transactions, catalog: Catalog) {
    this.#db = db;
    this.#catalog = catalog;
  }

  /** In order of their names, after one (exclusive). */
  repositories(after: string, rows: number): Promise<HostedRepository[]> {
    return this.#db.all(REPOSITORIES, { after, rows });
  }

  /** In order of their names, between two (both exclusive). */
  tags(repositoryId: number, after: string, before: string, rows: number): Promise<HostedTag[]> {
    return this.#db.all(TAGS, { repositoryId, after, before, rows });
  }

  /** Those that point to a digest, in order of their names, after one (exclusive). */
  tagsOf(repositoryId: number, digest: Digest, after: string, rows: number): Promise<HostedTag[]> {
    return this.#db.all(TAGS_OF, { repositoryId, digest, after, rows });
  }

  /** Those that point to any of the digests, in no order. @param rows as many at most */
  tagsOfAny(repositoryId: number, digests: readonly Digest[], rows: number): Promise<HostedTag[]> {
    return this.#db.all(TAGS_OF_ANY, { repositoryId, digests: JSON.stringify(digests), rows });
  }

  /** For each span what is there of it, the indexes that lead to that, and what it refers to. */
  async above(repositoryId: number, spans: readonly DigestSpan[]): Promise<Digest[][]> {
    const rows = await this.#db.all<{ place: number; digest: Digest }>(`${ABOVE} SELECT place, digest FROM above`, {
      repositoryId,
      spans: JSON.stringify(spans),
    });
    const found = spans.map((): Digest[] => []);
    for (const { place, digest } of rows) found[place]?.push(digest);
    return found;
  }

  /**
   * Removes tags, and nothing but tags: durably, and each only if nobody has moved, pushed or pulled it since it was read.
   * @param isPulled asked at the last moment: whether there was a pull that no row tells of yet
   * @param within is called in the same transaction
   * @returns those that went
   */
  async remove<One extends Leaving>(
    { id: repositoryId, name: repository }: HostedRepository,
    leaving: readonly One[],
    isPulled: (tag: Tag) => boolean,
    within: (tx: Writer, gone: readonly One[]) => Promise<void>,
  ): Promise<One[]> {
    const gone = await this.#db.transaction("durable", async (tx) => {
      const idle = leaving.filter(({ name }) => !isPulled(name));
      const counts = await Promise.all(
        idle.map(({ name, digest, pushedAtMs, pulledAtMs, unlessTagged }) => {
          const same = { repositoryId, name, digest, pushedAtMs, pulledAtMs: pulledAtMs ?? 0 };
          return unlessTagged
            ? tx.run(REMOVE_UNLESS_TAGGED, { ...same, spans: JSON.stringify([unlessTagged]) })
            : tx.run(REMOVE, same);
        }),
      );
      const gone = idle.filter((_, index) => counts[index] === 1);
      if (gone.length > 0) await within(tx, gone);
      return gone;
    });
    for (const { name } of gone) this.#catalog.forgetTag(repository, name);
    return gone;
  }
}
