import assert from "node:assert/strict";
import { test } from "node:test";
import { Api } from "../../kit/api.ts";
import { isStored, pushBlob, pushImage, select } from "../../kit/hosted.ts";
import { makeImage, type Image } from "../../kit/images.ts";
import { startRegistry, type TestRegistry } from "../../kit/registry.ts";
import { startUpstream } from "../../kit/upstream.ts";
import { layerOf } from "../../registry/clients.ts";

const [first, second] = ["first", "second"].map((seed) => makeImage({ layers: [3000, 70_000], seed }));
assert.ok(first && second);

async function pull(registry: TestRegistry, repository: string, image: Image): Promise<void> {
  assert.equal((await registry.get(`/v2/${repository}/manifests/1`)).status, 200);
  for (const digest of image.blobs.keys()) await registry.pullBlob(repository, digest);
  // The row comes after the file.
  const row = (digest: string): boolean => select(registry, "SELECT 1 FROM blobs WHERE digest = ?", digest).length > 0;
  await registry.until(() => [...image.blobs.keys()].every(row), "all of it is stored");
}

test("the cache tells its size per upstream, and its blobs by size and by use, page by page", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", first);
  upstream.add("library/other", "1", second);
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  await pull(registry, "library/app", first);
  await pull(registry, "library/other", second);
  const api = await Api.of(registry);
  const [{ bytes } = {}] = select(
    registry,
    "SELECT (SELECT sum(size) FROM blobs) + (SELECT sum(size) FROM manifests) AS bytes",
  );
  const { body } = await api.expect(200, "GET", "/cache");
  assert.equal(body["bytes"], bytes);
  assert.deepEqual(body["upstreams"], [{ name: "docker.io", bytes, configured: true }]);
  for (const [order, by] of [
    ["largest", "size DESC, rowid DESC"],
    ["leastUsed", "used_at, rowid"],
  ]) {
    const expected = select(registry, `SELECT digest FROM blobs ORDER BY ${by}`).map(({ digest }) => digest);
    assert.equal(expected.length, 6);
    for (const limit of [1, 4, 6, 100]) {
      const items = await api.all(`/cache/contents?order=${order}&limit=${limit}`);
      assert.deepEqual(
        items.map(({ digest }) => digest),
        expected,
        `${order} ${limit}`,
      );
    }
  }
  const { body: page } = await api.expect(200, "GET", "/cache/contents?order=largest&limit=1");
  const cursor = String(page["next"]);
  const { body: refused } = await api.expect(400, "GET", `/cache/contents?order=leastUsed&cursor=${cursor}`);
  assert.match(String(refused["detail"]), /cursor: belongs to order=largest/);
});

test("a purged repository is asked for anew; what another one holds, too, stays for that one", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", first);
  upstream.add("library/same", "1", first);
  upstream.add("library/other", "1", second);
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  await pull(registry, "library/app", first);
  await pull(registry, "library/same", first);
  await pull(registry, "library/other", second);
  const api = await Api.of(registry);
  const purge = async (target: object): Promise<Record<string, unknown>> => {
    const { events } = await api.expect(200, "POST", "/cache/purge", target);
    const { type, ...last } = events.at(-1) ?? {};
    assert.equal(type, "done");
    return last;
  };
  const kept = await purge({ repository: "docker.io/library/app" });
  assert.deepEqual([kept["contents"], kept["inUse"]], [0, 0]);
  await api.expect(404, "GET", `/repositories/docker.io%2Flibrary%2Fapp`);
  assert.equal(await isStored(registry, first), true);
  const before = upstream.hits(undefined, layerOf(first).digest);
  await registry.pullBlob("library/same", layerOf(first).digest);
  assert.equal(upstream.hits(undefined, layerOf(first).digest), before);
  const { contents, bytes } = await purge({ repository: "docker.io/library/other" });
  const size = second.manifest.length + second.config.sizeBytes + 73_000;
  assert.deepEqual([contents, bytes], [4, size]);
  assert.equal(await isStored(registry, layerOf(second)), false);
  assert.equal(await isStored(registry, second), false);
  const { body } = await api.expect(200, "GET", "/cache");
  assert.equal(body["bytes"], first.manifest.length + first.config.sizeBytes + 73_000);
  const hits = upstream.hits("GET", layerOf(second).digest);
  await pull(registry, "library/other", second);
  assert.equal(upstream.hits("GET", layerOf(second).digest), hits + 1);
  assert.equal((await purge({ digest: layerOf(second).digest }))["contents"], 1);
  assert.equal(await isStored(registry, layerOf(second)), false);
  assert.equal(await isStored(registry, second.config), true);
  await purge({ upstream: "docker.io" });
  assert.deepEqual(await api.all("/repositories"), []);
  assert.deepEqual(await registry.blobFiles(), []);
  assert.equal((await api.expect(200, "GET", "/cache")).body["bytes"], 0);
});

