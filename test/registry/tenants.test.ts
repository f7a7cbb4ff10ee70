import assert from "node:assert/strict";
import { test } from "node:test";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { errorOf, layerOf, published } from "./clients.ts";

// Content is stored once and reached per repository: `docker.io/owner/secret` is somebody's, `docker.io/evil/app` another's.
const secret = makeImage({ layers: [300_000, 40_000], seed: "secret" });
const [layer, small] = [layerOf(secret, 0), layerOf(secret, 1)];

/** What somebody publishes who knows the digests of content that he may not read. */
const pointer = published(
  {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociImage,
    config: { mediaType: "application/json", digest: secret.config.digest, size: secret.config.sizeBytes },
    layers: [layer, small].map(({ digest, sizeBytes }) => ({ mediaType: "a/b", digest, size: sizeBytes })),
  },
  MEDIA_TYPES.ociImage,
);

interface Scene extends AsyncDisposable {
  upstream: Upstream;
  mirror: TestRegistry;
}

async function start(prefetch = false): Promise<Scene> {
  await using stack = new AsyncDisposableStack();
  const upstream = stack.use(await startUpstream());
  upstream.add("owner/secret", "1", secret);
  upstream.addManifest("evil/app", "1", pointer);
  const mirror = stack.use(await startRegistry({ upstreams: { "docker.io": { url: upstream.url, prefetch } } }));
  const owned = stack.move();
  return { upstream, mirror, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

async function pullSecret(mirror: TestRegistry): Promise<void> {
  assert.deepEqual((await mirror.get("/v2/owner/secret/manifests/1")).bytes, secret.manifest);
  for (const { digest } of [secret.config, ...secret.layers]) await mirror.pullBlob("owner/secret", digest);
  await mirror.until(async () => (await mirror.blobFiles()).length === 3, "the secret is stored");
}

/** Evil gets nothing of the secret, by no method and no range. */
async function assertKept(mirror: TestRegistry, image: Image = secret): Promise<void> {
  for (const { digest } of [image.config, ...image.layers]) {
    for (const method of ["GET", "HEAD"]) {
      const answer = await mirror.send(method, `/v2/evil/app/blobs/${digest}`);
      assert.equal(answer.status, 404, `${method} ${digest}`);
      if (method === "GET") assert.equal(errorOf(answer).code, "BLOB_UNKNOWN");
    }
    const part = await mirror.get(`/v2/evil/app/blobs/${digest}`, { range: "bytes=0-9" });
    assert.equal(part.status, 404);
    const known = await mirror.get(`/v2/evil/app/blobs/${digest}`, { "if-none-match": `"${digest}"` });
    assert.equal(known.status, 404, "a condition must not tell that it is here");
  }
}

test("stored content is out of reach for a repository whose upstream does not have it", async () => {
  await using scene = await start();
  const { mirror, upstream } = scene;
  await pullSecret(mirror);
  await assertKept(mirror);
  for (const method of ["GET", "HEAD"]) {
    const answer = await mirror.send(method, `/v2/evil/app/manifests/${secret.digest}`);
    assert.equal(answer.status, 404, method);
  }
  assert.equal((await mirror.get("/v2/evil/app/manifests/1")).status, 200);
  await assertKept(mirror);
  await upstream.stop();
  const unknown = await mirror.get(`/v2/evil/app/blobs/${layer.digest}`);
  assert.equal(unknown.status, 502, "who can't be asked has not said yes");
  await mirror.pullBlob("owner/secret", layer.digest);
});

test("another upstream's repository does not reach it either, until that upstream says that it has it", async () => {
  await using scene = await start();
  await using other = await startUpstream();
  await using mirror = await startRegistry({
    upstreams: { "docker.io": scene.upstream, "ghcr.io": other },
  });
  await pullSecret(mirror);
  const path = `/v2/ghcr.io/owner/secret/blobs/${layer.digest}`;
  assert.equal((await mirror.get(path)).status, 404);
  assert.equal((await mirror.get(`/v2/ghcr.io/owner/secret/manifests/${secret.digest}`)).status, 404);

  other.add("owner/copy", "1", secret);
  await mirror.pullBlob("ghcr.io/owner/copy", layer.digest);
  assert.equal(other.hits("HEAD", layer.digest), 2);
  assert.equal(other.hits("GET", layer.digest), 0, "what is here is not downloaded again");
  await mirror.pullBlob("ghcr.io/owner/copy", layer.digest);
  assert.equal(other.hits("HEAD", layer.digest), 2, "it is asked once");
  const manifest = await mirror.get(`/v2/ghcr.io/owner/copy/manifests/${secret.digest}`);
  assert.deepEqual(manifest.bytes, secret.manifest);
  assert.equal(other.hits("GET", "/manifests/"), 0);
});

test("a download under way is out of reach, too", async () => {
  await using scene = await start();
  const { mirror, upstream } = scene;
  const gate = upstream.hold({ method: "GET", path: layer.digest }, 100_000);
  const pulling = mirror.pullBlob("owner/secret", layer.digest);
  await gate.reached;
  for (const method of ["GET", "HEAD"]) {
    assert.equal((await mirror.send(method, `/v2/evil/app/blobs/${layer.digest}`)).status, 404, method);
  }
  gate.release();
  await pulling;
  await mirror.until(async () => (await mirror.blobFiles()).length === 1, "it is stored");
  assert.equal((await mirror.get(`/v2/evil/app/blobs/${layer.digest}`)).status, 404);
});

test("a manifest that points to another's content opens none of it, prefetch or not", async () => {
  for (const order of ["secret first", "pointer first"]) {
    await using scene = await start(true);
    const { mirror } = scene;
    if (order === "secret first") await pullSecret(mirror);
    assert.equal((await mirror.get("/v2/evil/app/manifests/1")).status, 200);
    if (order === "pointer first") await pullSecret(mirror);
    await assertKept(mirror);
  }
});

test("a prefetch for another's manifest while the content comes in opens none of it", async () => {
  await using scene = await start(true);
  const { mirror, upstream } = scene;
  const gate = upstream.hold({ method: "GET", path: layer.digest }, 100_000);
  const pulling = mirror.pullBlob("owner/secret", layer.digest);
  await gate.reached;
  assert.equal((await mirror.get("/v2/evil/app/manifests/1")).status, 200);
  await upstream.waitFor(() => upstream.hits("GET", `evil/app/blobs/${small.digest}`) === 1);
  gate.release();
  await pulling;
  await mirror.until(async () => (await mirror.blobFiles()).length === 1, "it is stored");
  await assertKept(mirror);
});

test("who starts a download that his own upstream refuses neither gets what others bring meanwhile, nor spoils it for them", async () => {
  await using scene = await start();
  const { mirror, upstream } = scene;
  const gate = upstream.hold({ method: "GET", path: `evil/app/blobs/${layer.digest}` });
  const evil = mirror.get(`/v2/evil/app/blobs/${layer.digest}`);
  await gate.reached;
  const pulling = mirror.pullBlob("owner/secret", layer.digest);
  await upstream.waitFor(() => upstream.hits("HEAD", `owner/secret/blobs/${layer.digest}`) === 1);
  await mirror.until(
    async () => upstream.requests.at(-1)?.state === "complete",
    "its owner's upstream has said that it is there",
  );
  gate.release();
  assert.equal((await evil).status, 404);
  await pulling;
  await mirror.until(async () => (await mirror.blobFiles()).length === 1, "it is stored");
  await assertKept(mirror, { ...secret, layers: secret.layers.slice(0, 1), config: secret.layers[0] ?? secret.config });
});

test("asked for at the same moment, each repository gets what its own upstream has", async () => {
  const many = makeImage({ layers: Array.from({ length: 60 }, (_, at) => 20_000 + at), seed: "many" });
  await using scene = await start();
  const { mirror, upstream } = scene;
  upstream.add("owner/secret", "many", many);
  const asked = many.layers.flatMap(({ digest }) => [
    mirror.get(`/v2/evil/app/blobs/${digest}`).then(({ status }) => assert.equal(status, 404)),
    mirror.pullBlob("owner/secret", digest),
    mirror.get(`/v2/evil/app/blobs/${digest}`).then(({ status }) => assert.equal(status, 404)),
  ]);
  await Promise.all(asked);
  await mirror.until(async () => (await mirror.blobFiles()).length === 60, "all are stored");
  await assertKept(mirror, many);
});
