import assert from "node:assert/strict";
import { mkdtemp, readFile, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { openSqlite } from "../../src/db/sqlite.ts";

let root: string;
before(async () => {
  root = await mkdtemp(join(tmpdir(), "entrepot-background-"));
});
after(() => rm(root, { recursive: true }));

let files = 0;
const newFile = (): string => join(root, `${++files}.db`);

const ADD = "INSERT INTO repositories (name, created_at) VALUES (:name, 0)";
const NAMES = "SELECT name FROM repositories ORDER BY id";
/** Takes seconds on any machine. */
const LONG = `
  WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) AS count FROM n`;

test("work in the background takes its turn among the transactions, and its readers see what is committed", async () => {
  await using db = await openSqlite(newFile());
  const steps: string[] = [];
  const work = (name: string, { transaction }: Pick<typeof db, "transaction">) =>
    transaction("durable", async (tx) => {
      steps.push(`${name} begins`);
      assert.equal(await tx.run(ADD, { name }), 1);
      for (const reader of [db, db.background])
        assert.equal((await reader.all<{ name: string }>(NAMES)).map((row) => row.name).includes(name), false);
      assert.deepEqual(await tx.get("SELECT name FROM repositories WHERE name = :name", { name }), { name });
      steps.push(`${name} ends`);
    });
  const front = { transaction: db.transaction.bind(db) };
  await Promise.all([work("a", front), work("b", db.background), work("c", front), work("d", db.background)]);
  assert.deepEqual(
    steps,
    ["a", "b", "c", "d"].flatMap((name) => [`${name} begins`, `${name} ends`]),
  );
  assert.deepEqual(
    await db.background.all(NAMES),
    ["a", "b", "c", "d"].map((name) => ({ name })),
  );
});

test("a transaction in the background that fails leaves nothing, and its error has its code", async () => {
  await using db = await openSqlite(newFile());
  const failed = db.background.transaction("lazy", async (tx) => {
    await tx.run(ADD, { name: "a" });
    await tx.run(ADD, { name: "a" });
  });
  await assert.rejects(failed, { code: "SQLITE_CONSTRAINT_UNIQUE", message: /UNIQUE constraint failed/ });
  await db.background.transaction("lazy", (tx) => tx.run(ADD, { name: "b" }));
  assert.deepEqual(await db.all(NAMES), [{ name: "b" }]);
});

test("a long statement in the background holds up neither the event loop nor the end of the database", async () => {
  const db = await openSqlite(newFile());
  let turns = 0;
  const beat = setInterval(() => turns++, 1);
  const long = await db.background.get<{ count: number }>(LONG);
  clearInterval(beat);
  assert.deepEqual(long, { count: 3_000_000 });
  assert.ok(turns > 50, `${turns} turns of the event loop meanwhile`);
  await db[Symbol.asyncDispose]();
});

test("the background is a thread of low priority", { skip: process.platform !== "linux" && "Linux only" }, async () => {
  await using db = await openSqlite(newFile());
  const nices = async (): Promise<number[]> => {
    const threads = await readdir("/proc/self/task");
    const stats = await Promise.all(threads.map((thread) => readFile(`/proc/self/task/${thread}/stat`, "utf8")));
    return stats.map((stat) => Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[16])).filter((nice) => nice > 0);
  };
  assert.deepEqual(await nices(), []);
  await db.background.get("SELECT 1");
  assert.deepEqual(await nices(), [10]);
});
