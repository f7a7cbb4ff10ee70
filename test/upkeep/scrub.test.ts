import assert from "node:assert/strict";
import { readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { hexOf, type Digest } from "../../src/oci/digest.ts";
import { connectTo } from "../http/raw.ts";
import { contentOf, makeImage, type Image, type ImageBlob } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { layerOf } from "../registry/clients.ts";
import { change, has, job, pushBlob, pushImage, pushManifest, select, send } from "../kit/hosted.ts";

interface Finding {
  kind: string;
  digest: Digest;
  repositories: string[];
  manifests: string[];
  repaired: boolean;
  message: string;
}

function start(upstream?: Upstream): Promise<TestRegistry> {
  return startRegistry({
    ...(upstream ? { upstreams: { "docker.io": upstream } } : {}),
    config: { hosted: { namespaces: ["team"] }, scrub: { bandwidth: "1GiB", interval: "0s" }, gc: { interval: "0s" } },
  });
}

async function scrub(registry: TestRegistry): Promise<{ findings: Finding[]; report: Record<string, unknown> }> {
  const events = await job(registry, "scrub");
  const report = events.at(-1) ?? {};
  assert.equal(report["type"], "done", JSON.stringify(report));
  const findings = events.filter(({ type }) => type === "finding") as unknown as Finding[];
  assert.equal(report["findings"], findings.length);
  assert.equal(report["repaired"], findings.filter(({ repaired }) => repaired).length);
  return { findings, report };
}

/** The one thing that is wrong. */
async function findingOf(registry: TestRegistry): Promise<Finding> {
  const { findings } = await scrub(registry);
  assert.equal(findings.length, 1, JSON.stringify(findings));
  return findings[0] ?? assert.fail();
}

function pathOf(registry: TestRegistry, digest: Digest): string {
  const hex = hexOf(digest);
  return join(registry.root, "blobs/sha256", hex.slice(0, 2), hex);
}

const DAMAGES: [string, string, (path: string) => Promise<void>][] = [
  [
    "a flipped bit",
    "damaged",
    async (path) => {
      const bytes = await readFile(path);
      bytes[100] = (bytes[100] ?? 0) ^ 1;
      await writeFile(path, bytes);
    },
  ],
  ["a cut file", "damaged", (path) => truncate(path, 10)],
  ["an empty file", "damaged", (path) => truncate(path, 0)],
  ["a missing file", "missing", (path) => rm(path)],
];

async function cacheImage(registry: TestRegistry, repository: string, image: Image): Promise<void> {
  await send(registry, 200, "GET", `/v2/${repository}/manifests/1`);
  for (const digest of image.blobs.keys()) await registry.pullBlob(repository, digest);
  await registry.until(async () => (await registry.metric("entrepot_flights_in_progress")) === 0, "it is stored");
}

const upstreamOf = (digest: Digest, registry: TestRegistry): unknown =>
  select(registry, "SELECT upstream FROM blobs WHERE digest = ?", digest)[0]?.["upstream"];

test("a sound storage has no findings, and all of it is read", async () => {
  const image = makeImage({ layers: [700_000, 1000, 0] });
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await start(upstream);
  await cacheImage(registry, "library/app", image);
  const pushed = makeImage({ layers: [2000], seed: "pushed" });
  await pushImage(registry, "team/app", pushed, "1");
  const { findings, report } = await scrub(registry);
  assert.deepEqual(findings, []);
  const bytes = [image, pushed].flatMap(({ manifest, blobs }) => [
    manifest.length,
    ...[...blobs.values()].map(({ sizeBytes }) => sizeBytes),
  ]);
  assert.deepEqual(
    { ...report, ms: 0 },
    {
      type: "done",
      blobs: 6,
      manifests: 2,
      tags: 2,
      bytes: bytes.reduce((sum, size) => sum + size),
      orphans: 0,
      findings: 0,
      repaired: 0,
      ms: 0,
    },
  );
  assert.equal(await registry.metric("entrepot_scrub_runs_total", { result: "done" }), 1);
});

for (const [what, kind, damage] of DAMAGES) {
  test(`${what} of a cached blob is found, and it is brought again from upstream`, async () => {
    const image = makeImage({ layers: [700_000] });
    await using upstream = await startUpstream();
    upstream.add("library/app", "1", image);
    await using registry = await start(upstream);
    await cacheImage(registry, "library/app", image);
    const { digest } = layerOf(image);
    await damage(pathOf(registry, digest));
    const finding = await findingOf(registry);
    assert.equal(finding.kind, kind);
    assert.equal(finding.digest, digest);
    assert.deepEqual(finding.repositories, ["docker.io/library/app"]);
    assert.deepEqual(finding.manifests, [image.digest]);
    assert.equal(finding.repaired, true, finding.message);
    assert.equal((await readdir(join(registry.root, "quarantine"))).length, kind === "missing" ? 0 : 1);
    assert.equal(upstream.hits("GET", digest), 2);
    await upstream.stop();
    await registry.pullBlob("library/app", digest);
    assert.deepEqual((await scrub(registry)).findings, []);
    assert.equal(
      await registry.metric("entrepot_cache_bytes"),
      image.manifest.length + image.config.sizeBytes + 700_000,
    );
  });

  test(`${what} of a pushed blob is found, is 404, and a push repairs it for all who had it`, async () => {
    const base = Buffer.alloc(3000, 1);
    const [one, two] = ["one", "two"].map((seed) => makeImage({ layers: [base], seed }));
    assert.ok(one && two);
    await using registry = await start();
    await pushImage(registry, "team/one", one, "1");
    await pushImage(registry, "team/two", two, "1");
    const { digest } = contentOf(base);
    await damage(pathOf(registry, digest));
    const finding = await findingOf(registry);
    assert.deepEqual([finding.kind, finding.digest, finding.repaired], [kind, digest, false]);
    assert.deepEqual(finding.repositories.toSorted(), ["team/one", "team/two"]);
    assert.deepEqual(finding.manifests, [one.digest, two.digest].toSorted());
    assert.match(finding.message, /push it again to repair it$/);
    assert.equal(await has(registry, "team/one", contentOf(base)), false);
    // Until then, each scrub tells who needs it.
    const again = (await scrub(registry)).findings;
    assert.deepEqual(
      again.map((one) => [one.kind, one.digest]),
      [["dangling", digest]],
    );
    await pushBlob(registry, "team/two", base);
    for (const repository of ["team/one", "team/two"]) await registry.pullBlob(repository, digest);
    assert.deepEqual((await scrub(registry)).findings, []);
  });
}

test("a pushed blob that a cached repository has is brought again from there, and stays pinned", async () => {
  const image = makeImage({ layers: [700_000] });
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await start(upstream);
  await cacheImage(registry, "library/app", image);
  const { digest } = layerOf(image);
  await send(registry, 201, "POST", `/v2/team/app/blobs/uploads/?mount=${digest}&from=docker.io/library/app`);
  await writeFile(pathOf(registry, digest), "damaged");
  const finding = await findingOf(registry);
  assert.equal(finding.repaired, true, finding.message);
  assert.equal(upstreamOf(digest, registry), null);
  await upstream.stop();
  for (const repository of ["team/app", "library/app"]) await registry.pullBlob(repository, digest);
});

test("an upstream that is away repairs nothing: the next pull does", async () => {
  const image = makeImage({ layers: [700_000] });
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await start(upstream);
  await cacheImage(registry, "library/app", image);
  const { digest } = layerOf(image);
  await rm(pathOf(registry, digest));
  upstream.fault({}, { status: 404 });
  const finding = await findingOf(registry);
  assert.deepEqual([finding.kind, finding.repaired], ["missing", false]);
  assert.match(finding.message, /the next pull brings it again$/);
  upstream.clearFaults();
  await registry.pullBlob("library/app", digest);
});

test("a file that can't be read is told, and is neither called missing nor moved", async () => {
  const image = makeImage({ layers: [3000] });
  await using registry = await start();
  await pushImage(registry, "team/app", image, "1");
  const { digest } = layerOf(image);
  const path = pathOf(registry, digest);
  await rm(path);
  // Whoever opens it gets ENOTDIR, root too.
  const folder = join(path, "..");
  const others = await readdir(folder);
  assert.deepEqual(others, []);
  await rm(folder, { recursive: true });
  await writeFile(folder, "in the way");
  const { findings } = await scrub(registry);
  assert.deepEqual(
    findings.map(({ kind, repaired }) => [kind, repaired]),
    [["unreadable", false]],
  );
  assert.equal(select(registry, "SELECT * FROM blobs WHERE digest = ?", digest).length, 1);
});

test("a damaged manifest of an upstream comes again from there", async () => {
  const image = makeImage({ layers: [3000] });
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await start(upstream);
  await cacheImage(registry, "library/app", image);
  change(registry, "UPDATE manifests SET bytes = ? WHERE digest = ?", Buffer.from("damaged"), image.digest);
  const finding = await findingOf(registry);
  assert.deepEqual([finding.kind, finding.digest, finding.repaired], ["damaged", image.digest, true], finding.message);
  const answer = await send(registry, 200, "GET", `/v2/library/app/manifests/${image.digest}`);
  assert.deepEqual(answer.bytes, image.manifest);
  assert.deepEqual((await scrub(registry)).findings, []);
});

test("a damaged manifest that was pushed is named, and the same push repairs it", async () => {
  const image = makeImage({ layers: [3000] });
  await using registry = await start();
  await pushImage(registry, "team/app", image, "1");
  await pushManifest(registry, "team/other", image).catch(() => undefined);
  change(registry, "UPDATE manifests SET bytes = ? WHERE digest = ?", Buffer.from("damaged"), image.digest);
  const finding = await findingOf(registry);
  assert.deepEqual([finding.kind, finding.digest, finding.repaired], ["damaged", image.digest, false]);
  assert.deepEqual(finding.repositories, ["team/app"]);
  await pushManifest(registry, "team/app", image, "1");
  assert.deepEqual((await scrub(registry)).findings, []);
  const answer = await send(registry, 200, "GET", "/v2/team/app/manifests/1");
  assert.deepEqual(answer.bytes, image.manifest);
});

test("what points to nothing is named: a manifest without a blob, one out of reach, a tag without a manifest", async () => {
  const images = [1, 2, 3].map((seed) => makeImage({ layers: [1000], seed }));
  await using registry = await start();
  for (const [n, image] of images.entries()) await pushImage(registry, `team/app-${n}`, image, "1");
  const [gone, unlinked, untagged] = images;
  assert.ok(gone && unlinked && untagged);
  change(registry, "DELETE FROM blobs WHERE digest = ?", layerOf(gone).digest);
  change(registry, "DELETE FROM repository_content WHERE digest = ?", layerOf(unlinked).digest);
  change(registry, "DELETE FROM manifests WHERE digest = ?", untagged.digest);
  const { findings, report } = await scrub(registry);
  assert.deepEqual(
    new Map(findings.map(({ digest, kind, repositories }) => [digest, [kind, ...repositories]])),
    new Map([
      [layerOf(gone).digest, ["dangling", "team/app-0"]],
      [layerOf(unlinked).digest, ["dangling", "team/app-1"]],
      [untagged.digest, ["dangling", "team/app-2"]],
    ]),
  );
  assert.equal(report["orphans"], 1, "the file without a row");
  assert.equal(await registry.metric("entrepot_scrub_findings_total", { kind: "dangling", repaired: "false" }), 3);
});

test("a foreign layer is nobody's loss", async () => {
  await using registry = await start();
  const config = Buffer.from("{}");
  await pushBlob(registry, "team/app", config);
  const descriptor = ({ digest, sizeBytes }: Pick<ImageBlob, "digest" | "sizeBytes">, mediaType: string) => ({
    mediaType,
    digest,
    size: sizeBytes,
  });
  const mediaType = "application/vnd.docker.distribution.manifest.v2+json";
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType,
      config: descriptor(contentOf(config), "application/vnd.docker.container.image.v1+json"),
      layers: [
        {
          ...descriptor(contentOf(Buffer.from("windows")), "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
          urls: ["https://example.com/layer"],
        },
      ],
    }),
  );
  await pushManifest(registry, "team/app", { manifest, mediaType, digest: contentOf(manifest).digest }, "1");
  assert.deepEqual((await scrub(registry)).findings, []);
});

