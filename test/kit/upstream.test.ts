import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { connect } from "node:net";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { digestOf } from "../../src/oci/digest.ts";
import { MEDIA_TYPES, parseManifest } from "../../src/oci/manifest.ts";
import { makeArtifact, makeImage, makeIndex, virtualBlob } from "./images.ts";
import { startSink } from "./sink.ts";
import { startUpstream, type Upstream, type UpstreamOptions } from "./upstream.ts";

const image = makeImage({ layers: [100_000, 10] });
const layer = image.layers[0]!;
const blobPath = `/v2/library/alpine/blobs/${layer.digest}`;
const manifestPath = "/v2/library/alpine/manifests/latest";

async function serving(options?: UpstreamOptions): Promise<Upstream> {
  const upstream = await startUpstream(options);
  upstream.add("library/alpine", "latest", image);
  return upstream;
}

async function body(response: Response): Promise<Buffer> {
  return Buffer.from(await response.arrayBuffer());
}

test("images of equal options are equal, of another seed or type not", () => {
  const options = { layers: [5, 2_000_000], platform: { os: "linux", architecture: "arm64", variant: "v8" } };
  assert.equal(makeImage(options).digest, makeImage(options).digest);
  assert.notEqual(makeImage({ ...options, seed: 1 }).layers[0]!.digest, makeImage(options).layers[0]!.digest);
  const docker = makeImage({ ...options, mediaTypes: "docker" });
  assert.equal(parseManifest(docker.manifest, MEDIA_TYPES.dockerImage).layers[1]!.sizeBytes, 2_000_000);
  const sha512 = makeImage({ ...options, algorithm: "sha512" });
  assert.equal(sha512.layers[1]!.digest, digestOf(sha512.layers[1]!.bytes, "sha512"));
});

test("a real image's layers are gzipped tar archives with the digests that its config names", () => {
  const real = makeImage({ layers: [700], real: true });
  const tar = gunzipSync(real.layers[0]!.bytes);
  assert.equal(tar.toString("latin1", 257, 262), "ustar");
  assert.equal(JSON.parse(real.config.bytes.toString()).rootfs.diff_ids[0], digestOf(tar));
});

test("a virtual blob is the same at any range, and no two of its blocks are equal", () => {
  const blob = virtualBlob(3_500_000, "seed");
  const { bytes } = blob;
  assert.equal(bytes.byteLength, 3_500_000);
  assert.equal(digestOf(bytes), blob.digest);
  for (const [first, end] of [
    [0, 1],
    [1_048_574, 1_048_581],
    [1_048_577, 3_400_000],
    [3_499_999, 3_500_000],
  ] as const) {
    assert.deepEqual(Buffer.concat([...blob.chunks(first, end)]), bytes.subarray(first, end));
  }
  assert.notDeepEqual(bytes.subarray(0, 1_048_576), bytes.subarray(1_048_576, 2_097_152));
});

test("manifests come by tag and by digest, with HEAD, ETag and 304", async () => {
  await using upstream = await serving();
  const head = await fetch(upstream.url + manifestPath, { method: "HEAD" });
  assert.equal(head.headers.get("docker-content-digest"), image.digest);
  assert.equal(head.headers.get("content-length"), String(image.manifest.byteLength));
  const got = await fetch(`${upstream.url}/v2/library/alpine/manifests/${image.digest}`);
  assert.equal(got.headers.get("content-type"), MEDIA_TYPES.ociImage);
  assert.deepEqual(await body(got), image.manifest);
  const unchanged = await fetch(upstream.url + manifestPath, {
    headers: { "if-none-match": head.headers.get("etag")! },
  });
  assert.equal(unchanged.status, 304);
  assert.deepEqual([upstream.hits("HEAD"), upstream.hits("GET", "/manifests/latest"), upstream.hits()], [1, 1, 3]);
  const missing = await fetch(`${upstream.url}/v2/library/alpine/manifests/none`);
  assert.equal(missing.status, 404);
  assert.equal(JSON.parse((await body(missing)).toString()).errors[0].code, "MANIFEST_UNKNOWN");
});

