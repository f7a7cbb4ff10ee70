import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { makeImage, virtualBlob } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { PushClient } from "./client.ts";
import { assertBlob, assertImage, MIB, sizeOf, storedDigests, uploadPath } from "./stage.ts";
import { mountSmallDisk, type SmallDisk } from "./tmpfs.ts";

const REPOSITORY = "team/app";

interface Stage extends AsyncDisposable {
  readonly disk: SmallDisk;
  readonly registry: TestRegistry;
  readonly client: PushClient;
  readonly root: string;
}

async function startStage(): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const disk = stack.use(await mountSmallDisk(24 * MIB));
  const root = join(disk.path, "data");
  const registry = stack.use(await startRegistry({ root }));
  const client = stack.use(new PushClient(registry.url));
  const owned = stack.move();
  return { disk, registry, client, root, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

test("the disk fills up while a blob is pushed: the push is told why, its file goes, pulls go on, and the next push succeeds", async () => {
  await using stage = await startStage();
  const { disk, client, root } = stage;
  const image = makeImage({ layers: [MIB], seed: "there before" });
  await client.pushImage(REPOSITORY, "1", image);
  const content = virtualBlob(8 * MIB, "too much");
  const session = await client.open(REPOSITORY, content);
  const gate = Promise.withResolvers<void>();
  const body = async function* (): AsyncGenerator<Buffer> {
    yield* content.chunks(0, 3 * MIB);
    await gate.promise;
    yield* content.chunks(3 * MIB, 8 * MIB);
  };
  // With its length, so that all its room is reserved before somebody else takes it.
  const answer = client.send("PATCH", session.location, { "content-length": String(8 * MIB) }, body());
  await until(async () => (await sizeOf(uploadPath(root, session))) >= 2 * MIB, "some of it is on the disk");
  await disk.fill(0);
  gate.resolve();
  const { status, bytes } = await answer;
  assert.equal(status, 507);
  assert.match(bytes.toString(), /disk is full.*free space under storage\.root/);
  assert.deepEqual(await readdir(join(root, "uploads")), []);
  await assertImage(client, REPOSITORY, "1", image);
  await disk.release();
  await pushUntilItFits(client, content);
  assert.equal((await client.get(session.location)).status, 404);
});

test("a blob that does not fit on the disk: refused before much of it is sent, and nothing is left", async () => {
  await using stage = await startStage();
  const { client, root } = stage;
  const content = virtualBlob(40 * MIB, "never");
  for (const way of ["single", "monolithic", "streamed"] as const) {
    await assert.rejects(client.pushBlob(REPOSITORY, content, way), { name: "WrongAnswer", message: /: 507 / }, way);
  }
  assert.deepEqual(await readdir(join(root, "uploads")), []);
  assert.deepEqual(await storedDigests(root), []);
});

test("no room for the database: pushes and deletes are refused, pulls go on, and all works again without a restart", async () => {
  await using stage = await startStage();
  const { disk, client, root } = stage;
  const image = makeImage({ layers: [MIB], seed: "there before" });
  await client.pushImage(REPOSITORY, "1", image);
  // More than the log has room for.
  const large = makeImage({ layers: [1000], seed: "large", annotations: { note: "x".repeat(3 * MIB) } });
  for (const content of large.blobs.values()) await client.pushBlob(REPOSITORY, content, "monolithic");
  const stored = await storedDigests(root);
  await disk.fill(0);
  for (let tries = 1; tries <= 3; tries++) {
    const refused = await client.putManifest(REPOSITORY, large, "1");
    assert.ok(refused.status >= 500, `${refused.status} ${refused.bytes.toString()}`);
    await assertImage(client, REPOSITORY, "1", image);
    assert.equal((await client.get(`/v2/${REPOSITORY}/manifests/${large.digest}`)).status, 404);
  }
  await assert.rejects(client.pushBlob(REPOSITORY, virtualBlob(MIB, "late"), "single"), /WrongAnswer: .*: 507 /);
  assert.deepEqual(await storedDigests(root), stored);
  await disk.release();
  assert.equal((await client.putManifest(REPOSITORY, large, "1")).status, 201);
  await assertImage(client, REPOSITORY, "1", large);
});

/** A reading of the free bytes is good for half a second. */
async function pushUntilItFits(client: PushClient, content: ReturnType<typeof virtualBlob>): Promise<void> {
  await until(async () => {
    try {
      await client.pushBlob(REPOSITORY, content, "monolithic");
      return true;
    } catch (error) {
      assert.match(String(error), /507/);
      return false;
    }
  }, "there is room again");
  await assertBlob(client, REPOSITORY, content);
}
