import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { assertWhole, Client } from "./client.ts";
import { MIB, REPOSITORY, startStage, stored } from "./stage.ts";

test("a connection that is cut again and again is mended by ranges, and the client notices nothing", async () => {
  await using stage = await startStage(5_000_000);
  const { upstream, layer } = stage;
  for (const [index, cutAfter] of [1, 100_000, 16_384, 3_000_000, 1].entries())
    upstream.fault({ path: layer.digest, nth: index + 1 }, { cutAfter });
  await assertWhole(stage.pull(), layer);
  await stored(stage);
  assert.equal(upstream.hits("GET", layer.digest), 6);
  // Of one byte the mirror may see nothing, and start at 0 once more.
  assert.ok(upstream.requests.slice(2).every(({ headers }) => headers.range?.startsWith("bytes=")));
  assert.ok(upstream.bytesSent(layer.digest) <= 1.01 * layer.sizeBytes + 5 * 256 * 1024);
});

test("an upstream that stays away aborts the pull, and the next pull goes on where it ended", async () => {
  await using stage = await startStage(8 * MIB, { leavesPartials: true });
  const { upstream, layer, mirror } = stage;
  upstream.fault({ path: layer.digest, nth: 1 }, { cutAfter: 5 * MIB });
  upstream.fault({ path: layer.digest, nth: 2 }, { status: 404 });
  const first = await stage.pull().outcome;
  assert.equal(first.whole, false);
  assert.ok(first.sizeBytes < layer.sizeBytes);
  assert.equal((await mirror.partials()).length, 1);
  assert.deepEqual(await mirror.blobFiles(), []);
  await assertWhole(stage.pull(), layer);
  await stored(stage);
  assert.ok(upstream.bytesSent(layer.digest) <= 1.01 * layer.sizeBytes, `${upstream.bytesSent(layer.digest)}`);
  assert.deepEqual(await mirror.partials(), []);
});

for (const [what, sizeBytes, corruptByte] of [
  ["small", 3_000, 1_500],
  ["large, early", 3 * MIB, 10],
  ["large, in its last byte", 3 * MIB, 3 * MIB - 1],
] as const) {
  test(`wrong bytes of the right length (${what}) never end cleanly, are not stored, and are counted`, async () => {
    await using stage = await startStage(sizeBytes);
    const { upstream, layer, mirror } = stage;
    upstream.fault({ path: layer.digest }, { corruptByte });
    const outcomes = await Promise.all([stage.pull(), stage.pull(), stage.pull()].map((client) => client.outcome));
    for (const outcome of outcomes) {
      assert.ok(!outcome.whole || outcome.status === 502, `${outcome.status} ${outcome.whole}`);
      assert.ok(outcome.sizeBytes < layer.sizeBytes);
    }
    await mirror.until(async () => (await mirror.partials()).length === 0, "nothing is left behind");
    assert.deepEqual(await mirror.blobFiles(), []);
    assert.ok((await mirror.metric("entrepot_digest_mismatches_total", { upstream: "docker.io" })) >= 1);
    upstream.clearFaults();
    await assertWhole(stage.pull(), layer);
  });
}

test("a small blob that comes wrong is fetched from the fallback, and its clients notice nothing", async () => {
  const image = makeImage({ layers: [9_000] });
  const [layer] = image.layers;
  assert.ok(layer);
  await using wrong = await startUpstream();
  await using right = await startUpstream();
  for (const upstream of [wrong, right]) upstream.add(REPOSITORY, "1", image);
  wrong.fault({ path: layer.digest }, { corruptByte: 0 });
  await using mirror = await startRegistry({
    upstreams: { "docker.io": { url: wrong.url, fallbacks: [{ url: right.url }] } },
  });
  const url = `${mirror.url}/v2/${REPOSITORY}/blobs/${layer.digest}`;
  await Promise.all(Array.from({ length: 5 }, () => assertWhole(new Client(url), layer)));
  assert.equal(wrong.hits("GET", layer.digest), 1);
  assert.equal(right.hits("GET", layer.digest), 1);
  assert.equal(await mirror.metric("entrepot_digest_mismatches_total"), 1);
});

