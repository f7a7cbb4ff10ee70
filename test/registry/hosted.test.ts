import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { MAX_MANIFEST_BYTES, MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { makeImage, makeIndex, type Image, type Published } from "../kit/images.ts";
import { startRegistry, type Answer, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { pushBlob, pushImage, pushManifest, select, send } from "../kit/hosted.ts";
import { errorOf, jsonOf, layerOf, published } from "./clients.ts";

const [one, two, three] = ["1", "2", "3"].map((seed) => makeImage({ layers: [100], seed })) as [Image, Image, Image];
const absent = digestOf(Buffer.from("nobody pushed this"));

function start(hosted: Record<string, unknown> = {}): Promise<TestRegistry> {
  return startRegistry({ config: { hosted: { namespaces: ["team", "other"], ...hosted } } });
}

function put(
  registry: TestRegistry,
  path: string,
  { manifest, mediaType }: Pick<Published, "manifest" | "mediaType">,
  headers: Record<string, string> = {},
): Promise<Answer> {
  return registry.send("PUT", `/v2/${path}`, { "content-type": mediaType, ...headers }, manifest);
}

/** What a tag points to; undefined where it is not there. GET and HEAD agree, and the body is what its digest says. */
async function tagOf(registry: TestRegistry, repository: string, tag: string): Promise<string | undefined> {
  const path = `/v2/${repository}/manifests/${tag}`;
  const [get, head] = [await registry.get(path), await registry.send("HEAD", path)];
  assert.equal(get.status, head.status);
  if (get.status === 404) return undefined;
  assert.equal(get.status, 200);
  assert.equal(get.headers["docker-content-digest"], digestOf(get.bytes));
  assert.equal(head.headers["docker-content-digest"], digestOf(get.bytes));
  return digestOf(get.bytes);
}

function subjectOf({ mediaType, digest, manifest }: Published): { mediaType: string; digest: string; size: number } {
  return { mediaType, digest, size: manifest.byteLength };
}

function indexOf(fields: Record<string, unknown>): Published {
  return published(
    { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [], ...fields },
    MEDIA_TYPES.ociIndex,
  );
}

// ---- conditions ----

test("a tag is put or deleted only if it is as the client says", async () => {
  await using registry = await start();
  for (const image of [one, two]) await pushImage(registry, "team/app", image);
  const tag = "team/app/manifests/v1";
  const refused = async (answer: Promise<Answer>, still: string | undefined): Promise<void> => {
    const { status, bytes } = await answer;
    assert.equal(status, 412, bytes.toString());
    assert.equal(await tagOf(registry, "team/app", "v1"), still);
  };
  await refused(put(registry, tag, one, { "if-match": "*" }), undefined);
  await refused(put(registry, tag, one, { "if-match": `"${one.digest}"` }), undefined);
  assert.equal((await put(registry, tag, one, { "if-none-match": "*" })).status, 201);
  await refused(put(registry, tag, two, { "if-none-match": "*" }), one.digest);
  await refused(put(registry, tag, one, { "if-none-match": "*" }), one.digest);
  await refused(put(registry, tag, two, { "if-none-match": `"${two.digest}", "${one.digest}"` }), one.digest);
  await refused(put(registry, tag, two, { "if-match": `"${two.digest}"` }), one.digest);
  await refused(put(registry, tag, two, { "if-match": `W/"${one.digest}"` }), one.digest);
  assert.equal((await put(registry, tag, two, { "if-none-match": `"${two.digest}"` })).status, 201);
  assert.equal((await put(registry, tag, one, { "if-match": `"${absent}", "${two.digest}"` })).status, 201);
  assert.equal((await put(registry, tag, two, { "if-match": "*" })).status, 201);

  await refused(registry.send("DELETE", `/v2/${tag}`, { "if-match": `"${one.digest}"` }), two.digest);
  await refused(registry.send("DELETE", `/v2/${tag}`, { "if-none-match": "*" }), two.digest);
  await send(registry, 202, "DELETE", `/v2/${tag}`, { "if-match": `"${two.digest}"` });
  assert.equal(await tagOf(registry, "team/app", "v1"), undefined);
});

test("a condition is for the tag in the path, also where a parameter names it again", async () => {
  await using registry = await start();
  for (const image of [one, two]) await pushImage(registry, "team/app", image);
  const path = "team/app/manifests/v1?tag=v1&tag=latest";
  assert.equal((await put(registry, path, one, { "if-none-match": "*" })).status, 201);
  assert.equal((await put(registry, path, two, { "if-match": `"${one.digest}"` })).status, 201);
  for (const tag of ["v1", "latest"]) assert.equal(await tagOf(registry, "team/app", tag), two.digest);
});

test("of many who put a tag at once, all succeed and one wins; of those who ask for it to be unchanged, one succeeds", async () => {
  await using registry = await start();
  const images = Array.from({ length: 8 }, (_, seed) => makeImage({ layers: [10], seed }));
  for (const image of images) await pushImage(registry, "team/app", image);
  const all = await Promise.all(images.map((image) => put(registry, "team/app/manifests/v1", image)));
  assert.deepEqual(new Set(all.map(({ status }) => status)), new Set([201]));
  for (const [index, answer] of all.entries())
    assert.equal(answer.headers["docker-content-digest"], images[index]?.digest);
  const current = await tagOf(registry, "team/app", "v1");
  assert.ok(images.some(({ digest }) => digest === current));

  const some = await Promise.all(
    images.map((image) => put(registry, "team/app/manifests/v1", image, { "if-match": `"${current}"` })),
  );
  // Whoever puts what is there already changes nothing, and may succeed beside the one that does.
  const winners = images.filter(({ digest }, index) => digest !== current && some[index]?.status === 201);
  assert.equal(winners.length, 1);
  assert.equal(await tagOf(registry, "team/app", "v1"), winners[0]?.digest);
});

// ---- several tags ----

test("a manifest is pushed under many tags at once, all of which are told", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", one);
  const tags = Array.from({ length: 100 }, (_, number) => `v${number}`);
  const query = tags.map((tag) => `tag=${tag}`).join("&");
  const answer = await put(registry, `team/app/manifests/${one.digest}?${query}&tag=v1`, one);
  assert.equal(answer.status, 201);
  assert.deepEqual([answer.headers["oci-tag"]].flat(), tags);
  const listed = jsonOf(await registry.get("/v2/team/app/tags/list"));
  assert.deepEqual(listed["tags"], tags.toSorted());
  assert.equal(await tagOf(registry, "team/app", "v99"), one.digest);

  const more = await put(registry, `team/app/manifests/${one.digest}?${query}&tag=more`, one);
  assert.equal(more.status, 414);
  for (const tag of ["", "a/b", "-x", "x".repeat(129), "v1\r\nX-Evil: 1"]) {
    const path = `team/app/manifests/${one.digest}?tag=ok&tag=${encodeURIComponent(tag)}`;
    assert.equal((await put(registry, path, one)).status, 400, tag);
  }
  for (const tag of ["more", "ok"]) assert.equal(await tagOf(registry, "team/app", tag), undefined);
});

test("where one of many tags is refused, none moves, and the manifest is not there", async () => {
  await using registry = await start({ immutableTags: { team: ["v*"] } });
  await pushImage(registry, "team/app", one, "v2");
  await pushManifest(registry, "team/app", one, "latest");
  for (const blob of two.blobs.values()) await pushBlob(registry, "team/app", blob.bytes);
  for (const path of [
    `team/app/manifests/${two.digest}?tag=latest&tag=v2&tag=new`,
    "team/app/manifests/latest?tag=v2",
  ]) {
    const refused = await put(registry, path, two);
    assert.equal(refused.status, 403);
    assert.equal(errorOf(refused).code, "DENIED");
    assert.equal(await tagOf(registry, "team/app", "latest"), one.digest);
    assert.equal(await tagOf(registry, "team/app", "v2"), one.digest);
    assert.equal(await tagOf(registry, "team/app", "new"), undefined);
    assert.equal((await registry.get(`/v2/team/app/manifests/${two.digest}`)).status, 404);
  }
});

// ---- manifests ----

test("everything that a manifest lacks is named, once each; nothing of it is kept", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", one);
  const [config, layer] = [two.config, layerOf(two)];
  const descriptors = [layer, layer, layerOf(one)].map(({ mediaType, digest, sizeBytes }) => ({
    mediaType,
    digest,
    size: sizeBytes,
  }));
  const image = published(
    {
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociImage,
      config: { mediaType: config.mediaType, digest: config.digest, size: config.sizeBytes },
      layers: descriptors,
    },
    MEDIA_TYPES.ociImage,
  );
  const index = makeIndex([
    [{ os: "linux", architecture: "amd64" }, one],
    [{ os: "linux", architecture: "arm64" }, two],
    [{ os: "linux", architecture: "s390x" }, three],
  ]);
  for (const [manifest, missing] of [
    [image, [config.digest, layer.digest]],
    [index, [two.digest, three.digest]],
  ] as const) {
    const refused = await put(registry, "team/app/manifests/v1", manifest);
    assert.equal(refused.status, 404);
    const { errors } = jsonOf(refused) as { errors: { code: string; detail: { digest: string } }[] };
    assert.deepEqual(
      errors.map(({ detail }) => detail.digest),
      missing,
    );
    for (const { code } of errors) assert.equal(code, "MANIFEST_BLOB_UNKNOWN");
    assert.equal(await tagOf(registry, "team/app", "v1"), undefined);
    assert.equal((await registry.get(`/v2/team/app/manifests/${manifest.digest}`)).status, 404);
  }
  // A blob is no manifest, and a manifest no blob.
  const blobAsChild = indexOf({ manifests: [{ mediaType: two.mediaType, digest: layerOf(one).digest, size: 100 }] });
  assert.equal((await put(registry, "team/app/manifests/v1", blobAsChild)).status, 404);
});

