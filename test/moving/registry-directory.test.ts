import assert from "node:assert/strict";
import { appendFile, mkdir, readdir, readFile, rm, stat, symlink, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, hexOf, type Digest } from "../../src/oci/digest.ts";
import { pushImage, select } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex, type Content, type Image } from "../kit/images.ts";
import { adminApi, basic, operatorOf, passwordOf } from "../kit/people.ts";
import { startRegistry, type Answer } from "../kit/registry.ts";
import { importFolder, isAbsent, pull, sourceFolder } from "./imports.ts";

const NO_UPSTREAM = { upstreams: { "docker.io": { url: "http://127.0.0.1:9" } } };
const oci = makeImage({ layers: [3000, 500], seed: "oci" });
const docker = makeImage({ layers: [2000, 700], seed: "docker", mediaTypes: "docker" });
const other = makeImage({ layers: [1500], seed: "other" });
const index = makeIndex([
  [{ os: "linux", architecture: "amd64" }, makeImage({ layers: [900], seed: "amd64" })],
  [{ os: "linux", architecture: "arm64" }, makeImage({ layers: [800], seed: "arm64" })],
]);

function layerOf(image: Image): Content {
  const [layer] = image.layers;
  assert.ok(layer);
  return layer;
}

test("images of both kinds, indexes, artifacts and shared layers come over, and the files are linked to", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  const signature = makeArtifact({ subject: oci, artifactType: "application/x-signature", payload: "signed" });
  await source.image("team/app", oci, "1", "latest");
  await source.image("team/app", docker, "old");
  await source.image("team/app", signature);
  await source.image("team/copy", oci, "1");
  await source.index("deep/er/multi", index, "v1");

  const { done, leftOut } = await importFolder(registry, source.path);
  assert.deepEqual(leftOut, []);
  const { tags, manifests, blobs, copied, verified } = done;
  // Two layers and a config each of two images, two of the signature, two each of the index's.
  assert.deepEqual(
    { tags, manifests, blobs, copied, verified },
    { tags: 5, manifests: 7, blobs: 12, copied: 0, verified: true },
  );

  await pull(registry, "team/app", "1", oci);
  await pull(registry, "team/app", "latest", oci);
  await pull(registry, "team/app", "old", docker);
  await pull(registry, "team/copy", "1", oci);
  await pull(registry, "deep/er/multi", "v1", index);
  const referrers = await registry.get(`/v2/team/app/referrers/${oci.digest}`);
  assert.ok(referrers.bytes.toString().includes(signature.digest));
  const [from, to] = await Promise.all([
    stat(source.data(layerOf(oci).digest)),
    stat(join(registry.root, "blobs/sha256", hexOf(layerOf(oci).digest).slice(0, 2), hexOf(layerOf(oci).digest))),
  ]);
  assert.equal(from.ino, to.ino);
});

test("the source stays as it is", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  await source.image("team/app", oci, "1");
  const before = await listing(source.path);
  await importFolder(registry, source.path);
  assert.deepEqual(await listing(source.path), before);
});

test("the folder of blobs and repositories itself may be named, and what is here is not brought again", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  await source.image("team/app", oci, "1");
  const first = await importFolder(registry, source.root, { deferVerification: true });
  assert.deepEqual([first.done["blobs"], first.done["here"], first.done["verified"]], [3, 0, false]);
  await source.image("team/app", other, "2");
  const { done, leftOut } = await importFolder(registry, source.root);
  assert.deepEqual(leftOut, []);
  // Three blobs, a manifest and a tag.
  assert.deepEqual([done["blobs"], done["manifests"], done["tags"], done["here"]], [2, 1, 1, 5]);
  await pull(registry, "team/app", "2", other);
});

