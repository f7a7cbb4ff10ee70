import type { Bytes } from "../base/clock.ts";
import type { Transactions } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import type { Link } from "./garbage.ts";

/** What a namespace is said to hold. */
export interface Counted {
  namespace: string;
  digest: Digest;
}

/** One stretch of keys. */
export interface Audited<Key> {
  rows: number;
  /** Undefined: there was none. */
  last: Key | undefined;
  wrong: Counted[];
}

const LINKS = `
  SELECT repository_id, digest FROM repository_content
  WHERE (repository_id, digest) > (:repositoryId, :digest) ORDER BY repository_id, digest LIMIT :rows`;
const LINK_SPAN = `
  SELECT repository_id AS "repositoryId", digest, count(*) OVER () AS rows FROM (${LINKS}) k
  ORDER BY repository_id DESC, digest DESC LIMIT 1`;
const UNCOUNTED = `
  SELECT DISTINCT r.namespace, k.digest FROM (${LINKS}) k JOIN repositories r ON r.id = k.repository_id
  WHERE r.namespace IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM namespace_content n WHERE n.namespace = r.namespace AND n.digest = k.digest)`;
const CONTENTS = `
  SELECT namespace, digest, size, links FROM namespace_content
  WHERE (namespace, digest) > (:namespace, :digest) ORDER BY namespace, digest LIMIT :rows`;
const CONTENT_SPAN = `
  SELECT namespace, digest, count(*) OVER () AS rows FROM (${CONTENTS}) k
  ORDER BY namespace DESC, digest DESC LIMIT 1`;
/** Of the key `k`. CROSS: from the digest to those who reach it, not through a whole namespace. */
const REACHERS = `
  SELECT count(*) FROM repository_content c CROSS JOIN repositories r
  WHERE c.digest = k.digest AND r.id = c.repository_id AND r.namespace = k.namespace`;
/** Of a blob that was damaged there is no row: what was counted is right. */
const SIZE = `
  COALESCE((SELECT b.size FROM blobs b WHERE b.digest = k.digest), (SELECT m.size FROM manifests m WHERE m.digest = k.digest), k.size)`;
const MISCOUNTED = `SELECT k.namespace, k.digest FROM (${CONTENTS}) k WHERE k.links <> (${REACHERS}) OR k.size <> ${SIZE}`;

const KNOWN = "SELECT size FROM namespace_content WHERE namespace = :namespace AND digest = :digest";
const UNCOUNT = "DELETE FROM namespace_content WHERE namespace = :namespace AND digest = :digest";
const COUNT = `
  INSERT INTO namespace_content (namespace, digest, size, links)
  SELECT * FROM (
    SELECT k.namespace, k.digest, ${SIZE} AS size, (${REACHERS}) AS links
    FROM (SELECT :namespace AS namespace, :digest AS digest, :size AS size) k) counted
  WHERE counted.links > 0`;
const NEXT = `
  SELECT min(namespace) AS namespace FROM (
    SELECT min(namespace) AS namespace FROM namespace_content WHERE namespace > :after
    UNION ALL SELECT min(namespace) FROM namespace_usage WHERE namespace > :after) n`;
const SUMS = `
  SELECT (SELECT bytes FROM namespace_usage WHERE namespace = :namespace) AS counted,
    (SELECT COALESCE(sum(size), 0) FROM namespace_content WHERE namespace = :namespace) AS held`;
const SET = `
  INSERT INTO namespace_usage (namespace, bytes) VALUES (:namespace, :bytes)
  ON CONFLICT (namespace) DO UPDATE SET bytes = excluded.bytes`;

/** Checks what is counted of namespaces against what their repositories reach, a stretch of keys at a time, and counts anew. */
export class UsageAudit {
  readonly #db: Transactions;

  constructor(db: Transactions) {
    this.#db = db;
  }

  /** Looks for content that a repository reaches and its namespace does not count. */
  async links(after: Link, rows: number): Promise<Audited<Link>> {
    const range = { ...after, rows };
    const [span, wrong] = await Promise.all([
      this.#db.get<Link & { rows: number }>(LINK_SPAN, range),
      this.#db.all<Counted>(UNCOUNTED, range),
    ]);
    const last = span && { repositoryId: span.repositoryId, digest: span.digest };
    return { rows: span?.rows ?? 0, last, wrong };
  }

  /** Looks for content that is counted with the wrong size, or for repositories that do not reach it. */
  async contents(after: { namespace: string; digest: string }, rows: number): Promise<Audited<Counted>> {
    const range = { ...after, rows };
    const [span, wrong] = await Promise.all([
      this.#db.get<Counted & { rows: number }>(CONTENT_SPAN, range),
      this.#db.all<Counted>(MISCOUNTED, range),
    ]);
    const last = span && { namespace: span.namespace, digest: span.digest };
    return { rows: span?.rows ?? 0, last, wrong };
  }

  /** The first namespace that comes after another one. */
  async next(after: string): Promise<string | undefined> {
    return (await this.#db.get<{ namespace: string | null }>(NEXT, { after }))?.namespace ?? undefined;
  }

  /** What is counted of a namespace, and the sum of its contents. */
  async sums(namespace: string): Promise<{ counted: Bytes; held: Bytes }> {
    const row = await this.#db.get<{ counted: Bytes | null; held: Bytes }>(SUMS, { namespace });
    return { counted: row?.counted ?? 0, held: row?.held ?? 0 };
  }

  /** Counts a content anew. */
  async mend({ namespace, digest }: Counted): Promise<void> {
    await this.#db.transaction("lazy", async (tx) => {
      const known = await tx.get<{ size: Bytes }>(KNOWN, { namespace, digest });
      await tx.run(UNCOUNT, { namespace, digest });
      await tx.run(COUNT, { namespace, digest, size: known?.size ?? 0 });
    });
  }

  /** Adds a namespace up anew. @returns what it holds */
  async mendSum(namespace: string): Promise<Bytes> {
    return this.#db.transaction("lazy", async (tx) => {
      const held = (await tx.get<{ held: Bytes }>(SUMS, { namespace }))?.held ?? 0;
      await tx.run(SET, { namespace, bytes: held });
      return held;
    });
  }
}