test("foreign layers and subjects may be missing", async () => {
  await using registry = await start();
  await pushBlob(registry, "team/app", one.config.bytes);
  const base = JSON.parse(one.manifest.toString()) as { layers: Record<string, unknown>[] };
  const windows = published(
    {
      ...base,
      layers: [
        { ...base.layers[0], mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" },
        { mediaType: "a/b", digest: absent, size: 5, urls: ["https://example.com/layer"] },
      ],
      subject: { mediaType: MEDIA_TYPES.ociImage, digest: absent, size: 7 },
    },
    MEDIA_TYPES.ociImage,
  );
  const answer = await put(registry, "team/app/manifests/windows", windows);
  assert.equal(answer.status, 201);
  assert.equal(answer.headers["oci-subject"], absent);
});

test("indexes nest, may be empty, and a manifest may be named by sha512", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", one);
  const empty = indexOf({});
  const inner = makeIndex([[{ os: "linux", architecture: "amd64" }, one]]);
  const outer = indexOf({ manifests: [subjectOf(inner), subjectOf(empty)] });
  assert.equal((await put(registry, "team/app/manifests/outer", outer)).status, 404);
  for (const [tag, index] of [
    ["empty", empty],
    ["inner", inner],
    ["outer", outer],
  ] as const) {
    await pushManifest(registry, "team/app", index, tag);
    assert.equal(await tagOf(registry, "team/app", tag), index.digest);
  }
  const long = makeImage({ layers: [100], seed: "long", algorithm: "sha512" });
  assert.match(long.digest, /^sha512:/);
  for (const blob of long.blobs.values())
    await send(registry, 201, "POST", `/v2/team/app/blobs/uploads/?digest=${blob.digest}`, {}, blob.bytes);
  const answer = await put(registry, `team/app/manifests/${long.digest}?tag=long`, long);
  assert.equal(answer.status, 201);
  assert.equal(answer.headers["docker-content-digest"], long.digest);
  for (const reference of [long.digest, "long"]) {
    const got = await send(registry, 200, "GET", `/v2/team/app/manifests/${reference}`);
    assert.equal(got.headers["docker-content-digest"], long.digest);
    assert.deepEqual(got.bytes, long.manifest);
  }
  const wrong = `sha512:${"0".repeat(128)}`;
  assert.equal(errorOf(await put(registry, `team/app/manifests/${wrong}`, long)).code, "DIGEST_INVALID");
});

