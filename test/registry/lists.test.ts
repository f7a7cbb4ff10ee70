import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { makeArtifact, makeImage } from "../kit/images.ts";
import { startRegistry, type Answer, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { DAY, errorOf, jsonOf, MINUTE, MovingClock } from "./clients.ts";

const image = makeImage({ layers: [10] });

/** Follows `Link` to the end. */
async function pages(mirror: TestRegistry, first: string, key: string): Promise<string[][]> {
  const found: string[][] = [];
  let path: string | undefined = first;
  while (path !== undefined) {
    const answer: Answer = await mirror.get(path);
    assert.equal(answer.status, 200, path);
    found.push(jsonOf(answer)[key] as string[]);
    path = /^<([^>]+)>; rel="next"$/.exec(String(answer.headers["link"]))?.[1];
  }
  return found;
}

test("tags come in order, in pages that Link leads through to the end, from one answer of upstream", async () => {
  const tags = ["latest", "v1", "1", "10", "2", "A", "b", "_x", "Z"];
  await using upstream = await startUpstream();
  for (const tag of tags) upstream.add("library/app", tag, image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const sorted = tags.toSorted();
  const path = "/v2/library/app/tags/list";

  const all = await mirror.get(path);
  assert.deepEqual(jsonOf(all), { name: "library/app", tags: sorted });
  assert.equal(all.headers["content-type"], "application/json");
  assert.equal(all.headers["link"], undefined);
  assert.deepEqual(await pages(mirror, `${path}?n=4`, "tags"), [
    sorted.slice(0, 4),
    sorted.slice(4, 8),
    sorted.slice(8),
  ]);
  assert.deepEqual(await pages(mirror, `${path}?n=9`, "tags"), [sorted], "a full last page leads nowhere");
  assert.deepEqual((await pages(mirror, `${path}?n=5&ns=docker.io`, "tags")).flat(), sorted);
  assert.deepEqual(jsonOf(await mirror.get(`${path}?last=Z`))["tags"], sorted.slice(sorted.indexOf("Z") + 1));
  assert.deepEqual(jsonOf(await mirror.get(`${path}?last=aaa&n=1`))["tags"], ["b"], "last need not be there");
  const none = await mirror.get(`${path}?n=0`);
  assert.deepEqual(jsonOf(none)["tags"], []);
  assert.equal(none.headers["link"], undefined);
  assert.deepEqual(jsonOf(await mirror.get(`${path}?n=1000000000`))["tags"], sorted);
  for (const n of ["-1", "NaN", "1e9", "", "99999999999999999999", "0x10"]) {
    const refused = await mirror.get(`${path}?n=${n}`);
    assert.equal(refused.status, 400, n);
    assert.match(errorOf(refused).message, /not a number of entries/);
  }
  const spelt = await mirror.get("/v2/docker.io/library%2Fapp/tags/list");
  assert.deepEqual(jsonOf(spelt), { name: "docker.io/library/app", tags: sorted });
  const head = await mirror.send("HEAD", path);
  assert.equal(head.headers["content-length"], all.headers["content-length"]);
  assert.equal(upstream.hits("GET", "/tags/list"), 1);
});

test("a list is believed for listTtl, served stale with a warning while upstream is down, and for no longer than maxStale", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  const clock = new MovingClock();
  await using mirror = await startRegistry({
    upstreams: { "docker.io": { url: upstream.url, listTtl: "1m", maxStale: "2d" } },
    clock,
  });
  const list = (): Promise<Answer> => mirror.get("/v2/library/app/tags/list");
  await list();
  upstream.add("library/app", "2", image);
  assert.deepEqual(jsonOf(await list())["tags"], ["1"]);
  clock.offsetMs = 2 * MINUTE;
  assert.deepEqual(jsonOf(await list())["tags"], ["1", "2"]);
  await upstream.stop();
  assert.equal((await list()).headers["warning"], undefined);
  clock.offsetMs = DAY;
  const stale = await list();
  assert.deepEqual(jsonOf(stale)["tags"], ["1", "2"]);
  assert.match(String(stale.headers["warning"]), /^299 - "served from the cache, which may be out of date: .+"$/);
  assert.equal(await mirror.metric("entrepot_cache_requests_total", { kind: "tags", result: "stale" }), 1);
  clock.offsetMs = 4 * DAY;
  assert.equal((await list()).status, 502);
  clock.offsetMs = -DAY;
  const back = await list();
  assert.match(String(back.headers["warning"]), /^299 - /, "a clock that went back makes it no younger");
});

test("many who want one list cost one request, and a list that upstream forbids is not served from here", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: upstream.url, listTtl: "0s" } } });
  const gate = upstream.hold({ path: "/tags/list" });
  const asked = Array.from({ length: 20 }, () => mirror.get("/v2/library/app/tags/list"));
  await gate.reached;
  await mirror.until(async () => (await mirror.metric("entrepot_http_requests_in_flight")) === 20, "all twenty wait");
  gate.release();
  for (const { status } of await Promise.all(asked)) assert.equal(status, 200);
  assert.equal(upstream.hits(), 1);
  upstream.fault({}, { status: 403 });
  assert.equal((await mirror.get("/v2/library/app/tags/list")).status, 403);
});

