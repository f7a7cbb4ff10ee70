import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import Sqlite from "better-sqlite3";
import { digestOf } from "../../src/oci/digest.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { assertWhole, Client } from "./client.ts";
import { MIB, REPOSITORY, startStage } from "./stage.ts";

test("a blob larger than the cap is passed through: every client has it, nothing is left behind", async () => {
  await using stage = await startStage(6 * MIB, { config: { storage: { cacheMaxSize: "1MiB" } } });
  const { layer, mirror, pull } = stage;
  await Promise.all([pull(), pull(), pull()].map((client) => assertWhole(client, layer)));
  await assertWhole(pull(), layer);
  assert.deepEqual(await mirror.blobFiles(), []);
  assert.deepEqual(await mirror.partials(), []);
});

test("a range of a blob that finds no room is passed through", async () => {
  await using stage = await startStage(6 * MIB, { config: { storage: { cacheMaxSize: "1MiB" } } });
  const { layer, pull } = stage;
  for (const [header, firstByte, endByte] of [
    ["bytes=100-99999", 100, 100_000],
    [`bytes=${5 * MIB}-`, 5 * MIB, 6 * MIB],
    ["bytes=0-9", 0, 10],
  ] as const) {
    const outcome = await pull({ range: header }).outcome;
    assert.equal(outcome.status, 206);
    assert.ok(outcome.whole, header);
    assert.equal(outcome.digest, digestOf(Buffer.concat([...layer.chunks(firstByte, endByte)])));
  }
});

test("wrong bytes that are passed through never end cleanly, and are counted", async () => {
  await using stage = await startStage(3 * MIB, { config: { storage: { cacheMaxSize: "1MiB" } } });
  const { upstream, layer, mirror, pull } = stage;
  upstream.fault({ path: layer.digest }, { corruptByte: 3 * MIB - 1 });
  const { whole, sizeBytes } = await pull().outcome;
  assert.ok(!whole && sizeBytes < layer.sizeBytes);
  assert.equal(await mirror.metric("entrepot_digest_mismatches_total"), 1);
});

test("a pass-through that breaks is mended by ranges", async () => {
  await using stage = await startStage(3 * MIB, { config: { storage: { cacheMaxSize: "1MiB" } } });
  const { upstream, layer, pull } = stage;
  upstream.fault({ path: layer.digest, nth: 2 }, { cutAfter: MIB });
  upstream.fault({ path: layer.digest, nth: 3 }, { cutAfter: 500_000 });
  await assertWhole(pull(), layer);
});

test("a blob of unknown length takes no more room than there is", async () => {
  await using stage = await startStage(20 * MIB, { config: { storage: { cacheMaxSize: "10MiB" } } });
  const { upstream, layer, mirror, pull } = stage;
  upstream.fault({ path: layer.digest }, { contentLength: "none" });
  await Promise.all([pull(), pull()].map((client) => assertWhole(client, layer)));
  await mirror.until(async () => (await mirror.partials()).length === 0, "nothing is left behind");
  assert.deepEqual(await mirror.blobFiles(), []);
});

test("a database that another process has locked: pulls go on, and are kept once it is free", async () => {
  const image = makeImage({ layers: [MIB, 2000] });
  await using upstream = await startUpstream();
  upstream.add(REPOSITORY, "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const other = new Sqlite(join(mirror.root, "entrepot.db"));
  // A transaction of this process that is half done could not end while this waits for it.
  await turn();
  other.exec("BEGIN IMMEDIATE");
  const started = performance.now();
  try {
    assert.equal((await mirror.get(`/v2/${REPOSITORY}/manifests/1`)).status, 200);
    await Promise.all(image.layers.map(({ digest }) => mirror.pullBlob(REPOSITORY, digest)));
    // What keeps the database must not keep the event loop: other requests are answered meanwhile.
    assert.equal((await mirror.get("/v2/")).status, 200);
  } finally {
    other.exec("ROLLBACK");
    other.close();
  }
  assert.ok(performance.now() - started < 8000, "a lock costs little time");
  assert.ok((await mirror.metric("entrepot_cache_errors_total")) >= 1);
  await mirror.until(async () => (await mirror.metric("entrepot_flights_in_progress")) === 0, "flights have ended");
  assert.equal((await mirror.get(`/v2/${REPOSITORY}/manifests/1`)).status, 200);
  for (const { digest } of image.layers) {
    await assertWhole(new Client(`${mirror.url}/v2/${REPOSITORY}/blobs/${digest}`), {
      digest,
      sizeBytes: 0,
    });
  }
  await mirror.until(async () => (await mirror.blobFiles()).length === 2, "both are stored");
});
