import assert from "node:assert/strict";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { digestOf, hexOf, type Digest } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { change, pushImage, pushManifest, select, send } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex, type Published } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import {
  blobFile,
  configFor,
  exportBy,
  exportFrom,
  importBy,
  importInto,
  makeFolder,
  soundEntries,
  makeTar,
} from "./archives.ts";

const HOSTED = { config: { hosted: { namespaces: ["team", "copy"] } } };
const AMD64 = { os: "linux", architecture: "amd64" };
const ARM64 = { os: "linux", architecture: "arm64" };

const amd64 = makeImage({ layers: [200_000, 3000], seed: "amd64" });
const arm64 = makeImage({ layers: [150_000], seed: "arm64", platform: ARM64 });
const attestation = makeImage({ layers: [700], seed: "attestation" });

/** As BuildKit writes it: an attestation beside each image. */
function withAttestation(): Published {
  const index = makeIndex([
    [AMD64, amd64],
    [ARM64, arm64],
  ]);
  const body = JSON.parse(index.manifest.toString()) as { manifests: object[] };
  body.manifests.push({
    mediaType: attestation.mediaType,
    digest: attestation.digest,
    size: attestation.manifest.length,
    platform: { os: "unknown", architecture: "unknown" },
    annotations: {
      "vnd.docker.reference.type": "attestation-manifest",
      "vnd.docker.reference.digest": amd64.digest,
    },
  });
  const manifest = Buffer.from(JSON.stringify(body));
  return { manifest, mediaType: MEDIA_TYPES.ociIndex, digest: digestOf(manifest) };
}

const index = withAttestation();
const signature = makeArtifact({ subject: index, artifactType: "application/vnd.test.signature", payload: "signed" });
const countersignature = makeArtifact({
  subject: signature,
  artifactType: "application/vnd.test.signature",
  payload: "and again",
});
const sbom = makeArtifact({ subject: arm64, artifactType: "application/vnd.test.sbom", payload: "parts" });
const cosign = makeImage({ layers: [500], seed: "cosign" });
const COSIGN_TAG = `sha256-${hexOf(index.digest)}.sig`;

async function pushAll(registry: TestRegistry, repository: string): Promise<void> {
  for (const image of [amd64, arm64, attestation]) await pushImage(registry, repository, image);
  await pushManifest(registry, repository, index, "1");
  for (const image of [signature, countersignature, sbom]) await pushImage(registry, repository, image);
  await pushImage(registry, repository, cosign, COSIGN_TAG);
}

async function assertAll(registry: TestRegistry, repository: string, tag: string): Promise<void> {
  const tagged = async (name: string): Promise<Digest> =>
    digestOf((await send(registry, 200, "GET", `/v2/${repository}/manifests/${name}`)).bytes);
  assert.equal(await tagged(tag), index.digest);
  assert.equal(await tagged(COSIGN_TAG), cosign.digest);
  for (const image of [amd64, arm64, attestation, signature, countersignature, sbom, cosign]) {
    assert.equal(await tagged(image.digest), image.digest);
    for (const digest of image.blobs.keys()) await registry.pullBlob(repository, digest);
  }
  for (const [subject, about] of [
    [index, signature],
    [signature, countersignature],
    [arm64, sbom],
  ] as const) {
    const { bytes } = await send(registry, 200, "GET", `/v2/${repository}/referrers/${subject.digest}`);
    const { manifests } = JSON.parse(bytes.toString()) as { manifests: { digest: string }[] };
    assert.deepEqual(
      manifests.map(({ digest }) => digest),
      [about.digest],
    );
  }
}

async function tagsOf(registry: TestRegistry, repository: string): Promise<string[]> {
  const { status, bytes } = await registry.get(`/v2/${repository}/tags/list`);
  return status === 404 ? [] : (JSON.parse(bytes.toString()) as { tags: string[] }).tags;
}

test("what is exported from one registry and imported into another is the same there, signatures of signatures included", async () => {
  await using folder = await makeFolder();
  const file = join(folder.path, "app.tar");
  await using from = await startRegistry(HOSTED);
  await using to = await startRegistry(HOSTED);
  await pushAll(from, "team/app");
  await exportBy(from, "team/app:1", file);
  const told = await importBy(to, file);
  assert.match(told, new RegExp(`team/app:1 ${index.digest}`));
  await assertAll(to, "team/app", "1");
  assert.deepEqual(await tagsOf(to, "team/app"), ["1", COSIGN_TAG]);
});

test("an archive lands under another name with --as, and what is about the image goes along", async () => {
  await using folder = await makeFolder();
  const file = join(folder.path, "app.tar");
  await using from = await startRegistry(HOSTED);
  await using to = await startRegistry(HOSTED);
  await pushAll(from, "team/app");
  await exportBy(from, "team/app:1", file);
  await importBy(to, file, "copy/other:7");
  await assertAll(to, "copy/other", "7");
  assert.deepEqual(await tagsOf(to, "team/app"), []);
});

