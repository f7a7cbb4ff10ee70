import assert from "node:assert/strict";
import { test } from "node:test";
import { Api } from "../../kit/api.ts";
import { pushImage, pushManifest, select } from "../../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex } from "../../kit/images.ts";
import { startRegistry } from "../../kit/registry.ts";
import { startUpstream } from "../../kit/upstream.ts";
import { connectTo } from "../raw.ts";
import { layerOf } from "../../registry/clients.ts";

const CONFIG = { hosted: { namespaces: ["team"], immutableTags: { team: ["v*"] } } };
const [first, second] = ["first", "second"].map((seed) => makeImage({ layers: [3000, 2000], seed }));
assert.ok(first && second);

function of(name: string): string {
  return `/repositories/${encodeURIComponent(name)}`;
}

test("repositories are listed page by page, by beginning, part and kind of their names", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", first);
  await using registry = await startRegistry({ config: CONFIG, upstreams: { "docker.io": upstream } });
  for (const name of ["team/a", "team/b", "team/c/app"]) await pushImage(registry, name, first, "1");
  await registry.get("/v2/library/app/manifests/1");
  const api = await Api.of(registry);
  const names = async (query: string): Promise<unknown[]> =>
    (await api.all(`/repositories${query}`)).map(({ name }) => name);
  const all = ["docker.io/library/app", "team/a", "team/b", "team/c/app"];
  assert.deepEqual(await names(""), all);
  assert.deepEqual(await names("?limit=1"), all);
  assert.deepEqual(await names("?limit=3"), all);
  assert.deepEqual(await names("?prefix=team/"), all.slice(1));
  assert.deepEqual(await names("?q=APP&limit=1"), [all[0], all[3]]);
  assert.deepEqual(await names("?kind=cached"), all.slice(0, 1));
  assert.deepEqual(await names("?kind=hosted&limit=2"), all.slice(1));
  assert.deepEqual(await names("?prefix=team0"), []);
  const { body } = await api.expect(200, "GET", "/repositories?limit=1");
  const [cached] = body["items"] as Record<string, unknown>[];
  assert.deepEqual([cached?.["kind"], cached?.["upstream"], cached?.["tags"]], ["cached", "docker.io", 1]);
});

test("a repository tells what it holds, its tags what they point to and how large that is", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  const index = makeIndex([
    [{ os: "linux", architecture: "amd64" }, first],
    [{ os: "linux", architecture: "arm64" }, second],
  ]);
  await pushImage(registry, "team/app", first, "one");
  await pushImage(registry, "team/app", second, "two");
  await pushManifest(registry, "team/app", index, "both");
  const api = await Api.of(registry);
  const { body } = await api.expect(200, "GET", of("team/app"));
  const bytes = select(registry, "SELECT (SELECT sum(size) FROM blobs) + (SELECT sum(size) FROM manifests) AS bytes");
  assert.deepEqual([body["tags"], body["manifests"], body["blobs"], body["bytes"]], [3, 3, 6, bytes[0]?.["bytes"]]);
  const content = first.config.sizeBytes + 5000;
  const tags = await api.all(`${of("team/app")}/tags?limit=1`);
  assert.deepEqual(
    tags.map(({ name, digest }) => [name, digest]),
    [
      ["both", index.digest],
      ["one", first.digest],
      ["two", second.digest],
    ],
  );
  assert.deepEqual([tags[1]?.["sizeBytes"], tags[1]?.["contentBytes"]], [first.manifest.length, content]);
  const both = first.manifest.length + second.manifest.length + content + second.config.sizeBytes + 5000;
  assert.equal(tags[0]?.["contentBytes"], both);
  assert.equal(tags[0]?.["pulledAt"], undefined);
  const begun = await api.all(`${of("team/app")}/tags?prefix=t`);
  assert.deepEqual(
    begun.map(({ name }) => name),
    ["two"],
  );
});

