import assert from "node:assert/strict";
import { test } from "node:test";
import { createLog } from "../../src/base/log.ts";
import { systemClock } from "../../src/base/clock.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { EndpointConfig } from "../../src/config/schema.ts";
import type { Digest } from "../../src/oci/digest.ts";
import type { Tag } from "../../src/oci/reference.ts";
import { createRemote, type RemoteDependencies } from "../../src/remote/remote.ts";
import { createTarget } from "../../src/remote/target.ts";
import { Copier } from "../../src/replication/copy.ts";
import type { UploadMemory } from "../../src/replication/copy-blob.ts";
import { CopyError, type CopyFault } from "../../src/replication/copy-error.ts";
import type { CopyOptions, CopyRequest } from "../../src/replication/copy-job.ts";
import { has, send } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex, virtualBlob, type Image } from "../kit/images.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { startBetween, type Between, type Trick } from "./between.ts";

const MIB = 1024 * 1024;
const AMD = { os: "linux", architecture: "amd64" };
const ARM = { os: "linux", architecture: "arm64" };
const never = new AbortController().signal;

interface Stage extends AsyncDisposable {
  source: Upstream;
  registry: TestRegistry;
  /** The way to the registry. */
  way: Between;
  copier(options?: Partial<CopyOptions>, more?: { uploads?: UploadMemory; source?: Upstream }): Promise<Copier>;
}

function endpoint(url: string): EndpointConfig {
  const found = parseConfig({ upstreams: { other: { url } } }).upstreams["other"];
  assert.ok(found);
  return found;
}

async function startStage(config: RegistryOptions["config"] = {}): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const source = stack.use(await startUpstream());
  const registry = stack.use(
    await startRegistry({ config: { ...config, hosted: { namespaces: ["team"], ...config.hosted } } }),
  );
  const way = stack.use(await startBetween(registry.url));
  const dependencies: RemoteDependencies = {
    clock: systemClock,
    log: await createLog({ level: "silent", format: "json" }),
    observe: { request: () => undefined, received: () => undefined },
    policy: { attempts: 2, baseMs: 5, maxMs: 20 },
  };
  const owned = stack.move();
  return {
    source,
    registry,
    way,
    copier: async (options = {}, more = {}) =>
      new Copier({
        source: owned.use(await createRemote(endpoint((more.source ?? source).url), dependencies)),
        target: owned.use(await createTarget(endpoint(way.url), dependencies)),
        clock: systemClock,
        ...(more.uploads ? { uploads: more.uploads } : {}),
        options: {
          platforms: [],
          attached: "whenChanged",
          existing: "replace",
          keepOrigin: false,
          dryRun: false,
          concurrency: 4,
          ...options,
        },
      }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function from(repository: string, reference: string, to = repository): CopyRequest {
  return { from: { repository, reference: reference as Tag }, to: { repository: to, reference: reference as Tag } };
}

function fault(expected: CopyFault, message = /./): (error: unknown) => boolean {
  return (error) => {
    if (error instanceof CopyError && error.fault === expected && message.test(error.message)) return true;
    throw new Error(`expected CopyError ${expected}`, { cause: error });
  };
}

async function tagged({ registry }: Stage, repository: string, tag: string): Promise<string | undefined> {
  const { status, headers } = await registry.send("HEAD", `/v2/${repository}/manifests/${tag}`);
  return status === 200 ? String(headers["docker-content-digest"]) : undefined;
}

const sizeOf = (image: Image): number => [...image.blobs.values()].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);

test("an image arrives byte for byte, and nothing but two requests follows when nothing changed", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const image = makeImage({ layers: [70_000, Buffer.alloc(0), 3 * MIB] });
  source.add("team/app", "1", image);
  const result = await (await stage.copier()).copy(from("team/app", "1"), never);
  assert.equal(result.outcome, "copied");
  assert.deepEqual(result.tagsMoved, ["1"]);
  assert.equal(result.sentBytes, sizeOf(image));
  assert.equal(way.uploadedBytes(), sizeOf(image));
  assert.equal(result.doneBytes, result.totalBytes);
  for (const blob of image.blobs.values()) await registry.pullBlob("team/app", blob.digest);
  const { bytes } = await send(registry, 200, "GET", "/v2/team/app/manifests/1");
  assert.deepEqual(bytes, image.manifest);

  const again = await stage.copier();
  source.resetCounters();
  way.passed.length = 0;
  assert.equal((await again.copy(from("team/app", "1"), never)).outcome, "unchanged");
  assert.equal(source.requests.length, 1);
  assert.deepEqual(
    way.passed.map(({ method }) => method),
    ["HEAD"],
  );
  const told = await again.copy({ ...from("team/app", "1"), digest: image.digest }, never);
  assert.equal(told.outcome, "unchanged");
  assert.equal(source.requests.length, 1, "whoever knows the digest need not ask");
});

