import assert from "node:assert/strict";
import { test } from "node:test";
import type { WarmEvent } from "../../src/registry/warm.ts";
import { makeImage, makeIndex, type Published } from "../kit/images.ts";
import { startRegistry, type Answer, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { jsonOf, layerOf, published } from "../registry/clients.ts";
import { connectTo } from "./raw.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";

function warm(mirror: TestRegistry, body: unknown, headers: Record<string, string> = {}): Promise<Answer> {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  return mirror.send("POST", "/api/v1/warm", { "content-type": "application/json", ...headers }, text);
}

function eventsOf(answer: Answer): WarmEvent[] {
  assert.equal(answer.status, 200, answer.bytes.toString());
  assert.equal(answer.headers["content-type"], "application/x-ndjson");
  return answer.bytes
    .toString()
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as WarmEvent);
}

const [amd64, arm64] = ["amd64", "arm64"].map((architecture) =>
  makeImage({ layers: [100_000, 50_000], platform: { os: "linux", architecture }, seed: architecture }),
);
assert.ok(amd64 && arm64);
const index = makeIndex([
  [{ os: "linux", architecture: "amd64" }, amd64],
  [{ os: "linux", architecture: "arm64", variant: "v8" }, arm64],
]);

test("warming brings every blob of the platforms wanted, and tells of each before and after", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", index);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const image = "docker.io/library/app:1";
  const events = eventsOf(await warm(mirror, { images: [image], platforms: ["linux/arm64/v8"] }));
  assert.deepEqual(events[0], { type: "image", image, repository: "docker.io/library/app" });
  assert.deepEqual(
    events.filter(({ type }) => type === "done"),
    [{ type: "done", image }],
  );
  for (const { digest, sizeBytes } of [arm64.config, ...arm64.layers]) {
    const told = events.filter((event) => event.type === "blob" && event.digest === digest);
    assert.deepEqual(told, [
      { type: "blob", image, digest, sizeBytes, here: false },
      { type: "blob", image, digest, sizeBytes, here: true },
    ]);
  }
  assert.equal(upstream.hits(undefined, amd64.digest), 0);
  await mirror.until(async () => (await mirror.blobFiles()).length === 3, "it is stored");
  await upstream.stop();
  for (const { digest } of [arm64.config, ...arm64.layers]) await mirror.pullBlob("library/app", digest);
  const again = eventsOf(await warm(mirror, { images: ["app:1"], platforms: ["linux/arm64"] }));
  assert.ok(
    again.some(({ type }) => type === "done"),
    "what is here needs no upstream",
  );
});

test("a blob is told to be here when it is, not when somebody else has begun to fetch it", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", amd64);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const { digest } = layerOf(amd64);
  const gate = upstream.hold({ method: "GET", path: digest }, 1000);
  const pulling = mirror.pullBlob("library/app", digest);
  await gate.reached;
  using client = await connectTo(mirror.url);
  const body = JSON.stringify({ images: ["docker.io/library/app:1"] });
  client.send(
    "POST /api/v1/warm HTTP/1.1",
    "Host: localhost",
    "Content-Type: application/json",
    `Content-Length: ${body.length}`,
  );
  client.socket.write(body);
  const here = new RegExp(`"digest":"${digest}","sizeBytes":100000,"here":true`);
  await client.until(/"type":"progress"/);
  assert.doesNotMatch(client.text, here);
  gate.release();
  await client.until(/"type":"done"/);
  assert.match(client.text, here);
  await pulling;
});

test("an image that fails is told with its cause, and stops no other", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", amd64);
  upstream.add("library/torn", "1", arm64);
  upstream.remove("library/torn", layerOf(arm64).digest);
  await using mirror = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { hosted: { namespaces: ["team"] } },
  });
  const images = ["app:none", "team/app:1", "quay.io/a/b:1", "Not A Name", "docker.io/library/torn:1", "app:1"];
  const events = eventsOf(await warm(mirror, { images }));
  const outcomes = events.flatMap((event) =>
    event.type === "failed" ? [`${event.image}: ${event.message}`] : event.type === "done" ? [event.image] : [],
  );
  assert.equal(outcomes.length, images.length);
  for (const [at, expected] of [
    /has no manifest none/,
    /hosted here/,
    /quay\.io is no configured upstream/,
    /not a repository name/,
    /is not at docker\.io/,
    /^app:1$/,
  ].entries()) {
    assert.match(outcomes[at] ?? "", expected);
  }
});

test("a chain of indexes is followed only so far", async () => {
  await using upstream = await startUpstream();
  let top: Published = amd64;
  for (let depth = 0; depth < 20; depth++) {
    upstream.addManifest("library/app", undefined, top);
    const child = { mediaType: top.mediaType, digest: top.digest, size: top.manifest.length };
    top = published({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [child] }, MEDIA_TYPES.ociIndex);
  }
  upstream.addManifest("library/app", "1", top);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const events = eventsOf(await warm(mirror, { images: ["app:1"] }));
  assert.match(JSON.stringify(events.find(({ type }) => type === "failed")), /nests indexes deeper/);
  assert.ok(upstream.hits("GET") < 8);
});

test("who leaves while an image is being warmed ends it", async () => {
  const large = makeImage({ layers: [80 * 1024 * 1024] });
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", large);
  const { digest } = layerOf(large);
  upstream.hold({ method: "GET", path: digest }, 1000);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream }, leavesPartials: true });
  const client = await connectTo(mirror.url);
  const body = JSON.stringify({ images: ["app:1", "app:2"] });
  client.send(
    "POST /api/v1/warm HTTP/1.1",
    "Host: localhost",
    "Content-Type: application/json",
    `Content-Length: ${body.length}`,
  );
  client.socket.write(body);
  await client.until(/"type":"progress"/);
  await upstream.waitFor(() => upstream.hits("GET", digest) >= 1);
  client.socket.destroy();
  await upstream.waitFor(() => upstream.requests.some(({ path, state }) => path.includes(digest) && state === "cut"));
  await mirror.until(async () => (await mirror.metric("entrepot_flights_in_progress")) === 0, "nothing flies");
  assert.equal(upstream.hits(undefined, "/manifests/2"), 0);
});

test("a body that is none of JSON, or not the one wanted, is 400; another type 415; a huge one 413", async () => {
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: "http://127.0.0.1:1" } } });
  for (const body of [
    "",
    "{",
    "[]",
    "null",
    {},
    { images: [] },
    { images: [1] },
    { images: ["a"], platforms: ["linux"] },
    { images: ["a"], more: 1 },
    { images: ["x".repeat(600)] },
  ]) {
    const answer = await warm(mirror, body);
    assert.equal(answer.status, 400, JSON.stringify(body));
    assert.equal(answer.headers["content-type"], "application/problem+json");
    assert.ok(String(jsonOf(answer)["detail"]).length > 5);
  }
  for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""]) {
    const answer = await warm(mirror, { images: ["app:1"] }, { "content-type": type });
    assert.equal(answer.status, 415, type);
  }
  const huge = await warm(mirror, " ".repeat(1024 * 1024 + 1));
  assert.equal(huge.status, 413);
  assert.match(String(jsonOf(huge)["detail"]), /larger than 1048576 bytes/);
  const read = await mirror.get("/api/v1/warm");
  assert.deepEqual([read.status, read.headers["allow"]], [405, "POST"]);
});
