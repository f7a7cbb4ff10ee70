import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { makeArtifact, makeImage, virtualBlob } from "../kit/images.ts";
import { startSink } from "../kit/sink.ts";
import { startUpstream } from "../kit/upstream.ts";
import { fault, openRemote, readAll, startScript } from "./remotes.ts";

const image = makeImage({ layers: [100_000, 3000], seed: "remote" });
const [layer] = image.layers;
assert.ok(layer);
const absent = digestOf(Buffer.from("absent"));

test("a manifest by tag and by digest, byte for byte, with what the registry says about it", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", image);
  await using opened = await openRemote(upstream.url);
  const { remote, seen } = opened;
  assert.equal(remote.name, upstream.host);

  const head = await remote.headManifest("team/app", "v1");
  const etag = `"${image.digest}"`;
  assert.deepEqual(head, {
    digest: image.digest,
    mediaType: image.mediaType,
    sizeBytes: image.manifest.byteLength,
    etag,
    origin: undefined,
  });
  assert.equal(await remote.headManifest("team/app", "v1", { ifNoneMatch: etag }), "notModified");
  assert.equal(await remote.headManifest("team/app", "v2"), undefined);

  const manifest = await remote.getManifest("team/app", image.digest);
  assert.deepEqual(manifest, {
    bytes: image.manifest,
    contentType: image.mediaType,
    digestHeader: image.digest,
    etag,
    origin: undefined,
  });
  assert.equal(await remote.getManifest("team/none", "v1"), undefined);

  assert.deepEqual(seen, [
    "manifest HEAD 200",
    "manifest HEAD 304",
    "manifest HEAD 404",
    "manifest GET 200",
    "manifest GET 404",
  ]);
  for (const { headers } of upstream.requests) {
    assert.equal(headers["accept-encoding"], "identity");
    assert.match(headers["user-agent"] ?? "", /^entrepot\/\d+\.\d+\.\d+/);
    assert.match(headers.accept ?? "", /oci\.image\.index/);
  }
});

test("a blob, whole, from a byte on, and a part of it", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", image);
  await using opened = await openRemote(upstream.url);
  const { remote } = opened;
  const { bytes, digest, sizeBytes } = layer;

  assert.deepEqual(await remote.headBlob("team/app", digest), { sizeBytes });
  const whole = await remote.openBlob("team/app", digest);
  assert.deepEqual([whole?.firstByte, whole?.sizeBytes], [0, sizeBytes]);
  assert.ok(whole && bytes.equals(await readAll(whole.body)));
  const rest = await remote.openBlob("team/app", digest, { firstByte: 70_000 });
  assert.deepEqual([rest?.firstByte, rest?.sizeBytes], [70_000, sizeBytes]);
  assert.ok(rest && bytes.subarray(70_000).equals(await readAll(rest.body)));
  const part = await remote.openBlob("team/app", digest, { firstByte: 10, lastByte: 19 });
  assert.ok(part && bytes.subarray(10, 20).equals(await readAll(part.body)));
  assert.equal(opened.receivedBytes(), sizeBytes + (sizeBytes - 70_000) + 10);

  assert.equal(await remote.headBlob("team/app", absent), undefined);
  assert.equal(await remote.openBlob("team/app", absent), undefined);
  await assert.rejects(remote.openBlob("team/app", digest, { firstByte: sizeBytes }), fault("protocol", /416/));
});

test("a registry that ignores ranges is told from one that lies about them", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", image);
  await using opened = await openRemote(upstream.url);
  const { remote } = opened;
  const open = () => remote.openBlob("team/app", layer.digest, { firstByte: 500 });

  upstream.fault({ times: 1 }, { ignoreRange: true });
  const whole = await open();
  assert.equal(whole?.firstByte, 0);
  assert.ok(whole && layer.bytes.equals(await readAll(whole.body)));

  for (const range of [
    "bytes 400-99999/100000",
    "bytes 500-99998/100000",
    "bytes 500-99999/99999",
    "bytes */100000",
    undefined,
  ]) {
    upstream.fault({ times: 1 }, { headers: { "content-range": range } });
    await assert.rejects(open(), fault("protocol", /range/), range);
  }
  upstream.fault({ times: 1 }, { bodyBytes: 100, contentLength: "none" });
  const short = await open();
  assert.ok(short);
  await assert.rejects(readAll(short.body), fault("interrupted"));
  // A part that was not asked for.
  await using unasked = await startSink({ status: 206, headers: { "content-range": "bytes 0-0/1" }, body: "x" });
  await using other = await openRemote(unasked.url);
  await assert.rejects(other.remote.openBlob("a", absent), fault("protocol"));
});