test("children come before their index and the tag last, also of nested indexes", async () => {
  await using stage = await startStage();
  const { source, way } = stage;
  const amd = makeImage({ layers: [1000], platform: AMD, seed: "amd" });
  const arm = makeImage({ layers: [1000], platform: ARM, seed: "arm" });
  const inner = makeIndex([[ARM, arm]]);
  const outer = makeIndex([
    [AMD, amd],
    [ARM, { ...arm, ...inner }],
  ]);
  source.add("team/app", undefined, amd);
  source.add("team/app", undefined, inner);
  source.addManifest("team/app", "1", outer);
  await (await stage.copier()).copy(from("team/app", "1"), never);
  const puts = way.passed
    .filter(({ method, path }) => method === "PUT" && path.includes("/manifests/"))
    .map(({ path }) => path.slice("/v2/team/app/manifests/".length));
  assert.equal(puts.length, 5);
  assert.ok(puts.indexOf(arm.digest) < puts.indexOf(inner.digest));
  assert.deepEqual(puts.slice(3), [outer.digest, "1"]);
  assert.equal(await tagged(stage, "team/app", "1"), outer.digest);
});

test("with platforms, an index is copied as it is without the others; a target that refuses that says so", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const amd = makeImage({ layers: [1000], platform: AMD, seed: "amd" });
  const arm = makeImage({ layers: [1000], platform: ARM, seed: "arm" });
  source.add(
    "team/app",
    "1",
    makeIndex([
      [AMD, amd],
      [ARM, arm],
    ]),
  );
  const copier = await stage.copier({ platforms: ["linux/amd64"] });
  await assert.rejects(copier.copy(from("team/app", "1"), never), fault("sparse", /copy all/));
  assert.equal(await tagged(stage, "team/app", "1"), undefined);
  assert.ok(await has(registry, "team/app", amd));
  assert.ok(!(await has(registry, "team/app", arm)));

  const onIndex = (answer: Trick): void => {
    way.trick = ({ method, path }) =>
      method === "PUT" && !path.includes(amd.digest) && path.includes("/manifests/") ? answer : undefined;
  };
  // As zot does.
  onIndex({ status: 400, body: '{"errors":[{"code":"MANIFEST_INVALID","detail":{"reference":"1"}}]}' });
  await assert.rejects(copier.copy(from("team/app", "1"), never), fault("sparse", /MANIFEST_INVALID.*copy all/));

  onIndex({ status: 201 });
  const result = await (await stage.copier({ platforms: ["linux/amd64"] })).copy(from("team/app", "1"), never);
  assert.equal(result.outcome, "copied");
  const none = await stage.copier({ platforms: ["linux/s390x"] });
  await assert.rejects(none.copy(from("team/app", "1"), never), fault("platform", /s390x/));
});

test("what many images share is sent once, and mounted where another repository wants it", async () => {
  await using stage = await startStage();
  const { source, way } = stage;
  const base = virtualBlob(2 * MIB, "base");
  const images = Array.from({ length: 6 }, (_, index) => makeImage({ layers: [base, 1000], seed: `app-${index}` }));
  for (const [index, image] of images.entries()) source.add(`team/app-${index % 2}`, String(index), image);
  const copier = await stage.copier();
  const results = await Promise.all(
    images.map((_, index) => copier.copy(from(`team/app-${index % 2}`, String(index)), never)),
  );
  const sent = results.reduce((sum, { sentBytes }) => sum + sentBytes, 0);
  assert.equal(way.uploadedBytes(), sent);
  assert.equal(sent, images.reduce((sum, image) => sum + sizeOf(image), 0) - 5 * base.sizeBytes);
  assert.equal(
    results.reduce((sum, { mountedBytes }) => sum + mountedBytes, 0),
    base.sizeBytes,
  );
  assert.equal(source.hits("GET", base.digest), 1);
});

