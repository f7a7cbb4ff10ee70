import { setImmediate as turn } from "node:timers/promises";
import type { Reader } from "../db/database.ts";
import type { RepositoryName } from "../oci/reference.ts";

/** What somebody sees of all repositories. */
export interface Sight {
  /** @param upstream that it is cached from; undefined: it is hosted */
  sees: (repository: RepositoryName, upstream: string | undefined) => boolean;
  /** The first name at or after `from` at which anything seen may stand; undefined: nothing is any more. */
  ahead: (from: string) => string | undefined;
}

/** Everything is seen. */
export const EVERYTHING: Sight = { sees: () => true, ahead: (from) => from };

/** Of one statement: half a millisecond. */
const MOST_ROWS = 128;
/** Of a statement that begins somewhere new: mostly a namespace holds a few repositories, and what follows it is not seen. */
const FIRST_ROWS = 8;
/** After that the event loop has its turn. */
const TURN_MS = 0.5;

const NAMES = `
  SELECT name, upstream FROM repositories r WHERE name >= :from
    AND EXISTS (SELECT 1 FROM repository_content c WHERE c.repository_id = r.id) ORDER BY name LIMIT :rows`;

/**
 * Repositories that hold anything and that somebody sees, in order of their names, after `last` (exclusive). Only ranges of names that may be
 * seen are read: a page costs what it holds, not what others have.
 * @returns `more`: whether there are others after these
 */
export async function visibleRepositories(
  db: Reader,
  last: string,
  limit: number,
  { sees, ahead }: Sight,
): Promise<{ items: RepositoryName[]; more: boolean }> {
  const items: RepositoryName[] = [];
  let rows = FIRST_ROWS;
  let sinceMs = performance.now();
  for (let from = ahead(after(last)); from !== undefined;) {
    const found = await db.all<{ name: RepositoryName; upstream: string | null }>(NAMES, { from, rows });
    for (const { name, upstream } of found) {
      if (!sees(name, upstream ?? undefined)) continue;
      if (items.length === limit) return { items, more: true };
      items.push(name);
    }
    const end = found.at(-1)?.name;
    if (end === undefined || found.length < rows) break;
    const next = after(end);
    from = ahead(next);
    rows = from === next ? Math.min(rows * 2, MOST_ROWS) : FIRST_ROWS;
    if (performance.now() - sinceMs < TURN_MS) continue;
    await turn();
    sinceMs = performance.now();
  }
  return { items, more: false };
}

/** Before every other name that follows: nothing in a name stands before a space. */
export function after(name: string): string {
  return `${name} `;
}
