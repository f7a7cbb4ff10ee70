import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { errorOf, layerOf } from "./clients.ts";

const image = makeImage({ layers: [300_000] });
const layer = layerOf(image);

async function pair(): Promise<AsyncDisposable & { first: Upstream; second: Upstream; policy: { url: string } }> {
  await using stack = new AsyncDisposableStack();
  const first = stack.use(await startUpstream());
  const second = stack.use(await startUpstream());
  second.add("library/app", "1", image);
  const policy = { url: first.url, timeouts: { firstByte: "200ms" }, fallbacks: [{ url: second.url }] };
  const owned = stack.move();
  return { first, second, policy, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

for (const [name, break_] of [
  ["has nothing", async () => undefined],
  ["answers 500", async (first: Upstream) => first.fault({}, { status: 500 })],
  ["answers 429", async (first: Upstream) => first.fault({}, { status: 429, headers: { "retry-after": "60" } })],
  ["is silent", async (first: Upstream) => first.fault({}, { delayMs: 60_000 })],
  ["is down", async (first: Upstream) => first.stop()],
] as const) {
  test(`the next address is asked when the first ${name}`, async () => {
    await using scene = await pair();
    await break_(scene.first);
    await using mirror = await startRegistry({ upstreams: { "docker.io": scene.policy } });
    assert.deepEqual((await mirror.get("/v2/library/app/manifests/1")).bytes, image.manifest);
    assert.equal((await mirror.send("HEAD", `/v2/library/app/blobs/${layer.digest}`)).status, 200);
    await mirror.pullBlob("library/app", layer.digest);
    assert.equal(scene.second.hits("GET", "/manifests/"), 1);
    assert.equal(scene.second.hits("GET", "/blobs/"), 1);
  });
}

for (const status of [401, 403]) {
  test(`nobody else is asked when the first address answers ${status}`, async () => {
    await using scene = await pair();
    scene.first.fault({}, { status, headers: { "www-authenticate": 'Basic realm="x"' } });
    await using mirror = await startRegistry({ upstreams: { "docker.io": scene.policy } });
    for (const path of ["manifests/1", `manifests/${image.digest}`, `blobs/${layer.digest}`, "tags/list"]) {
      const answer = await mirror.get(`/v2/library/app/${path}`);
      assert.equal(answer.status, 403, path);
      assert.equal(errorOf(answer).code, "DENIED");
    }
    assert.equal(scene.second.hits(), 0);
  });
}

test("where a tag was resolved, there its manifest is fetched", async () => {
  await using scene = await pair();
  scene.first.add("library/app", undefined, image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": scene.policy } });
  assert.equal((await mirror.get("/v2/library/app/manifests/1")).status, 200);
  assert.equal(scene.first.hits("GET", "/manifests/"), 0);
  assert.equal(scene.second.hits("GET", image.digest), 1);
});

test("absent is what every address says is absent; one that could not say so is the answer", async () => {
  await using scene = await pair();
  await using mirror = await startRegistry({ upstreams: { "docker.io": scene.policy } });
  assert.equal((await mirror.get("/v2/library/app/manifests/none")).status, 404);
  scene.first.fault({}, { status: 500 });
  const unsure = await mirror.get("/v2/library/app/manifests/other");
  assert.equal(unsure.status, 502);
  assert.match(errorOf(unsure).message, /answered 500/);
});

test("a blob that breaks off at one address goes on at the next", async () => {
  await using scene = await pair();
  scene.first.add("library/app", "1", image);
  scene.first.fault({ method: "GET", path: layer.digest, times: 1 }, { cutAfter: 100_000 });
  for (const nth of [2, 3, 4, 5]) scene.first.fault({ method: "GET", path: layer.digest, nth }, { status: 500 });
  await using mirror = await startRegistry({ upstreams: { "docker.io": scene.policy } });
  await mirror.pullBlob("library/app", layer.digest);
  assert.equal(scene.second.hits("GET", layer.digest), 1);
});