test("a large blob that comes wrong costs its first clients the connection, then comes right from the fallback", async () => {
  const image = makeImage({ layers: [2 * MIB] });
  const [layer] = image.layers;
  assert.ok(layer);
  await using wrong = await startUpstream();
  await using right = await startUpstream();
  for (const upstream of [wrong, right]) upstream.add(REPOSITORY, "1", image);
  wrong.fault({ path: layer.digest }, { corruptByte: 5 });
  await using mirror = await startRegistry({
    upstreams: { "docker.io": { url: wrong.url, fallbacks: [{ url: right.url }] } },
  });
  const url = `${mirror.url}/v2/${REPOSITORY}/blobs/${layer.digest}`;
  const first = await new Client(url).outcome;
  assert.ok(!first.whole && first.sizeBytes < layer.sizeBytes);
  await assertWhole(new Client(url), layer);
  assert.equal(wrong.hits("GET", layer.digest), 1);
  assert.equal(right.hits("GET", layer.digest), 1);
});

test("the same wrong bytes at every holder are fetched once from each, not for ever", async () => {
  const image = makeImage({ layers: [40_000] });
  const [layer] = image.layers;
  assert.ok(layer);
  await using upstream = await startUpstream();
  for (const repository of ["library/app", "library/other", "library/third"]) upstream.add(repository, "1", image);
  upstream.fault({ path: layer.digest }, { corruptByte: 7 });
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (const repository of ["library/app", "library/other", "library/third"])
    assert.equal((await mirror.get(`/v2/${repository}/manifests/1`)).status, 200);
  const { whole, status } = await new Client(`${mirror.url}/v2/library/app/blobs/${layer.digest}`).outcome;
  assert.ok(!whole || status === 502);
  await mirror.until(async () => (await mirror.metric("entrepot_flights_in_progress")) === 0, "the flight has ended");
  assert.equal(upstream.hits("GET", layer.digest), 3);
});

test("a blob without a Content-Length is served and stored", async () => {
  await using stage = await startStage(700_000);
  const { upstream, layer } = stage;
  upstream.fault({ path: layer.digest }, { contentLength: "none" });
  await assertWhole(stage.pull(), layer);
  await stored(stage);
  await assertWhole(stage.pull(), layer);
  assert.equal(upstream.hits("GET", layer.digest), 1);
});

for (const [what, fault] of [
  ["sends too few bytes and no Content-Length", { contentLength: "none", bodyBytes: 300_000 }],
  ["announces less than there is", { contentLength: 300_000, bodyBytes: 300_000 }],
  ["sends less than it announces", { bodyBytes: 300_000, contentLength: 700_000 }],
  ["announces more than there is", { contentLength: 900_000 }],
] as const) {
  test(`an upstream that ${what}: no body ends cleanly, nothing is stored, the next pull succeeds`, async () => {
    await using stage = await startStage(700_000, { leavesPartials: true });
    const { upstream, layer, mirror } = stage;
    upstream.fault({ path: layer.digest, nth: 1 }, fault);
    // Where it can be mended by a range, it is: then the client has all. Else its connection is cut.
    const first = await stage.pull().outcome;
    assert.ok(!first.whole || first.digest === layer.digest);
    await mirror.until(async () => (await mirror.metric("entrepot_flights_in_progress")) === 0, "the flight has ended");
    if (!first.whole) assert.deepEqual(await mirror.blobFiles(), []);
    await assertWhole(stage.pull(), layer);
    await stored(stage);
    assert.deepEqual(await mirror.partials(), []);
  });
}

test("fifty cold clients cost one GET, and each has its first bytes while upstream is still sending", async () => {
  await using stage = await startStage(2 * MIB);
  const { upstream, layer, mirror } = stage;
  const gate = upstream.hold({ path: layer.digest }, 100_000);
  const clients = Array.from({ length: 50 }, () => stage.pull());
  await gate.reached;
  await mirror.until(() => clients.every(({ received }) => received > 0), "every client has bytes");
  assert.equal(upstream.requests[0]?.state, "open");
  gate.release();
  await Promise.all(clients.map((client) => assertWhole(client, layer)));
  assert.equal(upstream.hits("GET", layer.digest), 1);
  assert.equal(await mirror.metric("entrepot_cache_requests_total", { kind: "blob", result: "miss" }), 1);
  assert.equal(await mirror.metric("entrepot_cache_requests_total", { kind: "blob", result: "joined" }), 49);
});

test("when the download fails, every reader learns it", async () => {
  await using stage = await startStage(4 * MIB, { leavesPartials: true });
  const { upstream, layer, mirror } = stage;
  const gate = upstream.hold({ path: layer.digest, nth: 1 }, 2 * MIB);
  upstream.fault({ path: layer.digest, nth: 1 }, { cutAfter: 2 * MIB + 1 });
  upstream.fault({ path: layer.digest, nth: 2 }, { status: 404 });
  const clients = Array.from({ length: 10 }, () => stage.pull());
  await mirror.until(() => clients.every(({ received }) => received > 0), "all have joined");
  gate.release();
  for (const client of clients) assert.equal((await client.outcome).whole, false);
});

