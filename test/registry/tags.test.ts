import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream, type UpstreamOptions } from "../kit/upstream.ts";
import { DAY, errorOf, MINUTE, MovingClock, SECOND } from "./clients.ts";

interface Scene extends AsyncDisposable {
  upstream: Upstream;
  mirror: TestRegistry;
  clock: MovingClock;
  image: Image;
  /** GETs `library/app:1`. */
  pull: (tag?: string) => ReturnType<TestRegistry["get"]>;
}

/** An upstream with `library/app:1`, a mirror before it, and a clock that can be moved. */
async function start(
  policy: Record<string, unknown> = {},
  options: UpstreamOptions & { pulled?: false } = {},
): Promise<Scene> {
  await using stack = new AsyncDisposableStack();
  const upstream = stack.use(await startUpstream(options));
  const image = makeImage({ layers: [10], seed: "old" });
  upstream.add("library/app", "1", image);
  const clock = new MovingClock();
  const mirror = stack.use(
    await startRegistry({ upstreams: { "docker.io": { url: upstream.url, ...policy } }, clock }),
  );
  const pull: Scene["pull"] = (tag = "1") => mirror.get(`/v2/library/app/manifests/${tag}`);
  if (options.pulled !== false) assert.equal((await pull()).status, 200);
  const owned = stack.move();
  return { upstream, mirror, clock, image, pull, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function hits(upstream: Upstream): { heads: number; gets: number } {
  return { heads: upstream.hits("HEAD", "/manifests/"), gets: upstream.hits("GET", "/manifests/") };
}

test("a tag is believed for tagTtl, then confirmed by one HEAD with its etag", async () => {
  await using scene = await start({ tagTtl: "5m" });
  const { upstream, clock, image, pull } = scene;
  clock.offsetMs = 4 * MINUTE;
  assert.equal((await pull()).status, 200);
  assert.deepEqual(hits(upstream), { heads: 1, gets: 1 });

  clock.offsetMs = 6 * MINUTE;
  const confirmed = await pull();
  assert.deepEqual(confirmed.bytes, image.manifest);
  assert.equal(confirmed.headers["warning"], undefined);
  assert.deepEqual(hits(upstream), { heads: 2, gets: 1 });
  assert.equal(upstream.requests.at(-1)?.headers["if-none-match"], `"${image.digest}"`);
  assert.equal(upstream.requests.at(-1)?.status, 304);

  clock.offsetMs = 10 * MINUTE;
  await pull();
  assert.deepEqual(hits(upstream), { heads: 2, gets: 1 }, "confirmed anew, it is believed anew");
});

test("an upstream without etags confirms a tag by its digest alone", async () => {
  await using scene = await start({ tagTtl: "0s" }, { pulled: false });
  const { upstream, pull } = scene;
  upstream.fault({ path: "/manifests/" }, { headers: { etag: undefined } });
  await pull();
  await pull();
  assert.deepEqual(hits(upstream), { heads: 2, gets: 1 });
  assert.equal(upstream.requests.at(-1)?.headers["if-none-match"], undefined);
});

test("fifty askers cost one revalidation, and all get the new manifest", async () => {
  await using scene = await start({ tagTtl: "5m" });
  const { upstream, clock, pull } = scene;
  const next = makeImage({ layers: [10], seed: "new" });
  upstream.add("library/app", "1", next);
  clock.offsetMs = 6 * MINUTE;
  const gate = upstream.hold({ method: "HEAD" });
  const answers = Array.from({ length: 50 }, () => pull());
  await gate.reached;
  await scene.mirror.until(
    async () => (await scene.mirror.metric("entrepot_http_requests_in_flight")) === 50,
    "all fifty wait",
  );
  gate.release();
  for (const { bytes } of await Promise.all(answers)) assert.deepEqual(bytes, next.manifest);
  assert.deepEqual(hits(upstream), { heads: 2, gets: 2 });
});

test("a tag that moved is served as it was until tagTtl is over, then as it is", async () => {
  await using scene = await start({ tagTtl: "5m" });
  const { upstream, clock, image, pull, mirror } = scene;
  const next = makeImage({ layers: [10], seed: "new" });
  upstream.add("library/app", "1", next);
  assert.deepEqual((await pull()).bytes, image.manifest);
  clock.offsetMs = 6 * MINUTE;
  assert.deepEqual((await pull()).bytes, next.manifest);
  const old = await mirror.get(`/v2/library/app/manifests/${image.digest}`);
  assert.deepEqual(old.bytes, image.manifest, "who is in the midst of pulling the old one still can");
  assert.deepEqual(hits(upstream), { heads: 2, gets: 2 });
});

test("a tag stays where it was while the manifest that it moved to can't be had", async () => {
  await using scene = await start({ tagTtl: "5m" });
  const { upstream, clock, image, pull } = scene;
  const next = makeImage({ layers: [10], seed: "new" });
  upstream.add("library/app", "1", next);
  upstream.fault({ method: "GET", path: next.digest }, { status: 404, body: {} });
  clock.offsetMs = 6 * MINUTE;
  const answer = await pull();
  assert.deepEqual(answer.bytes, image.manifest);
  assert.match(String(answer.headers["warning"]), /does not have it/);
  upstream.clearFaults();
  assert.deepEqual((await pull()).bytes, next.manifest);
});

for (const [name, break_] of [
  ["is down", (upstream: Upstream) => upstream.stop()],
  ["answers 503", async (upstream: Upstream) => upstream.fault({}, { status: 503 })],
  ["answers 429", async (upstream: Upstream) => upstream.fault({}, { status: 429, headers: { "retry-after": "60" } })],
  ["cuts connections", async (upstream: Upstream) => upstream.fault({}, { cutAfter: "request" })],
  ["answers nonsense", async (upstream: Upstream) => upstream.fault({ method: "HEAD" }, { status: 418 })],
] as const) {
  test(`while upstream ${name}, a cached tag is served with a warning, until maxStale`, async () => {
    await using scene = await start({ tagTtl: "5m", maxStale: "2d" });
    const { upstream, clock, image, pull, mirror } = scene;
    await break_(upstream);
    clock.offsetMs = DAY;
    const answer = await pull();
    assert.equal(answer.status, 200);
    assert.deepEqual(answer.bytes, image.manifest);
    assert.match(
      String(answer.headers["warning"]),
      /^299 - "served from the cache, which may be out of date: [^"\\]+"$/,
    );
    const head = await mirror.send("HEAD", "/v2/library/app/manifests/1");
    assert.match(String(head.headers["warning"]), /^299 - "/);
    assert.equal(await mirror.metric("entrepot_cache_requests_total", { result: "stale" }), 2);
    clock.offsetMs = 3 * DAY;
    assert.equal((await pull()).status, name === "answers 429" ? 429 : 502);
    const byDigest = await mirror.get(`/v2/library/app/manifests/${image.digest}`);
    assert.equal(byDigest.status, 200, "a digest never gets old");
    assert.equal(byDigest.headers["warning"], undefined);
  });
}

test("an upstream that keeps a quick check waiting does not keep the client waiting", async () => {
  await using scene = await start({ tagTtl: "0s", timeouts: { firstByte: "100ms" } });
  scene.upstream.fault({}, { delayMs: 60_000 });
  const answer = await scene.pull();
  assert.equal(answer.status, 200);
  assert.match(String(answer.headers["warning"]), /^299 - "served from the cache.*"$/);
});

test("a 429 on HEAD is never answered by a GET: uncached, it is passed on with its Retry-After", async () => {
  await using scene = await start({}, { pulled: false });
  const { upstream, pull } = scene;
  upstream.fault({}, { status: 429, headers: { "retry-after": "77" } });
  const refused = await pull();
  assert.equal(refused.status, 429);
  assert.equal(refused.headers["retry-after"], "77");
  assert.equal(errorOf(refused).code, "TOOMANYREQUESTS");
  assert.match(errorOf(refused).message, /limits the rate of requests/);
  assert.deepEqual(hits(upstream), { heads: 1, gets: 0 });
  const again = await pull();
  assert.equal(again.status, 429);
  assert.ok(Number(again.headers["retry-after"]) > 0);
  assert.deepEqual(hits(upstream), { heads: 1, gets: 0 }, "until then nothing is sent");
});

test("with few requests left in the rate limit tags are not checked, and the rest is kept for what is not here", async () => {
  await using scene = await start(
    { tagTtl: "0s", rateLimit: { keep: 10 } },
    { rateLimit: { limit: 100, remaining: 11, windowSeconds: 3600 } },
  );
  const { upstream, clock, image, pull } = scene;
  assert.equal(upstream.rateLimit?.remaining, 10);
  const kept = await pull();
  assert.deepEqual(kept.bytes, image.manifest);
  assert.match(String(kept.headers["warning"]), /rate limit/);
  assert.deepEqual(hits(upstream), { heads: 1, gets: 1 });

  const other = makeImage({ layers: [10], seed: "other" });
  upstream.add("library/app", "2", other);
  assert.deepEqual((await pull("2")).bytes, other.manifest);
  assert.deepEqual(hits(upstream), { heads: 2, gets: 2 });

  // Nothing but time tells that the window is over.
  clock.offsetMs = 61 * MINUTE;
  assert.equal((await pull()).headers["warning"], undefined);
  assert.deepEqual(hits(upstream), { heads: 3, gets: 2 });
});

test("an absent tag is asked for once within notFoundTtl, however many want it", async () => {
  await using scene = await start({ notFoundTtl: "30s" }, { pulled: false });
  const { upstream, clock, pull, mirror } = scene;
  for (let i = 0; i < 5; i++) {
    const answer = await pull("none");
    assert.equal(answer.status, 404);
    assert.equal(errorOf(answer).code, "MANIFEST_UNKNOWN");
  }
  assert.equal(upstream.hits(), 1);
  assert.equal(await mirror.metric("entrepot_cache_requests_total", { result: "negative" }), 4);

  const digest = makeImage({ layers: [11] }).digest;
  for (let i = 0; i < 5; i++) assert.equal((await pull(digest)).status, 404);
  assert.equal(upstream.hits(), 2);

  upstream.add("library/app", "none", scene.image);
  clock.offsetMs = 31 * SECOND;
  assert.equal((await pull("none")).status, 200);
});

test("a tag that is gone upstream is gone here, and no manifest with it", async () => {
  await using scene = await start({ tagTtl: "5m" });
  const { upstream, clock, image, pull, mirror } = scene;
  upstream.remove("library/app", "1");
  assert.equal((await pull()).status, 200, "within tagTtl nobody knows");
  clock.offsetMs = 6 * MINUTE;
  assert.equal((await pull()).status, 404);
  upstream.resetCounters();
  assert.equal((await pull()).status, 404);
  assert.equal((await mirror.get(`/v2/library/app/manifests/${image.digest}`)).status, 200);
  assert.equal(upstream.hits(), 0);
  await upstream.stop();
  clock.offsetMs = 8 * MINUTE;
  assert.equal((await pull()).status, 502, "gone is gone, also while upstream is down");
});

test("with whenGone: stale, a tag that is gone upstream is served with a warning, and asked for once in notFoundTtl", async () => {
  await using scene = await start({ tagTtl: "5m", whenGone: "stale", notFoundTtl: "30s", maxStale: "2d" });
  const { upstream, clock, image, pull } = scene;
  upstream.remove("library/app", "1");
  clock.offsetMs = 6 * MINUTE;
  upstream.resetCounters();
  for (let i = 0; i < 3; i++) {
    const answer = await pull();
    assert.deepEqual(answer.bytes, image.manifest);
    assert.match(String(answer.headers["warning"]), /^299 - ".*has it no more"$/);
  }
  assert.equal(upstream.hits(), 1);
  clock.offsetMs = 3 * DAY;
  assert.equal((await pull()).status, 404);
});

for (const status of [401, 403]) {
  test(`when upstream answers ${status}, a tag is neither served nor forgotten, unless whenGone says so`, async () => {
    await using scene = await start({ tagTtl: "5m" });
    const { upstream, clock, pull } = scene;
    const refusal = { status, headers: { "www-authenticate": 'Basic realm="upstream"' } };
    upstream.fault({}, refusal);
    clock.offsetMs = 6 * MINUTE;
    const refused = await pull();
    assert.equal(refused.status, 403);
    assert.equal(errorOf(refused).code, "DENIED");
    upstream.clearFaults();
    assert.equal((await pull()).status, 200);
    assert.equal(upstream.hits("GET", "/manifests/"), 1);

    await using other = await start({ tagTtl: "5m", whenGone: "stale" });
    other.upstream.fault({}, refusal);
    other.clock.offsetMs = 6 * MINUTE;
    const stale = await other.pull();
    assert.equal(stale.status, 200);
    assert.match(String(stale.headers["warning"]), /^299 - "/);
  });
}

test("a head without a digest is followed by a GET, whose bytes tell it", async () => {
  await using scene = await start({ tagTtl: "0s" }, { pulled: false });
  const { upstream, image, pull } = scene;
  upstream.fault({}, { headers: { "docker-content-digest": undefined, etag: undefined } });
  const answer = await pull();
  assert.deepEqual(answer.bytes, image.manifest);
  assert.equal(answer.headers["docker-content-digest"], image.digest);
  const next = makeImage({ layers: [10], seed: "new" });
  upstream.add("library/app", "1", next);
  assert.deepEqual((await pull()).bytes, next.manifest);
});

test("without network the daemon starts and serves what it has", async () => {
  const image = makeImage({ layers: [1000] });
  const [layer] = image.layers;
  assert.ok(layer);
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using first = await startRegistry({ upstreams: { "docker.io": upstream } });
  await first.get("/v2/library/app/manifests/1");
  await first.pullBlob("library/app", layer.digest);
  await first.until(async () => (await first.blobFiles()).length === 1, "the blob is stored");
  await first.stop();
  await upstream.stop();

  const clock = new MovingClock();
  clock.offsetMs = DAY;
  await using second = await startRegistry({ upstreams: { "docker.io": upstream }, root: first.root, clock });
  assert.equal((await second.get("/readyz")).status, 200);
  const answer = await second.get("/v2/library/app/manifests/1");
  assert.deepEqual(answer.bytes, image.manifest);
  assert.match(String(answer.headers["warning"]), /^299 - ".*cannot be reached.*"$/);
  await second.pullBlob("library/app", layer.digest);
});

test("uncached, an upstream that is down is told as 502 with its cause, one that is silent as 504", async () => {
  await using scene = await start({ timeouts: { firstByte: "50ms" } }, { pulled: false });
  const { upstream, pull, mirror } = scene;
  upstream.fault({}, { delayMs: 60_000 });
  const silent = await pull();
  assert.equal(silent.status, 504);
  assert.equal(errorOf(silent).code, "UNAVAILABLE");
  assert.match(errorOf(silent).message, /docker\.io: 127\.0\.0\.1:\d+ did not answer within 50 ms/);
  upstream.clearFaults();
  await upstream.stop();
  const down = await mirror.get("/v2/library/app/manifests/2");
  assert.equal(down.status, 502);
  assert.match(errorOf(down).message, /cannot be reached .*ECONNREFUSED/);
});

test("an upstream that fails repeatedly is soon not asked any more, and is asked again later", async () => {
  await using scene = await start({}, { pulled: false });
  const { upstream, clock, pull, mirror } = scene;
  upstream.fault({}, { status: 503 });
  for (let i = 0; i < 4; i++) assert.equal((await pull()).status, 502);
  const { length } = upstream.requests;
  assert.ok(length <= 6, `${length} requests before the breaker opened`);
  assert.match(errorOf(await pull()).message, /failed repeatedly and is not asked for another \d+ s/);
  assert.equal(upstream.requests.length, length);
  assert.equal(await mirror.metric("entrepot_upstream_up", { upstream: "docker.io" }), 0);
  upstream.clearFaults();
  clock.offsetMs = 61 * SECOND;
  assert.equal((await pull()).status, 200);
  assert.equal(await mirror.metric("entrepot_upstream_up", { upstream: "docker.io" }), 1);
});

test("a clock that jumps a day forward expires nothing for good", async () => {
  await using scene = await start({ tagTtl: "5m" });
  const { upstream, clock, image, pull } = scene;
  await upstream.stop();
  clock.offsetMs = DAY;
  const stale = await pull();
  assert.deepEqual(stale.bytes, image.manifest);
  clock.offsetMs = 0;
  assert.equal((await pull()).headers["warning"], undefined, "back in its time it is fresh again");
});

test("a clock that jumps a day back neither freezes a tag nor an absence", async () => {
  await using scene = await start({ tagTtl: "5m", notFoundTtl: "30s" });
  const { upstream, clock, pull } = scene;
  assert.equal((await pull("late")).status, 404);
  const next = makeImage({ layers: [10], seed: "new" });
  upstream.add("library/app", "1", next);
  upstream.add("library/app", "late", next);
  clock.offsetMs = -DAY;
  assert.deepEqual((await pull()).bytes, next.manifest);
  assert.deepEqual((await pull("late")).bytes, next.manifest);
});
