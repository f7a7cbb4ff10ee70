import type { Bytes } from "../base/clock.ts";
import type { Database, Reader } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";

/** What the hosted repositories of a namespace hold. */
export interface NamespaceUsage {
  namespace: string;
  /** Of its blobs and manifests, each content once. */
  bytes: Bytes;
  /** How many hold anything. */
  repositories: number;
}

/** How much a namespace may hold once a write is done. Enforced within the write's own transaction. */
export interface Allowance {
  namespace: string;
  maxBytes: Bytes;
  /** Told as the last thing before the write is committed. */
  grown: (beforeBytes: Bytes, afterBytes: Bytes) => void;
}

/** A write would add more to a namespace than it may hold. Nothing of it has happened. */
export class AllowanceExceeded extends Error {
  override readonly name = "AllowanceExceeded";
  readonly allowance: Allowance;
  readonly usedBytes: Bytes;
  readonly addedBytes: Bytes;

  constructor(allowance: Allowance, usedBytes: Bytes, addedBytes: Bytes) {
    super(`namespace ${allowance.namespace} may not hold ${addedBytes} bytes more`);
    this.allowance = allowance;
    this.usedBytes = usedBytes;
    this.addedBytes = addedBytes;
  }
}

const USED = "SELECT bytes FROM namespace_usage WHERE namespace = :namespace";
/** For the background: a namespace may have a hundred thousand repositories. */
const USAGE = `
  SELECT u.namespace, u.bytes, (
    SELECT count(*) FROM repositories r WHERE r.namespace = u.namespace
      AND EXISTS (SELECT 1 FROM repository_content c WHERE c.repository_id = r.id)) AS repositories
  FROM json_each(:names) w JOIN namespace_usage u ON u.namespace = w.value`;

/**
 * How much is stored under the first component of hosted names. The database keeps the count itself, by triggers, in the transaction of
 * whatever changes what a repository reaches: pushes, mounts, deletes and garbage collection need not know of it.
 */
export class Namespaces {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  usedBytes(namespace: string): Promise<Bytes> {
    return usedBytes(this.#db, namespace);
  }

  /** Whether the namespace holds the content already: once more costs nothing. */
  async holds(namespace: string, digest: Digest): Promise<boolean> {
    const found = await this.#db.get(
      "SELECT 1 FROM namespace_content WHERE namespace = :namespace AND digest = :digest",
      { namespace, digest },
    );
    return found !== undefined;
  }

  /** What these hold, by their names. Nothing of those to which nothing was ever pushed. */
  async usage(namespaces: readonly string[]): Promise<Map<string, NamespaceUsage>> {
    const names = JSON.stringify(namespaces);
    const rows = await this.#db.background.all<NamespaceUsage>(USAGE, { names });
    return new Map(rows.map((row) => [row.namespace, row]));
  }

  /** The bytes of every namespace, the largest first. */
  bytes(): Promise<{ namespace: string; bytes: Bytes }[]> {
    return this.#db.all("SELECT namespace, bytes FROM namespace_usage ORDER BY bytes DESC, namespace");
  }
}

/** Runs a write within its transaction. @throws AllowanceExceeded where it adds anything, and the namespace holds too much then */
export async function asAllowed<T>(tx: Reader, allowance: Allowance, write: () => Promise<T>): Promise<T> {
  const { namespace, maxBytes, grown } = allowance;
  const before = await usedBytes(tx, namespace);
  const result = await write();
  const after = await usedBytes(tx, namespace);
  if (after > before && after > maxBytes) throw new AllowanceExceeded(allowance, before, after - before);
  grown(before, after);
  return result;
}

async function usedBytes(db: Reader, namespace: string): Promise<Bytes> {
  return (await db.get<{ bytes: Bytes }>(USED, { namespace }))?.bytes ?? 0;
}
