import assert from "node:assert/strict";
import { rm, symlink, truncate } from "node:fs/promises";
import { test } from "node:test";
import { hexOf } from "../../src/oci/digest.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, until, type Answer, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { pushBlob, pushImage, select, send } from "../kit/hosted.ts";
import { errorOf, layerOf } from "./clients.ts";

const image = makeImage({ layers: [300_000, 2000], seed: "mounted" });
const [large, small] = [layerOf(image, 0), layerOf(image, 1)];
const hosted = { namespaces: ["team", "other"] };

function mount(registry: TestRegistry, repository: string, digest: string, from?: string): Promise<Answer> {
  const source = from === undefined ? "" : `&from=${encodeURIComponent(from)}`;
  return registry.send("POST", `/v2/${repository}/blobs/uploads/?mount=${digest}${source}`);
}

/** Asserts that a session was begun instead, in which the client can send the blob. */
async function assertSession(registry: TestRegistry, answer: Answer): Promise<void> {
  assert.equal(answer.status, 202, answer.bytes.toString());
  const location = String(answer.headers["location"]);
  await send(registry, 204, "GET", location);
  await send(registry, 204, "DELETE", location);
}

async function fileOf(registry: TestRegistry, digest: typeof large.digest): Promise<string> {
  const path = (await registry.blobFiles()).find((file) => file.endsWith(hexOf(digest)));
  assert.ok(path);
  return path;
}

function upstreamOf(registry: TestRegistry, digest: string): unknown {
  return select(registry, "SELECT upstream FROM blobs WHERE digest = ?", digest)[0]?.["upstream"];
}

test("a blob of a hosted repository is mounted into another one, with and without from", async () => {
  await using registry = await startRegistry({ config: { hosted } });
  await pushImage(registry, "team/base", image, "1");
  for (const [repository, from] of [
    ["other/app", "team/base"],
    ["other/app2", undefined],
    ["other/app3", ""],
  ] as const) {
    assert.equal((await registry.get(`/v2/${repository}/blobs/${large.digest}`)).status, 404, "not reachable before");
    const answer = await mount(registry, repository, large.digest, from);
    assert.equal(answer.status, 201);
    assert.equal(answer.headers["location"], `/v2/${repository}/blobs/${large.digest}`);
    assert.equal(answer.headers["docker-content-digest"], large.digest);
    await registry.pullBlob(repository, large.digest);
    assert.equal((await registry.get(`/v2/${repository}/blobs/${small.digest}`)).status, 404, "the others are not");
  }
  assert.equal((await registry.blobFiles()).length, 3);
  // What it was mounted from may go; what was mounted stays.
  await send(registry, 202, "DELETE", `/v2/team/base/manifests/${image.digest}`);
  await send(registry, 202, "DELETE", `/v2/team/base/blobs/${large.digest}`);
  await registry.pullBlob("other/app", large.digest);
});

for (const spelling of ["docker.io/library/base", "library/base", "base", "docker.io/base", undefined]) {
  test(`a blob that the mirror holds is mounted from ${spelling ?? "wherever it is"} and is never evicted`, async () => {
    await using upstream = await startUpstream();
    upstream.add("library/base", "1", image);
    const others = Array.from({ length: 4 }, (_, seed) => makeImage({ layers: [300_000], seed }));
    for (const [number, other] of others.entries()) upstream.add("library/other", String(number), other);
    await using registry = await startRegistry({
      upstreams: { "docker.io": upstream },
      config: { hosted, storage: { cacheMaxSize: 700_000 } },
    });
    await registry.pullBlob("library/base", large.digest);
    await registry.pullBlob("library/base", small.digest);
    await registry.until(async () => (await registry.metric("entrepot_cache_bytes")) === 302_000, "both are stored");

    assert.equal((await mount(registry, "team/app", large.digest, spelling)).status, 201);
    assert.equal(await registry.metric("entrepot_cache_bytes"), 2000, "it counts as cached no more");
    assert.equal(upstreamOf(registry, large.digest), null);
    assert.equal((await mount(registry, "team/app", large.digest, spelling)).status, 201, "a second time");
    assert.equal(await registry.metric("entrepot_cache_bytes"), 2000);

    let pulls = 0;
    await registry.until(async () => {
      const other = others[pulls++ % others.length];
      if (other) await registry.pullBlob("library/other", layerOf(other).digest);
      return upstreamOf(registry, small.digest) === undefined;
    }, "the blob beside it was evicted");
    await upstream.stop();
    assert.equal((await registry.pullBlob("team/app", large.digest)).length, 300_000);
    await registry.pullBlob("library/base", large.digest);
  });
}

