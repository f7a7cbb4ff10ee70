import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { parseOrigin, type Origin } from "../../src/oci/origin.ts";
import { change, pushImage, pushManifest, select, send } from "../kit/hosted.ts";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";

const [FIRST, SECOND] = ["a", "b"].map((seed) => makeImage({ layers: [300], seed })) as [Image, Image];
const MINUTE = 60_000;

let registry: TestRegistry;
before(async () => {
  registry = await startRegistry();
});
after(() => registry[Symbol.asyncDispose]());

async function tagOf(name: string, at = registry): Promise<{ digest: unknown; origin: Origin }> {
  const [head, got] = [
    await send(at, 200, "HEAD", `/v2/${name}/manifests/1`),
    await send(at, 200, "GET", `/v2/${name}/manifests/1`),
  ];
  assert.equal(head.headers["entrepot-origin"], got.headers["entrepot-origin"]);
  const origin = parseOrigin(String(head.headers["entrepot-origin"]));
  assert.ok(origin);
  return { digest: head.headers["docker-content-digest"], origin };
}

/** Puts the tag as a copy does whose source has that mark. */
function copy(name: string, { manifest, mediaType }: Image, origin: string, status: number, query = "") {
  const headers = { "content-type": mediaType, "entrepot-origin": origin };
  return send(registry, status, "PUT", `/v2/${name}/manifests/1${query}`, headers, manifest);
}

test("a tag tells when and where it was pushed; content that is named by its digest does not", async () => {
  const before = Date.now();
  await pushImage(registry, "team/own", FIRST, "1");
  const { origin } = await tagOf("team/own");
  assert.ok(origin.atMs >= before && origin.atMs <= Date.now());
  assert.deepEqual(select(registry, "SELECT id FROM site"), [{ id: origin.by }]);
  const { headers } = await send(registry, 200, "HEAD", `/v2/team/own/manifests/${FIRST.digest}`);
  assert.equal(headers["entrepot-origin"], undefined);
  await pushManifest(registry, "team/own", FIRST, "1");
  const again = await tagOf("team/own");
  assert.ok(again.origin.atMs > origin.atMs, "a push of the same is a push, too");
});

test("a copy keeps the mark of its source, and moves no tag that was pushed later", async () => {
  await pushImage(registry, "team/copy", FIRST);
  await pushImage(registry, "team/copy", SECOND);
  await copy("team/copy", FIRST, "at=1000; by=elsewhere", 201);
  assert.deepEqual(await tagOf("team/copy"), { digest: FIRST.digest, origin: { atMs: 1000, by: "elsewhere" } });

  await copy("team/copy", SECOND, "at=2000; by=elsewhere", 201);
  const { bytes } = await copy("team/copy", FIRST, "at=1500; by=third", 409, "?tag=2");
  const [refusal] = (JSON.parse(bytes.toString()) as { errors: { code: string; message: string; detail: object }[] })
    .errors;
  assert.equal(refusal?.code, "TAG_NEWER");
  assert.match(refusal.message, /team\/copy:1 points to .* pushed later \(at=2000; by=elsewhere\)/);
  assert.deepEqual(refusal.detail, {
    repository: "team/copy",
    tag: "1",
    digest: SECOND.digest,
    origin: "at=2000; by=elsewhere",
  });
  assert.deepEqual(await tagOf("team/copy"), { digest: SECOND.digest, origin: { atMs: 2000, by: "elsewhere" } });
  await send(registry, 404, "HEAD", "/v2/team/copy/manifests/2");

  await pushManifest(registry, "team/copy", FIRST, "1");
  assert.equal((await tagOf("team/copy")).digest, FIRST.digest, "a push is not a copy");
});

test("of two marks of the same content, the newer one stays", async () => {
  await pushImage(registry, "team/same", FIRST);
  await copy("team/same", FIRST, "at=2000; by=a", 201);
  await copy("team/same", FIRST, "at=1000; by=b", 201);
  assert.deepEqual((await tagOf("team/same")).origin, { atMs: 2000, by: "a" });
  await copy("team/same", FIRST, "at=2000; by=b", 201);
  assert.deepEqual((await tagOf("team/same")).origin, { atMs: 2000, by: "b" });
});

test("a clock that is far ahead keeps a tag where it is for five minutes", async () => {
  await pushImage(registry, "team/ahead", FIRST);
  await copy("team/ahead", FIRST, `at=${Date.now() + 900 * MINUTE}; by=a`, 201);
  const { origin } = await tagOf("team/ahead");
  assert.ok(origin.atMs <= Date.now() + 5 * MINUTE);
  await pushImage(registry, "team/ahead", SECOND, "1");
  const pushed = await tagOf("team/ahead");
  assert.equal(pushed.digest, SECOND.digest);
  assert.equal(pushed.origin.atMs, origin.atMs + 1, "later than what was there, whatever the clocks say");
});

test("a header that is no mark is refused, with what to do", async () => {
  await pushImage(registry, "team/wrong", FIRST);
  const { bytes } = await copy("team/wrong", FIRST, "yesterday", 400);
  assert.match(bytes.toString(), /send it as the source answered it, or leave it out/);
});

test("a tag of before there were marks was pushed here when it was updated; a registry keeps its name over a restart", async (t) => {
  const root = await mkdtemp(join(tmpdir(), "entrepot-"));
  t.after(() => rm(root, { recursive: true }));
  let by: string;
  {
    await using first = await startRegistry({ root });
    await pushImage(first, "team/old", FIRST, "1");
    ({ by } = (await tagOf("team/old", first)).origin);
    change(first, "UPDATE tags SET origin_at = NULL, origin_by = NULL, updated_at = 5000");
  }
  await using second = await startRegistry({ root });
  assert.deepEqual((await tagOf("team/old", second)).origin, { atMs: 5000, by });
});
