import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import type { LoggedRequest } from "../kit/loopback.ts";
import { assertWhole, type Client } from "./client.ts";
import { MIB, REPOSITORY, startStage, stored, type Stage } from "./stage.ts";

/** The client gets bytes [firstByte, endByte) of the stage's blob, and no others. */
async function assertPart(client: Client, { layer }: Stage, firstByte: number, endByte: number): Promise<void> {
  const outcome = await client.outcome;
  assert.equal(outcome.status, 206, outcome.start.toString());
  assert.equal(outcome.headers["content-range"], `bytes ${firstByte}-${endByte - 1}/${layer.sizeBytes}`);
  assert.ok(outcome.whole);
  assert.equal(outcome.digest, digestOf(Buffer.concat([...layer.chunks(firstByte, endByte)])));
}

test("ranges of a blob that is still coming: near ones wait for it, far ones are fetched by themselves", async () => {
  await using stage = await startStage(24 * MIB);
  const { upstream, layer, pull } = stage;
  const gate = upstream.hold({ path: layer.digest, nth: 1 }, 2 * MIB);
  const all = pull();
  await gate.reached;
  // What is here already, and what is far ahead, both come while upstream holds the download.
  await assertPart(pull({ range: "bytes=1000-99999" }), stage, 1000, 100_000);
  await assertPart(pull({ range: `bytes=${20 * MIB}-${20 * MIB + 9}` }), stage, 20 * MIB, 20 * MIB + 10);
  await assertPart(pull({ range: "bytes=-70000" }), stage, layer.sizeBytes - 70_000, layer.sizeBytes);
  const [, far, suffix] = upstream.requests;
  assert.deepEqual(
    [far?.headers.range, suffix?.headers.range],
    [`bytes=${20 * MIB}-${20 * MIB + 9}`, `bytes=${layer.sizeBytes - 70_000}-`],
  );
  const near = pull({ range: `bytes=${3 * MIB}-${4 * MIB - 1}` });
  const beyond = await pull({ range: `bytes=${layer.sizeBytes}-` }).outcome;
  assert.equal(beyond.status, 416);
  assert.equal(beyond.headers["content-range"], `bytes */${layer.sizeBytes}`);
  gate.release();
  await assertPart(near, stage, 3 * MIB, 4 * MIB);
  await assertWhole(all, layer);
  assert.equal(upstream.hits("GET", layer.digest), 3);
});

test("a far range of an upstream that ignores ranges is still just that range", async () => {
  await using stage = await startStage(24 * MIB);
  const { upstream, layer, pull } = stage;
  upstream.fault({ path: layer.digest }, { ignoreRange: true });
  const gate = upstream.hold({ path: layer.digest, nth: 1 }, MIB);
  const all = pull();
  await gate.reached;
  await assertPart(pull({ range: `bytes=${12 * MIB}-${12 * MIB + 999}` }), stage, 12 * MIB, 12 * MIB + 1000);
  gate.release();
  await assertWhole(all, layer);
});

test("a range of what is stored is answered from the file", async () => {
  await using stage = await startStage(3 * MIB);
  const { upstream, pull } = stage;
  await assertWhole(pull(), stage.layer);
  await stored(stage);
  await assertPart(pull({ range: "bytes=1048570-" }), stage, 1_048_570, 3 * MIB);
  await assertPart(pull({ range: "bytes=0-0" }), stage, 0, 1);
  assert.equal(upstream.hits("GET", stage.layer.digest), 1);
});

test("an upstream that breaks once on ignoring ranges is resumed all the same", async () => {
  await using stage = await startStage(3 * MIB);
  const { upstream, layer, pull } = stage;
  upstream.fault({ path: layer.digest, nth: 1 }, { cutAfter: MIB });
  upstream.fault({ path: layer.digest }, { ignoreRange: true });
  await assertWhole(pull(), layer);
  assert.equal(upstream.hits("GET", layer.digest), 2);
});

// ---- one blob over several connections ----

const RANGES = { connections: 4, minSize: "1MiB", segment: "1MiB", slowerThan: "64MiB" };
const SLOW = { bytesPerSecondPerConnection: 4 * MIB };

async function startSlowStage(options: { leavesPartials?: boolean } = {}): Promise<Stage> {
  const stage = await startStage(10 * MIB, { upstream: SLOW, config: { upstream: { ranges: RANGES } }, ...options });
  // The manifest tells how large the blob is.
  assert.equal((await stage.mirror.get(`/v2/${REPOSITORY}/manifests/1`)).status, 200);
  stage.upstream.resetCounters();
  return stage;
}

function rangeOf({ headers }: LoggedRequest): [number, number] {
  const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(headers.range ?? "") ?? [];
  return [Number(first), last === "" ? 10 * MIB : Number(last) + 1];
}

