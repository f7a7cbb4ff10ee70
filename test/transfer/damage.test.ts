import assert from "node:assert/strict";
import { mkdir, readdir, rm, truncate, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { hexOf } from "../../src/oci/digest.ts";
import { startRegistry } from "../kit/registry.ts";
import { assertWhole, Client } from "./client.ts";
import { MIB, startStage, stored, type Stage } from "./stage.ts";

/** Large enough that it is read from its file each time. */
const LARGE = MIB;
const SMALL = 5_000;

function pathOf({ mirror, layer }: Stage): string {
  const hex = hexOf(layer.digest);
  return join(mirror.root, "blobs/sha256", hex.slice(0, 2), hex);
}

async function startWithStored(sizeBytes: number): Promise<Stage> {
  const stage = await startStage(sizeBytes);
  await assertWhole(stage.pull(), stage.layer);
  await stored(stage);
  await stage.mirror.until(
    async () => (await stage.mirror.metric("entrepot_flights_in_progress")) === 0,
    "the flight has ended",
  );
  return stage;
}

for (const [what, damage, quarantined] of [
  ["cut short", (path: string) => truncate(path, 100), true],
  ["empty", (path: string) => truncate(path, 0), true],
  ["longer than it was", (path: string) => truncate(path, LARGE + 1), true],
  ["missing", (path: string) => rm(path), false],
  [
    "a folder",
    async (path: string) => {
      await rm(path);
      await mkdir(path);
      await writeFile(join(path, "x"), "");
    },
    true,
  ],
] as const) {
  for (const sizeBytes of [SMALL, LARGE]) {
    test(`a stored file of ${sizeBytes} bytes that is ${what} is not served: it is fetched again, and stays good`, async () => {
      await using stage = await startWithStored(sizeBytes);
      const { upstream, layer, mirror } = stage;
      await damage(pathOf(stage));
      await assertWhole(stage.pull(), layer);
      await stored(stage);
      assert.equal(upstream.hits("GET", layer.digest), 2);
      await mirror.until(
        async () => (await mirror.metric("entrepot_flights_in_progress")) === 0,
        "the flight has ended",
      );
      await assertWhole(stage.pull(), layer);
      assert.equal(upstream.hits("GET", layer.digest), 2, "it is served from the new file");
      assert.equal((await readdir(join(mirror.root, "quarantine"))).length, quarantined ? 1 : 0);
      assert.ok((await mirror.metric("entrepot_cache_errors_total", { operation: "open blob" })) >= 1);
    });
  }
}

test("a small stored file with a flipped byte is not served, and is fetched again", async () => {
  await using stage = await startWithStored(SMALL);
  await writeFile(pathOf(stage), Buffer.alloc(SMALL));
  await assertWhole(stage.pull(), stage.layer);
  assert.equal(stage.upstream.hits("GET", stage.layer.digest), 2);
});

test("a large stored file with a flipped byte is broken off before its end at its first pull after a start, and is fetched again", async () => {
  await using stage = await startWithStored(LARGE);
  const { upstream, layer, mirror } = stage;
  await mirror.stop();
  const path = pathOf(stage);
  await writeFile(path, Buffer.from(layer.bytes).fill(layer.bytes.readUInt8(700_000) ^ 1, 700_000, 700_001));
  await using restarted = await startRegistry({ upstreams: { "docker.io": upstream }, root: mirror.root });
  const url = `${restarted.url}/v2/library/app/blobs/${layer.digest}`;
  const { whole, sizeBytes } = await new Client(url).outcome;
  assert.equal(whole, false);
  assert.ok(sizeBytes < layer.sizeBytes);
  await restarted.until(
    async () => (await readdir(join(restarted.root, "quarantine"))).length === 1,
    "it is set aside",
  );
  assert.equal(await restarted.metric("entrepot_cache_errors_total", { operation: "read blob" }), 1);
  await assertWhole(new Client(url), layer);
  assert.equal(upstream.hits("GET", layer.digest), 2);
});

test("a file that is cut while it is being sent: the answer is broken off, never ended short, and the next pull is whole", async () => {
  await using stage = await startWithStored(32 * MIB);
  const { upstream, layer, mirror } = stage;
  const client = stage.pull();
  await client.pause();
  await truncate(pathOf(stage), MIB);
  await client.resume();
  const { whole, sizeBytes } = await client.outcome;
  assert.equal(whole, false);
  assert.ok(sizeBytes < layer.sizeBytes);
  await assertWhole(stage.pull(), layer);
  await mirror.until(async () => (await mirror.metric("entrepot_flights_in_progress")) === 0, "the flight has ended");
  await assertWhole(stage.pull(), layer);
  assert.equal(upstream.hits("GET", layer.digest), 2);
});

test("a folder of blobs that can't be made costs the cache, not the pull", async () => {
  await using stage = await startStage(LARGE);
  const { layer, mirror } = stage;
  const folder = dirname(pathOf(stage));
  await rm(folder, { recursive: true, force: true });
  await writeFile(folder, "in the way");
  await assertWhole(stage.pull(), layer);
  await mirror.until(async () => (await mirror.partials()).length === 0, "nothing is left behind");
  assert.ok((await mirror.metric("entrepot_cache_errors_total", { operation: "commit" })) >= 1);
  await rm(folder);
  await assertWhole(stage.pull(), layer);
  await stored(stage);
});