test("a repository that upstream does not know is 404, is asked for once, and leaves nothing behind", async () => {
  await using upstream = await startUpstream();
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (let i = 0; i < 5; i++) {
    const answer = await mirror.get("/v2/library/none/tags/list");
    assert.equal(answer.status, 404);
    assert.equal(errorOf(answer).code, "NAME_UNKNOWN");
    const referrers = await mirror.get(`/v2/library/made-up/referrers/${image.digest}`);
    assert.equal(referrers.status, 200, "referrers are never 404");
    assert.deepEqual(jsonOf(referrers)["manifests"], []);
  }
  assert.equal(upstream.hits("GET", "/tags/list"), 1);
  assert.equal(upstream.hits("GET", "/referrers/"), 1);
  assert.deepEqual(jsonOf(await mirror.get("/v2/_catalog")), { repositories: [] });
});

test("the catalog lists what is cached, in pages", async () => {
  await using upstream = await startUpstream();
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const names = ["library/a", "library/b", "owner/c", "owner/d", "owner/e"];
  for (const name of names) {
    upstream.add(name, "1", image);
    await mirror.get(`/v2/${name}/manifests/1`);
  }
  const expected = names.map((name) => `docker.io/${name}`);
  assert.deepEqual(jsonOf(await mirror.get("/v2/_catalog")), { repositories: expected });
  assert.deepEqual(await pages(mirror, "/v2/_catalog?n=2", "repositories"), [
    expected.slice(0, 2),
    expected.slice(2, 4),
    expected.slice(4),
  ]);
  assert.deepEqual(await pages(mirror, "/v2/_catalog?n=0", "repositories"), [[]]);
  assert.deepEqual(await pages(mirror, "/v2/_catalog?n=1000000000", "repositories"), [expected]);
  for (const n of ["-1", "NaN", "1e9"]) assert.equal((await mirror.get(`/v2/_catalog?n=${n}`)).status, 400, n);
});

const signature = makeArtifact({ subject: image, artifactType: "application/x.signature", payload: "signed" });
const bom = makeArtifact({ subject: image, artifactType: "application/x.sbom", payload: "bill" });

