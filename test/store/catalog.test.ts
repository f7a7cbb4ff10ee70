import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Clock } from "../../src/base/clock.ts";
import type { Database } from "../../src/db/database.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { Catalog, type NewManifest } from "../../src/store/catalog.ts";
import { HostedCatalog } from "../../src/store/hosted-catalog.ts";
import { ImportCatalog } from "../../src/store/import-catalog.ts";
import { Usage } from "../../src/store/usage.ts";

let root: string;
before(async () => {
  root = await mkdtemp(join(tmpdir(), "entrepot-catalog-"));
});
after(() => rm(root, { recursive: true }));

let files = 0;

async function startCatalog(): Promise<{ db: Database; catalog: Catalog } & AsyncDisposable> {
  const db = await openSqlite(join(root, `${++files}.db`));
  return { db, catalog: new Catalog(db), [Symbol.asyncDispose]: () => db[Symbol.asyncDispose]() };
}

const A = { repository: "docker.io/library/a" as RepositoryName, upstream: "docker.io" };
const B = { repository: "docker.io/library/b" as RepositoryName, upstream: "docker.io" };
const HOSTED = { repository: "team/app" as RepositoryName, upstream: undefined };
const blob = (text: string): Digest => digestOf(Buffer.from(text));

function manifest(text: string, children: Digest[] = []): NewManifest {
  const bytes = Buffer.from(text);
  return {
    digest: digestOf(bytes),
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    bytes,
    children: children.map((digest) => ({ digest, sizeBytes: 7 })),
  };
}

test("content is stored once, and reached by the repositories that it was linked to alone", async () => {
  await using started = await startCatalog();
  const { catalog } = started;
  const digest = blob("x");
  assert.equal(await catalog.addBlob([A], digest, 10, 1), true);
  assert.equal(await catalog.addBlob([A], digest, 10, 2), false);
  assert.deepEqual(await catalog.findBlob(A.repository, digest), {
    sizeBytes: 10,
    upstream: "docker.io",
    linked: true,
  });
  assert.equal((await catalog.findBlob(B.repository, digest))?.linked, false);
  await catalog.link(B, digest, 3);
  assert.equal((await catalog.findBlob(B.repository, digest))?.linked, true);
  assert.deepEqual(await catalog.cachedBytes(), new Map([["docker.io", 10]]));
});

test("whoever removes content is told what was there: two that remove the same at once count it once", async () => {
  await using started = await startCatalog();
  const { catalog } = started;
  const stored = manifest("{}");
  await catalog.addBlob([A, B], blob("x"), 10, 1);
  await catalog.addManifest(A, stored, 1);
  const removed = await Promise.all([
    catalog.evictBlobs([blob("x"), blob("never there")]),
    catalog.evictBlobs([blob("x")]),
    catalog.evictManifests([stored.digest]),
    catalog.evictManifests([stored.digest]),
  ]);
  assert.deepEqual(removed, [
    [{ sizeBytes: 10, upstream: "docker.io" }],
    [],
    [{ sizeBytes: 2, upstream: "docker.io" }],
    [],
  ]);
  assert.equal(await catalog.findBlob(A.repository, blob("x")), undefined);
  // What comes back is not reached by those who could before.
  await catalog.addBlob([A], blob("x"), 10, 2);
  assert.equal((await catalog.findBlob(B.repository, blob("x")))?.linked, false);
});

test("a tag goes with its manifest, and what was asked before is not remembered wrongly", async () => {
  await using started = await startCatalog();
  const { catalog } = started;
  const [first, second] = [manifest("1"), manifest("2")];
  const tag = "latest" as Tag;
  await catalog.addManifest(A, first, 1);
  await catalog.setTag(A, tag, first.digest, '"e1"', 1);
  assert.equal((await catalog.findTag(A.repository, tag))?.digest, first.digest);
  await catalog.addManifest(A, second, 2);
  await catalog.setTag(A, tag, second.digest, undefined, 2);
  const { origin: _, ...moved } = (await catalog.findTag(A.repository, tag)) ?? {};
  assert.deepEqual(moved, {
    digest: second.digest,
    mediaType: second.mediaType,
    sizeBytes: 1,
    etag: undefined,
    checkedAtMs: 2,
  });
  await catalog.evictManifests([second.digest]);
  assert.equal(await catalog.findTag(A.repository, tag), undefined);
  assert.equal(await catalog.readManifest(second.digest), undefined);
  assert.deepEqual(await catalog.readManifest(first.digest), first.bytes);
});

