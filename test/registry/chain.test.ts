import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { layerOf, MINUTE, MovingClock } from "./clients.ts";

const image = makeImage({ layers: [2_000_000] });
const layer = layerOf(image);

interface Chain extends AsyncDisposable {
  upstream: Upstream;
  inner: TestRegistry;
  outer: TestRegistry;
  clock: MovingClock;
}

/** outer → inner → upstream */
async function start(): Promise<Chain> {
  await using stack = new AsyncDisposableStack();
  const upstream = stack.use(await startUpstream());
  upstream.add("library/app", "1", image);
  const clock = new MovingClock();
  const inner = stack.use(await startRegistry({ upstreams: { "docker.io": upstream }, clock }));
  const outer = stack.use(await startRegistry({ upstreams: { "docker.io": { url: inner.url } }, clock }));
  const owned = stack.move();
  return { upstream, inner, outer, clock, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

test("a mirror behind a mirror pulls, keeps and revalidates as one before an upstream", async () => {
  await using chain = await start();
  const { upstream, outer, inner, clock } = chain;
  assert.deepEqual((await outer.get("/v2/library/app/manifests/1")).bytes, image.manifest);
  await outer.pullBlob("library/app", layer.digest);
  await outer.until(async () => (await outer.blobFiles()).length === 1, "the outer one has it");
  await inner.until(async () => (await inner.blobFiles()).length === 1, "the inner one has it");
  await outer.pullBlob("library/app", layer.digest);
  assert.equal(upstream.hits("GET", layer.digest), 1);

  const next = makeImage({ layers: [10], seed: "new" });
  upstream.add("library/app", "1", next);
  clock.offsetMs = 6 * MINUTE;
  assert.deepEqual((await outer.get("/v2/library/app/manifests/1")).bytes, next.manifest);
});

test("HEAD of a cold blob goes all the way by HEAD and downloads nothing anywhere", async () => {
  await using chain = await start();
  const { upstream, outer, inner } = chain;
  const head = await outer.send("HEAD", `/v2/library/app/blobs/${layer.digest}`);
  assert.equal(head.status, 200);
  assert.equal(head.headers["content-length"], String(layer.sizeBytes));
  assert.equal(head.headers["docker-content-digest"], layer.digest);
  assert.deepEqual(
    upstream.requests.map(({ method }) => method),
    ["HEAD"],
  );
  for (const mirror of [outer, inner]) {
    assert.deepEqual(await mirror.blobFiles(), []);
    assert.deepEqual(await mirror.partials(), []);
  }
});

test("a range of a cold blob comes through both, right and marked as a part", async () => {
  await using chain = await start();
  const { outer, inner } = chain;
  for (const [range, first, last] of [
    ["bytes=0-99", 0, 99],
    ["bytes=1500000-1500999", 1_500_000, 1_500_999],
    ["bytes=-10", 1_999_990, 1_999_999],
  ] as const) {
    const answer = await outer.get(`/v2/library/app/blobs/${layer.digest}`, { range });
    assert.equal(answer.status, 206);
    assert.equal(answer.headers["content-range"], `bytes ${first}-${last}/${layer.sizeBytes}`);
    assert.deepEqual(answer.bytes, layer.bytes.subarray(first, last + 1));
  }
  const beyond = await outer.get(`/v2/library/app/blobs/${layer.digest}`, { range: "bytes=2000000-" });
  assert.equal(beyond.status, 416);
  assert.equal(beyond.headers["content-range"], `bytes */${layer.sizeBytes}`);
  for (const mirror of [outer, inner]) {
    await mirror.until(async () => (await mirror.blobFiles()).length === 1, "the whole is stored, never a part");
    await mirror.pullBlob("library/app", layer.digest);
  }
});

test("a stall in the middle of the chain is not taken for the end of a blob", async () => {
  await using chain = await start();
  const { upstream, outer } = chain;
  upstream.fault({ method: "GET", path: layer.digest, times: 1 }, { cutAfter: 700_000 });
  await outer.pullBlob("library/app", layer.digest);
  assert.equal(upstream.hits("GET", layer.digest), 2, "resumed by the inner one");
});