test("blobs come whole and by range, and bytes are counted", async () => {
  await using upstream = await serving();
  assert.deepEqual(await body(await fetch(upstream.url + blobPath)), layer.bytes);
  const part = await fetch(upstream.url + blobPath, { headers: { range: "bytes=99990-" } });
  assert.equal(part.status, 206);
  assert.equal(part.headers.get("content-range"), "bytes 99990-99999/100000");
  assert.deepEqual(await body(part), layer.bytes.subarray(99_990));
  const beyond = await fetch(upstream.url + blobPath, { headers: { range: "bytes=100000-" } });
  assert.equal(beyond.status, 416);
  assert.equal(upstream.bytesSent(layer.digest), 100_010);
  await upstream.waitFor(() => upstream.requests.every((request) => request.state === "complete"));
});

test("a large blob streams without being held in memory", async () => {
  await using upstream = await startUpstream();
  const big = makeImage({ layers: [virtualBlob(256 * 1024 ** 2, "large")] });
  upstream.add("big", "1", big);
  const before = process.memoryUsage().arrayBuffers;
  const hash = createHash("sha256");
  const response = await fetch(`${upstream.url}/v2/big/blobs/${big.layers[0]!.digest}`);
  for await (const chunk of response.body!) hash.update(chunk);
  assert.equal(`sha256:${hash.digest("hex")}`, big.layers[0]!.digest);
  assert.ok(process.memoryUsage().arrayBuffers - before < 128 * 1024 ** 2);
});

test("tag lists come in pages", async () => {
  await using upstream = await serving();
  upstream.add("library/alpine", "3.20", image);
  upstream.add("library/alpine", "3.19", image);
  const page = await fetch(`${upstream.url}/v2/library/alpine/tags/list?n=2`);
  assert.deepEqual(await page.json(), { name: "library/alpine", tags: ["3.19", "3.20"] });
  assert.equal(page.headers.get("link"), '</v2/library/alpine/tags/list?last=3.20&n=2>; rel="next"');
  const rest = await fetch(`${upstream.url}/v2/library/alpine/tags/list?n=2&last=3.20`);
  assert.deepEqual(await rest.json(), { name: "library/alpine", tags: ["latest"] });
  assert.equal(rest.headers.get("link"), null);
});

test("an index brings its images, and loses a tag without losing the digest", async () => {
  await using upstream = await startUpstream();
  const arm = makeImage({ layers: [10], platform: { os: "linux", architecture: "arm64" } });
  const index = makeIndex([
    [{ os: "linux", architecture: "amd64" }, image],
    [{ os: "linux", architecture: "arm64" }, arm],
  ]);
  upstream.add("multi", "1", index);
  upstream.remove("multi", "1");
  assert.equal((await fetch(`${upstream.url}/v2/multi/manifests/1`)).status, 404);
  for (const { digest } of [index, image, arm]) {
    assert.equal((await fetch(`${upstream.url}/v2/multi/manifests/${digest}`)).status, 200);
  }
});

test("referrers are listed by the endpoint, or by the fallback tag where there is none", async () => {
  const signature = makeArtifact({ subject: image, artifactType: "application/x-sig", payload: "signed" });
  await using upstream = await serving();
  await using old = await serving({ referrers: false });
  for (const registry of [upstream, old]) registry.add("library/alpine", undefined, signature);
  const listed = await fetch(
    `${upstream.url}/v2/library/alpine/referrers/${image.digest}?artifactType=application/x-sig`,
  );
  assert.equal(listed.headers.get("oci-filters-applied"), "artifactType");
  const fallback = `${old.url}/v2/library/alpine/manifests/${image.digest.replace(":", "-")}`;
  for (const response of [listed, await fetch(fallback)]) {
    const { manifests } = (await response.json()) as { manifests: { digest: string; artifactType: string }[] };
    assert.deepEqual(
      manifests.map((one) => [one.digest, one.artifactType]),
      [[signature.digest, "application/x-sig"]],
    );
  }
  assert.equal((await fetch(`${old.url}/v2/library/alpine/referrers/${image.digest}`)).status, 404);
});

test("a cut ends the connection after exactly that many bytes, once", async () => {
  await using upstream = await serving();
  upstream.fault({ method: "GET", path: layer.digest, times: 1 }, { cutAfter: 1234 });
  const cut = await fetch(upstream.url + blobPath);
  let received = 0;
  await assert.rejects(async () => {
    for await (const chunk of cut.body!) received += chunk.byteLength;
  });
  assert.equal(received, 1234);
  assert.equal(upstream.bytesSent(layer.digest), 1234);
  await upstream.waitFor(() => upstream.requests[0]?.state === "cut");
  assert.deepEqual(await body(await fetch(upstream.url + blobPath)), layer.bytes);
  upstream.fault({ nth: 2 }, { cutAfter: "request" });
  assert.equal((await fetch(`${upstream.url}/v2/`)).status, 200);
  await assert.rejects(fetch(`${upstream.url}/v2/`));
});