test("a target that starts an upload instead of a mount gets the bytes in that upload", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const base = virtualBlob(MIB, "base");
  source.add("team/one", "1", makeImage({ layers: [base], seed: 1 }));
  source.add("team/two", "1", makeImage({ layers: [base], seed: 2 }));
  way.trick = ({ path }) => (path.includes("mount=") ? { path: path.replace(/\?.*/, "") } : undefined);
  const copier = await stage.copier();
  await copier.copy(from("team/one", "1"), never);
  way.passed.length = 0;
  const result = await copier.copy(from("team/two", "1"), never);
  assert.equal(result.mountedBytes, 0);
  // One for the config, one by the mount.
  assert.equal(way.hits("POST"), 2);
  await registry.pullBlob("team/two", base.digest);
});

test("a target that refuses mounts gets a plain upload, and is not asked to mount again", async () => {
  await using stage = await startStage();
  const { source, way } = stage;
  const layers = [virtualBlob(1000, "a"), virtualBlob(1000, "b")];
  source.add("team/one", "1", makeImage({ layers, seed: 1 }));
  source.add("team/two", "1", makeImage({ layers, seed: 2 }));
  way.trick = ({ path }) => (path.includes("mount=") ? { status: 405 } : undefined);
  const copier = await stage.copier({ concurrency: 1 });
  await copier.copy(from("team/one", "1"), never);
  assert.equal((await copier.copy(from("team/two", "1"), never)).outcome, "copied");
  assert.equal(way.hits("POST", "mount="), 1);
});

test("a blob that the target said to have and has not is sent once more", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const image = makeImage({ layers: [1000, 2000] });
  const [lost, other] = image.layers;
  assert.ok(lost && other);
  source.add("team/app", "1", image);
  way.trick = ({ method, path }) =>
    method === "HEAD" && path.includes(lost.digest)
      ? { status: 200, headers: { "content-length": String(lost.sizeBytes) } }
      : undefined;
  assert.equal((await (await stage.copier()).copy(from("team/app", "1"), never)).outcome, "copied");
  assert.equal(way.uploadedBytes(), sizeOf(image));
  await registry.pullBlob("team/app", lost.digest);
});

test("a child that the target said to have and has not is copied once more", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const image = makeImage({ layers: [1000] });
  source.add("team/app", "1", makeIndex([[AMD, image]]));
  way.trick = ({ method, path }) =>
    method === "HEAD" && path.includes(`/manifests/${image.digest}`)
      ? { status: 200, headers: { "docker-content-digest": image.digest } }
      : undefined;
  assert.equal((await (await stage.copier()).copy(from("team/app", "1"), never)).outcome, "copied");
  assert.ok(await has(registry, "team/app", image));
  assert.equal(way.uploadedBytes(), sizeOf(image));
});

test("what a target has lost since it was copied is copied once more", async () => {
  await using stage = await startStage();
  const { source, registry } = stage;
  const image = makeImage({ layers: [1000] });
  const index = makeIndex([[AMD, image]]);
  source.add("team/app", "1", index);
  const copier = await stage.copier();
  await copier.copy(from("team/app", "1"), never);
  for (const { digest } of [index, image]) {
    assert.equal((await registry.send("DELETE", `/v2/team/app/manifests/${digest}`)).status, 202);
  }
  assert.equal((await copier.copy(from("team/app", "1"), never)).outcome, "copied");
  assert.ok(await has(registry, "team/app", image));
  assert.equal(await tagged(stage, "team/app", "1"), index.digest);
});