test("tags over several pages; names that cannot be tags are left out", async () => {
  await using upstream = await startUpstream();
  for (const n of ["a", "b"]) upstream.add("team/app", n, image);
  await using opened = await openRemote(upstream.url);
  assert.deepEqual(await opened.remote.listTags("team/app"), ["a", "b"]);
  assert.equal(await opened.remote.listTags("team/none"), undefined);

  await using paged = await startScript(({ query }, response) => {
    const page = Number(query.get("page") ?? 0);
    const link = `</v2/a/tags/list?n=1000&page=${page + 1}>; rel="next"`;
    response.writeHead(200, page < 2 ? { link } : {});
    response.end(JSON.stringify({ name: "a", tags: page === 2 ? null : [`t${page}`, "<script>", 7] }));
  });
  await using other = await openRemote(paged.url);
  assert.deepEqual(await other.remote.listTags("a"), ["t0", "t1"]);
});

test("referrers as they came; undefined where there is no such endpoint", async () => {
  const signature = makeArtifact({ subject: image, artifactType: "application/vnd.example.signature", payload: "x" });
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", image);
  upstream.add("team/app", undefined, signature);
  await using opened = await openRemote(upstream.url);
  const found = await opened.remote.referrers("team/app", image.digest);
  assert.deepEqual(
    found?.map((descriptor) => descriptor["digest"]),
    [signature.digest],
  );
  assert.deepEqual(await opened.remote.referrers("team/app", absent), []);

  await using old = await startUpstream({ referrers: false });
  await using without = await openRemote(old.url);
  assert.equal(await without.remote.referrers("team/app", image.digest), undefined);
});

test("ping tells a registry from another server", async () => {
  await using upstream = await startUpstream();
  await using opened = await openRemote(upstream.url);
  await opened.remote.ping();
  await using sink = await startSink({ status: 404 });
  await using other = await openRemote(sink.url);
  await assert.rejects(other.remote.ping(), fault("protocol", /404/));
  await using denying = await startSink({ status: 403, body: '{"errors":[{"code":"DENIED"}]}' });
  await using third = await openRemote(denying.url);
  await assert.rejects(third.remote.ping(), fault("denied", /403 DENIED/));
});

test("a path prefix in the url stands before /v2/", async () => {
  await using sink = await startSink();
  await using opened = await openRemote(`${sink.url}/registry/eu`);
  await opened.remote.ping();
  assert.equal(sink.requests[0]?.path, "/registry/eu/v2/");
});

test("a rate limit that the registry tells is in the state", async () => {
  await using upstream = await startUpstream({ rateLimit: { limit: 100, remaining: 76, windowSeconds: 21_600 } });
  upstream.add("team/app", "v1", image);
  await using opened = await openRemote(upstream.url);
  assert.equal(opened.remote.state.rateLimit, undefined);
  await opened.remote.getManifest("team/app", "v1");
  const at = opened.clock.nowMs;
  assert.deepEqual(opened.remote.state.rateLimit, { limit: 100, remaining: 75, windowSeconds: 21_600, at });
});

test("checks of a tag use their connections again", async () => {
  const ports = new Set<number | undefined>();
  await using server = await startScript((_request, response) => {
    ports.add(response.socket?.remotePort);
    response.writeHead(200, { "content-length": "500", "docker-content-digest": absent }).end();
  });
  await using opened = await openRemote(server.url);
  for (let n = 0; n < 10; n++) assert.ok(await opened.remote.headManifest("team/app", "v1"));
  assert.ok(ports.size <= 2, `${ports.size} connections`);
});

test("checks of a tag never wait behind blobs", async () => {
  const big = virtualBlob(8 * 2 ** 20, "big");
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", makeImage({ layers: [big, layer] }));
  await using opened = await openRemote(upstream.url, { connections: 1 });
  const { remote } = opened;
  const first = await remote.openBlob("team/app", big.digest);
  const second = remote.openBlob("team/app", layer.digest);
  assert.ok(await remote.headManifest("team/app", "v1"));
  assert.equal(upstream.hits("GET", layer.digest), 0);
  assert.ok(first);
  assert.equal(digestOf(await readAll(first.body)), big.digest);
  const after = await second;
  assert.ok(after && layer.bytes.equals(await readAll(after.body)));
});

