import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { errorOf, jsonOf, layerOf } from "../registry/clients.ts";
import { connectTo } from "./raw.ts";

const NOWHERE = { "docker.io": { url: "http://127.0.0.1:1" } };

/** Sends a target as it is: no client library tidies it up. */
async function ask(mirror: TestRegistry, target: string, method = "GET"): Promise<{ status: number; body: string }> {
  using client = await connectTo(mirror.url);
  client.send(`${method} ${target} HTTP/1.1`, "Host: x", "Connection: close");
  await client.closed;
  const [head = "", ...body] = client.text.split("\r\n\r\n");
  return { status: Number(head.split(" ")[1]), body: body.join("\r\n\r\n") };
}

test("every answer has a request id of its own, and errors of the registry API have its shape", async () => {
  await using mirror = await startRegistry({ upstreams: NOWHERE });
  const ids = new Set<unknown>();
  for (const path of ["/v2/", "/livez", "/v2/_catalog", "/v2/UPPER/manifests/1", "/nothing", "/v2/nothing"]) {
    const answer = await mirror.get(path);
    ids.add(answer.headers["x-request-id"]);
    if (answer.status < 400) continue;
    if (path.startsWith("/v2/")) {
      assert.equal(answer.headers["content-type"], "application/json");
      assert.equal(answer.headers["docker-distribution-api-version"], "registry/2.0");
      assert.match(errorOf(answer).code, /^[A-Z_]+$/);
    } else {
      assert.equal(answer.headers["content-type"], "application/problem+json");
      const { status, title, type, detail } = jsonOf(answer);
      assert.equal(status, answer.status);
      for (const text of [title, type, detail]) assert.ok(typeof text === "string" && text !== "");
    }
  }
  assert.equal(ids.size, 6);
  for (const { id } of mirror.log.filter(({ msg }) => msg === "request")) assert.ok(ids.has(id));
  const base = await mirror.get("/v2/");
  assert.equal(base.headers["docker-distribution-api-version"], "registry/2.0");
  assert.deepEqual(jsonOf(base), {});
});