test("wrong bytes are never completed, and end their image alone", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const bad = makeImage({ layers: [MIB], seed: "bad" });
  const good = makeImage({ layers: [MIB], seed: "good" });
  source.add("team/bad", "1", bad);
  source.add("team/good", "1", good);
  const [layer] = bad.layers;
  assert.ok(layer);
  source.fault({ method: "GET", path: layer.digest }, { corruptByte: 500_000 });
  const copier = await stage.copier();
  const [first, second] = await Promise.allSettled([
    copier.copy(from("team/bad", "1"), never),
    copier.copy(from("team/good", "1"), never),
  ]);
  assert.ok(first.status === "rejected" && fault("wrong", /other bytes than its digest/)(first.reason));
  assert.equal(second.status, "fulfilled");
  const put = way.passed.find(
    ({ method, path }) => method === "PUT" && path.includes(encodeURIComponent(layer.digest)),
  );
  assert.ok(put && put.bytes < layer.sizeBytes, "the last byte did not go out");
  assert.ok(!(await has(registry, "team/bad", layer)));
  assert.equal(await tagged(stage, "team/bad", "1"), undefined);
});

test("a manifest that is not what its digest says is not copied", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [10] });
  stage.source.add("team/app", "1", image);
  stage.source.fault({ method: "GET", path: image.digest }, { corruptByte: 20 });
  await assert.rejects((await stage.copier()).copy(from("team/app", "1"), never), fault("wrong"));
  await assert.rejects((await stage.copier()).copy(from("team/app", "2"), never), fault("missing", /does not exist/));
});

test("a source that is cut within a blob is read on by range, within one upload", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const image = makeImage({ layers: [4 * MIB] });
  const [layer] = image.layers;
  assert.ok(layer);
  source.add("team/app", "1", image);
  source.fault({ method: "GET", path: layer.digest, times: 1 }, { cutAfter: 2 * MIB });
  await (await stage.copier()).copy(from("team/app", "1"), never);
  assert.equal(source.hits("GET", layer.digest), 2);
  assert.equal(way.uploadedBytes(), sizeOf(image));
  await registry.pullBlob("team/app", layer.digest);
});

test("a target that is cut within an upload, and away for a while, is asked where it stands, and gets the rest", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const image = makeImage({ layers: [8 * MIB] });
  const [layer] = image.layers;
  assert.ok(layer);
  source.add("team/app", "1", image);
  let cut = false;
  let away = 3;
  way.trick = ({ method, path }) => {
    if (cut && away-- > 0) return { gone: true };
    if (cut || method !== "PUT" || !path.includes(encodeURIComponent(layer.digest))) return undefined;
    cut = true;
    return { cutAfter: 3 * MIB };
  };
  await (await stage.copier()).copy(from("team/app", "1"), never);
  assert.ok(cut && away <= 0);
  assert.equal(way.uploadedBytes(), sizeOf(image), "nothing that had arrived was sent again");
  await registry.pullBlob("team/app", layer.digest);
});

test("a large blob goes out in chunks, and goes on from the last of them after a restart", async () => {
  await using stage = await startStage({ hosted: { chunkMinLength: "80MiB" } });
  const { source, registry, way } = stage;
  const image = makeImage({ layers: [virtualBlob(200 * MIB, "large")] });
  const [layer] = image.layers;
  assert.ok(layer);
  source.add("team/app", "1", image);
  const uploads = new Map();
  const stop = new AbortController();
  way.trick = ({ method }) => {
    if (method === "PATCH" && way.hits("PATCH") === 2) stop.abort(new Error("killed"));
    return undefined;
  };
  await assert.rejects((await stage.copier({}, { uploads })).copy(from("team/app", "1"), stop.signal), /killed/);
  const before = way.passed.find(({ method }) => method === "PATCH")?.bytes;
  assert.equal(before, 80 * MIB, "a chunk is what the target wants at least");
  way.passed.length = 0;
  source.resetCounters();
  assert.equal((await (await stage.copier({}, { uploads })).copy(from("team/app", "1"), never)).outcome, "copied");
  assert.ok(way.uploadedBytes() <= 120 * MIB + 1, `${way.uploadedBytes()}`);
  assert.ok(source.bytesSent(layer.digest) <= 120 * MIB);
  const { headers } = await send(registry, 200, "HEAD", `/v2/team/app/blobs/${layer.digest}`);
  assert.equal(Number(headers["content-length"]), layer.sizeBytes);
});

