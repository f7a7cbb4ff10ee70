import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { createLog } from "../../src/base/log.ts";
import { systemClock, type Clock } from "../../src/base/clock.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { Tag } from "../../src/oci/reference.ts";
import { createRemote, type RemoteDependencies } from "../../src/remote/remote.ts";
import { createTarget } from "../../src/remote/target.ts";
import { Copier } from "../../src/replication/copy.ts";
import type { CopyRequest, CopyResult } from "../../src/replication/copy-job.ts";
import { makeImage, virtualBlob, type Image } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { startBetween, type Between, type Passed, type Trick } from "./between.ts";

const MIB = 1024 * 1024;
const PROGRESS_MS = 1000;
/** Of sockets on both sides. */
const LARGER_THAN_BUFFERS_BYTES = 32 * MIB;
const never = new AbortController().signal;
/** Pauses between two tries are over soon. */
const hastyClock: Clock = { now: () => Date.now(), sleep: (ms, signal) => systemClock.sleep(ms / 20, signal) };

interface Stage extends AsyncDisposable {
  source: Upstream;
  registry: TestRegistry;
  /** The way to the registry. */
  way: Between;
  /** What came through to the registry of bodies of uploads. */
  arrivedBytes(): number;
  /** As another run would. */
  copy(tag: string, repository?: string): Promise<CopyResult>;
  /** Sets what happens on the way. Refused requests do not count as arrived. */
  play(trick: Between["trick"]): void;
}

async function startStage(clock = hastyClock): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const source = stack.use(await startUpstream());
  const registry = stack.use(await startRegistry({ config: { hosted: { namespaces: ["team"] } } }));
  const way = stack.use(await startBetween(registry.url));
  const refused = new Set<Passed>();
  const dependencies: RemoteDependencies = {
    clock: systemClock,
    log: await createLog({ level: "silent", format: "json" }),
    observe: { request: () => undefined, received: () => undefined },
    policy: { attempts: 2, baseMs: 5, maxMs: 20 },
  };
  const timeouts = { progress: `${PROGRESS_MS}ms` };
  const endpoint = (url: string) => {
    const found = parseConfig({ upstreams: { other: { url, timeouts } } }).upstreams["other"];
    assert.ok(found);
    return found;
  };
  const owned = stack.move();
  return {
    source,
    registry,
    way,
    play: (trick) => {
      way.trick = (request, headers) => {
        const found = trick(request, headers);
        if (found && "status" in found) refused.add(request);
        return found;
      };
    },
    arrivedBytes: () =>
      way.passed
        .filter((request) => request.path.includes("/blobs/uploads/") && !refused.has(request))
        .reduce((sum, { bytes }) => sum + bytes, 0),
    copy: async (tag, repository = "team/app") => {
      await using from = await createRemote(endpoint(source.url), dependencies);
      await using to = await createTarget(endpoint(way.url), dependencies);
      const copier = new Copier({
        source: from,
        target: to,
        clock,
        options: {
          platforms: [],
          attached: "whenChanged",
          existing: "replace",
          keepOrigin: false,
          dryRun: false,
          concurrency: 4,
        },
      });
      const place = { repository, reference: tag as Tag };
      const request: CopyRequest = { from: place, to: place };
      return await copier.copy(request, never);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

const sizeOf = (image: Image): number => [...image.blobs.values()].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);

async function assertWhole({ registry }: Stage, image: Image, tag: string, repository = "team/app"): Promise<void> {
  const { status, headers } = await registry.send("HEAD", `/v2/${repository}/manifests/${tag}`);
  assert.equal(status, 200);
  assert.equal(headers["docker-content-digest"], image.digest);
  for (const { digest } of image.blobs.values()) await registry.pullBlob(repository, digest);
}

/** Every request of an upload goes on exactly where the registry has said that it stands. */
function assertNothingTwice({ way }: Stage): void {
  const uploads = Map.groupBy(
    way.passed.filter(({ path }) => /\/blobs\/uploads\/[^?]/.test(path)),
    ({ path }) => path.split("?")[0],
  );
  for (const requests of uploads.values()) {
    let standsAt = 0;
    for (const { bytes, firstByte, toldBytes } of requests) {
      if (bytes > 0) assert.equal(firstByte, standsAt);
      standsAt = toldBytes ?? standsAt;
    }
  }
}

async function assertNoTag({ registry }: Stage, tag: string, repository = "team/app"): Promise<void> {
  const { status } = await registry.send("HEAD", `/v2/${repository}/manifests/${tag}`);
  assert.equal(status, 404);
}

const isUpload = ({ method, path }: Passed): boolean =>
  (method === "PUT" || method === "PATCH") && path.includes("/blobs/uploads/");
const isManifestPut = ({ method, path }: Passed): boolean => method === "PUT" && path.includes("/manifests/");

/** A trick for the first requests of a sort. */
function once(sort: (request: Passed) => boolean, ...tricks: Trick[]): Between["trick"] {
  return (request) => (sort(request) ? tricks.shift() : undefined);
}

test("wherever a target is cut, and however often, all arrives, and goes on where the target stands", async () => {
  await using stage = await startStage();
  let nth = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 0, max: 2 * MIB }), { maxLength: 4 }), async (cuts) => {
      const tag = String(nth++);
      const image = makeImage({ layers: [2 * MIB, 100_000], seed: `cut ${tag}` });
      stage.source.add("team/app", tag, image);
      stage.way.passed.length = 0;
      stage.play(once(isUpload, ...cuts.map((cutAfter) => ({ cutAfter }))));
      assert.equal((await stage.copy(tag)).outcome, "copied");
      assertNothingTwice(stage);
      await assertWhole(stage, image, tag);
    }),
    { numRuns: 8 },
  );
});

