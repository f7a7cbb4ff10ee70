import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { assertWhole } from "../transfer/client.ts";
import { MIB, REPOSITORY, startStage, stored } from "../transfer/stage.ts";
import { mountSmallDisk } from "./tmpfs.ts";

test("the disk fills up during a download: the pull succeeds, nothing is left behind, and the next one is kept again", async () => {
  await using disk = await mountSmallDisk(24 * MIB);
  await using stage = await startStage(8 * MIB, { root: join(disk.path, "data") });
  const { upstream, layer, mirror, pull } = stage;
  const gate = upstream.hold({ path: layer.digest, nth: 1 }, 3 * MIB);
  const clients = [pull(), pull()];
  await gate.reached;
  await mirror.until(() => clients.every(({ received }) => received > MIB), "both are under way");
  await disk.fill(MIB);
  gate.release();
  await Promise.all(clients.map((client) => assertWhole(client, layer)));
  assert.deepEqual(await mirror.blobFiles(), []);
  assert.deepEqual(await mirror.partials(), []);
  assert.ok((await mirror.metric("entrepot_cache_errors_total", { operation: "write" })) >= 1);
  await disk.release();
  await assertWhole(pull(), layer);
  await stored(stage);
});

test("a disk without a free byte: an image that was never seen is pulled all the same, and kept once there is room", async () => {
  await using disk = await mountSmallDisk(24 * MIB);
  await using stage = await startStage(2 * MIB, { root: join(disk.path, "data") });
  const { image, layer, mirror, pull } = stage;
  await disk.fill(0);
  assert.equal(await disk.freeBytes(), 0);
  for (const reference of ["1", image.digest]) {
    const manifest = await mirror.get(`/v2/${REPOSITORY}/manifests/${reference}`);
    assert.equal(manifest.status, 200, manifest.bytes.toString());
    assert.deepEqual(manifest.bytes, image.manifest);
  }
  await mirror.pullBlob(REPOSITORY, image.config.digest);
  await assertWhole(pull(), layer);
  assert.deepEqual(await mirror.partials(), []);
  await disk.release();
  assert.equal((await mirror.get(`/v2/${REPOSITORY}/manifests/1`)).status, 200);
  // A reading of the free bytes is good for half a second.
  await mirror.until(async () => {
    await assertWhole(pull(), layer);
    return (await mirror.blobFiles()).length === 1;
  }, "the blob is stored");
});

test("minFree is respected: what would take the last free bytes is passed through", async () => {
  await using disk = await mountSmallDisk(24 * MIB);
  await using stage = await startStage(8 * MIB, {
    root: join(disk.path, "data"),
    config: { storage: { minFree: "18MiB" } },
  });
  const { layer, mirror, pull } = stage;
  await assertWhole(pull(), layer);
  assert.deepEqual(await mirror.blobFiles(), []);
  assert.deepEqual(await mirror.partials(), []);
});
