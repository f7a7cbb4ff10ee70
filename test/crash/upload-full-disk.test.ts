import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { pino } from "pino";
import { systemClock } from "../../src/base/clock.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { digestOf } from "../../src/oci/digest.ts";
import { RegistryError } from "../../src/oci/errors.ts";
import type { RepositoryName } from "../../src/oci/reference.ts";
import { FileBlobStore } from "../../src/store/blobs-fs.ts";
import { Uploads } from "../../src/store/uploads.ts";
import { mountSmallDisk } from "./tmpfs.ts";

const MIB = 1024 * 1024;
const REPOSITORY = "team/app" as RepositoryName;

test("the disk fills up under an upload: it ends with the remedy, its bytes are given back, and the next one succeeds", async () => {
  await using disk = await mountSmallDisk(16 * MIB);
  const root = join(disk.path, "data");
  await mkdir(root);
  await using db = await openSqlite(join(root, "entrepot.db"));
  const blobs = await FileBlobStore.open(root);
  // Whoever makes room has been misled: others write to the same disk.
  const room = { reserve: () => Promise.resolve({ release: () => undefined }) };
  const log = pino({ level: "silent" });
  await using uploads = new Uploads({ db, blobs, clock: systemClock, room, lifeMs: () => 1000, log });
  const content = randomBytes(8 * MIB);
  const digest = digestOf(content);
  const recorded: number[] = [];
  const record = async (sizeBytes: number): Promise<void> => void recorded.push(sizeBytes);
  async function* body(): AsyncGenerator<Buffer> {
    for (let at = 0; at < content.length; at += 100_000) yield content.subarray(at, at + 100_000);
  }
  const isFull = (error: unknown): boolean => {
    assert.ok(error instanceof RegistryError);
    assert.equal((error.cause as NodeJS.ErrnoException).code, "ENOSPC");
    assert.deepEqual([error.code, error.status], ["UNAVAILABLE", 507]);
    assert.match(error.message, /disk is full.*free space under storage\.root/);
    return true;
  };
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await disk.fill(4 * MIB + 1000);
  const before = await disk.freeBytes();
  await assert.rejects(uploads.append(REPOSITORY, id, body()), isFull);
  await assert.rejects(uploads.find(REPOSITORY, id), { code: "BLOB_UPLOAD_UNKNOWN" });
  await assert.rejects(uploads.receive(digest, body(), content.length, record), isFull);
  assert.deepEqual(await readdir(join(root, "uploads")), []);
  assert.deepEqual(recorded, []);
  // The database's log may have grown by a few pages.
  assert.ok(before - (await disk.freeBytes()) < 200_000);
  await disk.release();
  const again = await uploads.start(REPOSITORY, "sha256");
  await uploads.finish(REPOSITORY, again.id, digest, body(), undefined, record);
  assert.deepEqual(recorded, [content.length]);
});
