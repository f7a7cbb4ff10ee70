import assert from "node:assert/strict";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import Sqlite from "better-sqlite3";
import { hexOf, type Digest } from "../../src/oci/digest.ts";
import { makeImage, type Image, type ImageBlob } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { assertWhole, Client } from "../transfer/client.ts";

const MIB = 1024 * 1024;
const REPOSITORY = "library/app";

function imagesOf(count: number, layerBytes: number): Image[] {
  return Array.from({ length: count }, (_, i) => makeImage({ layers: [layerBytes], seed: `evict ${i}` }));
}

const layerOf = (image: Image | undefined): ImageBlob => {
  const layer = image?.layers[0];
  assert.ok(layer);
  return layer;
};

async function startImageUpstream(images: Image[], repositories = [REPOSITORY]): Promise<Upstream> {
  const upstream = await startUpstream();
  for (const repository of repositories)
    for (const [index, image] of images.entries()) upstream.add(repository, `v${index}`, image);
  return upstream;
}

function startCapped(upstream: Upstream, cacheMaxSize: string, root?: string): Promise<TestRegistry> {
  return startRegistry({
    upstreams: { "docker.io": upstream },
    config: { storage: { cacheMaxSize } },
    ...(root === undefined ? {} : { root }),
  });
}

async function filesOnDisk(root: string): Promise<string[]> {
  const folders = ["blobs", "staging"].map((folder) =>
    readdir(join(root, folder), { recursive: true, withFileTypes: true }),
  );
  const entries = (await Promise.all(folders)).flat();
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

/** Bytes of all blobs and partial files at one moment: between two equal listings. */
async function bytesOnDisk({ root }: TestRegistry): Promise<number> {
  for (let before = await filesOnDisk(root); ;) {
    const sizes = await Promise.all(before.map((path) => stat(path).catch(() => undefined)));
    const after = await filesOnDisk(root);
    if (isDeepStrictEqual(before, after)) return sizes.reduce((sum, stats) => sum + (stats?.size ?? 0), 0);
    before = after;
  }
}

async function isStored(mirror: TestRegistry, digest: Digest): Promise<boolean> {
  return (await mirror.blobFiles()).some((path) => path.endsWith(hexOf(digest)));
}

async function pullStored(mirror: TestRegistry, blob: ImageBlob, repository = REPOSITORY): Promise<void> {
  await mirror.pullBlob(repository, blob.digest);
  await mirror.until(
    async () => (await isStored(mirror, blob.digest)) && (await mirror.metric("entrepot_flights_in_progress")) === 0,
    "it is stored",
  );
}

test("the cap holds under a stream of pulls, on the disk, and what is counted is what is there", async () => {
  const images = imagesOf(24, MIB);
  await using upstream = await startImageUpstream(images);
  await using mirror = await startCapped(upstream, "5MiB");
  let most = 0;
  const stream = new AbortController();
  const watch = (async () => {
    while (!stream.signal.aborted) most = Math.max(most, await bytesOnDisk(mirror));
  })();
  for (let at = 0; at < images.length; at += 3) {
    await Promise.all(images.slice(at, at + 3).map((image) => mirror.pullBlob(REPOSITORY, layerOf(image).digest)));
    // What is still on its way to the disk can't be evicted: on a slow one, the next would pass by the cache.
    await mirror.until(async () => (await mirror.metric("entrepot_flights_in_progress")) === 0, "flights have ended");
  }
  stream.abort();
  await watch;
  assert.ok(most >= 3 * MIB && most <= 5 * MIB, `${most} bytes`);
  const onDisk = await bytesOnDisk(mirror);
  assert.ok(onDisk >= 3 * MIB, "the cap is made use of");
  assert.equal(await mirror.metric("entrepot_cache_bytes"), onDisk);
  assert.equal(await mirror.metric("entrepot_cache_evictions_total", { reason: "space" }), 24 - onDisk / MIB);
});

test("what was used longest ago goes first, and a hit counts as use", async () => {
  const [a, b, c, d] = imagesOf(4, MIB).map(layerOf) as [ImageBlob, ImageBlob, ImageBlob, ImageBlob];
  await using upstream = await startImageUpstream(imagesOf(4, MIB));
  await using mirror = await startCapped(upstream, "3MiB");
  for (const blob of [a, b, c]) await pullStored(mirror, blob);
  await mirror.pullBlob(REPOSITORY, a.digest);
  await pullStored(mirror, d);
  assert.deepEqual(await Promise.all([a, b, c, d].map(({ digest }) => isStored(mirror, digest))), [
    true,
    false,
    true,
    true,
  ]);
});

test("the order of use survives a restart", async () => {
  const [a, b, c, d] = imagesOf(4, MIB).map(layerOf) as [ImageBlob, ImageBlob, ImageBlob, ImageBlob];
  await using upstream = await startImageUpstream(imagesOf(4, MIB));
  await using first = await startCapped(upstream, "3MiB");
  for (const blob of [a, b, c]) await pullStored(first, blob);
  await first.pullBlob(REPOSITORY, a.digest);
  await first.stop();
  await using mirror = await startCapped(upstream, "3MiB", first.root);
  await pullStored(mirror, d);
  assert.deepEqual(await Promise.all([a, b, c, d].map(({ digest }) => isStored(mirror, digest))), [
    true,
    false,
    true,
    true,
  ]);
});

test("a blob of two repositories is stored and counted once, stays while either uses it, and comes back for both", async () => {
  const images = imagesOf(3, MIB);
  const [shared, b, c] = images.map(layerOf) as [ImageBlob, ImageBlob, ImageBlob];
  await using upstream = await startImageUpstream(images, [REPOSITORY, "library/other"]);
  await using mirror = await startCapped(upstream, "2MiB");
  await pullStored(mirror, shared);
  await mirror.pullBlob("library/other", shared.digest);
  assert.equal(upstream.hits("GET", shared.digest), 1);
  assert.equal(await mirror.metric("entrepot_cache_bytes"), MIB);
  await pullStored(mirror, b);
  await mirror.pullBlob("library/other", shared.digest);
  await pullStored(mirror, c);
  assert.equal(await isStored(mirror, shared.digest), true, "the other repository has just used it");
  await pullStored(mirror, b);
  await mirror.pullBlob(REPOSITORY, c.digest);
  await pullStored(mirror, shared, "library/other");
  await mirror.pullBlob(REPOSITORY, shared.digest);
  assert.equal(upstream.hits("GET", shared.digest), 2);
});

test("a hit writes nothing to the database", async () => {
  const images = imagesOf(1, MIB);
  await using upstream = await startImageUpstream(images);
  await using mirror = await startCapped(upstream, "5MiB");
  await mirror.get(`/v2/${REPOSITORY}/manifests/v0`);
  await pullStored(mirror, layerOf(images[0]));
  const observer = new Sqlite(join(mirror.root, "entrepot.db"), { readonly: true });
  try {
    const version = (): unknown => observer.pragma("data_version", { simple: true });
    const before = version();
    for (let i = 0; i < 30; i++) {
      await mirror.get(`/v2/${REPOSITORY}/manifests/v0`);
      await mirror.get(`/v2/${REPOSITORY}/blobs/${layerOf(images[0]).digest}`, { range: "bytes=0-9" });
    }
    assert.equal(version(), before);
  } finally {
    observer.close();
  }
});

test("what is being read is not evicted; where nothing else may go, the new blob is passed through", async () => {
  const [a, b] = [...imagesOf(1, 24 * MIB), ...imagesOf(2, 4 * MIB).slice(1)].map(layerOf) as [ImageBlob, ImageBlob];
  await using upstream = await startUpstream();
  upstream.add(REPOSITORY, "a", imagesOf(1, 24 * MIB)[0] as Image);
  upstream.add(REPOSITORY, "b", imagesOf(2, 4 * MIB)[1] as Image);
  await using mirror = await startCapped(upstream, "25MiB");
  await pullStored(mirror, a);
  const reading = new Client(`${mirror.url}/v2/${REPOSITORY}/blobs/${a.digest}`);
  await reading.pause();
  await mirror.pullBlob(REPOSITORY, b.digest);
  assert.equal(await isStored(mirror, a.digest), true);
  assert.equal(await isStored(mirror, b.digest), false);
  await reading.resume();
  await assertWhole(reading, a);
  await pullStored(mirror, b);
  assert.equal(await isStored(mirror, a.digest), false);
});

test("a blob that is evicted while its first clients still read it reaches them whole", async () => {
  const [a, b] = imagesOf(2, 24 * MIB).map(layerOf) as [ImageBlob, ImageBlob];
  await using upstream = await startImageUpstream(imagesOf(2, 24 * MIB));
  await using mirror = await startCapped(upstream, "25MiB");
  const slow = new Client(`${mirror.url}/v2/${REPOSITORY}/blobs/${a.digest}`);
  await slow.pause();
  await mirror.until(async () => isStored(mirror, a.digest), "it is stored");
  await mirror.until(async () => (await mirror.metric("entrepot_flights_in_progress")) === 0, "the flight has ended");
  await pullStored(mirror, b);
  assert.equal(await isStored(mirror, a.digest), false);
  await slow.resume();
  await assertWhole(slow, a);
  assert.equal(upstream.hits("GET", a.digest), 1);
});

test("room that is promised to one download is not given to another", async () => {
  const [a, b] = imagesOf(2, 3 * MIB).map(layerOf) as [ImageBlob, ImageBlob];
  await using upstream = await startImageUpstream(imagesOf(2, 3 * MIB));
  await using mirror = await startCapped(upstream, "4MiB");
  const gate = upstream.hold({ path: a.digest }, MIB);
  const first = new Client(`${mirror.url}/v2/${REPOSITORY}/blobs/${a.digest}`);
  await mirror.until(() => first.received > 0, "it is under way");
  await mirror.pullBlob(REPOSITORY, b.digest);
  assert.equal(await isStored(mirror, b.digest), false);
  gate.release();
  await assertWhole(first, a);
  await mirror.until(async () => isStored(mirror, a.digest), "the first is stored");
});

test("a partial file that nobody fetches goes before what is whole", async () => {
  const [small, large] = [...imagesOf(1, MIB), ...imagesOf(1, 40 * MIB)].map(layerOf) as [ImageBlob, ImageBlob];
  const other = layerOf(imagesOf(2, MIB)[1]);
  await using upstream = await startUpstream();
  upstream.add(REPOSITORY, "a", imagesOf(1, MIB)[0] as Image);
  upstream.add(REPOSITORY, "b", imagesOf(1, 40 * MIB)[0] as Image);
  upstream.add(REPOSITORY, "c", imagesOf(2, MIB)[1] as Image);
  await using mirror = await startCapped(upstream, "42MiB");
  await pullStored(mirror, small);
  const gate = upstream.hold({ path: large.digest }, 5 * MIB);
  const client = new Client(`${mirror.url}/v2/${REPOSITORY}/blobs/${large.digest}`);
  await mirror.until(
    async () => (await mirror.metric("entrepot_upstream_received_bytes_total")) >= 6 * MIB,
    "5 MiB are here",
  );
  client.leave();
  await mirror.until(async () => (await mirror.metric("entrepot_flights_in_progress")) === 0, "it has paused");
  gate.release();
  assert.equal((await mirror.partials()).length, 1);
  await mirror.stop();
  await using tighter = await startCapped(upstream, "5MiB", mirror.root);
  await pullStored(tighter, other);
  assert.deepEqual(await tighter.partials(), []);
  assert.equal(await isStored(tighter, small.digest), true);
  assert.equal(await tighter.metric("entrepot_cache_evictions_total", { reason: "partial" }), 1);
  assert.equal(await tighter.metric("entrepot_cache_evictions_total", { reason: "space" }), 0);
});

test("a lower cap after a restart is reached with the next pull", async () => {
  const images = imagesOf(6, MIB);
  await using upstream = await startImageUpstream(images);
  await using first = await startCapped(upstream, "6MiB");
  for (const image of images.slice(0, 5)) await pullStored(first, layerOf(image));
  await first.stop();
  await using mirror = await startCapped(upstream, "2MiB", first.root);
  await pullStored(mirror, layerOf(images[5]));
  assert.equal(await bytesOnDisk(mirror), 2 * MIB);
});

test("an evicted manifest takes its tags along, and is fetched again", async () => {
  const images = imagesOf(2, MIB);
  await using upstream = await startImageUpstream(images);
  await using mirror = await startCapped(upstream, `${MIB + 100}`);
  assert.equal((await mirror.get(`/v2/${REPOSITORY}/manifests/v0`)).status, 200);
  await pullStored(mirror, layerOf(images[1]));
  assert.equal(await mirror.metric("entrepot_cache_evictions_total", { reason: "space" }), 1);
  const again = await mirror.get(`/v2/${REPOSITORY}/manifests/v0`);
  assert.deepEqual(again.bytes, images[0]?.manifest);
  assert.equal(upstream.hits("GET", "/manifests/"), 2);
});
