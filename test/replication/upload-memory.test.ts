import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { openSqlite } from "../../src/db/sqlite.ts";
import type { Database } from "../../src/db/database.ts";
import { UploadSessions } from "../../src/replication/upload-memory.ts";
import { until } from "../kit/registry.ts";
import { TestClock } from "../remote/remotes.ts";

const SESSION = {
  location: "http://dr.example/v2/a/blobs/uploads/1?_state=x",
  offsetBytes: 67_108_864,
  chunkMinBytes: 0,
};
const WEEK_MS = 7 * 86_400_000;

async function openDatabase() {
  const root = await mkdtemp(join(tmpdir(), "entrepot-"));
  const db = await openSqlite(join(root, "metadata.db"));
  return {
    db,
    [Symbol.asyncDispose]: async () => {
      await db[Symbol.asyncDispose]();
      await rm(root, { recursive: true });
    },
  };
}

const faults: unknown[] = [];
const open = (db: Database, clock = new TestClock()): Promise<UploadSessions> =>
  UploadSessions.open({ db, clock, onFault: (operation, error) => void faults.push(operation, error) });
const rows = (db: Database): Promise<{ key: string }[]> => db.all("SELECT key FROM replication_uploads ORDER BY key");

test("an upload is known to the next process, a moment after it has come further", async () => {
  await using opened = await openDatabase();
  const { db } = opened;
  await using sessions = await open(db);
  sessions.set("dr a sha256:1", { ...SESSION, offsetBytes: 0 });
  sessions.set("dr a sha256:1", SESSION);
  await until(async () => (await rows(db)).length === 1, "it is written down");
  // This process is killed here: nothing more is written.
  await using next = await open(db);
  assert.deepEqual(next.get("dr a sha256:1"), SESSION);
  assert.equal(next.get("dr a sha256:2"), undefined);
});

test("what is done is forgotten, and what the process ends with is not", async () => {
  await using opened = await openDatabase();
  const { db } = opened;
  {
    await using sessions = await open(db);
    sessions.set("done", SESSION);
    sessions.set("open", SESSION);
    assert.equal(sessions.delete("done"), true);
    assert.equal(sessions.delete("done"), false);
  }
  assert.deepEqual(await rows(db), [{ key: "open" }]);
  {
    await using sessions = await open(db);
    sessions.delete("open");
  }
  assert.deepEqual(await rows(db), []);
  assert.deepEqual(faults, []);
});

test("an upload of a week ago is not gone on with", async () => {
  await using opened = await openDatabase();
  const { db } = opened;
  const clock = new TestClock();
  {
    await using sessions = await open(db, clock);
    sessions.set("old", SESSION);
    clock.nowMs += WEEK_MS;
    assert.equal(sessions.get("old"), undefined);
  }
  await using sessions = await open(db, clock);
  assert.equal(sessions.get("old"), undefined);
  sessions.set("new", SESSION);
  await until(async () => (await rows(db)).some(({ key }) => key === "new"), "it is written down");
  assert.deepEqual(await rows(db), [{ key: "new" }]);
});