test("what was deleted or never finished is told, and is no fault", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  await source.image("team/app", oci, "1", "gone");
  await rm(join(source.current("team/app", "gone"), ".."), { recursive: true });
  await source.image("team/app", docker);
  await unlink(source.revision("team/app", docker.digest));
  await source.write(join(source.root, "repositories/team/app/_uploads/6c1f/data"), "half");
  const { done, leftOut, unserved } = await importFolder(registry, source.path);
  assert.deepEqual(leftOut, []);
  assert.equal(done["unserved"], 3);
  assert.deepEqual(unserved, [
    `"repositories/team/app/_manifests/revisions/sha256/${hexOf(docker.digest)}": the manifest was deleted`,
    '"repositories/team/app/_manifests/tags/gone": the tag was deleted',
    '"repositories/team/app/_uploads/6c1f": the upload was not finished',
  ]);
  await isAbsent(registry, "team/app", "gone");
  await isAbsent(registry, "team/app", docker.digest);
  assert.equal((await registry.blobFiles()).length, oci.blobs.size);
});

/** How to damage the blob of one image, and what is then said of it. */
const DAMAGES: Record<string, { damage: (path: string, link: string) => Promise<void>; reason: RegExp }> = {
  "its bytes are others": {
    damage: async (path) => {
      const bytes = await readFile(path);
      bytes.writeUInt8(bytes.readUInt8(0) ^ 1, 0);
      await writeFile(path, bytes);
    },
    reason: /its file is damaged/,
  },
  "it is longer": { damage: (path) => appendFile(path, "x"), reason: /its file is damaged/ },
  "it is missing": { damage: unlink, reason: /its file is missing/ },
  "it is a folder": {
    damage: async (path) => {
      await unlink(path);
      await mkdir(path);
    },
    reason: /what should be its file is none/,
  },
  "it is a symbolic link": {
    damage: async (path) => {
      const bytes = await readFile(path);
      await unlink(path);
      await writeFile(`${path}.real`, bytes);
      await symlink(`${path}.real`, path);
    },
    reason: /symbolic link/,
  },
  "its link file is empty": { damage: (_, link) => writeFile(link, ""), reason: /its link file is empty/ },
  "its link file holds a path": {
    damage: (_, link) => writeFile(link, "../../../etc/passwd"),
    reason: /holds no digest/,
  },
  "its link is another's": { damage: (_, link) => writeFile(link, layerOf(other).digest), reason: /its link leads to/ },
  "its repository has no link": { damage: (_, link) => unlink(link), reason: /the repository has no link to it/ },
};

for (const [what, { damage, reason }] of Object.entries(DAMAGES)) {
  test(`of a blob that is damaged (${what}) the image is left out with the reason, and the others come over`, async () => {
    await using source = await sourceFolder();
    await using registry = await startRegistry(NO_UPSTREAM);
    const { digest } = layerOf(oci);
    await source.image("team/app", oci, "broken");
    await source.image("team/app", other, "whole");
    await source.image("zoo/app", docker, "whole");
    await damage(source.data(digest), source.layer("team/app", digest));
    const { done, leftOut } = await importFolder(registry, source.path);
    assert.equal(done["type"], "done", JSON.stringify(done));
    assert.equal(leftOut.length, 3, leftOut.join("\n"));
    const [blob = "", manifest = "", tag = ""] = leftOut;
    assert.match(blob, new RegExp(`^blob (team/app)? ?${digest}: `));
    assert.match(blob, reason);
    assert.ok(
      manifest.startsWith(`manifest team/app ${oci.digest}: it needs blob ${digest}, which was left out (`),
      manifest,
    );
    assert.ok(tag.startsWith(`tag team/app broken: its manifest ${oci.digest} was left out (`), tag);
    await isAbsent(registry, "team/app", "broken");
    await isAbsent(registry, "team/app", oci.digest);
    await pull(registry, "team/app", "whole", other);
    await pull(registry, "zoo/app", "whole", docker);
    assert.equal((await registry.blobFiles()).filter((path) => path.endsWith(hexOf(digest))).length, 0);
  });
}

