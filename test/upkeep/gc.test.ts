import assert from "node:assert/strict";
import { mkdir, mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { Metrics } from "../../src/base/metrics.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import type { Digest } from "../../src/oci/digest.ts";
import type { RepositoryName } from "../../src/oci/reference.ts";
import { FileBlobStore } from "../../src/store/blobs-fs.ts";
import { Catalog } from "../../src/store/catalog.ts";
import { GarbageCatalog } from "../../src/store/garbage.ts";
import { HostedCatalog } from "../../src/store/hosted-catalog.ts";
import { MemoryCache } from "../../src/store/memory.ts";
import { Usage } from "../../src/store/usage.ts";
import { ClockWatch } from "../../src/upkeep/clock-watch.ts";
import { GarbageCollector } from "../../src/upkeep/gc.ts";
import { contentOf, makeArtifact, makeImage, makeIndex, type Image, type Index } from "../kit/images.ts";
import { connectTo } from "../http/raw.ts";
import { startRegistry, until, type Answer, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { DAY, jsonOf, layerOf, MINUTE, MovingClock, published } from "../registry/clients.ts";
import { aMomentLater, has, isStored, job, pushBlob, pushImage, pushManifest, select, send } from "../kit/hosted.ts";

function startHosted(gc: Record<string, unknown> = {}, options: RegistryOptions = {}): Promise<TestRegistry> {
  return startRegistry({
    ...options,
    config: { ...options.config, hosted: { namespaces: ["team"] }, gc: { grace: "0s", interval: "0s", ...gc } },
  });
}

type Report = Record<"manifests" | "blobs" | "links" | "repositories" | "bytes" | "clockGainedMs", number>;

async function collect(registry: TestRegistry, options: Record<string, unknown> = {}): Promise<Report> {
  await aMomentLater();
  const last = (await job(registry, "gc", options)).at(-1);
  assert.equal(last?.["type"], "done", JSON.stringify(last));
  return last as Report;
}

/** What has been asked for so far counts as used before now. */
const forget = (registry: TestRegistry): Promise<unknown> => collect(registry, { dryRun: true });

const remove = (registry: TestRegistry, repository: string, { digest }: { digest: string }): Promise<unknown> =>
  send(registry, 202, "DELETE", `/v2/${repository}/manifests/${digest}`);

const bytesOf = (image: Image): number =>
  image.manifest.length + [...image.blobs.values()].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);

async function assertWhole(registry: TestRegistry, repository: string, image: Image): Promise<void> {
  await send(registry, 200, "GET", `/v2/${repository}/manifests/${image.digest}`);
  for (const digest of image.blobs.keys()) await registry.pullBlob(repository, digest);
}

test("what was deleted goes, row and file; what has a tag or an edge stays", async () => {
  await using registry = await startHosted();
  const [kept, untagged, deleted] = ["kept", "untagged", "deleted"].map((seed) =>
    makeImage({ layers: [1000, 2000], seed }),
  );
  assert.ok(kept && untagged && deleted);
  await pushImage(registry, "team/app", kept, "1");
  await pushImage(registry, "team/app", untagged);
  await pushImage(registry, "team/app", deleted, "2");
  await remove(registry, "team/app", deleted);
  const report = await collect(registry);
  assert.deepEqual(
    { ...report, ms: 0 },
    {
      type: "done",
      manifests: 1,
      blobs: 3,
      links: 0,
      repositories: 0,
      bytes: bytesOf(deleted),
      ms: 0,
      dryRun: false,
      clockGainedMs: 0,
    },
  );
  for (const content of [deleted, ...deleted.blobs.values()]) assert.equal(await isStored(registry, content), false);
  await assertWhole(registry, "team/app", kept);
  await assertWhole(registry, "team/app", untagged);
  assert.equal(await registry.metric("entrepot_gc_runs_total", { result: "done" }), 1);
  assert.equal(await registry.metric("entrepot_gc_reclaimed_bytes_total"), bytesOf(deleted));
  assert.deepEqual(await collect(registry).then(({ manifests, blobs }) => [manifests, blobs]), [0, 0]);
});

test("what is young stays, what was asked for a moment ago too, and what is old goes", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-gc-"));
  const root = join(folder.path, "data");
  const clock = new MovingClock();
  const options = { root, clock };
  const [asked, silent, young] = [1, 2, 3].map((n) => Buffer.alloc(100, n));
  assert.ok(asked && silent && young);
  {
    await using registry = await startHosted({ grace: "24h" }, options);
    for (const bytes of [asked, silent]) await pushBlob(registry, "team/app", bytes);
    assert.equal((await collect(registry)).blobs, 0, "both are young");
  }
  // Of a daemon that starts two days later.
  clock.offsetMs = 2 * DAY;
  await using registry = await startHosted({ grace: "24h" }, options);
  await pushBlob(registry, "team/app", young);
  assert.ok(await has(registry, "team/app", contentOf(asked)));
  assert.equal((await collect(registry)).blobs, 1);
  assert.deepEqual(await Promise.all([asked, silent, young].map((bytes) => isStored(registry, contentOf(bytes)))), [
    true,
    false,
    true,
  ]);
});

