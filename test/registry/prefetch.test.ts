import assert from "node:assert/strict";
import { test } from "node:test";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { contentOf, makeImage, makeIndex } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startSink } from "../kit/sink.ts";
import { startUpstream } from "../kit/upstream.ts";
import { published } from "./clients.ts";

const image = makeImage({ layers: [100_000, 200_000] });

test("after a manifest its config and layers flow before anyone asks, and serve who asks then", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: upstream.url, prefetch: true } } });
  await mirror.get("/v2/library/app/manifests/1");
  await mirror.until(async () => (await mirror.blobFiles()).length === 3, "all blobs are here");
  assert.equal(upstream.hits("GET", "/blobs/"), 3);
  for (const { digest } of [image.config, ...image.layers]) await mirror.pullBlob("library/app", digest);
  await mirror.get(`/v2/library/app/manifests/${image.digest}`);
  assert.equal(upstream.hits(undefined, "/blobs/"), 3, "nothing is asked for twice");
});

test("a client that asks while a prefetch is under way joins it", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: upstream.url, prefetch: true } } });
  const [layer] = image.layers;
  assert.ok(layer);
  const gate = upstream.hold({ method: "GET", path: layer.digest }, 1000);
  await mirror.get("/v2/library/app/manifests/1");
  await gate.reached;
  const pulling = mirror.pullBlob("library/app", layer.digest);
  await mirror.until(
    async () => (await mirror.metric("entrepot_cache_requests_total", { result: "joined" })) === 1,
    "it joined",
  );
  gate.release();
  await pulling;
  assert.equal(upstream.hits("GET", layer.digest), 1);
  await mirror.until(async () => (await mirror.blobFiles()).length === 3, "all blobs are here");
});

test("off, it costs no request; and neither a HEAD nor an index starts one", async () => {
  await using upstream = await startUpstream();
  const index = makeIndex([[{ os: "linux", architecture: "amd64" }, image]]);
  upstream.add("library/app", "1", image);
  upstream.add("library/app", "index", index);
  await using off = await startRegistry({ upstreams: { "docker.io": { url: upstream.url, prefetch: false } } });
  await off.get("/v2/library/app/manifests/1");
  await using on = await startRegistry({ upstreams: { "docker.io": { url: upstream.url, prefetch: true } } });
  await on.send("HEAD", "/v2/library/app/manifests/1");
  await on.get("/v2/library/app/manifests/index");
  // A request that was to come would have come before the answer to this one.
  for (const mirror of [off, on]) await mirror.get("/v2/library/app/tags/list");
  assert.equal(upstream.hits(undefined, "/blobs/"), 0);
  assert.equal(upstream.hits(undefined, "/tags/"), 2);
});

test("a prefetch that fails harms no pull", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  upstream.fault({ method: "GET", path: "/blobs/", times: 3 }, { status: 404, body: {} });
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: upstream.url, prefetch: true } } });
  await mirror.get("/v2/library/app/manifests/1");
  await upstream.waitFor(() => upstream.hits("GET", "/blobs/") === 3);
  for (const { digest } of image.layers) {
    await mirror.until(
      async () => (await mirror.get(`/v2/library/app/blobs/${digest}`)).status === 200,
      "it is served",
    );
  }
});

test("foreign layers are fetched neither from their urls nor ahead (CVE-2020-15157)", async () => {
  await using thief = await startSink();
  await using upstream = await startUpstream({
    auth: { kind: "bearer", users: { me: "secret-password" } },
  });
  const own = contentOf(Buffer.from("{}"));
  const away = contentOf(Buffer.from("windows base layer"));
  const manifest = published(
    {
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.dockerImage,
      config: {
        mediaType: "application/vnd.docker.container.image.v1+json",
        digest: own.digest,
        size: own.sizeBytes,
        urls: [`${thief.url}/config`],
      },
      layers: [
        {
          mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
          digest: away.digest,
          size: away.sizeBytes,
          urls: [`${thief.url}/layer`],
        },
      ],
    },
    MEDIA_TYPES.dockerImage,
  );
  upstream.add("library/app", "other", image);
  upstream.addManifest("library/app", "1", manifest);
  await using mirror = await startRegistry({
    upstreams: {
      "docker.io": { url: upstream.url, prefetch: true, auth: { username: "me", password: "secret-password" } },
    },
  });
  const answer = await mirror.get("/v2/library/app/manifests/1");
  assert.deepEqual(answer.bytes, manifest.manifest);
  for (const { digest } of [own, away]) {
    assert.equal((await mirror.get(`/v2/library/app/blobs/${digest}`)).status, 404, "upstream has neither");
  }
  const warmed = await mirror.send(
    "POST",
    "/api/v1/warm",
    { "content-type": "application/json" },
    JSON.stringify({ images: ["docker.io/library/app:1"] }),
  );
  assert.match(warmed.bytes.toString(), /"type":"done"/);
  assert.equal(thief.hits(), 0);
  assert.equal(upstream.hits("GET", own.digest) + upstream.hits("GET", away.digest), 2);
});