test("the first client leaves, and the others and the fill go on", async () => {
  await using stage = await startStage(3 * MIB);
  const { upstream, layer, mirror } = stage;
  const gate = upstream.hold({ path: layer.digest }, MIB);
  const first = stage.pull();
  await gate.reached;
  const others = [stage.pull(), stage.pull()];
  await mirror.until(() => [first, ...others].every(({ received }) => received > 0), "all have joined");
  first.leave();
  gate.release();
  await Promise.all(others.map((client) => assertWhole(client, layer)));
  assert.equal(upstream.hits("GET", layer.digest), 1);
});

test("the only client leaves: when little is missing the fill goes on without it", async () => {
  await using stage = await startStage(3 * MIB);
  const { upstream, layer } = stage;
  const gate = upstream.hold({ path: layer.digest }, MIB);
  const client = stage.pull();
  await gate.reached;
  client.leave();
  gate.release();
  await stored(stage);
  assert.equal(upstream.hits("GET", layer.digest), 1);
});

test("the only client leaves: when much is missing the fill pauses, and whoever comes next resumes it", async () => {
  await using stage = await startStage(48 * MIB);
  const { upstream, layer, mirror } = stage;
  const gate = upstream.hold({ path: layer.digest, nth: 1 }, 8 * MIB);
  const client = stage.pull();
  await gate.reached;
  const received = (): Promise<number> => mirror.metric("entrepot_upstream_received_bytes_total");
  await mirror.until(async () => (await received()) === 8 * MIB, "the mirror has what upstream sent");
  client.leave();
  await upstream.waitFor(() => upstream.requests[0]?.state === "cut");
  gate.release();
  // At once: the flight before may still be putting its file in order.
  await assertWhole(stage.pull(), layer);
  await stored(stage);
  assert.equal(upstream.hits("GET", layer.digest), 2);
  assert.match(upstream.requests[1]?.headers.range ?? "", /^bytes=[1-9]\d*-$/);
  assert.ok(upstream.bytesSent(layer.digest) <= 1.01 * layer.sizeBytes);
});

test("clients that come and go in a hurry never hit a download that is being given up", async () => {
  await using stage = await startStage(40 * MIB, { leavesPartials: true });
  const { upstream, layer, mirror } = stage;
  upstream.hold({ path: layer.digest }, 512 * 1024);
  for (let round = 0; round < 15; round++) {
    const client = stage.pull();
    const { statusCode } = await client.head;
    assert.equal(statusCode, 200);
    await mirror.until(() => client.received > 0, "it has bytes");
    client.leave();
  }
});

/** Of buffers, without those that are garbage already. */
function bytesInUse(): number {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
  return process.memoryUsage().arrayBuffers;
}

test("a client that stops reading harms nobody, and costs no memory", async () => {
  await using stage = await startStage(64 * MIB);
  const { upstream, layer, mirror } = stage;
  const stuck = Array.from({ length: 3 }, () => stage.pull());
  for (const client of stuck) await client.pause();
  const before = bytesInUse();
  await assertWhole(stage.pull(), layer);
  const grown = bytesInUse() - before;
  assert.ok(grown < 32 * MIB, `${Math.round(grown / MIB)} MiB more`);
  await stored(stage);
  for (const client of stuck) await client.resume();
  await Promise.all(stuck.map((client) => assertWhole(client, layer)));
  assert.equal(upstream.hits("GET", layer.digest), 1);
  assert.deepEqual(await readdir(join(mirror.root, "staging")), []);
});

test("a blob named by sha512 is proven by sha512", async () => {
  const image = makeImage({ layers: [300_000], algorithm: "sha512" });
  const [layer] = image.layers;
  assert.ok(layer);
  await using upstream = await startUpstream();
  upstream.add(REPOSITORY, "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const url = `${mirror.url}/v2/${REPOSITORY}/blobs/${layer.digest}`;
  upstream.fault({ path: layer.digest, nth: 1 }, { corruptByte: 100_000 });
  assert.equal((await new Client(url).outcome).whole, false);
  await assertWhole(new Client(url), layer);
  await mirror.until(async () => (await mirror.blobFiles()).some((path) => path.includes("/sha512/")), "it is stored");
  await assertWhole(new Client(url), layer);
  assert.equal(upstream.hits("GET", layer.digest), 2);
});