test("a manifest with two meanings, or of a type that is none, is refused", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", one, "v1");
  const body = JSON.parse(one.manifest.toString()) as Record<string, unknown>;
  const bare = { ...body, mediaType: undefined };
  for (const [what, fields, contentType] of [
    ["layers and manifests", { ...bare, manifests: [] }, MEDIA_TYPES.ociImage],
    ["layers and manifests, sent as an index", { ...bare, manifests: [] }, MEDIA_TYPES.ociIndex],
    ["layers and Manifests", { ...bare, Manifests: [] }, MEDIA_TYPES.ociImage],
    ["an image sent as an index", bare, MEDIA_TYPES.ociIndex],
    ["an index sent as an image", { schemaVersion: 2, manifests: [] }, MEDIA_TYPES.ociImage],
    ["another type than sent", body, MEDIA_TYPES.dockerImage],
    ["another type than sent, unknown", body, "application/json"],
    ["an unknown type in the body", { ...body, mediaType: "application/vnd.example.thing.v1+json" }, undefined],
    [
      "an unknown type in both",
      { ...body, mediaType: "application/vnd.example.v1+json" },
      "application/vnd.example.v1+json",
    ],
    ["a type that a browser runs", { ...body, mediaType: "text/html" }, "text/html"],
    [
      "schema 1",
      { schemaVersion: 1, fsLayers: [], history: [] },
      "application/vnd.docker.distribution.manifest.v1+json",
    ],
  ] as const) {
    const headers = contentType === undefined ? {} : { "content-type": contentType };
    const refused = await registry.send("PUT", "/v2/team/app/manifests/v1", headers, JSON.stringify(fields));
    assert.equal(refused.status, 400, `${what}: ${refused.bytes.toString()}`);
    assert.equal(errorOf(refused).code, "MANIFEST_INVALID", what);
  }
  assert.equal(await tagOf(registry, "team/app", "v1"), one.digest);
});