test("a blob that another repository has linked within the grace stays, and one that was mounted is kept by that", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-gc-"));
  const options = { root: join(folder.path, "data"), clock: new MovingClock() };
  const bytes = Buffer.alloc(100, 1);
  {
    await using registry = await startHosted({ grace: "24h" }, options);
    await pushBlob(registry, "team/one", bytes);
  }
  options.clock.offsetMs = 2 * DAY;
  await using registry = await startHosted({ grace: "24h" }, options);
  const { digest } = contentOf(bytes);
  await send(registry, 201, "POST", `/v2/team/two/blobs/uploads/?mount=${digest}&from=team/one`);
  assert.deepEqual(await collect(registry).then(({ blobs, links }) => [blobs, links]), [0, 0]);
  await registry.pullBlob("team/two", digest);
});

test("an upload under way is none of its affair", async () => {
  await using registry = await startHosted();
  const bytes = Buffer.alloc(1000, 7);
  const { digest } = contentOf(bytes);
  const { headers } = await send(registry, 202, "POST", "/v2/team/app/blobs/uploads/");
  const sent = await send(registry, 202, "PATCH", String(headers["location"]), {}, bytes.subarray(0, 600));
  await collect(registry);
  const location = String(sent.headers["location"]);
  const end = `${location}${location.includes("?") ? "&" : "?"}digest=${digest}`;
  await send(registry, 201, "PUT", end, {}, bytes.subarray(600));
  await registry.pullBlob("team/app", digest);
});

test("blobs that repositories share stay for those that need them, and go from those that do not", async () => {
  await using registry = await startHosted();
  const base = Buffer.alloc(3000, 1);
  const mine = makeImage({ layers: [base, 100], seed: "mine" });
  const theirs = makeImage({ layers: [base, 200], seed: "theirs" });
  await pushImage(registry, "team/mine", mine, "1");
  await pushImage(registry, "team/theirs", theirs, "1");
  await remove(registry, "team/mine", mine);
  const report = await collect(registry);
  // Its config and its own layer go; the base stays, out of its reach.
  assert.deepEqual([report.manifests, report.blobs, report.links], [1, 2, 1]);
  assert.equal(report.repositories, 1, "nothing is left in team/mine");
  assert.deepEqual(select(registry, "SELECT name FROM repositories"), [{ name: "team/theirs" }]);
  await assertWhole(registry, "team/theirs", theirs);
  await send(registry, 202, "POST", `/v2/team/mine/blobs/uploads/?mount=${layerOf(theirs, 1).digest}&from=team/mine`);
  await pushImage(registry, "team/mine", mine, "2");
  await assertWhole(registry, "team/mine", mine);
});

