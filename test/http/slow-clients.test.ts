import assert from "node:assert/strict";
import { test } from "node:test";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { layerOf, published } from "../registry/clients.ts";
import { connectTo } from "./raw.ts";

test("who sends a head byte by byte is cut, and nobody else notices", async () => {
  await using upstream = await startUpstream();
  await using mirror = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { server: { headersTimeout: "300ms" } },
  });
  using slow = await connectTo(mirror.url);
  using silent = await connectTo(mirror.url);
  slow.socket.write("GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ");
  const drip = setInterval(() => slow.socket.write("a"), 20);
  try {
    assert.equal((await mirror.get("/livez")).status, 200);
    await Promise.all([slow.closed, silent.closed]);
  } finally {
    clearInterval(drip);
  }
  assert.doesNotMatch(slow.text, / 200 /);
  assert.equal((await mirror.get("/livez")).status, 200);
});

test("who takes nothing of a blob or of manifests is cut, and others pull the same meanwhile", async () => {
  const image = makeImage({ layers: [24 * 1024 * 1024] });
  const layer = layerOf(image);
  const big = published(
    { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [], annotations: { x: "x".repeat(3_900_000) } },
    MEDIA_TYPES.ociIndex,
  );
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  upstream.addManifest("library/app", "big", big);
  await using mirror = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { server: { progress: { minBytes: "16KiB", interval: "300ms" } } },
  });
  await mirror.get("/v2/library/app/manifests/big");

  // More than the kernel buffers for a connection, asked for at once.
  using manifests = await connectTo(mirror.url);
  manifests.socket.pause();
  for (let i = 0; i < 8; i++) manifests.send("GET /v2/library/app/manifests/big HTTP/1.1", "Host: x");
  using blob = await connectTo(mirror.url);
  blob.socket.pause();
  blob.send(`GET /v2/library/app/blobs/${layer.digest} HTTP/1.1`, "Host: x");

  await mirror.pullBlob("library/app", layer.digest);
  await mirror.until(() => mirror.log.some(({ code, handler }) => code === 499 && handler === "blob"), "it was cut");
  await mirror.pullBlob("library/app", layer.digest);
  for (const [connection, sent] of [
    [blob, layer.sizeBytes],
    [manifests, 8 * big.manifest.length],
  ] as const) {
    connection.socket.resume();
    await connection.closed;
    assert.ok(connection.received.length < sent, `${connection.received.length} of ${sent} bytes came`);
  }
  assert.equal(upstream.hits("GET", layer.digest), 1);
});

test("who reads slowly, but reads, gets it all", async () => {
  const image = makeImage({ layers: [8 * 1024 * 1024] });
  const layer = layerOf(image);
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { server: { progress: { minBytes: "1KiB", interval: "2s" } } },
  });
  using slow = await connectTo(mirror.url);
  slow.send(`GET /v2/library/app/blobs/${layer.digest} HTTP/1.1`, "Host: x", "Connection: close");
  slow.socket.on("data", () => {
    slow.socket.pause();
    setTimeout(() => slow.socket.resume(), 10);
  });
  await slow.closed;
  const body = slow.received.subarray(slow.received.indexOf("\r\n\r\n") + 4);
  assert.ok(body.equals(layer.bytes));
});

for (const [name, length] of [
  ["with a length", undefined],
  ["without one", "none"],
] as const) {
  test(`a body ${name} that upstream breaks for good is broken off here: no clean end, no JSON behind it`, async () => {
    const image = makeImage({ layers: [3_000_000] });
    const layer = layerOf(image);
    await using upstream = await startUpstream();
    upstream.add("library/app", "1", image);
    upstream.fault(
      { method: "GET", path: layer.digest, times: 1 },
      { cutAfter: 1_000_000, ...(length === undefined ? {} : { contentLength: length }) },
    );
    for (let nth = 2; nth < 30; nth++) upstream.fault({ method: "GET", path: layer.digest, nth }, { status: 500 });
    await using mirror = await startRegistry({ upstreams: { "docker.io": upstream }, leavesPartials: true });
    using client = await connectTo(mirror.url);
    client.send(`GET /v2/library/app/blobs/${layer.digest} HTTP/1.1`, "Host: x");
    await client.closed;
    assert.match(client.text, /^HTTP\/1\.1 200 /);
    assert.doesNotMatch(client.text, /"errors"/);
    assert.ok(!client.received.subarray(-7).toString("latin1").endsWith("\r\n0\r\n\r\n"), "chunks were not ended");
    const body = client.received.subarray(client.received.indexOf("\r\n\r\n") + 4);
    assert.ok(body.length < layer.sizeBytes);
    if (length === undefined)
      assert.ok(body.equals(layer.bytes.subarray(0, body.length)), "nothing but the blob's bytes");
    assert.deepEqual(await mirror.blobFiles(), []);
  });
}