test("deferred, damage of the size is found at once, and other damage when the blob is read", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  await source.image("team/app", oci, "short");
  await source.image("team/app", other, "flipped");
  await writeFile(source.data(layerOf(oci).digest), "short");
  await writeFile(source.data(layerOf(other).digest), Buffer.alloc(layerOf(other).sizeBytes));
  const { leftOut } = await importFolder(registry, source.path, { deferVerification: true });
  assert.equal(leftOut.length, 3, leftOut.join("\n"));
  await isAbsent(registry, "team/app", "short");
  const scrub = await registry.send("POST", "/api/v1/scrub", { "content-type": "application/json" }, "{}");
  assert.ok(scrub.bytes.toString().includes(`"kind":"damaged","digest":"${layerOf(other).digest}"`));
});

test("manifests that are damaged, of schema 1, without data or unknown are left out with their tags and indexes", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  const old = Buffer.from(JSON.stringify({ schemaVersion: 1, name: "team/app", tag: "old", fsLayers: [] }));
  const foreign = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: "application/vnd.example.thing+json" }));
  const published = (manifest: Buffer): { digest: Digest; manifest: Buffer; mediaType: string } => ({
    digest: digestOf(manifest),
    manifest,
    mediaType: "",
  });
  await source.manifest("team/app", published(old), "schema1");
  await source.manifest("team/app", published(foreign), "foreign");
  await source.image("team/app", oci, "nodata");
  await unlink(source.data(oci.digest));
  await source.index("team/app", index, "multi");
  const [child] = index.images;
  assert.ok(child);
  await writeFile(source.data(child.digest), "damaged");
  await source.tag("team/app", "nowhere", docker.digest);
  await source.write(source.current("team/app", "empty"), "");
  const { leftOut } = await importFolder(registry, source.path);
  const told = leftOut.join("\n");
  for (const line of [
    `manifest team/app ${digestOf(old)}: the manifest is not valid: schema 1`,
    `tag team/app schema1: its manifest ${digestOf(old)} was left out (`,
    `manifest team/app ${digestOf(foreign)}: application/vnd.example.thing+json is no media type`,
    `manifest team/app ${oci.digest}: its file is missing`,
    `tag team/app nodata: its manifest`,
    `manifest team/app ${child.digest}: its file is damaged`,
    `manifest team/app ${index.digest}: it needs manifest ${child.digest}, which was left out (`,
    `tag team/app multi: its manifest`,
    `manifest team/app ${docker.digest}: the repository has no link to it`,
    `tag team/app nowhere: its manifest`,
    `other "repositories/team/app/_manifests/tags/empty": its link file is empty`,
  ]) {
    assert.ok(told.includes(line), `${line}\nis not in\n${told}`);
  }
  const whole = index.images[1];
  assert.ok(whole);
  await pull(registry, "team/app", whole.digest, whole);
  assert.deepEqual(select(registry, "SELECT * FROM tags"), []);
});