function nested(): { inner: Index; outer: Index; images: Image[] } {
  const images = ["amd64", "arm64"].map((architecture) =>
    makeImage({ layers: [500], seed: architecture, platform: { os: "linux", architecture } }),
  );
  const [first, second] = images;
  assert.ok(first && second);
  const inner = makeIndex([
    [{ os: "linux", architecture: "amd64" }, first],
    [{ os: "linux", architecture: "arm64" }, second],
  ]);
  const body = {
    schemaVersion: 2,
    mediaType: inner.mediaType,
    manifests: [{ mediaType: inner.mediaType, digest: inner.digest, size: inner.manifest.length }],
  };
  return { inner, outer: { ...published(body, inner.mediaType), images }, images };
}

test("without gc.deleteUntagged, manifests stay without any tag", async () => {
  await using registry = await startHosted();
  const { inner, images } = nested();
  for (const image of images) await pushImage(registry, "team/app", image);
  await pushManifest(registry, "team/app", inner);
  assert.deepEqual(await collect(registry).then(({ manifests, blobs }) => [manifests, blobs]), [0, 0]);
  for (const image of images) await assertWhole(registry, "team/app", image);
});

test("with gc.deleteUntagged, an index keeps what it holds, however deep; once its tag is gone, all of it goes at once", async () => {
  await using registry = await startHosted({ deleteUntagged: true });
  const { inner, outer, images } = nested();
  for (const image of images) await pushImage(registry, "team/app", image);
  await pushManifest(registry, "team/app", inner);
  await pushManifest(registry, "team/app", outer, "1");
  assert.equal((await collect(registry)).manifests, 0);
  for (const image of images) await assertWhole(registry, "team/app", image);
  await forget(registry);
  await send(registry, 202, "DELETE", "/v2/team/app/manifests/1");
  const preview = await collect(registry, { dryRun: true });
  const report = await collect(registry);
  assert.deepEqual([report.manifests, report.blobs, report.repositories], [4, 4, 1]);
  assert.deepEqual({ ...preview, ms: 0, dryRun: false }, { ...report, ms: 0 });
  assert.deepEqual(await registry.blobFiles(), []);
  for (const table of ["manifests", "blobs", "manifest_children", "repository_content", "repositories"])
    assert.deepEqual(select(registry, `SELECT * FROM ${table}`), [], table);
});

test("with gc.deleteUntagged, what refers to a tagged image stays with it, and goes with it", async () => {
  await using registry = await startHosted({ deleteUntagged: true });
  const image = makeImage({ layers: [500] });
  const signature = makeArtifact({
    subject: image,
    artifactType: "application/vnd.example.signature",
    payload: "signed",
  });
  const ofSignature = makeArtifact({
    subject: signature,
    artifactType: "application/vnd.example.note",
    payload: "seen",
  });
  await pushImage(registry, "team/app", image, "1");
  for (const artifact of [signature, ofSignature]) await pushImage(registry, "team/app", artifact);
  assert.equal((await collect(registry)).manifests, 0);
  // In another repository its subject is not there: nothing keeps it.
  await pushImage(registry, "team/other", signature);
  const other = await collect(registry);
  assert.deepEqual([other.manifests, other.blobs, other.links, other.repositories], [0, 0, 2, 1]);
  await assertWhole(registry, "team/app", signature);
  await forget(registry);
  await send(registry, 202, "DELETE", "/v2/team/app/manifests/1");
  const preview = await collect(registry, { dryRun: true });
  const report = await collect(registry);
  assert.deepEqual([report.manifests, report.repositories], [3, 1]);
  assert.deepEqual({ ...preview, ms: 0, dryRun: false }, { ...report, ms: 0 });
});

test("with gc.deleteUntagged, an untagged manifest that was pulled within the grace stays", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-gc-"));
  const options = { root: join(folder.path, "data"), clock: new MovingClock() };
  const [pulled, forgotten] = ["pulled", "forgotten"].map((seed) => makeImage({ layers: [100], seed }));
  assert.ok(pulled && forgotten);
  {
    await using registry = await startHosted({ grace: "24h", deleteUntagged: true }, options);
    for (const image of [pulled, forgotten]) await pushImage(registry, "team/app", image);
  }
  options.clock.offsetMs = 2 * DAY;
  await using registry = await startHosted({ grace: "24h", deleteUntagged: true }, options);
  assert.ok(await has(registry, "team/app", pulled));
  assert.equal((await collect(registry)).manifests, 1);
  await assertWhole(registry, "team/app", pulled);
});