test("429 with Retry-After and 503 are waited for", async () => {
  await using stage = await startStage();
  const { source, way } = stage;
  const image = makeImage({ layers: [1000] });
  source.add("team/app", "1", image);
  source.fault({ method: "GET", path: image.digest, times: 1 }, { status: 429, headers: { "retry-after": "3" } });
  let refusals = 3;
  way.trick = ({ method, path }) =>
    method === "PUT" && path.includes("/manifests/") && refusals-- > 0 ? { status: 503 } : undefined;
  const startedMs = performance.now();
  assert.equal((await (await stage.copier()).copy(from("team/app", "1"), never)).outcome, "copied");
  assert.ok(performance.now() - startedMs >= 3000);
});

test("referrers and digest tags come after their subject, of every node", async () => {
  await using stage = await startStage();
  const { source, registry } = stage;
  const amd = makeImage({ layers: [1000], platform: AMD });
  const index = makeIndex([[AMD, amd]]);
  const sbom = makeArtifact({ subject: amd, artifactType: "application/vnd.test.sbom", payload: "sbom" });
  const signature = makeArtifact({ subject: sbom, artifactType: "application/vnd.test.sig", payload: "signature" });
  const cosign = makeImage({ layers: [10], seed: "cosign" });
  source.add("team/app", "1", index);
  source.add("team/app", undefined, sbom);
  source.add("team/app", undefined, signature);
  const cosignTag = `${index.digest.replace(":", "-")}.sig`;
  source.add("team/app", cosignTag, cosign);
  const result = await (await stage.copier()).copy(from("team/app", "1"), never);
  assert.deepEqual(result.tagsMoved, [cosignTag, "1"]);
  for (const [subject, referrer] of [
    [amd, sbom],
    [sbom, signature],
  ] as const) {
    const { bytes } = await send(registry, 200, "GET", `/v2/team/app/referrers/${subject.digest}`);
    const { manifests } = JSON.parse(bytes.toString()) as { manifests: { digest: Digest }[] };
    assert.deepEqual(
      manifests.map(({ digest }) => digest),
      [referrer.digest],
    );
  }
  const without = await stage.copier({ attached: "never" });
  await without.copy(from("team/app", "1", "team/bare"), never);
  assert.ok(!(await has(registry, "team/bare", sbom)));

  const late = makeArtifact({ subject: index, artifactType: "application/vnd.test.sig", payload: "late" });
  source.add("team/app", undefined, late);
  assert.equal((await (await stage.copier()).copy(from("team/app", "1"), never)).outcome, "unchanged");
  assert.ok(!(await has(registry, "team/app", late)));
  assert.equal(
    (await (await stage.copier({ attached: "always" })).copy(from("team/app", "1"), never)).outcome,
    "copied",
  );
  assert.ok(await has(registry, "team/app", late));
});

test("without the API at the target, referrers are merged into the tag that stands in for it", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const image = makeImage({ layers: [1000] });
  const signatures = ["a", "b", "c"].map((payload) =>
    makeArtifact({ subject: image, artifactType: "application/vnd.test.sig", payload }),
  );
  source.add("team/app", "1", image);
  for (const signature of signatures) source.add("team/app", undefined, signature);
  way.trick = ({ method }) => (method === "PUT" ? { without: ["oci-subject"] } : undefined);
  await (await stage.copier()).copy(from("team/app", "1"), never);
  const listed = async (): Promise<string[]> => {
    const { bytes } = await send(registry, 200, "GET", `/v2/team/app/manifests/${image.digest.replace(":", "-")}`);
    return (JSON.parse(bytes.toString()) as { manifests: { digest: string }[] }).manifests.map(({ digest }) => digest);
  };
  assert.deepEqual(new Set(await listed()), new Set(signatures.map(({ digest }) => digest)));
  await (await stage.copier({ attached: "always" })).copy(from("team/app", "1"), never);
  assert.equal((await listed()).length, 3);
});