test("a failure that nobody foresaw is an opaque 500 whose id leads to the cause in the log", async () => {
  await using mirror = await startRegistry({ upstreams: NOWHERE });
  const { registry } = mirror.app.metrics;
  registry.metrics = () => Promise.reject(new Error("the cause, which is nobody's business"));
  const answer = await mirror.get("/metrics");
  assert.equal(answer.status, 500);
  const { detail } = jsonOf(answer);
  assert.doesNotMatch(String(detail), /nobody's business/);
  const line = mirror.log.find(({ level }) => level === 50);
  assert.ok(String(detail).includes(String(line?.["id"])));
  assert.match(JSON.stringify(line), /nobody's business/);
});

test("methods that mean nothing here are refused, none crashes it", async () => {
  await using mirror = await startRegistry({ upstreams: NOWHERE });
  for (const method of ["PROPFIND", "OPTIONS", "TRACE", "LOCK", "POST", "DELETE"]) {
    const answer = await ask(mirror, "/v2/", method);
    assert.equal(answer.status, 405, method);
    assert.equal((await ask(mirror, "/v2/library/app/manifests/1", method)).status, 405, method);
    assert.equal((await ask(mirror, "/livez", method)).status, 404, method);
  }
  assert.equal((await ask(mirror, "/v2/", "BREW")).status, 400);
  assert.equal((await mirror.get("/livez")).status, 200);
});

test("no path leads out of the grammar: 400 or 404, and no upstream is asked", async () => {
  await using upstream = await startUpstream();
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const hex = "a".repeat(64);
  for (const target of [
    "/v2/..%2f..%2fetc/passwd",
    "/v2/../../etc/passwd",
    "/v2/%2e%2e/%2e%2e/manifests/1",
    "/v2/library/../app/manifests/1",
    "/v2/library/..%2fapp/manifests/1",
    "/v2/library/app/manifests/..",
    "/v2/library/app/manifests/..%2f..%2f1",
    "/v2/library/app%00/manifests/1",
    "/v2/library/app/manifests/1%00",
    "/v2/library/app/manifests/%ff",
    "/v2/library/app/manifests/%",
    "/v2/library//app/manifests/1",
    "/v2//library/app/manifests/1",
    "/v2/library/app/blobs/sha256:../x",
    `/v2/library/app/blobs/sha256:..%2f${hex}`,
    `/v2/library/app/blobs/sha256:${hex.toUpperCase()}`,
    `/v2/library/app/blobs/sha256:${hex}0`,
    `/v2/library/app/blobs/md5:${hex.slice(0, 32)}`,
    `/v2/library/app/blobs/sha256%3a${hex}%0a`,
    `/v2/library/app/manifests/${"t".repeat(129)}`,
    `/v2/${"a".repeat(256)}/manifests/1`,
    `/v2/${"a/".repeat(128)}a/manifests/1`,
    "/v2/Library/App/manifests/1",
    "/v2/library/app/manifests/-x",
    "/v2/-/manifests/1",
    "/v2/library/app/tags/list/",
    "/v2/library/app",
    "/v2x",
    "//v2/library/app/manifests/1",
    "/%76%32/library/app/manifests/1",
  ]) {
    const { status, body } = await ask(mirror, target);
    assert.ok(status === 400 || status === 404, `${status} for ${target}`);
    assert.ok(body.length < 1000, target);
    JSON.parse(body);
  }
  assert.equal(upstream.hits(), 0);
});

test("names of 15 KB are refused in no time", async () => {
  await using mirror = await startRegistry({ upstreams: NOWHERE });
  const started = performance.now();
  for (const unit of ["a", "a-", "-", "_", "a_", "a.", "./", "a/", "%61", "é", "a__"]) {
    const long = encodeURI(unit).repeat(Math.floor(15_000 / encodeURI(unit).length));
    for (const target of [
      `/v2/${long}/manifests/1`,
      `/v2/library/app/manifests/${long}`,
      `/v2/library/app/blobs/sha256:${long}`,
      `/v2/library/app/manifests/1?ns=${long}`,
      `/v2/library/app/tags/list?n=${long}`,
    ]) {
      const { status } = await ask(mirror, target);
      assert.ok(status === 400 || status === 404, `${status} for ${target.slice(0, 60)}`);
    }
  }
  // 55 requests; one with catastrophic backtracking would take longer than all of them may.
  assert.ok(performance.now() - started < 20_000);
  assert.equal((await ask(mirror, `/v2/${"a".repeat(20_000)}/manifests/1`)).status, 431);
});

test("a Host that is none harms nobody", async () => {
  await using mirror = await startRegistry({ upstreams: NOWHERE });
  for (const host of ["evil:x@ok", "a b", "[::", "x".repeat(8000), "\x01"]) {
    using client = await connectTo(mirror.url);
    client.send("GET /v2/ HTTP/1.1", `Host: ${host}`, "Connection: close");
    await client.closed;
    assert.match(client.text, /^HTTP\/1\.1 (?:200|400) /);
  }
});

test("ranges of blobs: one part is 206, several or another unit are ignored, what lies outside is 416", async () => {
  const image = makeImage({ layers: [100_000] });
  const { digest, bytes } = layerOf(image);
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const path = `/v2/library/app/blobs/${digest}`;
  for (const round of ["cold", "cached"]) {
    for (const [range, first, end] of [
      ["bytes=0-0", 0, 1],
      ["bytes=10-", 10, 100_000],
      ["bytes=-1", 99_999, 100_000],
      ["bytes=99999-200000", 99_999, 100_000],
    ] as const) {
      const part = await mirror.get(path, { range });
      assert.equal(part.status, 206, `${round} ${range}`);
      assert.deepEqual(part.bytes, bytes.subarray(first, end));
      assert.equal(part.headers["content-range"], `bytes ${first}-${end - 1}/100000`);
      assert.equal(part.headers["content-length"], String(end - first));
    }
    for (const range of ["bytes=0-1,5-6", "items=0-1", "bytes=x"]) {
      const whole = await mirror.get(path, { range });
      assert.equal(whole.status, 200, range);
      assert.equal(whole.bytes.length, 100_000);
    }
    for (const range of ["bytes=100000-", "bytes=500-0", "bytes=-0"]) {
      const outside = await mirror.get(path, { range });
      assert.equal(outside.status, 416, range);
      assert.equal(outside.headers["content-range"], "bytes */100000");
      assert.equal(errorOf(outside).code, "SIZE_INVALID");
    }
    await mirror.until(async () => (await mirror.blobFiles()).length === 1, "it is stored");
  }
  const head = await mirror.send("HEAD", path);
  assert.equal(head.headers["content-length"], "100000");
  assert.equal(head.headers["docker-content-digest"], digest);
  assert.equal(head.headers["accept-ranges"], "bytes");
  assert.match(String(head.headers["cache-control"]), /immutable/);
  assert.equal(upstream.hits("GET", digest), 1);
});
