import type { Bytes } from "../base/clock.ts";
import type { Audited, Counted, UsageAudit } from "../store/usage-audit.ts";
import type { Steps } from "./steps.ts";

/** A namespace whose count was wrong, and is right now. */
export interface Miscount {
  namespace: string;
  countedBytes: Bytes;
  heldBytes: Bytes;
  /** How many of its contents were counted wrongly. */
  contents: number;
}

/**
 * Compares what is counted of namespaces with what their repositories reach, and sets it right. Pushes and deletes go on meanwhile: what is
 * compared is compared in one statement.
 * @param reached told how many links were looked at, and the repository of the last
 */
export async function* recount(
  audit: UsageAudit,
  steps: Steps,
  reached: (rows: number, repositoryId: number) => Promise<void>,
): AsyncGenerator<Miscount, void, undefined> {
  const wrong = new Map<string, { countedBytes: Bytes; contents: number }>();
  const mend = async (contents: readonly Counted[]): Promise<void> => {
    for (const content of contents) {
      const { namespace } = content;
      const known = wrong.get(namespace) ?? { countedBytes: (await audit.sums(namespace)).counted, contents: 0 };
      wrong.set(namespace, { ...known, contents: known.contents + 1 });
      await steps.rest(() => audit.mend(content));
    }
  };
  let rows = 0;
  await walk(
    steps,
    { repositoryId: 0, digest: "" as Counted["digest"] },
    (after, most) => audit.links(after, most),
    async (stretch) => {
      await mend(stretch.wrong);
      rows += stretch.rows;
      if (stretch.last) await reached(rows, stretch.last.repositoryId);
    },
  );
  await walk(
    steps,
    { namespace: "", digest: "" as Counted["digest"] },
    (after, most) => audit.contents(after, most),
    (stretch) => mend(stretch.wrong),
  );
  for (let namespace = await audit.next(""); namespace !== undefined; namespace = await audit.next(namespace)) {
    const here = namespace;
    const { counted, held } = await steps.rest(() => audit.sums(here));
    const found = wrong.get(here) ?? { countedBytes: counted, contents: 0 };
    if (found.contents === 0 && counted === held) continue;
    yield { namespace: here, ...found, heldBytes: await audit.mendSum(here) };
  }
}

async function walk<Key>(
  steps: Steps,
  first: Key,
  look: (after: Key, rows: number) => Promise<Audited<Key>>,
  seen: (stretch: Audited<Key>) => Promise<void>,
): Promise<void> {
  for (let after = first; ;) {
    const { isLast, ...stretch } = await steps.look(async (rows) => {
      const found = await look(after, rows);
      return { ...found, isLast: found.rows < rows };
    });
    await seen(stretch);
    if (isLast || stretch.last === undefined) return;
    after = stretch.last;
  }
}