test("what can't be mounted begins an upload, whatever the reason, and tells nothing", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/base", "1", image);
  upstream.add("library/unrelated", "1", makeImage({ layers: [10] }));
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream }, config: { hosted } });
  await pushBlob(registry, "team/base", small.bytes);
  await registry.pullBlob("library/base", large.digest);
  await registry.until(async () => (await registry.metric("entrepot_cache_bytes")) === 300_000, "it is stored");
  const hits = upstream.hits();
  for (const [digest, from] of [
    [small.digest, "team/never"],
    [small.digest, "other/app"],
    [small.digest, "library/base"],
    [small.digest, "docker.io/library/base"],
    [large.digest, "library/unrelated"],
    [large.digest, "team/base"],
    [large.digest, "no.such.registry/app"],
    [large.digest, "Not/A/Name"],
    [large.digest, "../../etc/passwd"],
    [large.digest, `library/${"x".repeat(300)}`],
    [large.digest, "library/base\r\nX-Evil: 1"],
    [image.config.digest, "library/base"],
    [image.config.digest, undefined],
  ] as const) {
    await assertSession(registry, await mount(registry, "other/app", digest, from));
    assert.equal((await registry.get(`/v2/other/app/blobs/${digest}`)).status, 404);
  }
  assert.equal(upstream.hits(), hits, "nobody was asked for it");
});

test("a repository that its upstream's globs keep out is no source of a mount, named or not", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/base", "1", image);
  upstream.add("library/open", "1", image);
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream }, config: { hosted } });
  await registry.pullBlob("library/base", large.digest);
  await registry.until(async () => (await registry.blobFiles()).length === 1, "it is stored");
  await registry.stop();
  for (const globs of [{ deny: ["library/base"] }, { allow: ["library/other"] }]) {
    const upstreams = { "docker.io": { ...globs, url: upstream.url } };
    await using closed = await startRegistry({ root: registry.root, upstreams, config: { hosted } });
    for (const from of ["library/base", "docker.io/library/base", undefined])
      await assertSession(closed, await mount(closed, "team/app", large.digest, from));
  }
  const upstreams = { "docker.io": { deny: ["library/base"], url: upstream.url } };
  await using partly = await startRegistry({ root: registry.root, upstreams, config: { hosted } });
  // The same content where it may be seen.
  await partly.pullBlob("library/open", large.digest);
  await until(async () => (await mount(partly, "team/app", large.digest)).status === 201, "it is reached");
});

test("what has been deleted everywhere is mounted by nobody, though its file is still there", async () => {
  await using registry = await startRegistry({ config: { hosted } });
  await pushBlob(registry, "team/base", small.bytes);
  await send(registry, 202, "DELETE", `/v2/team/base/blobs/${small.digest}`);
  assert.equal((await registry.blobFiles()).length, 1);
  await assertSession(registry, await mount(registry, "other/app", small.digest, "team/base"));
  await assertSession(registry, await mount(registry, "other/app", small.digest));
  await assertSession(registry, await mount(registry, "team/base", small.digest, "team/base"));
});

test("a blob whose file is gone, cut or unreadable is not mounted: the client sends it, and mends it for all", async () => {
  for (const harm of [
    (path: string) => rm(path),
    (path: string) => truncate(path, 1000),
    // No file can be opened that way, not even by root.
    (path: string) => rm(path).then(() => symlink(path, path)),
  ]) {
    await using registry = await startRegistry({ config: { hosted } });
    await pushBlob(registry, "team/base", large.bytes);
    await harm(await fileOf(registry, large.digest));
    await assertSession(registry, await mount(registry, "other/app", large.digest, "team/base"));
    await pushBlob(registry, "other/app", large.bytes);
    for (const repository of ["team/base", "other/app"]) await registry.pullBlob(repository, large.digest);
  }
});

test("what was mounted stays pinned though its file was lost and a pull brought it anew", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/base", "1", image);
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream }, config: { hosted } });
  await registry.pullBlob("library/base", large.digest);
  await registry.until(async () => (await registry.metric("entrepot_cache_bytes")) === 300_000, "it is stored");
  assert.equal((await mount(registry, "team/app", large.digest, "library/base")).status, 201);
  await rm(await fileOf(registry, large.digest));
  await registry.pullBlob("library/base", large.digest);
  await registry.until(() => upstreamOf(registry, large.digest) !== undefined, "it is recorded anew");
  assert.equal(upstreamOf(registry, large.digest), null);
  assert.equal(await registry.metric("entrepot_cache_bytes"), 0);
  await registry.pullBlob("team/app", large.digest);
});

test("content whose digest is known is out of reach through a repository that never had it", async () => {
  await using registry = await startRegistry({ config: { hosted } });
  await pushImage(registry, "team/secret", image, "1");
  await pushBlob(registry, "other/app", Buffer.from("its own"));
  const { digest } = image;
  for (const path of [`blobs/${large.digest}`, `blobs/${small.digest}`, `manifests/${digest}`, "manifests/1"]) {
    for (const method of ["GET", "HEAD"]) {
      assert.equal((await registry.send(method, `/v2/other/app/${path}`)).status, 404, `${method} ${path}`);
      const known = await registry.send(method, `/v2/other/app/${path}`, { "if-none-match": `"${large.digest}", *` });
      assert.equal(known.status, 404, "a condition must not tell that it is here");
      const part = await registry.send(method, `/v2/other/app/${path}`, { range: "bytes=0-1" });
      assert.equal(part.status, 404);
    }
  }
  // Nor by a manifest that names it: that would be as good as a mount.
  const refused = await registry.send(
    "PUT",
    "/v2/other/app/manifests/1",
    { "content-type": image.mediaType },
    image.manifest,
  );
  assert.equal(refused.status, 404);
  assert.equal(errorOf(refused).code, "MANIFEST_BLOB_UNKNOWN");
});