test("a scrub keeps to its bandwidth, tells how far it is, and ends when its client leaves", async () => {
  await using registry = await start();
  await pushBlob(registry, "team/app", Buffer.alloc(3 * 1024 * 1024, 1));
  const startedAtMs = performance.now();
  const events = await job(registry, "scrub", { bandwidth: 4 * 1024 * 1024 });
  const seconds = (performance.now() - startedAtMs) / 1000;
  assert.ok(seconds > 0.6 && seconds < 5, `${seconds} s`);
  assert.ok(events.filter(({ type }) => type === "progress").length >= 3);
  const headers = { "content-type": "application/json" };
  for (const bandwidth of [0, -1, 1.5, "1MiB"])
    await send(registry, 400, "POST", "/api/v1/scrub", headers, JSON.stringify({ bandwidth }));

  using client = await connectTo(registry.url);
  client.send("POST /api/v1/scrub HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 20");
  client.socket.write('{"bandwidth": 10000}');
  await client.until(/"type":"progress"/);
  assert.equal((await registry.send("POST", "/api/v1/scrub", headers, "{}")).status, 409);
  client.socket.destroy();
  const stopped = (): Promise<number> => registry.metric("entrepot_scrub_runs_total", { result: "stopped" });
  await registry.until(async () => (await stopped()) === 1, "it has ended");
});