test("what the mirror cached is left to eviction, and what was pushed as well stays for the cached repository", async () => {
  const image = makeImage({ layers: [1000] });
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await startHosted({ deleteUntagged: true }, { upstreams: { "docker.io": upstream } });
  await send(registry, 200, "GET", "/v2/library/app/manifests/1");
  for (const digest of image.blobs.keys()) await registry.pullBlob("library/app", digest);
  await registry.until(async () => (await registry.blobFiles()).length === 2, "it is stored");
  await send(
    registry,
    201,
    "POST",
    `/v2/team/app/blobs/uploads/?mount=${layerOf(image).digest}&from=docker.io/library/app`,
  );
  await forget(registry);
  const report = await collect(registry);
  assert.deepEqual([report.manifests, report.blobs, report.links, report.repositories], [0, 0, 1, 1]);
  await upstream.stop();
  await assertWhole(registry, "library/app", image);
});

test("a dry run changes nothing, names what would go, and is right about it", async () => {
  await using registry = await startHosted();
  const base = Buffer.alloc(3000, 1);
  const [kept, deleted] = ["kept", "deleted"].map((seed) => makeImage({ layers: [base, 100], seed }));
  assert.ok(kept && deleted);
  await pushImage(registry, "team/app", kept, "1");
  await pushImage(registry, "team/app", deleted, "2");
  await pushImage(registry, "team/other", deleted, "2");
  const loose = await pushBlob(registry, "team/app", Buffer.alloc(77, 9));
  for (const repository of ["team/app", "team/other"]) await remove(registry, repository, deleted);
  const dump = (): unknown =>
    ["blobs", "manifests", "manifest_children", "repository_content", "tags", "repositories", "schedules"].map(
      (table) => select(registry, `SELECT * FROM ${table}`),
    );
  await aMomentLater();
  const before = [dump(), await registry.blobFiles()];
  const events = await job(registry, "gc", { dryRun: true });
  assert.deepEqual([dump(), await registry.blobFiles()], before);
  const named = events.filter(({ type }) => type === "garbage").map(({ digest }) => digest);
  const own = [deleted.digest, deleted.config.digest, layerOf(deleted, 1).digest, loose];
  assert.deepEqual(new Set(named), new Set(own));
  assert.equal(named.length, own.length);
  const report = await collect(registry);
  assert.deepEqual([report.manifests, report.blobs, report.links, report.repositories], [1, 3, 1, 1]);
  assert.deepEqual({ ...events.at(-1), ms: 0, dryRun: false }, { ...report, ms: 0 });
});

test("a clock that jumps ahead makes nothing older than it is", async () => {
  const clock = new MovingClock();
  await using registry = await startHosted({ grace: "24h", deleteUntagged: true }, { clock });
  const blob = Buffer.alloc(100, 1);
  await pushBlob(registry, "team/app", blob);
  const image = makeImage({ layers: [100] });
  await pushImage(registry, "team/app", image);
  clock.offsetMs = 2 * DAY;
  for (let round = 0; round < 2; round++) {
    const report = await collect(registry);
    assert.deepEqual([report.manifests, report.blobs], [0, 0]);
    assert.ok(Math.abs(report.clockGainedMs - 2 * DAY) < MINUTE, String(report.clockGainedMs));
  }
  clock.offsetMs = DAY;
  await collect(registry);
  clock.offsetMs = 2 * DAY;
  assert.ok((await collect(registry)).clockGainedMs > 2.9 * DAY, "set back and forth, it has jumped twice");
  assert.ok(await isStored(registry, contentOf(blob)));
  await assertWhole(registry, "team/app", image);
});

