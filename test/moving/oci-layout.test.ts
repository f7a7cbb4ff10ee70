import assert from "node:assert/strict";
import { mkdir, symlink, truncate, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { nameOf } from "../../src/moving/oci-layout.ts";
import { quoted } from "../../src/moving/source.ts";
import { hexOf, type Digest } from "../../src/oci/digest.ts";
import { send } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex, type Published } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { importFolder, isAbsent, pull, sourceFolder } from "./imports.ts";

const NO_UPSTREAM = { upstreams: { "docker.io": { url: "http://127.0.0.1:9" } } };
const REF_NAME = "org.opencontainers.image.ref.name";
const amd64 = makeImage({ layers: [900], seed: "amd64" });
const arm64 = makeImage({ layers: [800], seed: "arm64" });
const index = makeIndex([
  [{ os: "linux", architecture: "amd64" }, amd64],
  [{ os: "linux", architecture: "arm64" }, arm64],
]);

/** Writes a layout; the entries of its index.json in order. */
async function writeLayout(
  path: string,
  entries: readonly { content: Published; annotations?: Record<string, string> }[],
  blobs: Iterable<{ digest: Digest; bytes: Buffer }>,
): Promise<void> {
  await mkdir(join(path, "blobs/sha256"), { recursive: true });
  await writeFile(join(path, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  const manifests = entries.map(({ content: { digest, mediaType, manifest }, annotations }) => ({
    mediaType,
    digest,
    size: manifest.length,
    ...(annotations ? { annotations } : {}),
  }));
  await writeFile(join(path, "index.json"), JSON.stringify({ schemaVersion: 2, manifests }));
  for (const { content } of entries)
    await writeFile(join(path, "blobs/sha256", hexOf(content.digest)), content.manifest);
  for (const { digest, bytes } of blobs) await writeFile(join(path, "blobs/sha256", hexOf(digest)), bytes);
}

function blobsOf(): { digest: Digest; bytes: Buffer }[] {
  return [amd64, arm64].flatMap((image) => [...image.blobs.values(), { digest: image.digest, bytes: image.manifest }]);
}

test("a layout that tells only tags comes into the repository that is said, with indexes and what refers to them", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  const signature = makeArtifact({ subject: index, artifactType: "application/x-signature", payload: "signed" });
  const entries = [{ content: signature }, { content: index, annotations: { [REF_NAME]: "v1" } }];
  await writeLayout(source.path, entries, [...blobsOf(), ...signature.blobs.values()]);
  const nowhere = await importFolder(registry, source.path);
  assert.deepEqual(nowhere.leftOut, [
    "repository : the source tells no name, only tags: say the repository with --into",
  ]);
  const { done, leftOut } = await importFolder(registry, source.path, { into: "team/app" });
  assert.deepEqual(leftOut, []);
  assert.deepEqual([done["source"], done["tags"], done["manifests"]], ["layout", 1, 4]);
  await pull(registry, "team/app", "v1", index);
  const referrers = await registry.get(`/v2/team/app/referrers/${index.digest}`);
  assert.ok(referrers.bytes.toString().includes(signature.digest));
});

test("whole names in a layout are kept below the prefix, without their host", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  const entries = [
    { content: amd64, annotations: { "io.containerd.image.name": "docker.io/library/app:1", [REF_NAME]: "1" } },
    { content: arm64, annotations: { [REF_NAME]: "localhost:5000/team/other:2" } },
  ];
  await writeLayout(source.path, entries, blobsOf());
  const { leftOut } = await importFolder(registry, source.path, { into: "air" });
  assert.deepEqual(leftOut, []);
  await pull(registry, "air/library/app", "1", amd64);
  await pull(registry, "air/team/other", "2", arm64);
});

test("of two images with one name the first one has it, and the other one moves it only if that may be", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  const entries = [
    { content: amd64, annotations: { [REF_NAME]: "localhost:5000/team/app:1" } },
    { content: arm64, annotations: { [REF_NAME]: "localhost:6000/team/app:1" } },
  ];
  await writeLayout(source.path, entries, blobsOf());
  const first = await importFolder(registry, source.path);
  assert.deepEqual(first.leftOut, [
    `tag team/app 1: team/app:1 points to ${amd64.digest} here: move it with --overwrite`,
  ]);
  await pull(registry, "team/app", "1", amd64);
  const second = await importFolder(registry, source.path, { overwrite: true });
  assert.deepEqual(second.leftOut, []);
  await pull(registry, "team/app", "1", arm64);
});

test("while one file is read for long, it is told how far the import is", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  const [layer] = amd64.layers;
  assert.ok(layer);
  await writeLayout(source.path, [{ content: amd64, annotations: { [REF_NAME]: "1" } }], blobsOf());
  await truncate(join(source.path, "blobs/sha256", hexOf(layer.digest)), 1024 ** 3);
  const headers = { "content-type": "application/json" };
  const body = JSON.stringify({ path: source.path, into: "team/app" });
  const { bytes } = await send(registry, 200, "POST", "/api/v1/import", headers, body);
  const types = bytes
    .toString()
    .trimEnd()
    .split("\n")
    .map((line) => (JSON.parse(line) as { type: string }).type);
  // The first of them is told before the file is read.
  assert.ok(types.indexOf("leftOut") > 1, types.join(" "));
});

test("of a damaged layout, what is whole comes over and the rest is listed", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  const entries = [
    { content: index, annotations: { [REF_NAME]: "multi" } },
    { content: amd64, annotations: { [REF_NAME]: "amd64" } },
    { content: arm64, annotations: { [REF_NAME]: "not a name" } },
  ];
  await writeLayout(source.path, entries, blobsOf());
  const path = join(source.path, "blobs/sha256", hexOf(arm64.digest));
  await unlink(path);
  await symlink("/etc/passwd", path);
  const { leftOut } = await importFolder(registry, source.path, { into: "team/app" });
  const told = leftOut.join("\n");
  for (const line of [
    `other index.json, ${arm64.digest}: "not a name" is no name of an image`,
    `manifest  ${arm64.digest}: it is a symbolic link, which is not followed`,
    `manifest  ${index.digest}: it needs manifest ${arm64.digest}, which was left out (`,
    "tag  multi: its manifest",
  ]) {
    assert.ok(told.includes(line), `${line}\nis not in\n${told}`);
  }
  await pull(registry, "team/app", "amd64", amd64);
  await isAbsent(registry, "team/app", "multi");
});

test("a name that a disk gives can't steer a terminal", () => {
  assert.equal(quoted("a\n\u001b[2J\u009b2J\u007f"), String.raw`"a\n\u001b[2J?2J?"`);
});

test("a name in a layout is a tag, or a whole name", () => {
  assert.deepEqual(nameOf({}), { repository: "", tag: undefined });
  assert.deepEqual(nameOf({ [REF_NAME]: "3.20" }), { repository: "", tag: "3.20" });
  assert.deepEqual(nameOf({ [REF_NAME]: "ghcr.io/owner/app:1" }), { repository: "owner/app", tag: "1" });
  assert.deepEqual(nameOf({ [REF_NAME]: `team/app@${amd64.digest}` }), { repository: "team/app", tag: undefined });
});