test("a manifest tells its platforms, layers and history as far as they are stored, and what refers to it", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  const index = makeIndex([
    [{ os: "linux", architecture: "amd64" }, first],
    [{ os: "linux", architecture: "arm64", variant: "v8" }, second],
  ]);
  await pushImage(registry, "team/app", first);
  await pushImage(registry, "team/app", second);
  await pushManifest(registry, "team/app", index, "1");
  const signature = makeArtifact({ subject: index, artifactType: "application/x.sig", payload: "signed" });
  await pushImage(registry, "team/app", signature);
  const api = await Api.of(registry);
  const { body: top } = await api.expect(200, "GET", `${of("team/app")}/manifests/${index.digest}`);
  const platforms = top["platforms"] as Record<string, unknown>[];
  assert.deepEqual(
    platforms.map(({ digest, platform, present, sizeBytes }) => ({ digest, platform, present, sizeBytes })),
    [
      {
        digest: first.digest,
        platform: { os: "linux", architecture: "amd64" },
        present: true,
        sizeBytes: first.manifest.length,
      },
      {
        digest: second.digest,
        platform: { os: "linux", architecture: "arm64", variant: "v8" },
        present: true,
        sizeBytes: second.manifest.length,
      },
    ],
  );
  assert.deepEqual([top["kind"], top["tags"], top["layers"]], ["index", ["1"], []]);
  const { body: image } = await api.expect(200, "GET", `${of("team/app")}/manifests/${first.digest}`);
  const layers = image["layers"] as Record<string, unknown>[];
  assert.deepEqual(
    layers.map(({ digest, sizeBytes, present }) => [digest, sizeBytes, present]),
    first.layers.map(({ digest, sizeBytes }) => [digest, sizeBytes, true]),
  );
  assert.deepEqual((image["image"] as Record<string, unknown>)["platform"], { os: "linux", architecture: "amd64" });
  const referrers = await api.all(`${of("team/app")}/manifests/${index.digest}/referrers`);
  assert.deepEqual(
    referrers.map(({ digest, artifactType }) => [digest, artifactType]),
    [[signature.digest, "application/x.sig"]],
  );
  assert.deepEqual(await api.all(`${of("team/app")}/manifests/${index.digest}/referrers?artifactType=x`), []);
});

test("what a cached manifest points to and is not stored yet is told as such, without asking upstream", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", first);
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  await registry.get("/v2/library/app/manifests/1");
  await registry.pullBlob("library/app", layerOf(first).digest);
  await registry.until(() => select(registry, "SELECT 1 FROM blobs").length === 1, "the layer is stored");
  const before = upstream.requests.length;
  const api = await Api.of(registry);
  const { body } = await api.expect(200, "GET", `${of("docker.io/library/app")}/manifests/${first.digest}`);
  assert.deepEqual(
    (body["layers"] as Record<string, unknown>[]).map(({ present }) => present),
    [true, false],
  );
  assert.equal((body["config"] as Record<string, unknown>)["present"], false);
  assert.equal(body["image"], undefined);
  assert.equal(upstream.requests.length, before);
});

test("a tag has an ETag: unchanged is 304, and a delete that names another one is refused", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  await pushImage(registry, "team/app", first, "1");
  const api = await Api.of(registry);
  const path = `${of("team/app")}/tags/1`;
  const { headers } = await api.expect(200, "GET", path);
  assert.equal(headers["etag"], `"${first.digest}"`);
  await api.expect(304, "GET", path, undefined, { "if-none-match": `W/"${first.digest}"` });
  await api.expect(200, "GET", path, undefined, { "if-none-match": `"${second.digest}"` });
  const refused = await api.expect(412, "DELETE", path, undefined, { "if-match": `"${second.digest}"` });
  assert.equal(refused.body["type"], "/problems/precondition-failed");
  await api.expect(200, "GET", path);
  await api.expect(204, "DELETE", path, undefined, { "if-match": `"${first.digest}"` });
  await api.expect(404, "GET", path);
  await api.expect(404, "DELETE", path, undefined, { "if-match": "*" });
  assert.equal((await registry.get("/v2/team/app/manifests/1")).status, 404);
  const [event] = select(registry, "SELECT tag, actor, address FROM events WHERE action = 'delete'");
  assert.deepEqual(event, { tag: "1", actor: null, address: "127.0.0.1" });
});