test("a body nobody reads is not read from the connection either", async () => {
  const big = virtualBlob(64 * 2 ** 20, "backpressure");
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", makeImage({ layers: [big] }));
  await using opened = await openRemote(upstream.url);
  const opening = await opened.remote.openBlob("team/app", big.digest);
  assert.ok(opening);
  for (let n = 0; n < 20; n++) await opened.remote.headManifest("team/app", "v1");
  assert.ok(opened.receivedBytes() <= 512 * 1024, `${opened.receivedBytes()} bytes`);
  assert.equal(digestOf(await readAll(opening.body)), big.digest);
});

test("a body that is dropped closes its connection, whatever state it is in", async () => {
  const big = virtualBlob(64 * 2 ** 20, "dropped");
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", makeImage({ layers: [big] }));
  await using opened = await openRemote(upstream.url);
  const unread = await opened.remote.openBlob("team/app", big.digest);
  unread?.body.destroy();
  const failed = await opened.remote.openBlob("team/app", big.digest);
  failed?.body.destroy(new Error("no longer wanted"));
  const partly = await opened.remote.openBlob("team/app", big.digest);
  assert.ok(partly);
  for await (const piece of partly.body) if (piece.byteLength > 0) break;
  const abort = new AbortController();
  const aborted = await opened.remote.openBlob("team/app", big.digest, { signal: abort.signal });
  abort.abort(new Error("the client left"));
  assert.ok(aborted);
  await assert.rejects(readAll(aborted.body), /the client left/);
  await upstream.waitFor(
    () => upstream.requests.length === 4 && upstream.requests.every(({ state }) => state === "cut"),
  );
  await upstream.waitFor(() => upstream.connections === 0);
});

test("a caller who leaves before the answer gets his own reason at once", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", image);
  const gate = upstream.hold({ path: "v1" });
  await using opened = await openRemote(upstream.url);
  const abort = new AbortController();
  const waiting = opened.remote.getManifest("team/app", "v1", { signal: abort.signal });
  await gate.reached;
  abort.abort(new Error("the client left"));
  await assert.rejects(waiting, /the client left/);
  await assert.rejects(opened.remote.getManifest("team/app", "v1", { signal: abort.signal }), /the client left/);
  await upstream.waitFor(() => upstream.requests[0]?.state === "cut");
  assert.equal(upstream.hits(), 1);
  gate.release();
});

test("bandwidth is limited over all bodies together", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", makeImage({ layers: [256 * 1024, 256 * 1024 + 1] }));
  const blobs = makeImage({ layers: [256 * 1024, 256 * 1024 + 1] }).layers;
  await using opened = await openRemote(upstream.url, { bandwidth: 1024 * 1024 });
  const startedMs = performance.now();
  await Promise.all(
    blobs.map(async ({ digest }) => {
      const opening = await opened.remote.openBlob("team/app", digest);
      assert.ok(opening);
      assert.equal(digestOf(await readAll(opening.body)), digest);
    }),
  );
  const seconds = (performance.now() - startedMs) / 1000;
  assert.ok(seconds > 0.25 && seconds < 2, `512 KiB at 1 MiB/s took ${seconds} s`);
});

test("closing ends what is under way", async () => {
  const big = virtualBlob(64 * 2 ** 20, "closing");
  await using upstream = await startUpstream();
  upstream.add("team/app", "v1", makeImage({ layers: [big] }));
  const gate = upstream.hold({ path: "v1" });
  const opened = await openRemote(upstream.url, {}, 1);
  const opening = await opened.remote.openBlob("team/app", big.digest);
  const waiting = opened.remote.getManifest("team/app", "v1");
  await gate.reached;
  await Promise.all([
    assert.rejects(waiting, fault("unreachable")),
    assert.rejects(readAll(opening?.body ?? assert.fail()), fault("interrupted")),
    opened[Symbol.asyncDispose](),
  ]);
  await upstream.waitFor(() => upstream.connections === 0);
  gate.release();
});