test("one collection at a time: who asks meanwhile is told", async () => {
  await using registry = await startHosted();
  const ask = (): Promise<Answer> =>
    registry.send("POST", "/api/v1/gc", { "content-type": "application/json" }, JSON.stringify({ dryRun: true }));
  const answers = await Promise.all([ask(), ask(), ask()]);
  assert.deepEqual(
    answers.map(({ status }) => status).toSorted((a, b) => a - b),
    [200, 409, 409],
  );
  const refused = answers.find(({ status }) => status === 409);
  assert.match(
    String(jsonOf(refused ?? assert.fail())["detail"]),
    /^garbage collection is running already: wait for its end$/,
  );
  assert.equal((await ask()).status, 200);
});

test("a collection under way ends when the daemon does, and when its client leaves", async () => {
  const blobs = Array.from({ length: 400 }, (_, n) => Buffer.from(`blob ${n}`));
  await using registry = await startHosted();
  for (const bytes of blobs) await pushBlob(registry, "team/app", bytes);
  await aMomentLater();
  using client = await connectTo(registry.url);
  client.send("POST /api/v1/gc HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 2");
  client.socket.write("{}");
  await client.until(/"type":"progress"/);
  client.socket.destroy();
  await registry.until(async () => (await registry.metric("entrepot_gc_runs_total")) === 1, "it has ended");
  const asking = registry.send("POST", "/api/v1/gc", { "content-type": "application/json" }, "{}");
  await registry.until(() => registry.log.filter(({ path }) => path === "/api/v1/gc").length >= 1, "it has begun");
  const startedAtMs = performance.now();
  await Promise.all([registry.stop(), asking.catch(() => undefined)]);
  assert.ok(performance.now() - startedAtMs < 1500, "it does not wait for the drain timeout");
});

test("garbage collection comes again by itself, an interval after the last one, also over restarts", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-gc-"));
  const options = { root: join(folder.path, "data"), clock: new MovingClock() };
  const runs = (registry: TestRegistry): Promise<number> => registry.metric("entrepot_gc_runs_total");
  const bytes = Buffer.alloc(100, 1);
  {
    await using registry = await startHosted({ interval: "1d" }, options);
    await registry.until(() => select(registry, "SELECT * FROM schedules").length > 0, "it has looked");
    await pushBlob(registry, "team/app", bytes);
    assert.equal(await runs(registry), 0, "not at the first start");
  }
  options.clock.offsetMs = DAY / 2;
  {
    await using registry = await startHosted({ interval: "1d" }, options);
    await collect(registry, { dryRun: true });
    assert.equal(await runs(registry), 0, "not yet");
  }
  options.clock.offsetMs = DAY + MINUTE;
  {
    await using registry = await startHosted({ interval: "1d" }, options);
    await registry.until(async () => (await runs(registry)) === 1, "it has run");
    assert.equal(await isStored(registry, contentOf(bytes)), false);
  }
  await using registry = await startHosted({ interval: "1d" }, options);
  await collect(registry, { dryRun: true });
  assert.equal(await runs(registry), 0, "not again before its time");
});

test("pushes, mounts and pulls of the same blobs race with collections: what was acknowledged is whole", async () => {
  await using registry = await startHosted({ deleteUntagged: true });
  const base = Buffer.alloc(5000, 1);
  const images = Array.from({ length: 3 }, (_, n) => makeImage({ layers: [base, Buffer.alloc(100, n)], seed: n }));
  const stop = new AbortController();
  let collections = 0;
  const collecting = (async () => {
    while (!stop.signal.aborted) {
      await job(registry, "gc");
      collections++;
    }
  })();
  let refused = 0;
  // Nothing keeps a blob before its manifest, with no grace at all: then the push is refused, and repeated.
  const push = async (image: Image, n: number): Promise<void> => {
    const repository = `team/app-${n}`;
    for (let attempt = 0; attempt < 100; attempt++) {
      for (const { digest, bytes } of image.blobs.values()) {
        const other = `team/app-${(n + 1) % images.length}`;
        const mounted = await registry.send("POST", `/v2/${repository}/blobs/uploads/?mount=${digest}&from=${other}`);
        if (mounted.status !== 201) await pushBlob(registry, repository, bytes);
      }
      const path = `/v2/${repository}/manifests/latest`;
      const { status, bytes } = await registry.send("PUT", path, { "content-type": image.mediaType }, image.manifest);
      if (status === 201) return;
      assert.match(bytes.toString(), /MANIFEST_BLOB_UNKNOWN/);
      refused++;
    }
    assert.fail("it never gets through");
  };
  const pushing = images.map(async (image, n) => {
    for (let round = 0; round < 25; round++) {
      await push(image, n);
      await assertWhole(registry, `team/app-${n}`, image);
      await remove(registry, `team/app-${n}`, image);
    }
    await push(image, n);
  });
  await Promise.all(pushing).finally(() => stop.abort());
  await collecting;
  assert.ok(collections >= 5, `${collections} collections, ${refused} pushes refused`);
  await collect(registry);
  for (const [n, image] of images.entries()) await assertWhole(registry, `team/app-${n}`, image);
  const rows = select(registry, "SELECT digest FROM blobs").map(({ digest }) => String(digest));
  const files = (await registry.blobFiles()).map((path) => `sha256:${basename(path)}`);
  assert.deepEqual(files.toSorted(), rows.toSorted());
});

