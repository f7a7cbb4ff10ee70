import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { appendFile, copyFile, mkdtemp, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import Sqlite from "better-sqlite3";
import type { Database } from "../../src/db/database.ts";
import { lockStorage } from "../../src/db/lock.ts";
import { openSqlite } from "../../src/db/sqlite.ts";

let root: string;
before(async () => {
  root = await mkdtemp(join(tmpdir(), "entrepot-db-"));
});
after(() => rm(root, { recursive: true }));

let files = 0;
const newFile = (): string => join(root, `${++files}.db`);

const ADD = "INSERT INTO repositories (name, created_at) VALUES (:name, 0)";
const NAMES = "SELECT name FROM repositories ORDER BY id";

async function names(db: Database): Promise<string[]> {
  return (await db.all<{ name: string }>(NAMES)).map(({ name }) => name);
}

test("transactions run one after the other, and readers see only what is committed", async () => {
  await using db = await openSqlite(newFile());
  const steps: string[] = [];
  const work = (name: string) =>
    db.transaction("lazy", async (tx) => {
      steps.push(`${name} begins`);
      await tx.run(ADD, { name });
      for (let i = 0; i < 5; i++) await turn();
      assert.equal((await names(db)).includes(name), false);
      assert.ok(await tx.get("SELECT 1 FROM repositories WHERE name = :name", { name }));
      steps.push(`${name} ends`);
      return name;
    });
  assert.deepEqual(await Promise.all([work("a"), work("b"), work("c")]), ["a", "b", "c"]);
  assert.deepEqual(steps, ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]);
  assert.deepEqual(await names(db), ["a", "b", "c"]);
});

test("nobody else waits for the disk on behalf of a durable transaction", async () => {
  await using db = await openSqlite(newFile());
  const ended: string[] = [];
  const work = (durability: "durable" | "lazy", name: string) =>
    db.transaction(durability, (tx) => tx.run(ADD, { name })).then(() => ended.push(name));
  await Promise.all([work("durable", "durable"), work("lazy", "lazy")]);
  assert.deepEqual(ended, ["lazy", "durable"]);
  assert.deepEqual(await names(db), ["durable", "lazy"], "committed in the order of their asking");
});

test("a transaction that fails leaves nothing, and the next one is not harmed", async () => {
  await using db = await openSqlite(newFile());
  const failed = db.transaction("durable", async (tx) => {
    await tx.run(ADD, { name: "a" });
    throw new Error("changed my mind");
  });
  const broken = db.transaction("durable", async (tx) => {
    await tx.run(ADD, { name: "b" });
    await tx.run(ADD, { name: "b" });
  });
  const next = db.transaction("durable", (tx) => tx.run(ADD, { name: "c" }));
  await assert.rejects(failed, /changed my mind/);
  await assert.rejects(broken, /UNIQUE/);
  assert.equal(await next, 1);
  assert.deepEqual(await names(db), ["c"]);
});

test("what was begun is committed before the database closes", async () => {
  const file = newFile();
  const db = await openSqlite(file);
  const pending = (["lazy", "durable"] as const).map((durability) =>
    db.transaction(durability, async (tx) => {
      await turn();
      await tx.run(ADD, { name: durability });
    }),
  );
  await db[Symbol.asyncDispose]();
  await Promise.all(pending);
  await using again = await openSqlite(file);
  assert.deepEqual(await names(again), ["lazy", "durable"]);
});

test("a database of a newer release is refused, and stays as it was", async () => {
  const file = newFile();
  const newer = new Sqlite(file);
  newer.pragma("user_version = 1000");
  newer.close();
  await assert.rejects(openSqlite(file), /schema version 1000.*newer release/);
  const untouched = new Sqlite(file);
  assert.equal(untouched.pragma("user_version", { simple: true }), 1000);
  untouched.close();
});

test("a file that is no database is refused, and stays as it was", async () => {
  const file = newFile();
  await writeFile(file, "this is a text, and not a short one either".repeat(100));
  await assert.rejects(openSqlite(file), /not a database/);
});