test("what is counted of a namespace is compared with what it holds, and set right", async () => {
  await using registry = await start();
  const [image, other] = [makeImage({ layers: [3000, 500], seed: 1 }), makeImage({ layers: [700], seed: 2 })];
  await pushImage(registry, "team/app", image, "1");
  await pushImage(registry, "team/copy", image, "1");
  await pushImage(registry, "team/other", other, "1");
  await pushImage(registry, "fine/app", image, "1");
  const content = (): unknown => select(registry, "SELECT * FROM namespace_content ORDER BY namespace, digest");
  const usage = (): unknown => select(registry, "SELECT * FROM namespace_usage ORDER BY namespace");
  const sound = { content: content(), usage: usage() };
  const counted = Number(select(registry, "SELECT bytes FROM namespace_usage WHERE namespace = 'team'")[0]?.["bytes"]);
  const [layer, small, config] = [layerOf(image), layerOf(image, 1), image.config].map(({ digest }) => digest);
  const harms: [string, ...unknown[]][] = [
    ["UPDATE namespace_usage SET bytes = bytes + 1000 WHERE namespace = 'team'"],
    ["DELETE FROM namespace_usage WHERE namespace = 'team'"],
    ["DELETE FROM namespace_content WHERE namespace = 'team' AND digest = ?", layer],
    ["UPDATE namespace_content SET links = links + 1 WHERE namespace = 'team' AND digest = ?", small],
    ["UPDATE namespace_content SET size = size * 2 WHERE namespace = 'team' AND digest = ?", config],
    ["INSERT INTO namespace_content VALUES ('team', 'sha256:nothing', 77, 1)"],
  ];
  for (const harm of harms) {
    change(registry, ...harm);
    const { namespace, ...finding } = (await findingOf(registry)) as Finding & { namespace: string };
    assert.equal(finding.kind, "miscounted", harm[0]);
    assert.equal(namespace, "team");
    assert.equal(finding.repaired, true);
    assert.match(finding.message, new RegExp(`^namespace team was counted as \\d+ bytes and holds ${counted}, `));
    assert.deepEqual({ content: content(), usage: usage() }, sound, harm[0]);
  }
  for (const harm of harms) change(registry, ...harm);
  await findingOf(registry);
  assert.deepEqual({ content: content(), usage: usage() }, sound, "all of it at once");
  assert.deepEqual((await scrub(registry)).findings, []);
});

test("a blob that was damaged, and waits to be pushed again, still counts", async () => {
  await using registry = await start();
  const image = makeImage({ layers: [3000] });
  await pushImage(registry, "team/app", image, "1");
  const usage = (): unknown => select(registry, "SELECT * FROM namespace_usage");
  const sound = usage();
  await rm(pathOf(registry, layerOf(image).digest));
  for (const kind of ["missing", "dangling"]) assert.equal((await findingOf(registry)).kind, kind);
  assert.deepEqual(usage(), sound);
  await pushBlob(registry, "team/app", layerOf(image).bytes);
  assert.deepEqual((await scrub(registry)).findings, []);
  assert.deepEqual(usage(), sound);
});