test("what is used, linked or needed between a collection's look and its removal stays", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-gc-"));
  await using stack = new AsyncDisposableStack();
  const clock = systemClock;
  const blobs = await FileBlobStore.open(folder.path);
  const db = stack.use(await openSqlite(join(folder.path, "entrepot.db")));
  const catalog = new Catalog(db);
  const hosted = new HostedCatalog(db, catalog);
  const usage = stack.use(new Usage(catalog, clock, assert.fail));
  const collector = new GarbageCollector({
    limits: () => ({ grace: 0, deleteUntagged: false }),
    garbage: new GarbageCatalog(db, catalog),
    blobs,
    memory: new MemoryCache(0),
    usage,
    clock,
    watch: new ClockWatch(clock),
    ledger: { added: assert.fail, removed: () => undefined },
    inFlight: () => new Set(),
    log: await createLog({ level: "silent", format: "json", destination: new PassThrough() }),
    metrics: new Metrics(),
  });
  const place = { repository: "team/app" as RepositoryName };
  const cached = "docker.io/library/app" as RepositoryName;
  const manifest = published({ schemaVersion: 2 }, "application/vnd.oci.image.manifest.v1+json");
  const meanwhile: [string, (digest: Digest) => Promise<unknown>][] = [
    ["nothing", () => Promise.resolve()],
    ["used", async (digest) => usage.touch(digest)],
    ["linked", (digest) => catalog.link({ repository: cached, upstream: "docker.io" }, digest, Date.now())],
    [
      "needed",
      (digest) => {
        const added = { ...manifest, bytes: manifest.manifest, children: [{ digest, sizeBytes: 1 }] };
        const required = { blobs: [digest], manifests: [] };
        return hosted.addManifest(
          place,
          added,
          required,
          { tags: [], guard: () => undefined, origin: undefined },
          Date.now(),
          () => Promise.resolve(),
        );
      },
    ],
  ];
  for (const [what, change] of meanwhile) {
    const { digest, bytes } = contentOf(Buffer.from(what));
    const path = join(folder.path, "blobs/sha256", digest.slice(7, 9));
    await mkdir(path, { recursive: true });
    await writeFile(join(path, digest.slice(7)), bytes);
    await hosted.addBlob(place, digest, bytes.length, Date.now() - MINUTE);
    await db.transaction("lazy", (tx) => tx.run("UPDATE repository_content SET linked_at = 0"));
    const alone = Promise.withResolvers<void>();
    const held = blobs.exclusive([digest], () => alone.promise);
    const mine = blobs.settled(digest);
    const collecting = collector.run({ dryRun: false }, () => Promise.resolve(), new AbortController().signal);
    await until(() => blobs.settled(digest) !== mine, "it has found the blob, and waits to be alone with it");
    await change(digest);
    alone.resolve();
    await held;
    await collecting;
    assert.equal(await catalog.hasBlob(digest), what !== "nothing", what);
    if (what !== "nothing") (await blobs.open(digest, bytes.length)).close();
  }
});