test("names that are none, links that lead away and endless trees are listed, and nothing outside is read", async () => {
  await using source = await sourceFolder();
  await using outside = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  await source.image("team/app", oci, "1");
  await outside.image("team/secret", other, "1");
  const repositories = join(source.root, "repositories");
  await symlink(join(outside.root, "repositories/team/secret"), join(repositories, "team/linked"));
  await source.image("UPPER/case", docker, "1");
  await source.image(".hidden", docker, "1");
  await writeFile(join(repositories, "file"), "");
  await mkdir(join(repositories, `long/${"a".repeat(200)}/${"b".repeat(200)}`), { recursive: true });
  // The layer of an image lies elsewhere, behind a link of a folder on the way to it.
  await source.image("team/led", docker, "astray");
  const shard = join(source.data(layerOf(docker).digest), "../..");
  await rm(shard, { recursive: true });
  await outside.blob("team/secret", layerOf(docker));
  await symlink(join(outside.data(layerOf(docker).digest), "../.."), shard);
  await source.image("team/veiled", index.images[0] as Image, "1");
  await rm(join(repositories, "team/veiled/_manifests"), { recursive: true });
  await symlink(
    join(outside.root, "repositories/team/secret/_manifests"),
    join(repositories, "team/veiled/_manifests"),
  );

  const { done, leftOut } = await importFolder(registry, source.path);
  assert.equal(done["type"], "done");
  const told = leftOut.join("\n");
  for (const line of [
    'other "repositories/UPPER": that is no name of a repository',
    'other "repositories/.hidden": that is no name of a repository',
    'other "repositories/file": it is no folder',
    'other "repositories/team/linked": it is a symbolic link, which is not followed',
    `other "repositories/long/${"a".repeat(200 - "repositories/long/".length)}…": that is no name of a repository`,
    `blob team/led ${layerOf(docker).digest}: ${hexOf(layerOf(docker).digest).slice(0, 2)} is a symbolic link, which is not followed`,
    'other "repositories/team/veiled/_manifests/tags": _manifests is a symbolic link, which is not followed',
  ]) {
    assert.ok(told.includes(line), `${line}\nis not in\n${told}`);
  }
  await pull(registry, "team/app", "1", oci);
  assert.deepEqual(
    select(registry, "SELECT r.name, t.name AS tag FROM tags t JOIN repositories r ON r.id = t.repository_id"),
    [{ name: "team/app", tag: "1" }],
  );
});

test("names of upstreams are left out with the remedy, and --into takes them all", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  await source.image("library/app", oci, "1");
  await source.image("docker.io/team/app", docker, "1");
  await source.image("ghcr.io/team/app", docker, "1");
  await source.image("single", other, "1");
  const { leftOut } = await importFolder(registry, source.path);
  assert.equal(leftOut.length, 3, leftOut.join("\n"));
  for (const line of leftOut)
    assert.match(line, /^repository (library|docker\.io\/team|ghcr\.io\/team)\/app: .*--into PREFIX$/);
  await pull(registry, "single", "1", other);
  const again = await importFolder(registry, source.path, { into: "old/registry" });
  assert.deepEqual(again.leftOut, []);
  await pull(registry, "old/registry/library/app", "1", oci);
  await pull(registry, "old/registry/ghcr.io/team/app", "1", docker);
});

test("a tag that points elsewhere stays unless it may be overwritten, and an immutable one stays anyway", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry({
    ...NO_UPSTREAM,
    config: { hosted: { immutableTags: { team: ["v*"] } } },
  });
  await pushImage(registry, "team/app", other, "1");
  await pushImage(registry, "team/app", other, "v1");
  await source.image("team/app", oci, "1", "v1", "new");
  const { done, leftOut } = await importFolder(registry, source.path);
  assert.equal(done["tags"], 1);
  assert.deepEqual(leftOut, [
    `tag team/app 1: team/app:1 points to ${other.digest} here: move it with --overwrite`,
    `tag team/app v1: team/app:v1 points to ${other.digest} here: it is immutable by hosted.immutableTags`,
  ]);
  await pull(registry, "team/app", "1", other);
  const again = await importFolder(registry, source.path, { overwrite: true });
  assert.equal(again.leftOut.length, 1);
  await pull(registry, "team/app", "1", oci);
  await pull(registry, "team/app", "v1", other);
});

test("a dry run tells what would come over and what would not, and brings nothing", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  await source.image("team/app", oci, "1");
  await source.image("team/copy", oci, "1");
  await source.image("team/app", other, "broken");
  await writeFile(source.data(layerOf(other).digest), "damaged");
  const { done, leftOut } = await importFolder(registry, source.path, { dryRun: true });
  assert.equal(leftOut.length, 3, leftOut.join("\n"));
  // Of the broken image, its config is whole.
  assert.deepEqual([done["tags"], done["manifests"], done["blobs"]], [2, 2, 4]);
  assert.deepEqual(await registry.blobFiles(), []);
  for (const table of ["repositories", "blobs", "manifests", "tags", "namespaces", "events"])
    assert.deepEqual(select(registry, `SELECT * FROM ${table}`), [], table);
});