test("a held request waits at its headers or in its body until it is released", async () => {
  await using upstream = await serving();
  const headers = upstream.hold({ path: "/manifests/" });
  const waiting = fetch(upstream.url + manifestPath);
  await headers.reached;
  assert.equal(upstream.requests[0]?.status, undefined);
  headers.release();
  assert.equal((await waiting).status, 200);

  const middle = upstream.hold({ path: layer.digest }, 500);
  const reader = (await fetch(upstream.url + blobPath)).body!.getReader();
  await middle.reached;
  assert.equal((await reader.read()).value?.byteLength, 500);
  middle.release();
  let rest = 0;
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) rest += piece.value.byteLength;
  assert.equal(rest, 99_500);
});

test("faults give wrong bytes, wrong lengths, wrong headers and wrong answers", async () => {
  await using upstream = await serving();
  const get = (init?: RequestInit): Promise<Response> => fetch(upstream.url + blobPath, init);
  const once = { path: layer.digest, times: 1 };

  upstream.fault(once, { corruptByte: 50_000 });
  const wrong = await body(await get({ headers: { range: "bytes=49999-50001" } }));
  assert.equal(wrong[1], layer.bytes[50_000]! ^ 0xff);
  assert.equal(wrong[2], layer.bytes[50_001]);

  upstream.fault(once, { bodyBytes: 10 });
  const short = await get();
  assert.equal(short.headers.get("content-length"), "10");
  assert.equal((await body(short)).byteLength, 10);

  upstream.fault(once, { contentLength: "none" });
  const chunked = await get();
  assert.equal(chunked.headers.get("content-length"), null);
  assert.deepEqual(await body(chunked), layer.bytes);

  upstream.fault(once, { contentLength: 100_001 });
  await assert.rejects(get().then(body));
  upstream.fault(once, { contentLength: 99_999 });
  assert.equal((await body(await get())).byteLength, 99_999);

  upstream.fault(once, { ignoreRange: true });
  assert.equal((await get({ headers: { range: "bytes=5-" } })).status, 200);

  upstream.fault(once, { headers: { "docker-content-digest": undefined, "content-range": "bytes 0-1/9" } });
  const lying = await get();
  assert.equal(lying.headers.get("docker-content-digest"), null);
  assert.equal(lying.headers.get("content-range"), "bytes 0-1/9");
  await lying.body!.cancel();

  upstream.fault(once, { status: 429, headers: { "retry-after": "7" }, body: { errors: [] } });
  const busy = await get();
  assert.deepEqual([busy.status, busy.headers.get("retry-after"), await busy.text()], [429, "7", '{"errors":[]}']);

  upstream.fault({}, { status: 500 });
  assert.equal((await get()).status, 500);
  upstream.clearFaults();
  assert.equal((await get({ method: "HEAD" })).status, 200);
});

test("a redirect leads to a sink, whose log shows what was sent", async () => {
  await using upstream = await serving();
  await using sink = await startSink({ status: 200, body: "elsewhere" });
  upstream.fault({ path: "/blobs/" }, { redirect: (path) => `${sink.url}/cdn${path}?sig=1` });
  const response = await fetch(upstream.url + blobPath, { headers: { authorization: "Basic eDp5" } });
  assert.equal(await response.text(), "elsewhere");
  assert.equal(upstream.requests[0]?.headers.authorization, "Basic eDp5");
  assert.equal(sink.requests[0]?.path, `/cdn${blobPath}`);
  assert.equal(sink.requests[0]?.query.get("sig"), "1");
  assert.equal(sink.requests[0]?.headers.authorization, undefined);
});