test("what was pushed is never purged, also where it was cached before", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", first);
  await using registry = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { hosted: { namespaces: ["team"] } },
  });
  await pull(registry, "library/app", first);
  await pushImage(registry, "team/app", first, "1");
  const blob = await pushBlob(registry, "team/app", Buffer.from("pushed"));
  const api = await Api.of(registry);
  for (const target of [{ repository: "team/app" }, { digest: blob }, { digest: layerOf(first).digest }]) {
    const { body } = await api.expect(409, "POST", "/cache/purge", target);
    assert.match(String(body["detail"]), /was pushed here/);
  }
  await api.expect(404, "POST", "/cache/purge", { repository: "docker.io/library/none" });
  await api.expect(404, "POST", "/cache/purge", { upstream: "nowhere" });
  await api.expect(404, "POST", "/cache/purge", { digest: `sha256:${"0".repeat(64)}` });
  await api.expect(400, "POST", "/cache/purge", { repository: "team/app", upstream: "docker.io" });
  const { events } = await api.expect(200, "POST", "/cache/purge", { upstream: "docker.io" });
  assert.equal(events.at(-1)?.["contents"], 0);
  await registry.pullBlob("team/app", layerOf(first).digest);
  assert.equal((await registry.get("/v2/team/app/manifests/1")).status, 200);
});

test("what is being downloaded is listed while it comes, and stays in a purge", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", first);
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  const layer = layerOf(first, 1);
  await registry.get("/v2/library/app/manifests/1");
  const api = await Api.of(registry);
  assert.deepEqual((await api.expect(200, "GET", "/flights")).body, { items: [] });
  const gate = upstream.hold({ method: "GET", path: layer.digest }, 1000);
  const pulling = registry.pullBlob("library/app", layer.digest);
  await gate.reached;
  const flights = async (): Promise<Record<string, unknown>[]> =>
    (await api.expect(200, "GET", "/flights")).body["items"] as Record<string, unknown>[];
  await registry.until(async () => (await flights())[0]?.["receivedBytes"] === 1000, "1000 bytes have come");
  const [flight] = await flights();
  assert.deepEqual([flight?.["digest"], flight?.["sizeBytes"], flight?.["readers"]], [layer.digest, 70_000, 1]);
  gate.release();
  await pulling;
  await registry.until(async () => (await flights()).length === 0, "it has landed");
});

test("upstreams tell how they are: an unreachable one is down once it has failed repeatedly", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", first);
  await using registry = await startRegistry({
    upstreams: { "docker.io": upstream, "quay.io": { url: "http://127.0.0.1:1", allow: ["team/**"] } },
  });
  await registry.get("/v2/library/app/manifests/1");
  const api = await Api.of(registry);
  const upstreams = async (): Promise<Record<string, unknown>[]> =>
    (await api.expect(200, "GET", "/upstreams")).body["items"] as Record<string, unknown>[];
  const [hub, quay] = await upstreams();
  assert.deepEqual([hub?.["name"], hub?.["default"], hub?.["up"]], ["docker.io", true, true]);
  assert.equal(hub?.["cacheBytes"], first.manifest.length);
  assert.deepEqual([quay?.["name"], quay?.["allow"], quay?.["up"]], ["quay.io", ["team/**"], true]);
  await registry.until(async () => {
    await registry.get("/v2/quay.io/team/app/manifests/1");
    return (await upstreams())[1]?.["up"] === false;
  }, "its breaker is open");
});
