import assert from "node:assert/strict";
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { openSqlite } from "../../src/db/sqlite.ts";
import { until } from "../kit/registry.ts";

test("a write-ahead log that has grown is moved into the database, and writing goes on meanwhile", async () => {
  const folder = await mkdtemp(join(tmpdir(), "entrepot-checkpoint-"));
  try {
    const file = join(folder, "entrepot.db");
    {
      await using db = await openSqlite(file);
      const put = (subject: string, sizeBytes: number): Promise<number> =>
        db.transaction("lazy", (tx) =>
          tx.run(
            `INSERT INTO manifests (digest, media_type, size, bytes, created_at, used_at) VALUES (:subject, 'x', 1, :bytes, 0, 0)`,
            { subject, bytes: Buffer.alloc(sizeBytes) },
          ),
        );
      for (let i = 0; i < 12; i++) await put(`first ${i}`, 512 * 1024);
      assert.ok((await stat(`${file}-wal`)).size > 4 * 1024 * 1024);
      let written = 0;
      await until(async () => {
        await put(`meanwhile ${written++}`, 1000);
        await new Promise((resolve) => setImmediate(resolve));
        return (await stat(`${file}-wal`)).size < 4 * 1024 * 1024;
      }, "the log is short again");
      const row = await db.get<{ rows: number }>("SELECT count(*) AS rows FROM manifests");
      assert.equal(row?.rows, 12 + written);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});