test("a bearer token opens the repositories of its scopes until it is revoked", async () => {
  await using upstream = await serving({ auth: { kind: "bearer", users: { ann: "secret" } } });
  const refused = await fetch(upstream.url + manifestPath);
  assert.equal(refused.status, 401);
  assert.equal(
    refused.headers.get("www-authenticate"),
    `Bearer realm="${upstream.url}/token",service="upstream",scope="repository:library/alpine:pull"`,
  );
  const tokenUrl = `${upstream.url}/token?service=upstream&scope=repository:library/alpine:pull`;
  const basic = (user: string): RequestInit => ({ headers: { authorization: `Basic ${btoa(user)}` } });
  assert.equal((await fetch(tokenUrl)).status, 401);
  assert.equal((await fetch(tokenUrl, basic("ann:wrong"))).status, 401);
  const answer = (await (await fetch(tokenUrl, basic("ann:secret"))).json()) as { token: string; expires_in: number };
  assert.equal(answer.expires_in, 300);
  assert.equal(upstream.tokensIssued, 1);
  const bearer = { headers: { authorization: `Bearer ${answer.token}` } };
  assert.equal((await fetch(upstream.url + manifestPath, bearer)).status, 200);
  assert.equal((await fetch(`${upstream.url}/v2/`, bearer)).status, 200);
  const other = await fetch(`${upstream.url}/v2/other/manifests/1`, bearer);
  assert.match(other.headers.get("www-authenticate")!, /error="insufficient_scope"/);
  upstream.revokeTokens();
  const late = await fetch(upstream.url + manifestPath, bearer);
  assert.match(late.headers.get("www-authenticate")!, /error="invalid_token"/);
});

test("anonymous pulls get a token without credentials; basic auth wants the password", async () => {
  await using hub = await serving({ auth: { kind: "bearer", anonymousPull: true } });
  assert.equal((await fetch(`${hub.url}/token?scope=repository:a:pull`)).status, 200);
  await using basic = await serving({ auth: { kind: "basic", users: { ann: "secret" } } });
  assert.equal((await fetch(basic.url + blobPath)).headers.get("www-authenticate"), 'Basic realm="upstream"');
  const headers = { authorization: `Basic ${btoa("ann:secret")}` };
  assert.equal((await fetch(basic.url + blobPath, { method: "HEAD", headers })).status, 200);
});

test("only GETs of manifests eat the rate limit", async () => {
  await using upstream = await serving({ rateLimit: { limit: 100, remaining: 1, windowSeconds: 21_600 } });
  const head = await fetch(upstream.url + manifestPath, { method: "HEAD" });
  assert.equal(head.headers.get("ratelimit-limit"), "100;w=21600");
  assert.equal(head.headers.get("ratelimit-remaining"), "1;w=21600");
  assert.equal((await fetch(upstream.url + manifestPath)).headers.get("ratelimit-remaining"), "0;w=21600");
  assert.equal((await fetch(upstream.url + manifestPath)).status, 429);
  assert.equal((await fetch(upstream.url + blobPath, { method: "HEAD" })).status, 200);
  upstream.rateLimit!.remaining = 5;
  assert.equal((await fetch(upstream.url + manifestPath)).status, 200);
});

test("a throttled connection is as slow as told", async () => {
  await using upstream = await serving({ bytesPerSecondPerConnection: 500_000, firstByteDelayMs: 30 });
  const start = performance.now();
  await body(await fetch(upstream.url + blobPath));
  const elapsedMs = performance.now() - start;
  assert.ok(elapsedMs > 170, `100,000 bytes at 500,000 a second took ${elapsedMs} ms`);
});

test("stopped, it cuts readers that do not read and refuses; restarted, it has its port and its images back", async () => {
  await using upstream = await startUpstream();
  const big = makeImage({ layers: [virtualBlob(64 * 1024 ** 2, "slow")] });
  upstream.add("big", "1", big);
  const { port } = upstream;
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => {});
  socket.pause();
  socket.write(`GET /v2/big/blobs/${big.layers[0]!.digest} HTTP/1.1\r\nHost: x\r\n\r\n`);
  await upstream.waitFor(() => upstream.bytesSent() > 0);
  assert.equal(upstream.connections, 1);
  await upstream.stop();
  assert.equal(upstream.connections, 0);
  assert.ok(upstream.bytesSent() < 64 * 1024 ** 2);
  await assert.rejects(fetch(`${upstream.url}/v2/`));
  socket.destroy();
  await upstream.restart();
  assert.equal(upstream.port, port);
  upstream.resetCounters();
  assert.equal((await fetch(`${upstream.url}/v2/big/manifests/1`)).status, 200);
  assert.equal(upstream.hits(), 1);
});