test("the same images give the same bytes, small things first, whether a daemon or its storage is read", async () => {
  await using folder = await makeFolder();
  const [byApi, again, byFiles, alone] = ["a", "b", "c", "d"].map((name) => join(folder.path, `${name}.tar`)) as [
    string,
    string,
    string,
    string,
  ];
  const root = join(folder.path, "data");
  const registry = await startRegistry({ ...HOSTED, root });
  await pushAll(registry, "team/app");
  await exportBy(registry, "team/app:1", byApi);
  await exportBy(registry, "team/app:1", again);
  await exportFrom(await configFor(folder.path, root, new URL(registry.url).host), "team/app:1", byFiles);
  await registry.stop();
  const told = await exportFrom(await configFor(folder.path, root), "team/app:1", alone);
  assert.match(told, /1 image of 1\d blobs/);
  const bytes = await readFile(byApi);
  assert.equal(bytes.toString("latin1", 0, 10), "oci-layout");
  for (const file of [again, byFiles, alone]) assert.ok(bytes.equals(await readFile(file)), file);
  assert.deepEqual(
    (await readdir(folder.path)).filter((name) => name.endsWith(".part")),
    [],
  );
});

test("an archive is imported into a storage without a daemon, and the next daemon serves it", async () => {
  await using folder = await makeFolder();
  const root = join(folder.path, "data");
  const file = join(folder.path, "app.tar");
  await writeFile(file, makeTar(soundEntries(amd64)));
  await importInto(await configFor(folder.path, root), file);
  await using registry = await startRegistry({ ...HOSTED, root });
  const { bytes } = await send(registry, 200, "GET", "/v2/team/app/manifests/1");
  assert.equal(digestOf(bytes), amd64.digest);
});

test("a command that opens the storage for itself begins nothing that is queued there", async () => {
  await using folder = await makeFolder();
  const root = join(folder.path, "data");
  const file = join(folder.path, "app.tar");
  await writeFile(file, makeTar(soundEntries(amd64)));
  const config = await configFor(folder.path, root);
  await importInto(config, file);
  const add =
    "INSERT INTO jobs (kind, payload, priority, state, run_at, created_at) VALUES ('gc', '{\"dryRun\":false}', 0, 'queued', 0, 0)";
  change({ root }, add);
  await exportFrom(config, "team/app:1", join(folder.path, "again.tar"));
  await importInto(config, file);
  const jobs = select({ root }, "SELECT kind, state, started_at FROM jobs");
  assert.deepEqual(jobs, [{ kind: "gc", state: "queued", started_at: null }]);
});

test("several images go into one archive, what they share once, and come back under their names", async () => {
  await using folder = await makeFolder();
  const file = join(folder.path, "both.tar");
  await using from = await startRegistry(HOSTED);
  await using to = await startRegistry(HOSTED);
  const shared = amd64.layers[0] ?? assert.fail();
  const other = makeImage({ layers: [shared, 4000], seed: "other" });
  await pushImage(from, "team/app", amd64, "1");
  await pushImage(from, "team/other", other, "1");
  await exportBy(from, "team/app:1", "team/other:1", "team/app:1", file);
  const { size } = await stat(file);
  assert.ok(size < 2 * shared.sizeBytes, `${size} bytes`);
  await importBy(to, file, "team/other:1=copy/other:2");
  for (const [name, image] of [
    ["team/app/manifests/1", amd64],
    ["copy/other/manifests/2", other],
  ] as const) {
    assert.equal(digestOf((await send(to, 200, "GET", `/v2/${name}`)).bytes), image.digest);
  }
  await to.pullBlob("copy/other", shared.digest);
  assert.deepEqual(await tagsOf(to, "team/other"), []);
});

test("a cached image is pulled through by its export, and named in full", async () => {
  await using folder = await makeFolder();
  const file = join(folder.path, "alpine.tar");
  await using upstream = await startUpstream();
  upstream.add("library/alpine", "3.20", amd64);
  await using from = await startRegistry({ upstreams: { "docker.io": upstream } });
  await using to = await startRegistry({ ...HOSTED, upstreams: { "docker.io": upstream } });
  assert.match(await exportBy(from, "alpine:3.20", file), /docker\.io\/library\/alpine:3\.20 sha256:/);
  // There, that name is a copy of the upstream's.
  await assert.rejects(importBy(to, file), /docker\.io\/library\/alpine: .*--as/);
  await importBy(to, file, "copy/alpine");
  assert.equal(digestOf((await send(to, 200, "GET", "/v2/copy/alpine/manifests/3.20")).bytes), amd64.digest);
});

