import assert from "node:assert/strict";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { Config } from "../../src/config/schema.ts";
import type { Database } from "../../src/db/database.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { RuleBook, RuleRefused } from "../../src/replication/rule-book.ts";
import { BY, startJournal } from "./record.ts";

interface Stage extends AsyncDisposable {
  db: Database;
  rules: RuleBook;
  /** From the same database, as a daemon that starts anew reads it. */
  reopened: () => Promise<RuleBook>;
  configure: (section: object) => void;
  log: Record<string, unknown>[];
}

const DR = { dr: { url: "https://dr.example:5000" } };
const RULE = { from: { registry: "self", repositories: ["team/**"] }, to: [{ registry: "dr" }] };

async function stage(section: object = { registries: DR }): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(await mkdtempDisposable(join(tmpdir(), "entrepot-rules-")));
  const db = stack.use(await openSqlite(join(folder.path, "entrepot.db")));
  const lines: Record<string, unknown>[] = [];
  const log = await createLog({
    level: "info",
    format: "json",
    destination: { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) },
  });
  const read = (given: object): Config["replication"] => parseConfig({ replication: given }).replication;
  let config = read(section);
  const journal = stack.use(await startJournal(db));
  const reopened = (): Promise<RuleBook> =>
    RuleBook.open({ db, clock: systemClock, log, journal, config: () => config });
  const rules = await reopened();
  const owned = stack.move();
  const configure = (given: object): void => void (config = read(given));
  return { db, rules, reopened, configure, log: lines, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function refused(faults: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof RuleRefused);
    for (const { cause, remedy } of error.faults) assert.ok(cause !== "" && remedy !== "");
    assert.match(error.message, faults);
    return true;
  };
}

test("a rule of the API stands beside the configured ones, with every default, and is there after a restart", async () => {
  await using s = await stage({ registries: DR, rules: [{ ...RULE, name: "configured" }] });
  let changes = 0;
  s.rules.onChanged(() => changes++);
  const put = await s.rules.put(
    "made",
    {
      ...RULE,
      from: { registry: "dr", repositories: ["x/*"] },
      to: [{ registry: "self" }],
    },
    BY,
  );
  assert.equal(put.origin, "api");
  assert.equal(put.rule.name, "made");
  assert.equal(put.rule.delete.grace, 7 * 86_400_000);
  assert.equal(changes, 1);
  for (const book of [s.rules, await s.reopened()]) {
    assert.deepEqual(
      book.all().map(({ rule, origin }) => [rule.name, origin]),
      [
        ["configured", "config"],
        ["made", "api"],
      ],
    );
    assert.deepEqual(book.get("made"), put);
  }
  assert.equal(await s.rules.remove("made", BY), true);
  assert.equal(await s.rules.remove("made", BY), false);
  assert.equal(await s.rules.remove("configured", BY), false);
  assert.equal((await s.reopened()).get("made"), undefined);
});

test("what cannot be applied is refused with every path, cause and remedy, and nothing changes", async () => {
  await using s = await stage({ registries: DR, rules: [{ ...RULE, name: "configured" }] });
  await assert.rejects(
    s.rules.put(
      "made",
      {
        from: { registry: "self", repositories: ["UPPER"] },
        to: [],
        tgas: {},
        on: { cron: "often" },
      },
      BY,
    ),
    refused(
      /from\.repositories\[0\] matches no name.*to .*on\.cron is not a cron expression.*tgas is not a key; did you mean tags\?/s,
    ),
  );
  await assert.rejects(s.rules.put("made", null, BY), refused(/it is empty/));
  await assert.rejects(
    s.rules.put("made", { ...RULE, to: [{ registry: "nowhere" }] }, BY),
    refused(/to\[0\]\.registry is not under replication\.registries; add it there, or choose one of dr, self/),
  );
  await assert.rejects(
    s.rules.put("made", RULE, BY),
    refused(/to\[0\]\.repository writes team\/a, and so does rule configured/),
  );
  await assert.rejects(
    s.rules.put("configured", { ...RULE, to: [{ registry: "dr", repository: "other/{{path}}" }] }, BY),
    refused(/name is the name of another rule/),
  );
  await assert.rejects(s.rules.put("made", { ...RULE, name: "other" }, BY), refused(/name is another name/));
  assert.deepEqual(
    s.rules.all().map(({ rule }) => rule.name),
    ["configured"],
  );
  assert.deepEqual((await s.reopened()).all().length, 1);
});

