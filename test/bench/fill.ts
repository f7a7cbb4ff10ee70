/** Rows in bulk, written while no daemon runs: what years of pushes would leave. */
import { createHash } from "node:crypto";
import { closeSync, fsyncSync, openSync } from "node:fs";
import { join } from "node:path";
import Sqlite from "better-sqlite3";

/** A hosted namespace for all that is filled in. */
export const NAMESPACE = "bench";

export function digestNamed(name: string): string {
  return `sha256:${createHash("sha256").update(name).digest("hex")}`;
}

/** Inserts rows of one table. */
export type Insert = (row: Record<string, string | number | Buffer | null>) => void;

/**
 * Fills a database whose schema a daemon has made. Indexes are built at the end, which takes a fraction of the time.
 * @param write is given an insert for each `INTO` clause that it names, such as `blobs (digest, size)`
 */
export function fillDatabase(root: string, write: (into: (clause: string) => Insert) => void): void {
  const db = new Sqlite(join(root, "entrepot.db"));
  db.pragma("synchronous = OFF");
  db.pragma("cache_size = -262144");
  const indexes = db.prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL").all() as {
    name: string;
    sql: string;
  }[];
  db.transaction(() => {
    for (const { name } of indexes) db.exec(`DROP INDEX ${name}`);
    write((clause) => {
      const columns = /\((.*)\)/.exec(clause)?.[1]?.split(", ") ?? [];
      const statement = db.prepare(
        `INSERT INTO ${clause} VALUES (${columns.map((column) => `:${column}`).join(", ")}) ON CONFLICT DO NOTHING`,
      );
      return (row) => void statement.run(row);
    });
    for (const { sql } of indexes) db.exec(sql);
  })();
  db.pragma("wal_checkpoint(TRUNCATE)");
  db.close();
  // Else the disk would be busy with it for half a minute, while something is measured.
  const file = openSync(join(root, "entrepot.db"), "r+");
  fsyncSync(file);
  closeSync(file);
}
