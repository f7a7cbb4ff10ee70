import assert from "node:assert/strict";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import Sqlite from "better-sqlite3";
import * as fc from "fast-check";
import { systemClock, type Clock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { Metrics } from "../../src/base/metrics.ts";
import type { Database, Reader } from "../../src/db/database.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { ACTIONS, OUTCOMES, type NewEvent, type StoredEvent } from "../../src/events/event.ts";
import { Journal } from "../../src/events/journal.ts";
import { searchEvents, type EventFilter, type EventPosition } from "../../src/events/search.ts";
import { digestOf } from "../../src/oci/digest.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { until } from "../kit/registry.ts";

interface Stage extends AsyncDisposable {
  db: Database;
  file: string;
  journal: Journal;
  metrics: Metrics;
  faults: unknown[];
  log: Record<string, unknown>[];
}

async function stage(options: { pulls?: boolean; clock?: Clock } = {}): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(await mkdtempDisposable(join(tmpdir(), "entrepot-journal-")));
  const file = join(folder.path, "entrepot.db");
  const db = stack.use(await openSqlite(file));
  const [metrics, faults, lines]: [Metrics, unknown[], Record<string, unknown>[]] = [new Metrics(), [], []];
  const log = await createLog({
    level: "info",
    format: "json",
    destination: { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) },
  });
  const journal = stack.use(
    new Journal({
      db,
      clock: options.clock ?? systemClock,
      config: () => ({ keep: 0, pulls: options.pulls ?? true }),
      log,
      metrics,
      onFault: (_operation, error) => faults.push(error),
    }),
  );
  const owned = stack.move();
  return { db, file, journal, metrics, faults, log: lines, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

const A = "team/app" as RepositoryName;
const DIGESTS = ["a", "b"].map((text) => digestOf(Buffer.from(text)));
const BY = { actor: undefined, address: "10.0.0.7", agent: "docker/27", requestId: "r-1" };

function event(more: Partial<NewEvent> = {}): NewEvent {
  return { action: "push", outcome: "done", repository: A, by: BY, ...more };
}

/** Written as they are, at the times given. */
async function insert(db: Database, events: { at: number; [column: string]: string | number | null }[]): Promise<void> {
  await db.transaction("lazy", (tx) =>
    tx.run(
      `INSERT INTO events (at, action, outcome, repository, subject, tag, digest, actor)
       SELECT value ->> 'at', COALESCE(value ->> 'action', 'push'), COALESCE(value ->> 'outcome', 'done'),
         value ->> 'repository', value ->> 'subject', value ->> 'tag', value ->> 'digest', value ->> 'actor'
       FROM json_each(:rows)`,
      { rows: JSON.stringify(events) },
    ),
  );
}

test("an event is recorded with the transaction it belongs to, or not at all", async () => {
  await using here = await stage();
  const { db, journal } = here;
  assert.equal(await journal.last(), 0);
  await assert.rejects(
    db.transaction("durable", async (tx) => {
      await journal.recordWithin(tx, [event()]);
      throw new Error("refused");
    }),
    /refused/,
  );
  assert.deepEqual(await journal.after(0, 10), []);
  const pushed = event({ tag: "1" as Tag, digest: DIGESTS[0] as never, mediaType: "a/b", sizeBytes: 5, detail: "x" });
  const swept = event({ action: "delete", by: { actor: "retention" } });
  const beforeMs = Date.now();
  await db.transaction("durable", (tx) => journal.recordWithin(tx, [pushed, swept]));
  const [first, second, ...none] = await journal.after(0, 10);
  assert.deepEqual(none, []);
  assert.ok(first && second && first.atMs >= beforeMs && first.atMs <= Date.now());
  const { by: _, ...what } = pushed;
  assert.deepEqual(first, { subject: undefined, ...what, ...BY, id: first.id, atMs: first.atMs });
  assert.equal(second.actor, "retention");
  assert.equal(second.address, undefined);
  assert.equal(await journal.last(), second.id);
  assert.deepEqual(await journal.after(first.id, 10), [second]);
});

test("what is noted is written soon, one or a thousand, in its order, and listeners are told once it is there", async () => {
  await using here = await stage();
  const { journal } = here;
  const seen: Promise<number>[] = [];
  const end = journal.onRecorded(() => void seen.push(journal.last()));
  journal.note(event({ action: "pull", tag: "0" as Tag }));
  await until(async () => (await journal.last()) === 1, "it is written");
  for (let i = 1; i <= 1200; i++) journal.note(event({ action: "pull", tag: String(i) as Tag }));
  await until(async () => (await journal.last()) === 1201, "they are written");
  const written = await journal.after(0, 2000);
  assert.deepEqual(
    written.map(({ tag }) => tag),
    Array.from({ length: 1201 }, (_, i) => String(i)),
  );
  await until(() => seen.length === 4, "all batches are told");
  assert.deepEqual(await Promise.all(seen), [1, 501, 1001, 1201]);
  end();
  journal.recorded();
  assert.equal(seen.length, 4);
});

test("what is noted is written when the journal is closed", async () => {
  await using here = await stage();
  here.journal.note(event({ action: "pull" }));
  await here.journal[Symbol.asyncDispose]();
  assert.equal((await here.journal.after(0, 10)).length, 1);
});

test("pulls that are not wanted are not recorded, refusals are", async () => {
  await using here = await stage({ pulls: false });
  here.journal.note(event({ action: "pull" }));
  here.journal.note(event({ outcome: "denied" }));
  await here.journal[Symbol.asyncDispose]();
  assert.deepEqual(
    (await here.journal.after(0, 10)).map(({ outcome }) => outcome),
    ["denied"],
  );
});

test("a login and a change of rights are recorded without a repository", async () => {
  await using here = await stage({ pulls: false });
  const { journal, db } = here;
  const by = { actor: "root", address: "10.0.0.7", agent: "curl", requestId: "r-2" };
  const change = {
    action: "access",
    outcome: "done",
    subject: "user:alice",
    detail: "made an administrator",
    by,
  } as const;
  await db.transaction("durable", (tx) => journal.recordWithin(tx, [change]));
  journal.note({ action: "login", outcome: "done", subject: "user:root", by });
  await journal[Symbol.asyncDispose]();
  const found = (await journal.after(0, 10)).map(({ action, repository, subject, actor, detail }) => {
    return { action, repository, subject, actor, detail };
  });
  assert.deepEqual(found, [
    { action: "access", repository: undefined, subject: "user:alice", actor: "root", detail: "made an administrator" },
    { action: "login", repository: undefined, subject: "user:root", actor: "root", detail: undefined },
  ]);
});

test("pulls that are denied are recorded though pulls are not, and what goes on is summed up each minute", async () => {
  let minute = Promise.withResolvers<void>();
  const clock: Clock = {
    ...systemClock,
    sleep: (ms, signal) =>
      ms === 60_000 ? Promise.race([minute.promise, systemClock.sleep(ms, signal)]) : systemClock.sleep(1, signal),
  };
  await using here = await stage({ pulls: false, clock });
  const pass = (): void => {
    const { resolve } = minute;
    minute = Promise.withResolvers();
    resolve();
  };
  const { journal } = here;
  const denied = event({ action: "pull", outcome: "denied", detail: "log in" });
  const details = async (): Promise<unknown[]> => (await journal.after(0, 10)).map(({ detail }) => detail);
  for (let i = 0; i < 5; i++) journal.note({ ...denied, tag: String(i) as Tag });
  await until(async () => (await journal.last()) === 1, "the first is written");
  pass();
  await until(async () => (await journal.last()) === 2, "the others are summed up");
  journal.note(denied);
  pass();
  await until(async () => (await journal.last()) === 3, "what goes on is only summed up");
  assert.deepEqual(await details(), [
    "log in",
    "log in (the last of 4 more within a minute)",
    "log in (the last of 1 more within a minute)",
  ]);
  journal.note(denied);
  journal.note(denied);
  await journal[Symbol.asyncDispose]();
  assert.equal((await details()).at(-1), "log in (the last of 2 more within a minute)", "none is lost at the end");
});

test("what can't be written waits, and is written once it can", async () => {
  await using here = await stage();
  const other = new Sqlite(here.file);
  other.exec("BEGIN IMMEDIATE");
  here.journal.note(event({ tag: "first" as Tag, outcome: "failed" }));
  await until(() => here.faults.length > 0, "a write has failed");
  here.journal.note(event({ tag: "second" as Tag, outcome: "failed" }));
  other.exec("ROLLBACK");
  other.close();
  await until(async () => (await here.journal.last()) === 2, "both are written");
  assert.deepEqual(
    (await here.journal.after(0, 10)).map(({ tag }) => tag),
    ["first", "second"],
  );
  assert.equal(here.faults.length, 1);
});

test("when events come faster than they can be written, the oldest are dropped, counted and told once", async () => {
  await using here = await stage();
  for (let i = 0; i < 101_500; i++) here.journal.note(event({ action: "pull", tag: String(i) as Tag }));
  await here.journal[Symbol.asyncDispose]();
  const counted = await here.db.get("SELECT COUNT(*) AS count, MIN(CAST(tag AS INTEGER)) AS first FROM events");
  assert.deepEqual(counted, { count: 100_000, first: 1500 });
  assert.match((await here.metrics.render()).body, /^entrepot_events_dropped_total 1500$/m);
  assert.equal(here.log.length, 1);
});

test("events older than they are kept expire, all others stay", async () => {
  const nowMs = 10_000_000;
  const clock: Clock = { ...systemClock, now: () => nowMs };
  await using here = await stage({ clock });
  const { journal, db } = here;
  const { signal } = new AbortController();
  await insert(
    db,
    Array.from({ length: 1300 }, (_, i) => ({ at: nowMs - i })),
  );
  assert.equal(await journal.expire(0, signal), 0);
  assert.equal(await journal.expire(99, signal), 1200);
  assert.deepEqual(await db.get("SELECT COUNT(*) AS count, MIN(at) AS oldest FROM events"), {
    count: 100,
    oldest: nowMs - 99,
  });
  await insert(db, [{ at: nowMs }]);
  assert.equal(await journal.last(), 1301, "an id is never given twice");
});

// ---- search ----

const optional = <T>(values: readonly T[]) => fc.option(fc.constantFrom(...values), { nil: undefined });
const REPOSITORIES = ["team/app", "team/other"];
const SUBJECTS = ["user:alice", "team:backend"];
const TAGS = ["1", "2"];
const ACTORS = ["ci", "retention"];
const rows = fc.array(
  fc.record({
    at: fc.nat(30),
    action: fc.constantFrom(...ACTIONS),
    outcome: fc.constantFrom(...OUTCOMES),
    repository: fc.constantFrom(...REPOSITORIES, null),
    subject: fc.constantFrom(...SUBJECTS, null),
    tag: fc.constantFrom(...TAGS, null),
    digest: fc.constantFrom(...DIGESTS, null),
    actor: fc.constantFrom(...ACTORS, null),
  }),
  { maxLength: 60 },
);
const filters: fc.Arbitrary<EventFilter> = fc.record({
  repository: optional(REPOSITORIES),
  subject: optional(SUBJECTS),
  actor: optional(ACTORS),
  action: optional(ACTIONS),
  outcome: optional(OUTCOMES),
  tag: optional(TAGS),
  digest: optional(DIGESTS),
  sinceMs: fc.option(fc.nat(30), { nil: undefined }),
  untilMs: fc.option(fc.nat(31), { nil: undefined }),
});

async function pagesOf(db: Reader, filter: EventFilter, limit: number): Promise<StoredEvent[][]> {
  const pages: StoredEvent[][] = [];
  for (let before: EventPosition | undefined; ;) {
    const { items, next } = await searchEvents(db, filter, before, limit);
    pages.push(items);
    if (!next) return pages;
    before = next;
  }
}

test("pages of a search are all that its filter lets through, newest first, each once", async () => {
  await using here = await stage();
  const { db } = here;
  await fc.assert(
    fc.asyncProperty(rows, filters, fc.integer({ min: 1, max: 7 }), async (given, filter, limit) => {
      await db.transaction("lazy", (tx) => tx.run("DELETE FROM events"));
      await insert(db, given);
      const all = await here.journal.after(0, 1000);
      const { sinceMs = 0, untilMs = Infinity, ...equal } = filter;
      const expected = all
        .filter((one) =>
          Object.entries(equal).every(([key, value]) => [undefined, one[key as "tag"]].includes(value as Tag)),
        )
        .filter(({ atMs }) => atMs >= sinceMs && atMs < untilMs)
        .toSorted((a, b) => b.atMs - a.atMs || b.id - a.id);
      const pages = await pagesOf(db, filter, limit);
      assert.ok(pages.every(({ length }) => length <= limit));
      assert.deepEqual(pages.flat(), expected);
      assert.deepEqual((await Array.fromAsync(here.journal.walk(filter))).flat(), expected);
    }),
    { numRuns: 300 },
  );
});

test("a search looks at 1,500 events at most, and goes on where it stopped", async () => {
  await using here = await stage();
  const others = Array.from({ length: 4000 }, (_, i) => ({ at: 10 + i, repository: A, tag: "other" }));
  await insert(here.db, [{ at: 1, repository: A, tag: "sought" }, ...others]);
  const pages = await pagesOf(here.db, { repository: A, tag: "sought" }, 10);
  assert.ok(pages.length >= 3, `${pages.length} pages`);
  assert.ok(pages.slice(0, -1).every(({ length }) => length === 0));
  assert.equal(pages.at(-1)?.[0]?.tag, "sought");
});

test("every search goes through an index, and sorts nothing", async () => {
  await using here = await stage();
  const asked = new Set<string>();
  const spy: Reader = {
    get: (sql, params) => here.db.get(sql, params),
    all: (sql, params) => {
      asked.add(sql);
      return here.db.all(sql, params);
    },
  };
  const digest = DIGESTS[0];
  const searches: EventFilter[] = [
    {},
    { repository: A },
    { repository: A, action: "push" },
    { action: "delete" },
    { outcome: "denied" },
    { outcome: "denied", action: "login" },
    { subject: "user:alice" },
    { actor: "ci" },
    { digest },
  ];
  for (const filter of searches) await searchEvents(spy, filter, undefined, 10);
  assert.equal(asked.size, searches.length);
  for (const sql of asked) {
    const params = { repository: A, subject: "", action: "push", actor: "ci", digest: digest ?? "", limit: 1 };
    const plan = await here.db.all<{ detail: string }>(`EXPLAIN QUERY PLAN ${sql}`, {
      ...params,
      sinceMs: 0,
      beforeMs: 0,
      beforeId: 0,
    });
    assert.equal(plan.length, 1, JSON.stringify(plan));
    assert.match(plan[0]?.detail ?? "", /^SEARCH events USING INDEX events_\w+ \(.*at>\? AND .*at<\?/, sql);
  }
});