test("a manifest of 100,000 layers is refused without taking up memory; one of 4 MiB is taken, a byte more is not", async () => {
  await using registry = await start();
  // Encoded once: what the client makes anew for each request would count as the daemon's memory.
  const image = (layers: unknown[]): Buffer =>
    Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociImage, layers }));
  const headers = { "content-type": MEDIA_TYPES.ociImage };
  const path = "/v2/team/app/manifests/v1";
  const descriptor = { mediaType: "a/b", digest: absent, size: 1 };
  const heavy = image(Array.from({ length: 100_000 }, () => descriptor));
  const light = image(Array.from({ length: 100_000 }, () => ({ digest: "x" })));
  assert.ok(heavy.length > MAX_MANIFEST_BYTES && light.length < MAX_MANIFEST_BYTES);
  const refuse = async (rounds: number): Promise<void> => {
    for (let round = 0; round < rounds; round++) {
      await send(registry, 413, "PUT", path, headers, heavy);
      await send(registry, 400, "PUT", path, headers, light);
    }
  };
  // The first ones let the heap grow to what such a body takes once.
  await refuse(5);
  const before = process.memoryUsage.rss();
  await refuse(20);
  assert.ok(process.memoryUsage.rss() - before < 150 * 2 ** 20, `${process.memoryUsage.rss() - before} bytes more`);
  const padding = (bytes: number): Published => {
    const without = indexOf({ annotations: { padding: "" } }).manifest.byteLength;
    return indexOf({ annotations: { padding: "x".repeat(bytes - without) } });
  };
  const [largest, larger] = [padding(MAX_MANIFEST_BYTES), padding(MAX_MANIFEST_BYTES + 1)];
  assert.equal((await put(registry, "team/app/manifests/v1", largest)).status, 201);
  assert.equal((await put(registry, "team/app/manifests/v2", larger)).status, 413);
  assert.equal(await tagOf(registry, "team/app", "v1"), largest.digest);
  assert.equal(await tagOf(registry, "team/app", "v2"), undefined);
});

