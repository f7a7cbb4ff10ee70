import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";

test("the three spellings of a name share one copy", async () => {
  const image = makeImage({ layers: [100_000] });
  await using upstream = await startUpstream();
  upstream.add("library/alpine", "3", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (const path of ["/v2/library/alpine", "/v2/docker.io/library/alpine", "/v2/docker.io/alpine", "/v2/alpine"]) {
    const answer = await mirror.get(`${path}/manifests/3`);
    assert.equal(answer.status, 200, answer.bytes.toString());
    assert.deepEqual(answer.bytes, image.manifest);
  }
  const scoped = await mirror.get("/v2/library/alpine/manifests/3?ns=docker.io");
  assert.equal(scoped.headers["oci-namespace"], "docker.io");
  assert.equal(upstream.hits("GET", "/manifests/"), 1);
  assert.equal(upstream.hits("HEAD", "/manifests/"), 1);
});

test("twenty cold clients, one upstream download", async () => {
  const image = makeImage({ layers: [5_000_000] });
  const [layer] = image.layers;
  assert.ok(layer);
  await using upstream = await startUpstream();
  upstream.add("library/alpine", "3", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  await Promise.all(Array.from({ length: 20 }, () => mirror.pullBlob("library/alpine", layer.digest)));
  assert.equal(upstream.hits("GET", layer.digest), 1);
  await mirror.until(async () => (await mirror.blobFiles()).length === 1, "the blob is stored");
  await mirror.pullBlob("library/alpine", layer.digest);
  assert.equal(upstream.hits("GET", layer.digest), 1);
});