test("without the API at the source, referrers are found by their tag", async () => {
  await using stage = await startStage();
  await using plain = await startUpstream({ referrers: false });
  const image = makeImage({ layers: [1000] });
  const signature = makeArtifact({ subject: image, artifactType: "application/vnd.test.sig", payload: "s" });
  plain.add("team/app", "1", image);
  plain.add("team/app", undefined, signature);
  const result = await (await stage.copier({}, { source: plain })).copy(from("team/app", "1"), never);
  assert.equal(result.outcome, "copied");
  assert.ok(await has(stage.registry, "team/app", signature));
});

test("an image named by sha512 is copied under that name", async () => {
  await using stage = await startStage();
  const image = makeImage({ layers: [1000], algorithm: "sha512" });
  stage.source.add("team/app", "1", image);
  const request = { ...from("team/app", image.digest), to: { repository: "team/app", reference: image.digest } };
  const result = await (await stage.copier()).copy(request, never);
  assert.equal(result.outcome, "copied");
  assert.deepEqual(result.tagsMoved, []);
  assert.equal(await tagged(stage, "team/app", image.digest), image.digest);
});

test("a tag that names something else is replaced, kept, or an error, as told", async () => {
  await using stage = await startStage();
  const { source, way } = stage;
  const [old, fresh] = [makeImage({ layers: [10], seed: "old" }), makeImage({ layers: [10], seed: "fresh" })];
  source.add("team/app", "1", old);
  await (await stage.copier()).copy(from("team/app", "1"), never);
  source.add("team/app", "1", fresh);
  way.passed.length = 0;
  const kept = await (await stage.copier({ existing: "keep" })).copy(from("team/app", "1"), never);
  assert.equal(kept.outcome, "kept");
  assert.equal(way.passed.length, 1);
  await assert.rejects(
    (await stage.copier({ existing: "fail" })).copy(from("team/app", "1"), never),
    fault("conflict"),
  );
  assert.equal(await tagged(stage, "team/app", "1"), old.digest);
  const dry = await (await stage.copier({ dryRun: true })).copy(from("team/app", "1"), never);
  assert.deepEqual([dry.tagsMoved, dry.sentBytes], [["1"], sizeOf(fresh)]);
  assert.equal(await tagged(stage, "team/app", "1"), old.digest);
  assert.equal((await (await stage.copier()).copy(from("team/app", "1"), never)).outcome, "copied");
  assert.equal(await tagged(stage, "team/app", "1"), fresh.digest);
});

test("a tag that someone moves while the copy is under way is looked at again before it moves", async () => {
  await using stage = await startStage();
  const { source, registry, way } = stage;
  const [theirs, ours] = [makeImage({ layers: [10], seed: "theirs" }), makeImage({ layers: [10], seed: "ours" })];
  source.add("team/app", "theirs", theirs);
  source.add("team/app", "1", ours);
  await (await stage.copier()).copy(from("team/app", "theirs"), never);
  let moved: Promise<unknown> | undefined;
  way.trick = ({ method, path }) => {
    if (method === "POST" && !moved) {
      const headers = { "content-type": theirs.mediaType };
      moved = send(registry, 201, "PUT", "/v2/team/app/manifests/1", headers, theirs.manifest);
    }
    return path.endsWith("never") ? { status: 500 } : undefined;
  };
  const copy = (await stage.copier({ existing: "fail" })).copy(from("team/app", "1"), never);
  await assert.rejects(copy, fault("conflict"));
  await moved;
  assert.equal(await tagged(stage, "team/app", "1"), theirs.digest);
});

test("an immutable tag is no fault while it names the same, and told as the target tells it else", async () => {
  await using stage = await startStage({ hosted: { immutableTags: { team: ["v*"] } } });
  const { source } = stage;
  source.add("team/app", "v1", makeImage({ layers: [10], seed: "old" }));
  await (await stage.copier()).copy(from("team/app", "v1"), never);
  assert.equal((await (await stage.copier()).copy(from("team/app", "v1"), never)).outcome, "unchanged");
  source.add("team/app", "v1", makeImage({ layers: [10], seed: "new" }));
  await assert.rejects(
    (await stage.copier()).copy(from("team/app", "v1"), never),
    /refuses the manifest v1 \(40[0-9] DENIED\)/,
  );
});