/** Copies of a database and its log, as a crash would leave them. */
async function crashedCopy(file: string): Promise<string> {
  const copy = newFile();
  await copyFile(file, copy);
  await copyFile(`${file}-wal`, `${copy}-wal`);
  return copy;
}

test("a torn write-ahead log opens: what was whole is there, and the database is sound", async () => {
  const file = newFile();
  await using db = await openSqlite(file);
  for (let i = 0; i < 50; i++) await db.transaction("durable", (tx) => tx.run(ADD, { name: `r${i}` }));
  const { size } = await stat(`${file}-wal`);
  for (const damage of [
    (wal: string) => truncate(wal, size - 100),
    (wal: string) => truncate(wal, Math.floor(size / 2) + 7),
    (wal: string) => truncate(wal, 40),
    (wal: string) => appendFile(wal, Buffer.alloc(5000, 0xa5)),
  ]) {
    const copy = await crashedCopy(file);
    await damage(`${copy}-wal`);
    await using torn = await openSqlite(copy);
    const found = await names(torn);
    assert.deepEqual(
      found,
      Array.from({ length: found.length }, (_, i) => `r${i}`),
      "a prefix of what was written",
    );
    assert.deepEqual(await torn.all("PRAGMA integrity_check"), [{ integrity_check: "ok" }]);
    await torn.transaction("durable", (tx) => tx.run(ADD, { name: "new" }));
  }
  const whole = await crashedCopy(file);
  await using sound = await openSqlite(whole);
  assert.equal((await names(sound)).length, 50, "what was acknowledged survives");
});

test("a database that another process holds fails writes after a moment, without holding the event loop, and recovers", async () => {
  const file = newFile();
  await using db = await openSqlite(file);
  const other = new Sqlite(file);
  other.exec("BEGIN IMMEDIATE");
  let longest = 0;
  let last = performance.now();
  const beat = setInterval(() => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  }, 5);
  const busy = (error: unknown): boolean => (error as NodeJS.ErrnoException).code === "SQLITE_BUSY";
  await assert.rejects(
    db.transaction("lazy", (tx) => tx.run(ADD, { name: "a" })),
    busy,
  );
  // Once that is known, nobody waits again.
  const started = performance.now();
  for (let i = 0; i < 20; i++)
    await assert.rejects(
      db.transaction("lazy", (tx) => tx.run(ADD, { name: "b" })),
      busy,
    );
  assert.ok(performance.now() - started < 900);
  assert.deepEqual(await names(db), [], "readers go on");
  clearInterval(beat);
  assert.ok(longest < 900, `the event loop stood still for ${longest} ms`);
  other.exec("ROLLBACK");
  await db.transaction("lazy", (tx) => tx.run(ADD, { name: "c" }));
  // A short hold is waited for.
  other.exec("BEGIN IMMEDIATE");
  const waiting = db.transaction("lazy", (tx) => tx.run(ADD, { name: "d" }));
  await turn();
  other.exec("ROLLBACK");
  await waiting;
  other.close();
  assert.deepEqual(await names(db), ["c", "d"]);
});

test("storage in use by a process is refused to another, and free again when that one has ended, however it ended", async () => {
  const folder = await mkdtemp(join(root, "storage-"));
  const release = lockStorage(folder);
  assert.throws(() => lockStorage(folder), /in use by another entrepot: stop it/);
  const lock = fileURLToPath(new URL("../../src/db/lock.ts", import.meta.url));
  const taker = `
    const { lockStorage } = await import(${JSON.stringify(lock)});
    lockStorage(${JSON.stringify(folder)});
    process.kill(process.pid, "SIGKILL");`;
  const run = () => spawnSync(process.execPath, ["--input-type=module", "-e", taker], { encoding: "utf8" });
  const refused = run();
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /in use by another entrepot/);
  release();
  assert.equal(run().signal, "SIGKILL");
  lockStorage(folder)();
});

test("a lock that can't be taken for another reason says that reason", () => {
  assert.throws(
    () => lockStorage(join(root, "nowhere")),
    (error: Error) => !error.message.includes("in use"),
  );
});