test("a large layer whose chunks are cut goes on where the target stands", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [virtualBlob(150 * MIB, "large")], seed: "large" });
  stage.source.add("team/app", "1", image);
  stage.play(
    once(({ method }) => method === "PATCH", { cutAfter: 10 * MIB }, { cutAfter: 63 * MIB }, { cutAfter: 1000 }),
  );
  await stage.copy("1");
  assertNothingTwice(stage);
  const { status } = await stage.registry.send("HEAD", "/v2/team/app/manifests/1");
  assert.equal(status, 200);
});

test("an answer that is lost is no reason to send again what has been stored", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [MIB, 1000], seed: "lost" });
  stage.source.add("team/app", "1", image);
  const seen = new Set<string>();
  // Of each sort of request that changes something, the first answer is lost.
  stage.play(({ method, path }) => {
    const sort = `${method} ${path.includes("/blobs/") ? "blob" : path.split("/").at(-1)}`;
    if (method === "GET" || method === "HEAD" || seen.has(sort)) return undefined;
    seen.add(sort);
    return { lost: true };
  });
  await stage.copy("1");
  assert.equal(stage.arrivedBytes(), sizeOf(image));
  await assertWhole(stage, image, "1");
});

test("a target that is slow is waited for; one that takes nothing is left, and asked where it stands", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [MIB], seed: "slow" });
  stage.source.add("team/app", "1", image);
  const startedAtMs = performance.now();
  stage.play(once((request) => isUpload(request), { pauseMs: 100 }, { pauseMs: 100 }));
  await stage.copy("1");
  assert.ok(performance.now() - startedAtMs > PROGRESS_MS, "slower than what is taken for a standstill");
  await assertWhole(stage, image, "1");

  const other = makeImage({ layers: [LARGER_THAN_BUFFERS_BYTES], seed: "stalled" });
  stage.source.add("team/app", "2", other);
  const isLayer = ({ method, path }: Passed): boolean =>
    method === "PUT" && path.includes(encodeURIComponent(other.layers[0]?.digest ?? assert.fail()));
  stage.play(once(isLayer, { stalls: true }));
  await stage.copy("2");
  await assertWhole(stage, other, "2");
});

test("429 with Retry-After and 503 to uploads and manifests are waited for", async () => {
  await using stage = await startStage(systemClock);
  const image = makeImage({ layers: [MIB, 1000], seed: "busy" });
  stage.source.add("team/app", "1", image);
  const later = { status: 429, headers: { "retry-after": "1" } };
  const isPost = ({ method }: Passed): boolean => method === "POST";
  const scripts = [
    once(isPost, later),
    once(isUpload, { status: 503 }, later),
    once(isManifestPut, later, { status: 503 }),
  ];
  stage.play((request, headers) => {
    for (const script of scripts) {
      const trick = script(request, headers);
      if (trick) return trick;
    }
    return undefined;
  });
  await stage.copy("1");
  assert.equal(stage.arrivedBytes(), sizeOf(image));
  await assertWhole(stage, image, "1");
});