test("what was cached and is then pushed is pinned, and survives eviction", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/base", "1", one);
  const others = Array.from({ length: 4 }, (_, seed) => makeImage({ layers: [3000], seed }));
  for (const [number, other] of others.entries()) upstream.add("library/other", String(number), other);
  await using registry = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { hosted: { namespaces: ["team"] }, storage: { cacheMaxSize: 9000 } },
  });
  await send(registry, 200, "GET", "/v2/library/base/manifests/1");
  for (const digest of one.blobs.keys()) await registry.pullBlob("library/base", digest);
  await registry.until(
    async () => (await registry.metric("entrepot_cache_bytes")) > one.manifest.length + 100,
    "it is cached",
  );
  await pushImage(registry, "team/app", one, "1");
  assert.equal(await registry.metric("entrepot_cache_bytes"), 0);
  for (const [table, digest] of [
    ["manifests", one.digest],
    ["blobs", layerOf(one).digest],
    ["blobs", one.config.digest],
  ])
    assert.deepEqual(select(registry, `SELECT upstream FROM ${table} WHERE digest = ?`, digest), [{ upstream: null }]);

  let pulls = 0;
  await registry.until(async () => {
    const other = others[pulls++ % others.length];
    if (other) await registry.pullBlob("library/other", layerOf(other).digest);
    return (await registry.metric("entrepot_cache_evictions_total")) > 3;
  }, "there was an eviction");
  assert.equal(await tagOf(registry, "team/app", "1"), one.digest);
  for (const digest of one.blobs.keys()) await registry.pullBlob("team/app", digest);
});

test("a blob that is pushed while the mirror downloads it is pinned, and counts as cached no more", async () => {
  const image = makeImage({ layers: [2_000_000], seed: "both ways" });
  const layer = layerOf(image);
  await using upstream = await startUpstream();
  upstream.add("library/base", "1", image);
  await using registry = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { hosted: { namespaces: ["team"] } },
  });
  const gate = upstream.hold({ path: layer.digest }, 500_000);
  const pull = registry.pullBlob("library/base", layer.digest);
  await gate.reached;
  await pushBlob(registry, "team/app", layer.bytes);
  await registry.pullBlob("team/app", layer.digest);
  gate.release();
  await pull;
  await registry.until(
    async () => (await registry.metric("entrepot_flights_in_progress")) === 0,
    "the download is over",
  );
  const rows = select(registry, "SELECT upstream FROM blobs WHERE digest = ?", layer.digest);
  assert.deepEqual(rows, [{ upstream: null }]);
  assert.equal(await registry.metric("entrepot_cache_bytes"), 0);
  for (const repository of ["library/base", "team/app"]) await registry.pullBlob(repository, layer.digest);
});

test("a delete and a push of the same blob's manifest at once leave either the manifest with its blobs, or a refusal", async () => {
  await using registry = await start();
  for (let round = 0; round < 10; round++) {
    const image = makeImage({ layers: [50], seed: `round ${round}` });
    for (const blob of image.blobs.values()) await pushBlob(registry, "team/app", blob.bytes);
    const path = `/v2/team/app/blobs/${layerOf(image).digest}`;
    const [pushed, deleted] = await Promise.all([
      put(registry, `team/app/manifests/${image.digest}`, image),
      registry.send("DELETE", path),
    ]);
    assert.ok(
      (pushed.status === 201 && deleted.status === 405) || (pushed.status === 404 && deleted.status === 202),
      `${pushed.status} ${deleted.status}`,
    );
    assert.equal((await registry.get(path)).status, pushed.status === 201 ? 200 : 404);
  }
});

// ---- referrers ----

/** Follows `Link` to the end. @returns the digests of each page */
async function referrers(registry: TestRegistry, subject: string, query = ""): Promise<string[][]> {
  const found: string[][] = [];
  for (let path: string | undefined = `/v2/team/app/referrers/${subject}${query}`; path !== undefined;) {
    assert.ok(found.length < 200, "Link never ends");
    const answer: Answer = await send(registry, 200, "GET", path);
    assert.ok(answer.bytes.length <= MAX_MANIFEST_BYTES, `${answer.bytes.length} bytes`);
    found.push((jsonOf(answer)["manifests"] as { digest: string }[]).map(({ digest }) => digest));
    path = /^<(.+)>; rel="next"$/.exec(String(answer.headers["link"]))?.[1];
  }
  return found;
}