test("a rule is replaced only as the one that was looked at", async () => {
  await using s = await stage();
  const changed = { ...RULE, tags: { newest: 5 } };
  const first = await s.rules.put("made", RULE, BY, (etag) => assert.equal(etag, undefined));
  const second = await s.rules.put("made", changed, BY, (etag) => assert.equal(etag, first.etag));
  assert.notEqual(second.etag, first.etag);
  const stale = new Error("it has changed");
  const onlyFirst = (etag: string | undefined): void => {
    if (etag !== first.etag) throw stale;
  };
  await assert.rejects(s.rules.put("made", RULE, BY, onlyFirst), stale);
  await assert.rejects(s.rules.remove("made", BY, onlyFirst), stale);
  assert.equal(s.rules.get("made")?.rule.tags.newest, 5);
});

test("a rule that a changed configuration makes faulty is told once, does not run, and comes back with what it lacked", async () => {
  await using s = await stage();
  await s.rules.put("made", RULE, BY);
  s.configure({ registries: {} });
  assert.equal(s.rules.get("made"), undefined);
  assert.deepEqual(s.rules.all(), []);
  assert.deepEqual(
    s.rules.faulty().map(({ name, faults }) => [name, faults.map(({ path }) => path)]),
    [["made", ["to[0].registry"]]],
  );
  const told = s.log.filter(({ rule }) => rule === "made");
  assert.equal(told.length, 1);
  assert.match(String(told[0]?.["faults"]), /add it there/);
  s.configure({ registries: DR });
  assert.equal(s.rules.get("made")?.origin, "api");
  assert.deepEqual(s.rules.faulty(), []);
  // A configured one of the same name goes before it; it can still be taken away.
  s.configure({ registries: DR, rules: [{ ...RULE, name: "made" }] });
  assert.equal(s.rules.get("made")?.origin, "config");
  assert.equal(s.rules.faulty().length, 1);
  assert.equal(await s.rules.remove("made", BY), true);
  assert.deepEqual(s.rules.faulty(), []);
});

test("two rules of the API may be made at once, and of two that are at odds one is refused", async () => {
  await using s = await stage();
  const ends = await Promise.allSettled([s.rules.put("one", RULE, BY), s.rules.put("two", RULE, BY)]);
  assert.deepEqual(ends.map(({ status }) => status).toSorted(), ["fulfilled", "rejected"]);
  assert.equal(s.rules.all().length, 1);
  assert.deepEqual(s.rules.all(), (await s.reopened()).all());
});

test("who makes, replaces and removes a rule is recorded with it, and what was refused is not", async () => {
  await using s = await stage();
  await s.rules.put("made", RULE, BY);
  await s.rules.put("made", { ...RULE, to: [{ registry: "dr", repository: "copies/{{path}}" }] }, BY);
  await assert.rejects(s.rules.put("made", null, BY));
  await s.rules.remove("made", BY);
  await s.rules.remove("made", BY);
  const recorded = await s.db.all("SELECT action, outcome, subject, detail, actor FROM events ORDER BY id");
  const event = { action: "access", outcome: "done", subject: "rule:made", actor: "alice" };
  assert.deepEqual(recorded, [
    { ...event, detail: "made" },
    { ...event, detail: "replaced" },
    { ...event, detail: "removed" },
  ]);
});