test("what goes first was used longest ago; what was pushed never goes", async () => {
  await using started = await startCatalog();
  const { catalog } = started;
  await catalog.addBlob([HOSTED], blob("pushed"), 1, 0);
  await catalog.addBlob([A], blob("x"), 1, 1);
  await catalog.addManifest(A, manifest("m"), 2);
  await catalog.addBlob([A], blob("y"), 1, 3);
  const order = async (): Promise<Digest[]> => (await catalog.evictionCandidates(10)).map(({ digest }) => digest);
  assert.deepEqual(await order(), [blob("x"), manifest("m").digest, blob("y")]);
  await catalog.touch([blob("x"), manifest("m").digest], 9);
  assert.deepEqual((await order())[0], blob("y"));
  assert.deepEqual(
    (await catalog.evictionCandidates(1)).map(({ digest }) => digest),
    [blob("y")],
  );
});

test("the claimed size and the holders of a blob come from the manifests that point to it", async () => {
  await using started = await startCatalog();
  const { catalog } = started;
  assert.equal(await catalog.claimedSizeBytes(blob("x")), undefined);
  await catalog.addManifest(A, manifest("m", [blob("x")]), 1);
  await catalog.link(B, manifest("m").digest, 1);
  assert.equal(await catalog.claimedSizeBytes(blob("x")), 7);
  const holders = (await catalog.repositoriesWith(blob("x"))).map(({ repository }) => repository);
  assert.deepEqual(holders.sort(), [A.repository, B.repository]);
});

test("uses are written together: at intervals, on demand and at the end", async () => {
  await using started = await startCatalog();
  const { catalog } = started;
  const digests = Array.from({ length: 450 }, (_, i) => blob(`${i}`));
  for (const digest of digests) await catalog.addBlob([A], digest, 1, 1);
  let nowMs = 100;
  const tick = Promise.withResolvers<void>();
  const clock: Clock = {
    now: () => nowMs,
    sleep: (_ms, signal) => {
      const aborted = Promise.withResolvers<never>();
      signal?.addEventListener("abort", () => aborted.reject(signal.reason));
      return Promise.race([tick.promise, aborted.promise]);
    },
  };
  const faults: unknown[] = [];
  const oldest = async (): Promise<Digest | undefined> => (await catalog.evictionCandidates(1))[0]?.digest;
  {
    await using usage = new Usage(catalog, clock, (_operation, error) => faults.push(error));
    for (const digest of digests.slice(1)) usage.touch(digest);
    await usage.flush();
    assert.equal(await oldest(), digests[0]);
    nowMs = 200;
    for (const digest of digests.slice(0, -1)) usage.touch(digest);
    assert.equal(await oldest(), digests[0], "nothing is written before its time");
  }
  assert.equal(await oldest(), digests.at(-1), "the end writes what is left");
  assert.deepEqual(faults, []);
});

test("a tag that an import moves counts as pushed after what it led to", async () => {
  await using started = await startCatalog();
  const { db, catalog } = started;
  const [hosted, imports] = [new HostedCatalog(db, catalog), new ImportCatalog(db, catalog)];
  const place = { repository: HOSTED.repository };
  const [old, other] = [manifest("old"), manifest("other")];
  const required = { blobs: [], manifests: [] };
  const tag = "1" as Tag;
  const within = (): Promise<void> => Promise.resolve();
  const origin = { atMs: 5000, by: "elsewhere" };
  const tagging = { tags: [tag], guard: () => undefined, origin };
  await hosted.addManifest(place, old, required, tagging, 4000, within);
  assert.deepEqual((await catalog.findTag(HOSTED.repository, tag))?.origin, origin);
  await hosted.addManifest(place, other, required, { ...tagging, tags: [] }, 4000, within);
  const importing = [{ place, tag, digest: other.digest }];
  assert.deepEqual(await imports.setTags(importing, () => true, 4500, within), ["now"]);
  const moved = await catalog.findTag(HOSTED.repository, tag);
  const [site] = await db.all<{ id: string }>("SELECT id FROM site");
  assert.deepEqual([moved?.digest, moved?.origin], [other.digest, { atMs: 5001, by: site?.id }]);
});