function signature(number: number, artifactType = "application/x.signature"): Published {
  return indexOf({ artifactType, subject: subjectOf(one), annotations: { number: String(number) } });
}

test("referrers are listed whether they came before their subject or after it, and are gone once deleted", async () => {
  await using registry = await start();
  const [before, after] = [signature(1), signature(2)];
  await pushManifest(registry, "team/app", before);
  assert.deepEqual(await referrers(registry, one.digest), [[before.digest]]);
  await pushImage(registry, "team/app", one, "v1");
  await pushManifest(registry, "team/app", after, "tagged");
  assert.deepEqual(await referrers(registry, one.digest), [[before.digest, after.digest].toSorted()]);
  await pushManifest(registry, "other/app", signature(3));
  assert.deepEqual(
    await referrers(registry, one.digest),
    [[before.digest, after.digest].toSorted()],
    "another repository's are its own",
  );
  await send(registry, 202, "DELETE", `/v2/team/app/manifests/${before.digest}`);
  assert.deepEqual(await referrers(registry, one.digest), [[after.digest]]);
  await send(registry, 202, "DELETE", `/v2/team/app/manifests/${one.digest}`);
  assert.deepEqual(await referrers(registry, one.digest), [[after.digest]], "the subject's end is not theirs");
});

test("those of the fallback tag are merged in order and without doubles, filtered, and paged to the end", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", one, "v1");
  const types = ["application/x.signature", "application/x.sbom"];
  const signatures = Array.from({ length: 120 }, (_, number) => signature(number, types[number % 2]));
  for (const each of signatures.slice(0, 110)) await pushManifest(registry, "team/app", each);
  // An older client kept the list itself: of some that the API knows too, and of some that it does not.
  const listed = signatures.slice(100).map((each, index) => ({ ...subjectOf(each), artifactType: types[index % 2] }));
  for (const each of signatures.slice(110)) await pushManifest(registry, "team/app", each);
  for (const each of signatures.slice(110))
    await send(registry, 202, "DELETE", `/v2/team/app/manifests/${each.digest}`);
  // Its list may name what is not there any more: it is the client's own.
  const absentOnes = listed.slice(10).map(({ digest }) => digest);
  assert.equal((await put(registry, "team/app/manifests/list", indexOf({ manifests: listed }))).status, 404);
  for (const each of signatures.slice(110)) await pushManifest(registry, "team/app", each);
  await pushManifest(
    registry,
    "team/app",
    indexOf({ manifests: [...listed, ...listed] }),
    one.digest.replace(":", "-"),
  );
  for (const digest of absentOnes) await send(registry, 202, "DELETE", `/v2/team/app/manifests/${digest}`);

  const all = signatures.map(({ digest }) => digest).toSorted();
  assert.deepEqual(await referrers(registry, one.digest), [all]);
  for (const n of [1, 7, 50, 119, 120, 121]) {
    const pages = await referrers(registry, one.digest, `?n=${n}`);
    assert.deepEqual(pages.flat(), all, `n=${n}`);
    assert.equal(pages.length, Math.ceil(120 / n));
    for (const page of pages.slice(0, -1)) assert.equal(page.length, n);
  }
  assert.deepEqual(await referrers(registry, one.digest, "?n=0"), [[]]);
  assert.deepEqual((await referrers(registry, one.digest, `?n=3&last=${all[60]}`))[0], all.slice(61, 64));
  const odd = signatures
    .filter((_, number) => number % 2 === 1)
    .map(({ digest }) => digest)
    .toSorted();
  const some = await referrers(registry, one.digest, `?n=7&artifactType=${types[1]}`);
  assert.deepEqual(some.flat(), odd);
  assert.equal(some.length, Math.ceil(60 / 7));
});

test("a page of referrers is measured in bytes, whatever script their annotations are written in", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", one);
  const pushed = [];
  for (let number = 0; number < 8; number++) {
    const each = indexOf({
      subject: subjectOf(one),
      annotations: { number: String(number), text: "語".repeat(300_000) },
    });
    await pushManifest(registry, "team/app", each);
    pushed.push(each.digest);
  }
  const pages = await referrers(registry, one.digest);
  assert.ok(pages.length > 1);
  assert.deepEqual(pages.flat(), pushed.toSorted());
});