/** The most requests that upstream answered at the same time, of all that bring the blob once: counted whenever one starts or ends. */
async function mostAtOnce({ upstream, layer }: Stage): Promise<number> {
  let most = 0;
  await upstream.waitFor(() => {
    const open = upstream.requests.filter(({ state }) => state === "open").length;
    most = Math.max(most, open);
    return open === 0 && upstream.bytesSent(layer.digest) >= layer.sizeBytes;
  });
  return most;
}

test("a large blob of an upstream that is slow per connection comes over several, in order, each byte once", async () => {
  await using stage = await startSlowStage();
  const { upstream, layer, pull } = stage;
  const [most] = await Promise.all([
    mostAtOnce(stage),
    assertWhole(pull(), layer),
    assertWhole(pull(), layer),
    assertPart(pull({ range: `bytes=${MIB}-${2 * MIB - 1}` }), stage, MIB, 2 * MIB),
  ]);
  await stored(stage);
  await assertWhole(pull(), layer);
  assert.equal(most, 4);
  const asked = upstream.requests.map(rangeOf).sort((a, b) => a[0] - b[0]);
  for (const [index, [first]] of asked.entries()) assert.equal(first, asked[index - 1]?.[1] ?? 0, "no gap, no overlap");
  assert.ok(upstream.bytesSent(layer.digest) <= 1.01 * layer.sizeBytes);
});

test("a cut on one of several connections is mended on it alone", async () => {
  await using stage = await startSlowStage();
  const { upstream, layer, pull } = stage;
  upstream.fault({ path: layer.digest, nth: 3 }, { cutAfter: 300_000 });
  upstream.fault({ path: layer.digest, nth: 5 }, { cutAfter: 700_000 });
  await assertWhole(pull(), layer);
  await stored(stage);
  assert.ok(upstream.bytesSent(layer.digest) <= 1.05 * layer.sizeBytes);
});

test("wrong bytes on one of several connections are proven wrong as a whole", async () => {
  await using stage = await startSlowStage();
  const { upstream, layer, mirror, pull } = stage;
  upstream.fault({ path: layer.digest }, { corruptByte: 7 * MIB });
  const { whole, sizeBytes } = await pull().outcome;
  assert.ok(!whole && sizeBytes < layer.sizeBytes);
  await mirror.until(async () => (await mirror.partials()).length === 0, "nothing is left behind");
  assert.deepEqual(await mirror.blobFiles(), []);
});

test("an upstream that ignores ranges is read over one connection", async () => {
  await using stage = await startSlowStage();
  const { upstream, layer, pull } = stage;
  upstream.fault({ path: layer.digest }, { ignoreRange: true });
  await assertWhole(pull(), layer);
  await stored(stage);
  assert.equal(upstream.hits("GET", layer.digest), 1);
  assert.ok(upstream.bytesSent(layer.digest) <= 1.01 * layer.sizeBytes);
});

test("a fast connection stays alone, and takes all the rest once it is known to be fast", async () => {
  // The speed is told apart after 100 ms: upstream takes longer than that by its own clock.
  await using stage = await startStage(24 * MIB, {
    upstream: { bytesPerSecondPerConnection: 48 * MIB },
    config: { upstream: { ranges: { ...RANGES, slowerThan: "1KiB" } } },
  });
  const { upstream, layer, mirror, pull } = stage;
  await mirror.get(`/v2/${REPOSITORY}/manifests/1`);
  upstream.resetCounters();
  const [most] = await Promise.all([mostAtOnce(stage), assertWhole(pull(), layer)]);
  assert.equal(most, 1);
  assert.ok(upstream.hits("GET", layer.digest) < 24);
});

test("the only client of a parallel download leaves: what is kept has no holes, and is resumed", async () => {
  await using stage = await startStage(44 * MIB, {
    upstream: { bytesPerSecondPerConnection: 5 * MIB },
    config: { upstream: { ranges: { ...RANGES, connections: 16 } } },
  });
  const { upstream, layer, mirror, pull } = stage;
  await mirror.get(`/v2/${REPOSITORY}/manifests/1`);
  const client = pull();
  const isParallel = (names: string[]): boolean => names.some((name) => /\.part-\d+$/.test(name));
  await mirror.until(async () => isParallel(await mirror.partials()), "it comes over several connections");
  await mirror.until(() => client.received > MIB, "it has some bytes");
  client.leave();
  await mirror.until(async () => !isParallel(await mirror.partials()), "it has paused");
  upstream.resetCounters();
  await assertWhole(pull(), layer);
  await stored(stage);
  const first = Math.min(...upstream.requests.map((request) => rangeOf(request)[0]));
  assert.ok(first >= MIB, `resumed at ${first}`);
});