test("an image goes out by its digest and comes back without a tag", async () => {
  await using folder = await makeFolder();
  const file = join(folder.path, "app.tar");
  await using from = await startRegistry(HOSTED);
  await using to = await startRegistry(HOSTED);
  await pushImage(from, "team/app", amd64, "1");
  await exportBy(from, `team/app@${amd64.digest}`, file);
  await importBy(to, file);
  await send(to, 200, "GET", `/v2/team/app/manifests/${amd64.digest}`);
  assert.deepEqual(await tagsOf(to, "team/app"), []);
});

test("a platform alone makes a sparse copy, which is told, and which is imported only where the rest is", async () => {
  await using folder = await makeFolder();
  const file = join(folder.path, "app.tar");
  await using from = await startRegistry(HOSTED);
  await using to = await startRegistry(HOSTED);
  await pushAll(from, "team/app");
  assert.match(await exportBy(from, "team/app:1", file, "--platform", "linux/amd64"), /sparse, without linux\/arm64/);
  const bytes = (await readFile(file)).toString("latin1");
  assert.ok(bytes.includes(hexOf(attestation.digest)), "the attestation of a platform belongs to it");
  assert.ok(!bytes.includes(`blobs/sha256/${hexOf(arm64.digest)}`));
  await assert.rejects(
    importBy(to, file),
    new RegExp(`not whole in the archive: blobs/sha256/${hexOf(arm64.digest)} `),
  );
  assert.deepEqual(await tagsOf(to, "team/app"), []);
  await pushImage(to, "team/app", arm64);
  await importBy(to, file);
  assert.equal(digestOf((await send(to, 200, "GET", "/v2/team/app/manifests/1")).bytes), index.digest);
  await assert.rejects(
    exportBy(from, "team/app:1", join(folder.path, "none.tar"), "--platform", "linux/s390x"),
    /nothing for linux\/s390x: it has linux\/amd64, linux\/arm64/,
  );
});

test("a damaged blob fails the export, by the API and by its file, and no file is left", async () => {
  await using folder = await makeFolder();
  const root = join(folder.path, "data");
  await using registry = await startRegistry({ ...HOSTED, root });
  // Too large to be held in memory.
  const image = makeImage({ layers: [600_000], seed: "large" });
  await pushImage(registry, "team/app", image, "1");
  await registry.stop();
  const { digest, bytes } = image.layers[0] ?? assert.fail();
  await writeFile(blobFile(root, digest), Buffer.concat([bytes.subarray(0, -1), Buffer.of((bytes.at(-1) ?? 0) ^ 1)]));
  const file = join(folder.path, "app.tar");
  await using again = await startRegistry({ ...HOSTED, root });
  const local = await configFor(folder.path, root, new URL(again.url).host);
  await assert.rejects(exportFrom(local, "team/app:1", file), new RegExp(`${digest} .* is damaged.*entrepot scrub`));
  await assert.rejects(exportBy(again, "team/app:1", file));
  assert.deepEqual(
    (await readdir(folder.path)).filter((name) => name.startsWith("app")),
    [],
  );
});

test("a file that is there is not written over, unless that is asked for", async () => {
  await using folder = await makeFolder();
  const file = join(folder.path, "app.tar");
  await using registry = await startRegistry(HOSTED);
  await pushImage(registry, "team/app", amd64, "1");
  await writeFile(file, "mine");
  await assert.rejects(exportBy(registry, "team/app:1", file), /app\.tar is there: .*--force/);
  assert.equal(await readFile(file, "utf8"), "mine");
  await exportBy(registry, "team/app:1", file, "--force");
  assert.ok((await stat(file)).size > 200_000);
  await assert.rejects(
    exportBy(registry, "team/none:1", join(folder.path, "none.tar")),
    /team\/none:1 can't be exported: .*there is none/,
  );
});

test("an archive is imported compressed by gzip, with index.json behind the blobs and names that begin with ./", async () => {
  await using folder = await makeFolder();
  await using registry = await startRegistry(HOSTED);
  const file = join(folder.path, "app.tar.gz");
  const entries = soundEntries(amd64).reverse();
  await writeFile(
    file,
    gzipSync(makeTar([{ name: "./", type: "5" }, ...entries.map((entry) => ({ ...entry, name: `./${entry.name}` }))])),
  );
  await importBy(registry, file);
  assert.equal(digestOf((await send(registry, 200, "GET", "/v2/team/app/manifests/1")).bytes), amd64.digest);
});

test("importing twice sends nothing the second time", async () => {
  await using folder = await makeFolder();
  await using registry = await startRegistry(HOSTED);
  const file = join(folder.path, "app.tar");
  await writeFile(file, makeTar(soundEntries(amd64)));
  assert.doesNotMatch(await importBy(registry, file), / 0 B of them new/);
  assert.match(await importBy(registry, file), / 0 B of them new/);
});