test("every tag that came over is an event, once; and a namespace beyond its quota is told", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry({ ...NO_UPSTREAM, config: { hosted: { quotas: { small: 1000 } } } });
  await source.image("small/app", oci, "1", "2");
  await source.image("large/app", oci, "1");
  const { done } = await importFolder(registry, source.path);
  assert.deepEqual(done["overQuota"], ["small"]);
  await importFolder(registry, source.path);
  const events = select(
    registry,
    "SELECT action, outcome, repository, tag, digest, media_type, size, actor FROM events ORDER BY repository, tag",
  );
  const common = {
    action: "push",
    outcome: "done",
    digest: oci.digest,
    media_type: oci.mediaType,
    size: oci.manifest.length,
  };
  assert.deepEqual(
    events,
    [
      ["large/app", "1"],
      ["small/app", "1"],
      ["small/app", "2"],
    ].map(([repository, tag]) => ({ ...common, repository, tag, actor: "import" })),
  );
});

test("what is none of them is refused, and is no job that failed", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry(NO_UPSTREAM);
  const headers = { "content-type": "application/json" };
  const ask = (path: string): Promise<Answer> =>
    registry.send("POST", "/api/v1/import", headers, JSON.stringify({ path }));
  const none = await ask(source.path);
  assert.equal(none.status, 400);
  assert.match(none.bytes.toString(), /nothing that can be taken over: name the data directory of a registry:2/);
  assert.equal((await ask("here")).status, 400);
  // It is the asker's mistake: nothing that an operator has to look into.
  assert.deepEqual(select(registry, "SELECT * FROM jobs"), []);
  assert.deepEqual(
    registry.log.filter(({ level }) => Number(level) > 40),
    [],
  );
});

test("only administrators may have a folder taken over, and only on the daemon's machine", async () => {
  await using source = await sourceFolder();
  await using registry = await startRegistry({
    ...NO_UPSTREAM,
    config: { server: { trustedProxies: ["127.0.0.1"] } },
  });
  await source.image("team/app", oci, "1");
  const api = await adminApi(registry);
  for (const admin of [true, false]) {
    const name = admin ? "anna" : "uwe";
    await api("POST", "/users", { name, password: passwordOf(name), admin });
  }
  const here = { "content-type": "application/json" };
  const elsewhere = { ...here, "x-forwarded-for": "192.0.2.1" };
  const ask = async (headers: Record<string, string>): Promise<number> => {
    const body = JSON.stringify({ path: source.path });
    return (await registry.send("POST", "/api/v1/import", headers, body)).status;
  };
  for (const place of [here, elsewhere]) {
    assert.equal(await ask(place), 401);
    assert.equal(await ask({ ...place, ...basic("uwe") }), 403);
  }
  assert.equal(await ask({ ...elsewhere, ...basic("anna") }), 403);
  assert.equal(await ask({ ...elsewhere, ...(await operatorOf(registry)) }), 403);
  assert.deepEqual(select(registry, "SELECT * FROM tags"), []);
  assert.equal(await ask({ ...here, ...basic("anna") }), 200);
  assert.equal(await ask({ ...here, ...(await operatorOf(registry)) }), 200);
  assert.equal(select(registry, "SELECT * FROM tags").length, 1);
});

/** Every file with its size and time. */
async function listing(path: string): Promise<unknown[]> {
  const found = await readdir(path, { recursive: true });
  return Promise.all(
    found.sort().map(async (name) => {
      const { size, mtimeMs, mode } = await stat(join(path, name));
      return [name, size, mtimeMs, mode];
    }),
  );
}