for (const [name, options] of [
  ["the referrers API", {}],
  ["the fallback tag", { referrers: false }],
] as const) {
  test(`referrers come through ${name}, by kind or all, and stale when upstream is down`, async () => {
    for (const subject of [image, makeImage({ layers: [10], algorithm: "sha512" })]) {
      const artifacts = ["application/x.signature", "application/x.sbom"].map((artifactType) =>
        makeArtifact({ subject, artifactType, payload: artifactType }),
      );
      await using upstream = await startUpstream(options);
      upstream.add("library/app", "1", subject);
      for (const artifact of artifacts) upstream.add("library/app", undefined, artifact);
      const clock = new MovingClock();
      await using mirror = await startRegistry({ upstreams: { "docker.io": upstream }, clock });
      const path = `/v2/library/app/referrers/${subject.digest}`;
      const digests = (answer: Answer): string[] => {
        assert.equal(answer.status, 200);
        assert.equal(answer.headers["content-type"], MEDIA_TYPES.ociIndex);
        const { schemaVersion, mediaType, manifests } = jsonOf(answer);
        assert.deepEqual([schemaVersion, mediaType], [2, MEDIA_TYPES.ociIndex]);
        return (manifests as { digest: string }[]).map(({ digest }) => digest).sort();
      };
      const all = await mirror.get(path);
      assert.deepEqual(digests(all), artifacts.map(({ digest }) => digest).sort());
      assert.equal(all.headers["oci-filters-applied"], undefined);
      const some = await mirror.get(`${path}?artifactType=application/x.sbom`);
      assert.deepEqual(digests(some), [artifacts[1]?.digest]);
      assert.equal(some.headers["oci-filters-applied"], "artifactType");
      const [first] = artifacts;
      assert.ok(first);
      assert.deepEqual((await mirror.get(`/v2/library/app/manifests/${first.digest}`)).bytes, first.manifest);
      assert.deepEqual(digests(await mirror.get(`/v2/library/app/referrers/${first.digest}`)), []);

      await upstream.stop();
      clock.offsetMs = DAY;
      const stale = await mirror.get(path);
      assert.deepEqual(digests(stale), digests(all));
      assert.match(String(stale.headers["warning"]), /^299 - "served from the cache/);
    }
  });
}

test("a broken digest of a subject is 400; what can't be asked is no empty list", async () => {
  await using upstream = await startUpstream();
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (const digest of ["sha256:abc", "latest", `md5:${"a".repeat(32)}`]) {
    const answer = await mirror.get(`/v2/library/app/referrers/${digest}`);
    assert.equal(answer.status, 400, digest);
    assert.equal(errorOf(answer).code, "DIGEST_INVALID");
  }
  upstream.fault({}, { status: 503 });
  assert.equal((await mirror.get(`/v2/library/app/referrers/${image.digest}`)).status, 502);
});

test("a signature that appears upstream is seen after listTtl", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  const clock = new MovingClock();
  await using mirror = await startRegistry({
    upstreams: { "docker.io": { url: upstream.url, listTtl: "1m" } },
    clock,
  });
  const count = async (): Promise<number> =>
    (jsonOf(await mirror.get(`/v2/library/app/referrers/${image.digest}`))["manifests"] as unknown[]).length;
  assert.equal(await count(), 0);
  upstream.add("library/app", undefined, signature);
  assert.equal(await count(), 0);
  clock.offsetMs = 2 * MINUTE;
  assert.equal(await count(), 1);
  upstream.add("library/app", undefined, bom);
  clock.offsetMs = 4 * MINUTE;
  assert.equal(await count(), 2);
  for (const { digest } of [signature, bom]) upstream.remove("library/app", digest);
  clock.offsetMs = 6 * MINUTE;
  assert.equal(await count(), 0, "what is gone is gone, also as the last one");
});

test("tags of signatures, attestations and SBOMs are tags like any other", async () => {
  await using upstream = await startUpstream();
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (const suffix of ["sig", "att", "sbom"]) {
    const tag = `${image.digest.replace(":", "-")}.${suffix}`;
    upstream.add("library/app", tag, signature);
    assert.deepEqual((await mirror.get(`/v2/library/app/manifests/${tag}`)).bytes, signature.manifest);
    const unknown = `${digestOf(Buffer.from(suffix)).replace(":", "-")}.${suffix}`;
    assert.equal((await mirror.get(`/v2/library/app/manifests/${unknown}`)).status, 404);
  }
});