test("an immutable tag is not deleted, nor is its repository, of which nothing goes", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  await pushImage(registry, "team/app", first, "1");
  await pushImage(registry, "team/app", second, "v1");
  const api = await Api.of(registry);
  for (const path of [`${of("team/app")}/tags/v1`, of("team/app")]) {
    const { body } = await api.expect(403, "DELETE", path);
    assert.match(String(body["detail"]), /team\/app:v1 is immutable/);
  }
  assert.equal((await api.all(`${of("team/app")}/tags`)).length, 2);
});

test("a hosted repository goes with its tags, its manifests and its right to the blobs, and no other loses any", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  const index = makeIndex([[{ os: "linux", architecture: "amd64" }, first]]);
  await pushImage(registry, "team/app", first, "1");
  await pushManifest(registry, "team/app", index, "2");
  await pushManifest(registry, "team/app", index, "3");
  await pushImage(registry, "team/kept", first, "1");
  const api = await Api.of(registry);
  const { events } = await api.expect(200, "DELETE", of("team/app"));
  const { type, tags, manifests, blobs } = events.at(-1) ?? {};
  assert.deepEqual([type, tags, manifests, blobs], ["done", 3, 2, 3]);
  await api.expect(404, "GET", of("team/app"));
  assert.deepEqual(
    (await api.all("/repositories")).map(({ name }) => name),
    ["team/kept"],
  );
  assert.equal((await registry.get("/v2/team/app/manifests/1")).status, 404);
  assert.equal((await registry.get(`/v2/team/app/blobs/${layerOf(first).digest}`)).status, 404);
  assert.equal((await registry.get("/v2/team/kept/manifests/1")).status, 200);
  await registry.pullBlob("team/kept", layerOf(first).digest);
  const [{ deletes } = {}] = select(registry, "SELECT count(*) AS deletes FROM events WHERE action = 'delete'");
  assert.equal(deletes, 3 + 2 + 3);
  const usage = select(registry, "SELECT bytes FROM namespace_usage WHERE namespace = 'team'");
  const whole = first.manifest.length + first.config.sizeBytes + 5000;
  assert.deepEqual(usage, [{ bytes: whole }]);
});

test("a repository of more tags than one step takes goes to the last one", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  await pushImage(registry, "team/app", first, "a0");
  for (let at = 1; at < 450; at += 50) {
    const tags = Array.from({ length: 50 }, (_, each) => `a${at + each}`);
    await Promise.all(tags.map((tag) => pushManifest(registry, "team/app", first, tag)));
  }
  const api = await Api.of(registry);
  assert.equal((await api.all(`${of("team/app")}/tags?limit=100`)).length, 451);
  const { events } = await api.expect(200, "DELETE", of("team/app"));
  assert.deepEqual([events.at(-1)?.["type"], events.at(-1)?.["tags"]], ["done", 451]);
  await api.expect(404, "GET", of("team/app"));
});

test("who leaves while a repository is being removed ends it, which is no failure", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  await pushImage(registry, "team/app", first, "a0");
  const tags = Array.from({ length: 900 }, (_, at) => `a${at}`);
  for (let at = 0; at < tags.length; at += 90)
    await Promise.all(tags.slice(at, at + 90).map((tag) => pushManifest(registry, "team/app", first, tag)));
  const client = await connectTo(registry.url);
  client.send("DELETE /api/v1/repositories/team%2Fapp HTTP/1.1", "Host: localhost");
  await client.until(/"type":"progress"/);
  client.socket.destroy();
  const ended = (): Record<string, unknown> | undefined => registry.log.find(({ method }) => method === "DELETE");
  await registry.until(() => ended() !== undefined, "the request is over");
  assert.equal(ended()?.["msg"], "request");
  const api = await Api.of(registry);
  const { events } = await api.expect(200, "DELETE", of("team/app"));
  assert.equal(events.at(-1)?.["type"], "done");
});

test("a cached tag that is deleted is asked for again", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", first);
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  await registry.get("/v2/library/app/manifests/1");
  const api = await Api.of(registry);
  await api.expect(204, "DELETE", `${of("docker.io/library/app")}/tags/1`);
  assert.deepEqual(await api.all(`${of("docker.io/library/app")}/tags`), []);
  upstream.add("library/app", "1", second);
  const pulled = await registry.get("/v2/library/app/manifests/1");
  assert.equal(pulled.headers["docker-content-digest"], second.digest);
});