test("an image under the name of a fallback tag is no list of referrers", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", one, one.digest.replace(":", "-"));
  assert.deepEqual(await referrers(registry, one.digest), [[]]);
});

// ---- deletes ----

async function status(registry: TestRegistry, path: string): Promise<number> {
  const [get, head] = [await registry.get(`/v2/${path}`), await registry.send("HEAD", `/v2/${path}`)];
  assert.equal(get.status, head.status);
  return get.status;
}

test("what is deleted is gone at once, with its tags, in its repository alone", async () => {
  await using registry = await start();
  for (const repository of ["team/app", "other/app"]) {
    await pushImage(registry, repository, one, "a");
    await pushManifest(registry, repository, one, "b");
    await pushImage(registry, repository, two, "c");
    // From memory from now on.
    for (const path of [
      `manifests/a`,
      `manifests/b`,
      "manifests/c",
      `manifests/${one.digest}`,
      `blobs/${layerOf(one).digest}`,
    ])
      assert.equal(await status(registry, `${repository}/${path}`), 200);
  }
  await send(registry, 202, "DELETE", "/v2/team/app/manifests/a");
  assert.equal(await status(registry, "team/app/manifests/a"), 404);
  assert.equal(await status(registry, "team/app/manifests/b"), 200, "a tag is not its manifest");
  await send(registry, 404, "DELETE", "/v2/team/app/manifests/a");

  const needed = await send(registry, 405, "DELETE", `/v2/team/app/blobs/${layerOf(one).digest}`);
  assert.equal(errorOf(needed).code, "UNSUPPORTED");
  assert.match(errorOf(needed).message, new RegExp(one.digest));
  await send(registry, 404, "DELETE", `/v2/team/app/blobs/${one.digest}`);
  await send(registry, 404, "DELETE", `/v2/team/app/manifests/${layerOf(one).digest}`);

  await send(registry, 202, "DELETE", `/v2/team/app/manifests/${one.digest}`);
  for (const reference of ["b", one.digest])
    assert.equal(await status(registry, `team/app/manifests/${reference}`), 404);
  assert.deepEqual(jsonOf(await registry.get("/v2/team/app/tags/list"))["tags"], ["c"]);
  assert.equal(await status(registry, "team/app/manifests/c"), 200);
  await send(registry, 202, "DELETE", `/v2/team/app/blobs/${layerOf(one).digest}`);
  assert.equal(await status(registry, `team/app/blobs/${layerOf(one).digest}`), 404);

  for (const path of ["manifests/a", "manifests/b", `manifests/${one.digest}`, `blobs/${layerOf(one).digest}`])
    assert.equal(await status(registry, `other/app/${path}`), 200, path);
  await pushImage(registry, "team/app", one, "a");
  assert.equal(await status(registry, "team/app/manifests/a"), 200);
});

test("a repository is listed and found until nothing is left in it", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", one, "v1");
  await pushImage(registry, "team/other", two, "v1");
  const names = async (): Promise<unknown[]> => {
    const { results } = jsonOf(await registry.get("/v1/search?q=app")) as { results: { name: string }[] };
    const found = results.map(({ name }) => name);
    const listed = jsonOf(await registry.get("/v2/_catalog"))["repositories"] as string[];
    assert.deepEqual(
      found,
      listed.filter((name) => name.includes("app")),
    );
    return listed;
  };
  assert.deepEqual(await names(), ["team/app", "team/other"]);
  await send(registry, 202, "DELETE", `/v2/team/app/manifests/${one.digest}`);
  assert.deepEqual(jsonOf(await registry.get("/v2/team/app/tags/list"))["tags"], []);
  for (const digest of one.blobs.keys()) await send(registry, 202, "DELETE", `/v2/team/app/blobs/${digest}`);
  assert.deepEqual(await names(), ["team/other"]);
  assert.equal(errorOf(await send(registry, 404, "GET", "/v2/team/app/tags/list")).code, "NAME_UNKNOWN");
  assert.equal(errorOf(await send(registry, 404, "GET", "/v2/team/app/manifests/v1")).code, "NAME_UNKNOWN");
});