test("a target that fails for good ends the image with its cause; the next run sends only what is missing", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [MIB, 2 * MIB], seed: "broken" });
  const [, large] = image.layers;
  assert.ok(large);
  stage.source.add("team/app", "1", image);
  stage.play((request) =>
    isUpload(request) && request.path.includes(encodeURIComponent(large.digest))
      ? { status: 500, body: '{"errors":[{"code":"UNKNOWN"}]}' }
      : undefined,
  );
  await assert.rejects(stage.copy("1"), /answered 500 UNKNOWN: its own log knows why/);
  await assertNoTag(stage, "1");
  assert.equal(stage.arrivedBytes(), sizeOf(image) - large.sizeBytes);
  stage.play(() => undefined);
  await stage.copy("1");
  assert.equal(stage.arrivedBytes(), sizeOf(image));
  await assertWhole(stage, image, "1");
});

test("a target whose disk is full says so at once: nothing is sent in vain a second time", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [3 * MIB], seed: "full" });
  const [layer] = image.layers;
  assert.ok(layer);
  stage.source.add("team/app", "1", image);
  const isLayer = (request: Passed): boolean =>
    isUpload(request) && request.path.includes(encodeURIComponent(layer.digest));
  stage.play((request) => (isLayer(request) ? { status: 507 } : undefined));
  await assert.rejects(stage.copy("1"), /no room .*\(507\): free some/);
  await assertNoTag(stage, "1");
  assert.equal(stage.way.passed.filter(isLayer).length, 1);
  // Other images, of which all is there, are none the worse.
  stage.play(() => undefined);
  await stage.copy("1");
  await assertWhole(stage, image, "1");
});

test("credentials that may only read are told of before a byte is read or sent", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [MIB], seed: "denied" });
  stage.source.add("team/app", "1", image);
  const body = '{"errors":[{"code":"DENIED"}]}';
  stage.play(({ method }) => (method === "POST" || method === "PUT" ? { status: 403, body } : undefined));
  await assert.rejects(stage.copy("1"), /refuses an upload \(403 DENIED\): check what the credentials may write/);
  stage.play(({ method }) => (method === "POST" ? { status: 405 } : undefined));
  await assert.rejects(stage.copy("1"), /refuses an upload \(405\): check that it is not read-only/);
  assert.equal(stage.way.uploadedBytes(), 0);
  assert.equal(stage.source.hits("GET", "/blobs/"), 0);
  await assertNoTag(stage, "1");
});

test("a token that runs out within a large layer is renewed, and what had arrived stays", async () => {
  await using stage = await startStage();
  const { way } = stage;
  const image = makeImage({ layers: [virtualBlob(150 * MIB, "token")], seed: "token" });
  stage.source.add("team/app", "1", image);
  let issued = 0;
  let patches = 0;
  stage.play(({ method, path }, headers) => {
    if (path.startsWith("/token")) {
      return {
        status: 200,
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ token: `t${++issued}` }),
      };
    }
    // The second chunk comes with a token that is good no more.
    if (method === "PATCH" && ++patches === 2) issued++;
    if (headers.authorization === `Bearer t${issued}`) {
      delete headers.authorization;
      return undefined;
    }
    const challenge = `Bearer realm="${way.url}/token",service="target",scope="repository:team/app:pull,push"`;
    return { status: 401, headers: { "www-authenticate": challenge } };
  });
  await stage.copy("1");
  assert.equal(stage.arrivedBytes(), sizeOf(image));
  stage.play(() => undefined);
  const { status } = await stage.registry.send("HEAD", "/v2/team/app/manifests/1");
  assert.equal(status, 200);
});

test("a target that forgets an upload gets another one, with all of the blob", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [2 * MIB], seed: "forgotten" });
  const [layer] = image.layers;
  assert.ok(layer);
  stage.source.add("team/app", "1", image);
  let forgotten: string | undefined;
  stage.play(({ method, path }) => {
    const [place = ""] = path.split("?");
    if (forgotten === undefined && method === "PUT" && path.includes(encodeURIComponent(layer.digest))) {
      forgotten = place;
      return { cutAfter: MIB };
    }
    return place === forgotten ? { status: 404, body: '{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}' } : undefined;
  });
  await stage.copy("1");
  assert.equal(stage.arrivedBytes(), sizeOf(image) + MIB);
  await assertWhole(stage, image, "1");
});

test("a target that forgets uploads again and again ends the image", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [1000], seed: "amnesia" });
  stage.source.add("team/app", "1", image);
  stage.play((request) => (isUpload(request) || /uploads\/[^?]/.test(request.path) ? { status: 404 } : undefined));
  await assert.rejects(stage.copy("1"), /404/);
  await assertNoTag(stage, "1");
});
