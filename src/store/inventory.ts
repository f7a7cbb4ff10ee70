import type { Database } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { ROWS_PER_TURN } from "./catalog.ts";

export interface ListedBlob {
  digest: Digest;
  sizeBytes: number;
}

export interface ListedManifest {
  digest: Digest;
  mediaType: string;
  sizeBytes: number;
  /** null: it was pushed */
  upstream: string | null;
}

export interface ListedTag {
  repositoryId: number;
  repository: RepositoryName;
  tag: Tag;
  digest: Digest;
  /** Whether it points to a manifest that is stored, and that its repository reaches. One that is cached is set right by its next pull. */
  sound: boolean;
}

/** Who has a digest, or needs it; of many, a few. */
export interface Holders {
  hosted: RepositoryName[];
  cached: RepositoryName[];
  /** Manifests that point to it. */
  manifests: Digest[];
}

/** So many repositories and manifests are named. */
const MOST_NAMED = 20;

/** A hosted repository reaches the manifest, and what that points to is not stored, or out of its reach. */
const DANGLING = `
  SELECT e.child, r.name AS repository
  FROM (SELECT child FROM manifest_children WHERE parent = :digest AND child > :after ORDER BY child LIMIT :rows) e
  JOIN repository_content c ON c.digest = :digest JOIN repositories r ON r.id = c.repository_id
  WHERE r.upstream IS NULL AND NOT (
    EXISTS (SELECT 1 FROM repository_content l WHERE l.repository_id = r.id AND l.digest = e.child)
    AND (EXISTS (SELECT 1 FROM blobs b WHERE b.digest = e.child) OR EXISTS (SELECT 1 FROM manifests m WHERE m.digest = e.child)))`;
const CHILDREN = `
  SELECT count(*) AS rows, max(child) AS last
  FROM (SELECT child FROM manifest_children WHERE parent = :digest AND child > :after ORDER BY child LIMIT :rows) e`;
const TAGS = `
  SELECT t.repository_id AS "repositoryId", r.name AS repository, t.name AS tag, t.digest,
    (r.upstream IS NOT NULL OR EXISTS (SELECT 1 FROM manifests m WHERE m.digest = t.digest)
     AND EXISTS (SELECT 1 FROM repository_content c WHERE c.repository_id = t.repository_id AND c.digest = t.digest)) AS sound
  FROM (SELECT repository_id, name, digest FROM tags WHERE (repository_id, name) > (:repositoryId, :tag)
        ORDER BY repository_id, name LIMIT :rows) t
  JOIN repositories r ON r.id = t.repository_id ORDER BY t.repository_id, t.name`;

/** What should be there, a stretch of keys at a time, for whoever checks whether it is. */
export class Inventory {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  blobs(after: string, rows: number): Promise<ListedBlob[]> {
    return this.#db.all(
      `SELECT digest, size AS "sizeBytes" FROM blobs WHERE digest > :after ORDER BY digest LIMIT :rows`,
      { after, rows },
    );
  }

  /** @returns undefined: it has been removed */
  blob(digest: Digest): Promise<ListedBlob | undefined> {
    return this.#db.get(`SELECT digest, size AS "sizeBytes" FROM blobs WHERE digest = :digest`, { digest });
  }

  manifests(after: string, rows: number): Promise<ListedManifest[]> {
    return this.#db.all(
      `SELECT digest, media_type AS "mediaType", size AS "sizeBytes", upstream FROM manifests
       WHERE digest > :after ORDER BY digest LIMIT :rows`,
      { after, rows },
    );
  }

  async tags(after: { repositoryId: number; tag: string }, rows: number): Promise<ListedTag[]> {
    const found = await this.#db.all<Omit<ListedTag, "sound"> & { sound: number }>(TAGS, {
      ...after,
      rows,
    });
    return found.map((row) => ({ ...row, sound: row.sound === 1 }));
  }

  async lastRepository(): Promise<number> {
    return (await this.#db.get<{ id: number | null }>("SELECT max(id) AS id FROM repositories"))?.id ?? 0;
  }

  /** What a manifest points to and its hosted repositories can't give. Foreign layers are among it. */
  async *dangling(digest: Digest): AsyncGenerator<{ child: Digest; repository: RepositoryName }> {
    for (let after = ""; ;) {
      const range = { digest, after, rows: ROWS_PER_TURN };
      const here = await this.#db.get<{ rows: number; last: string | null }>(CHILDREN, range);
      if (!here || here.last === null) return;
      yield* await this.#db.all<{ child: Digest; repository: RepositoryName }>(DANGLING, range);
      after = here.last;
    }
  }

  async holders(digest: Digest): Promise<Holders> {
    const [repositories, manifests] = await Promise.all([
      this.#db.all<{ name: RepositoryName; upstream: string | null }>(
        `SELECT r.name, r.upstream FROM repository_content c JOIN repositories r ON r.id = c.repository_id
         WHERE c.digest = :digest LIMIT :most`,
        { digest, most: MOST_NAMED },
      ),
      this.#db.all<{ parent: Digest }>(
        "SELECT parent FROM manifest_children WHERE child = :digest ORDER BY parent LIMIT :most",
        { digest, most: MOST_NAMED },
      ),
    ]);
    const names = (hosted: boolean): RepositoryName[] =>
      repositories.filter(({ upstream }) => (upstream === null) === hosted).map(({ name }) => name);
    return { hosted: names(true), cached: names(false), manifests: manifests.map(({ parent }) => parent) };
  }
}
