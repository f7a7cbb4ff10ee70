import assert from "node:assert/strict";
import { open, rm, stat, truncate } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import Sqlite from "better-sqlite3";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { layerOf } from "./clients.ts";

const image = makeImage({ layers: [500_000, 1000] });
const [large, small] = [layerOf(image, 0), layerOf(image, 1)];

/** Pulls it all, and checks every byte. */
async function pull(mirror: TestRegistry, wanted: Image, tag: string): Promise<void> {
  for (const reference of [tag, wanted.digest]) {
    const answer = await mirror.get(`/v2/library/app/manifests/${reference}`);
    assert.equal(answer.status, 200, answer.bytes.toString());
    assert.deepEqual(answer.bytes, wanted.manifest);
  }
  for (const { digest } of [wanted.config, ...wanted.layers]) await mirror.pullBlob("library/app", digest);
}

async function stored(upstream: Upstream): Promise<TestRegistry> {
  upstream.add("library/app", "1", image);
  const mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  await pull(mirror, image, "1");
  await mirror.until(async () => (await mirror.blobFiles()).length === 3, "it is stored");
  return mirror;
}

test("a pull goes on when the database has lost its tables, for what was cached and for what was not", async () => {
  await using upstream = await startUpstream();
  await using mirror = await stored(upstream);
  const other = makeImage({ layers: [200_000], seed: "other" });
  upstream.add("library/app", "2", other);
  const vandal = new Sqlite(join(mirror.root, "entrepot.db"));
  vandal.pragma("foreign_keys = OFF");
  for (const table of ["tags", "blobs", "manifests", "manifest_children", "repository_content", "listings"]) {
    vandal.exec(`DROP TABLE ${table}`);
  }
  vandal.close();
  await pull(mirror, image, "1");
  await pull(mirror, other, "2");
  await pull(mirror, other, "2");
  assert.equal((await mirror.get("/v2/library/app/tags/list")).status, 200);
  assert.equal((await mirror.get(`/v2/library/app/referrers/${image.digest}`)).status, 200);
  assert.ok((await mirror.metric("entrepot_cache_errors_total")) > 0);
  assert.ok(mirror.log.some(({ msg }) => msg === "the cache failed, the pull goes on"));
});

test("a pull goes on when the database file is full of rubbish", async () => {
  await using upstream = await startUpstream();
  await using first = await stored(upstream);
  await first.stop();
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream }, root: first.root });
  for (const name of ["entrepot.db", "entrepot.db-wal"]) {
    const path = join(mirror.root, name);
    const { size } = await stat(path).catch(() => ({ size: 0 }));
    // In place: cutting a file that is mapped into memory ends the process, whoever maps it.
    await using file = await open(path, "r+");
    await file.write(Buffer.alloc(size, "rubbish"), 0, size, 0);
  }
  await pull(mirror, image, "1");
  assert.ok((await mirror.metric("entrepot_cache_errors_total")) > 0);
});

test("a pull goes on while somebody else holds the database's lock", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const other = new Sqlite(join(mirror.root, "entrepot.db"));
  // A transaction of this process that is half done could not end while this waits for it.
  await turn();
  other.exec("BEGIN EXCLUSIVE");
  await mirror.pullBlob("library/app", large.digest);
  await mirror.until(async () => (await mirror.metric("entrepot_cache_errors_total")) >= 1, "the write was given up");
  other.exec("ROLLBACK");
  other.close();
  await mirror.until(async () => (await mirror.metric("entrepot_flights_in_progress")) === 0, "the flight is over");
  await mirror.pullBlob("library/app", large.digest);
  await mirror.until(async () => (await mirror.blobFiles()).length === 1, "now it is stored");
  await mirror.pullBlob("library/app", large.digest);
  assert.equal(upstream.hits("GET", large.digest), 2);
});

for (const [name, damage] of [
  ["cut short", (path: string) => truncate(path, 400)],
  ["gone", (path: string) => rm(path)],
] as const) {
  test(`a stored blob whose file is ${name} is fetched again, and stored again`, async () => {
    for (const blob of [large, small]) {
      await using upstream = await startUpstream();
      await using first = await stored(upstream);
      await first.stop();
      const path = (await first.blobFiles()).find((file) => file.includes(blob.digest.slice("sha256:".length)));
      assert.ok(path);
      await damage(path);
      upstream.resetCounters();
      await using mirror = await startRegistry({ upstreams: { "docker.io": upstream }, root: first.root });
      await mirror.pullBlob("library/app", blob.digest);
      await mirror.until(async () => (await mirror.blobFiles()).some((file) => file === path), "it is stored again");
      await mirror.pullBlob("library/app", blob.digest);
      assert.equal(upstream.hits("GET", blob.digest), 1);
    }
  });
}

test("a small blob with one bit flipped is fetched again instead of being served", async () => {
  await using upstream = await startUpstream();
  await using first = await stored(upstream);
  await first.stop();
  const path = (await first.blobFiles()).find((file) => file.includes(small.digest.slice("sha256:".length)));
  assert.ok(path);
  {
    await using file = await open(path, "r+");
    const [byte] = (await file.read(Buffer.alloc(1), 0, 1, 500)).buffer;
    await file.write(Buffer.from([(byte ?? 0) ^ 1]), 0, 1, 500);
  }
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream }, root: first.root });
  await mirror.pullBlob("library/app", small.digest);
  assert.equal(upstream.hits("GET", small.digest), 2);
  assert.equal(await mirror.metric("entrepot_cache_errors_total", { operation: "open blob" }), 1);
});

test("a stored manifest with wrong bytes is fetched again instead of being served", async () => {
  await using upstream = await startUpstream();
  await using first = await stored(upstream);
  await first.stop();
  const vandal = new Sqlite(join(first.root, "entrepot.db"));
  vandal.prepare("UPDATE manifests SET bytes = ?").run(Buffer.from(image.manifest.toString().replace("2", "3")));
  vandal.close();
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream }, root: first.root });
  await pull(mirror, image, "1");
  assert.equal(upstream.hits("GET", "/manifests/"), 2);
  assert.equal(await mirror.metric("entrepot_cache_errors_total", { operation: "read manifest" }), 1);
  await pull(mirror, image, "1");
  assert.equal(upstream.hits("GET", "/manifests/"), 2);
});

test("what an upstream that is configured no more once brought does not keep others from pulling", async () => {
  await using gone = await startUpstream();
  await using upstream = await startUpstream();
  for (const one of [gone, upstream]) one.add("owner/app", "1", image);
  await using first = await startRegistry({ upstreams: { "ghcr.io": gone, "quay.io": upstream } });
  await first.get("/v2/ghcr.io/owner/app/manifests/1");
  await first.stop();
  gone.resetCounters();
  await using mirror = await startRegistry({ upstreams: { "quay.io": upstream }, root: first.root });
  await mirror.pullBlob("quay.io/owner/app", large.digest);
  assert.equal(gone.hits(), 0);
});
