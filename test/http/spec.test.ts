// What the distribution-spec demands and the official conformance suite leaves out, on hosted and on cached repositories.
import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf, type DigestAlgorithm } from "../../src/oci/digest.ts";
import { MAX_MANIFEST_BYTES, MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { send } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex, type Image, type Published } from "../kit/images.ts";
import { startRegistry, type Answer, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { DAY, jsonOf, layerOf, MovingClock, published } from "../registry/clients.ts";

/** Source: OCI distribution-spec, "Error Codes" */
const CODES: ReadonlySet<unknown> = new Set([
  "BLOB_UNKNOWN",
  "BLOB_UPLOAD_INVALID",
  "BLOB_UPLOAD_UNKNOWN",
  "DIGEST_INVALID",
  "MANIFEST_BLOB_UNKNOWN",
  "MANIFEST_INVALID",
  "MANIFEST_UNKNOWN",
  "NAME_INVALID",
  "NAME_UNKNOWN",
  "SIZE_INVALID",
  "UNAUTHORIZED",
  "DENIED",
  "UNSUPPORTED",
  "TOOMANYREQUESTS",
]);

const image = makeImage({ layers: [100, 2000] });
const absent = digestOf(Buffer.from("nobody pushed this"));

/** A registry that hosts the namespace `team`. */
function startHosted(hosted: Record<string, unknown> = {}): Promise<TestRegistry> {
  return startRegistry({ config: { hosted: { namespaces: ["team"], ...hosted } } });
}

async function startUpload(registry: TestRegistry, repository: string, query = ""): Promise<string> {
  const answer = await send(registry, 202, "POST", `/v2/${repository}/blobs/uploads/${query}`);
  const location = String(answer.headers["location"]);
  assert.ok(location.startsWith(`/v2/${repository}/blobs/uploads/`), location);
  return location;
}

function finish(location: string, digest: string): string {
  return `${location}${location.includes("?") ? "&" : "?"}digest=${digest}`;
}

async function pushBlob(registry: TestRegistry, repository: string, bytes: Buffer): Promise<void> {
  const location = await startUpload(registry, repository);
  await send(registry, 201, "PUT", finish(location, digestOf(bytes)), {}, bytes);
}

function pushManifest(
  registry: TestRegistry,
  repository: string,
  reference: string,
  { manifest, mediaType }: Published,
): Promise<Answer> {
  const path = `/v2/${repository}/manifests/${reference}`;
  return send(registry, 201, "PUT", path, { "content-type": mediaType }, manifest);
}

async function pushImage(registry: TestRegistry, repository: string, pushed: Image, tag?: string): Promise<void> {
  for (const blob of pushed.blobs.values()) await pushBlob(registry, repository, blob.bytes);
  await pushManifest(registry, repository, tag ?? pushed.digest, pushed);
}

/** Follows `Link` to the end. @returns the answers, the last one without a `Link` */
async function pages(registry: TestRegistry, first: string): Promise<Answer[]> {
  const found: Answer[] = [];
  for (let path: string | undefined = first; path !== undefined;) {
    assert.ok(found.length < 100, `${first} never ends`);
    const answer: Answer = await send(registry, 200, "GET", path);
    found.push(answer);
    const { link } = answer.headers;
    if (link === undefined) break;
    // Source: RFC 5988 §5
    path = /^<(\/v2\/[^<>" ]+)>; ?rel="next"$/.exec(String(link))?.[1];
    assert.ok(path, `Link: ${String(link)}`);
  }
  return found;
}

function listed(answers: Answer[], key: "tags" | "repositories"): string[][] {
  return answers.map((answer) => jsonOf(answer)[key] as string[]);
}

// ---- the base ----

test("the base answers 200 with the version of Docker's API, to GET and HEAD alone", async () => {
  await using registry = await startHosted();
  for (const method of ["GET", "HEAD"]) {
    const answer = await send(registry, 200, method, "/v2/");
    assert.equal(answer.headers["docker-distribution-api-version"], "registry/2.0");
    assert.equal(answer.headers["content-type"], "application/json");
    assert.equal(answer.headers["content-length"], "2");
  }
  assert.deepEqual(jsonOf(await registry.get("/v2/")), {});
  for (const method of ["POST", "PUT", "PATCH", "DELETE"]) refusal(await send(registry, 405, method, "/v2/"));
});

// ---- lists ----

test("pushed tags come in order, in pages of exactly n that Link leads through to the end", async () => {
  await using registry = await startHosted();
  const tags = ["latest", "v1", "1", "10", "2", "A", "b", "_x", "Z", "v1.0-rc.1"];
  await pushImage(registry, "team/app", image);
  const path = "/v2/team/app/tags/list";
  const untagged = await send(registry, 200, "GET", path);
  assert.deepEqual(jsonOf(untagged), { name: "team/app", tags: [] }, "content without a tag");
  for (const tag of tags) await pushManifest(registry, "team/app", tag, image);
  const sorted = tags.toSorted();

  const all = await send(registry, 200, "GET", path);
  assert.deepEqual(jsonOf(all), { name: "team/app", tags: sorted });
  assert.equal(all.headers["link"], undefined);
  for (const n of [1, 3, 9]) {
    const expected = [];
    for (let at = 0; at < sorted.length; at += n) expected.push(sorted.slice(at, at + n));
    assert.deepEqual(listed(await pages(registry, `${path}?n=${n}`), "tags"), expected, `n=${n}`);
  }
  for (const n of [10, 11, 1_000_000])
    assert.deepEqual(listed(await pages(registry, `${path}?n=${n}`), "tags"), [sorted], `n=${n} leads nowhere`);
  assert.deepEqual(listed(await pages(registry, `${path}?n=0`), "tags"), [[]]);
  assert.deepEqual(listed(await pages(registry, `${path}?n=0&last=A`), "tags"), [[]]);
  assert.deepEqual(listed(await pages(registry, `${path}?last=latest`), "tags").flat(), ["v1", "v1.0-rc.1"]);
  assert.deepEqual(listed(await pages(registry, `${path}?last=c&n=2`), "tags")[0], ["latest", "v1"]);
  assert.deepEqual(listed(await pages(registry, `${path}?last=zzz`), "tags"), [[]]);
  for (const n of ["-1", "1e3", "x", ""]) refusal(await send(registry, 400, "GET", `${path}?n=${n}`));

  await send(registry, 202, "DELETE", "/v2/team/app/manifests/A");
  assert.deepEqual(listed(await pages(registry, `${path}?n=4&last=10`), "tags")[0], ["2", "Z", "_x", "b"]);
});

test("the catalog lists pushed and cached repositories in one order, in pages of n", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/alpine", "1", image);
  await using registry = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { hosted: { namespaces: ["team"] } },
  });
  const names = ["team/z", "team/app", "team/app/part", "team/b"];
  for (const name of names) await pushImage(registry, name, image, "1");
  await send(registry, 200, "GET", "/v2/library/alpine/manifests/1");
  const expected = ["docker.io/library/alpine", ...names].toSorted();
  await registry.until(
    async () => listed(await pages(registry, "/v2/_catalog"), "repositories").flat().length === expected.length,
    "the cached repository is listed",
  );
  assert.deepEqual(listed(await pages(registry, "/v2/_catalog"), "repositories"), [expected]);
  assert.deepEqual(listed(await pages(registry, "/v2/_catalog?n=2"), "repositories"), [
    expected.slice(0, 2),
    expected.slice(2, 4),
    expected.slice(4),
  ]);
  assert.deepEqual(listed(await pages(registry, "/v2/_catalog?n=5"), "repositories"), [expected]);
  assert.deepEqual(listed(await pages(registry, "/v2/_catalog?n=0"), "repositories"), [[]]);
  assert.deepEqual(listed(await pages(registry, "/v2/_catalog?last=team/app"), "repositories"), [
    expected.slice(expected.indexOf("team/app") + 1),
  ]);
});

interface Described {
  digest: string;
  mediaType: string;
  size: number;
  artifactType?: string;
  annotations?: Record<string, string>;
}

/** The descriptors of a page of referrers, whose form is checked. */
function described(answer: Answer): Described[] {
  assert.equal(answer.headers["content-type"], MEDIA_TYPES.ociIndex);
  const { schemaVersion, mediaType, manifests } = jsonOf(answer);
  assert.deepEqual([schemaVersion, mediaType], [2, MEDIA_TYPES.ociIndex]);
  assert.ok(Array.isArray(manifests));
  return manifests as Described[];
}

test("referrers are told with the type and the annotations that they have", async () => {
  await using registry = await startHosted();
  await pushImage(registry, "team/app", image, "1");
  const subject = { mediaType: image.mediaType, digest: image.digest, size: image.manifest.byteLength };
  const config = { mediaType: image.config.mediaType, digest: image.config.digest, size: image.config.sizeBytes };
  const annotations = { "org.example.by": "someone", "org.example.ünïcode": "☃" };
  const ofImage = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociImage, config, layers: [], subject };
  const ofIndex = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [], subject };
  for (const [body, artifactType] of [
    [{ ...ofImage, artifactType: "application/x.own", annotations }, "application/x.own"],
    [ofImage, image.config.mediaType],
    [{ ...ofIndex, artifactType: "application/x.index", annotations }, "application/x.index"],
    [ofIndex, undefined],
  ] as const) {
    const referrer = published(body, body.mediaType);
    const pushed = await pushManifest(registry, "team/app", referrer.digest, referrer);
    assert.equal(pushed.headers["oci-subject"], image.digest);
    const all = described(await send(registry, 200, "GET", `/v2/team/app/referrers/${image.digest}`));
    assert.deepEqual(
      all.find(({ digest }) => digest === referrer.digest),
      {
        mediaType: body.mediaType,
        digest: referrer.digest,
        size: referrer.manifest.byteLength,
        ...(artifactType === undefined ? {} : { artifactType }),
        ...("annotations" in body ? { annotations } : {}),
      },
    );
  }
  const path = `/v2/team/app/referrers/${image.digest}`;
  assert.equal(described(await registry.get(path)).length, 4);
  assert.equal((await registry.get(path)).headers["oci-filters-applied"], undefined);
  const some = await send(registry, 200, "GET", `${path}?artifactType=application/x.index`);
  assert.equal(some.headers["oci-filters-applied"], "artifactType");
  assert.deepEqual(
    described(some).map(({ artifactType }) => artifactType),
    ["application/x.index"],
  );
  const none = await send(registry, 200, "GET", `${path}?artifactType=application/x.other`);
  assert.equal(none.headers["oci-filters-applied"], "artifactType");
  assert.deepEqual(described(none), []);
});

test("referrers of what nobody pushed are an empty list, and a broken digest is 400", async () => {
  await using registry = await startHosted();
  await pushImage(registry, "team/app", image, "1");
  for (const name of ["team/app", "team/never"])
    assert.deepEqual(described(await send(registry, 200, "GET", `/v2/${name}/referrers/${absent}`)), []);
  for (const digest of ["latest", "sha256:abc", `sha256:${"A".repeat(64)}`, `md5:${"a".repeat(32)}`, "sha512:"])
    refusal(await send(registry, 400, "GET", `/v2/team/app/referrers/${digest}`), "DIGEST_INVALID");
});

test("more referrers than fit one manifest come in pages, none of them larger than a manifest may be", async () => {
  await using registry = await startHosted();
  await pushImage(registry, "team/app", image, "1");
  const subject = { mediaType: image.mediaType, digest: image.digest, size: image.manifest.byteLength };
  const pushed: string[] = [];
  for (let number = 0; number < 24; number++) {
    const artifactType = number % 2 === 0 ? "application/x.even" : "application/x.odd";
    const annotations = { number: String(number), bulk: "x".repeat(400_000) };
    const referrer = published(
      { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, artifactType, manifests: [], subject, annotations },
      MEDIA_TYPES.ociIndex,
    );
    await pushManifest(registry, "team/app", referrer.digest, referrer);
    pushed.push(referrer.digest);
  }
  const path = `/v2/team/app/referrers/${image.digest}`;
  const all = await pages(registry, path);
  assert.ok(all.length > 1);
  for (const page of all) assert.ok(page.bytes.byteLength <= MAX_MANIFEST_BYTES, `${page.bytes.byteLength} bytes`);
  assert.deepEqual(
    all
      .flatMap(described)
      .map(({ digest }) => digest)
      .sort(),
    pushed.toSorted(),
  );
  const odd = await pages(registry, `${path}?artifactType=application/x.odd`);
  assert.ok(odd.length > 1);
  for (const page of odd) assert.equal(page.headers["oci-filters-applied"], "artifactType");
  assert.deepEqual(
    odd
      .flatMap(described)
      .map(({ digest }) => digest)
      .sort(),
    pushed.filter((_, number) => number % 2 === 1).sort(),
  );
});

// ---- errors ----

/** Checks the shape of an error, and its code where one is given. Source: OCI distribution-spec, "Error Codes" */
function refusal(answer: Answer, code?: string): { code: string; message: string; detail?: unknown }[] {
  assert.equal(answer.headers["content-type"], "application/json");
  const { errors } = jsonOf(answer) as { errors: { code: string; message: string; detail?: unknown }[] };
  assert.ok(errors.length > 0);
  for (const error of errors) {
    assert.ok(CODES.has(error.code), error.code);
    assert.ok(error.message.length > 0);
    if (code !== undefined) assert.equal(error.code, code, error.message);
  }
  return errors;
}

test("every refusal of a read has its own code and status", async () => {
  await using registry = await startHosted();
  await pushImage(registry, "team/app", image, "1");
  for (const [status, code, path] of [
    [404, "BLOB_UNKNOWN", `team/app/blobs/${absent}`],
    [404, "MANIFEST_UNKNOWN", "team/app/manifests/2"],
    [404, "MANIFEST_UNKNOWN", `team/app/manifests/${absent}`],
    [404, "MANIFEST_UNKNOWN", `team/app/manifests/${layerOf(image).digest}`],
    [404, "NAME_UNKNOWN", "team/never/tags/list"],
    [400, "NAME_INVALID", "team/App/tags/list"],
    [400, "NAME_INVALID", "team//app/manifests/1"],
    [400, "NAME_INVALID", "team/-app/blobs/uploads/x"],
    [400, "DIGEST_INVALID", "team/app/blobs/sha256:abc"],
    [400, "DIGEST_INVALID", "team/app/manifests/sha256:abc"],
    [400, "DIGEST_INVALID", `team/app/blobs/md5:${"a".repeat(32)}`],
    [404, "BLOB_UPLOAD_UNKNOWN", "team/app/blobs/uploads/3f2a"],
  ] as const) {
    refusal(await send(registry, status, "GET", `/v2/${path}`), code);
    if (path.includes("uploads")) continue;
    const head = await send(registry, status, "HEAD", `/v2/${path}`);
    assert.equal(head.bytes.byteLength, 0);
  }
});

test("every refusal of an upload has its own code and status, and leaves the upload as it was", async () => {
  await using registry = await startHosted();
  const location = await startUpload(registry, "team/app");
  const other = await startUpload(registry, "team/other");
  const gone = location.replace(/\/uploads\/[A-Za-z0-9_-]+/, "/uploads/00000000-0000-4000-8000-000000000000");
  const foreign = other.replace("/team/other/", "/team/app/");
  await send(registry, 202, "PATCH", location, { "content-range": "0-4" }, "01234");
  for (const [status, code, method, path, headers, body] of [
    [404, "BLOB_UPLOAD_UNKNOWN", "GET", gone, {}, undefined],
    [404, "BLOB_UPLOAD_UNKNOWN", "PATCH", gone, {}, "x"],
    [404, "BLOB_UPLOAD_UNKNOWN", "PUT", finish(gone, absent), {}, "x"],
    [404, "BLOB_UPLOAD_UNKNOWN", "DELETE", gone, {}, undefined],
    [404, "BLOB_UPLOAD_UNKNOWN", "GET", foreign, {}, undefined],
    [404, "BLOB_UPLOAD_UNKNOWN", "PATCH", foreign, {}, "x"],
    [404, "BLOB_UPLOAD_UNKNOWN", "DELETE", foreign, {}, undefined],
    [416, "BLOB_UPLOAD_INVALID", "PATCH", location, { "content-range": "10-14" }, "abcde"],
    [416, "BLOB_UPLOAD_INVALID", "PATCH", location, { "content-range": "0-4" }, "abcde"],
    [416, "BLOB_UPLOAD_INVALID", "PUT", finish(location, absent), { "content-range": "10-14" }, "abcde"],
    [400, "SIZE_INVALID", "PATCH", location, { "content-range": "5-14" }, "abcde"],
    [400, "BLOB_UPLOAD_INVALID", "PATCH", location, { "content-range": "five-nine" }, "abcde"],
    [400, "DIGEST_INVALID", "PUT", location, {}, undefined],
    [400, "DIGEST_INVALID", "PUT", finish(location, "sha256:abc"), {}, undefined],
    [400, "DIGEST_INVALID", "PUT", finish(location, `md5:${"a".repeat(32)}`), {}, undefined],
    [400, "DIGEST_INVALID", "POST", "/v2/team/app/blobs/uploads/?digest=sha256:abc", {}, "x"],
    [400, "DIGEST_INVALID", "POST", `/v2/team/app/blobs/uploads/?digest=${absent}`, {}, "x"],
    [400, "DIGEST_INVALID", "POST", "/v2/team/app/blobs/uploads/?digest-algorithm=md5", {}, undefined],
    [400, "DIGEST_INVALID", "POST", "/v2/team/app/blobs/uploads/?mount=sha256:abc&from=team/other", {}, undefined],
    [400, "NAME_INVALID", "POST", "/v2/team/App/blobs/uploads/", {}, undefined],
  ] as const) {
    refusal(await send(registry, status, method, path, headers, body), code);
    const state = await send(registry, 204, "GET", location);
    assert.equal(state.headers["range"], "0-4", `${method} ${path} ${JSON.stringify(headers)}`);
  }
  assert.equal((await registry.get(`/v2/team/app/blobs/${absent}`)).status, 404);
  await send(registry, 202, "PATCH", location, { "content-range": "5-9" }, "56789");
  const digest = digestOf(Buffer.from("0123456789"));
  const done = await send(registry, 201, "PUT", finish(location, digest));
  assert.equal(done.headers["docker-content-digest"], digest);
  assert.deepEqual(await registry.pullBlob("team/app", digest), Buffer.from("0123456789"));
  refusal(await send(registry, 404, "GET", location), "BLOB_UPLOAD_UNKNOWN");
  await send(registry, 204, "DELETE", other);
});

test("what is not the digest's content is 400, and is never there", async () => {
  await using registry = await startHosted();
  await pushImage(registry, "team/app", image, "1");
  const location = await startUpload(registry, "team/app");
  await send(registry, 202, "PATCH", location, {}, "some");
  refusal(await send(registry, 400, "PUT", finish(location, absent), {}, "thing"), "DIGEST_INVALID");
  for (const digest of [absent, digestOf(Buffer.from("something"))])
    refusal(await send(registry, 404, "GET", `/v2/team/app/blobs/${digest}`), "BLOB_UNKNOWN");
});

test("every refusal of a manifest has its own code and status, and moves no tag", async () => {
  await using registry = await startHosted();
  await pushImage(registry, "team/app", image, "1");
  const other = makeImage({ layers: [300, 400] });
  const whole = JSON.parse(image.manifest.toString()) as Record<string, unknown>;
  const oci = MEDIA_TYPES.ociImage;
  const padded = (bytes: number): string => {
    const empty = JSON.stringify({ ...whole, annotations: { padding: "" } });
    return JSON.stringify({ ...whole, annotations: { padding: "x".repeat(bytes - empty.length) } });
  };
  for (const [status, code, reference, mediaType, body] of [
    [400, "MANIFEST_INVALID", "1", oci, ""],
    [400, "MANIFEST_INVALID", "1", oci, "no JSON"],
    [400, "MANIFEST_INVALID", "1", oci, "[]"],
    [400, "MANIFEST_INVALID", "1", oci, JSON.stringify({ ...whole, schemaVersion: 1 })],
    [
      400,
      "MANIFEST_INVALID",
      "1",
      "application/vnd.docker.distribution.manifest.v1+prettyjws",
      JSON.stringify({ schemaVersion: 1, name: "team/app", tag: "1", fsLayers: [], history: [], signatures: [] }),
    ],
    [400, "MANIFEST_INVALID", "1", MEDIA_TYPES.dockerImage, image.manifest],
    [400, "MANIFEST_INVALID", "1", oci, JSON.stringify({ ...whole, manifests: [] })],
    [400, "MANIFEST_INVALID", "1", oci, JSON.stringify({ ...whole, config: { digest: "sha256:abc", size: 1 } })],
    [404, "MANIFEST_BLOB_UNKNOWN", "1", oci, other.manifest],
    [400, "DIGEST_INVALID", absent, oci, image.manifest],
    [400, "DIGEST_INVALID", "sha256:abc", oci, image.manifest],
    [400, "MANIFEST_INVALID", `t${"a".repeat(128)}`, oci, image.manifest],
    [413, "MANIFEST_INVALID", "1", oci, padded(MAX_MANIFEST_BYTES + 1)],
    [413, "MANIFEST_INVALID", "1", oci, padded(2 * MAX_MANIFEST_BYTES)],
  ] as const) {
    const path = `/v2/team/app/manifests/${reference}`;
    refusal(await send(registry, status, "PUT", path, { "content-type": mediaType }, body), code);
    const kept = await send(registry, 200, "HEAD", "/v2/team/app/manifests/1");
    assert.equal(kept.headers["docker-content-digest"], image.digest);
  }
  const missing = await registry.send("PUT", "/v2/team/app/manifests/2", { "content-type": oci }, other.manifest);
  const told = JSON.stringify(refusal(missing, "MANIFEST_BLOB_UNKNOWN"));
  for (const digest of other.blobs.keys()) assert.ok(told.includes(digest), `${digest} is named`);

  const largest = padded(MAX_MANIFEST_BYTES);
  assert.equal(Buffer.byteLength(largest), MAX_MANIFEST_BYTES);
  await send(registry, 201, "PUT", "/v2/team/app/manifests/large", { "content-type": oci }, largest);
  assert.equal((await registry.get("/v2/team/app/manifests/large")).bytes.toString(), largest);
});

test("every refusal of a delete has its own code and status", async () => {
  await using registry = await startHosted();
  await pushImage(registry, "team/app", image, "1");
  for (const [status, code, path] of [
    [404, "MANIFEST_UNKNOWN", "team/app/manifests/2"],
    [404, "MANIFEST_UNKNOWN", `team/app/manifests/${absent}`],
    [404, "BLOB_UNKNOWN", `team/app/blobs/${absent}`],
    [400, "DIGEST_INVALID", "team/app/blobs/sha256:abc"],
  ] as const)
    refusal(await send(registry, status, "DELETE", `/v2/${path}`), code);
  for (const path of ["manifests/1", `manifests/${image.digest}`, `blobs/${layerOf(image).digest}`])
    refusal(await send(registry, 404, "DELETE", `/v2/team/never/${path}`));
  for (const path of ["team/app/tags/list", `team/app/referrers/${image.digest}`, "_catalog"])
    refusal(await send(registry, 405, "DELETE", `/v2/${path}`), "UNSUPPORTED");
  assert.equal((await registry.get("/v2/team/app/manifests/1")).status, 200);
});

test("where deletes are switched off, they are 405, and all stays", async () => {
  await using registry = await startHosted({ delete: false });
  await pushImage(registry, "team/app", image, "1");
  const paths = ["manifests/1", `manifests/${image.digest}`, `blobs/${layerOf(image).digest}`];
  for (const path of paths) {
    const refused = await send(registry, 405, "DELETE", `/v2/team/app/${path}`);
    refusal(refused, "UNSUPPORTED");
    assert.ok(!String(refused.headers["allow"]).includes("DELETE"));
  }
  for (const path of paths) assert.equal((await registry.get(`/v2/team/app/${path}`)).status, 200, path);
});

test("who has not logged in is told 401 UNAUTHORIZED, and nothing is begun", async () => {
  await using registry = await startRegistry({ config: { hosted: { namespaces: ["team"] }, access: { open: false } } });
  for (const [method, path, body] of [
    ["POST", "blobs/uploads/", undefined],
    ["POST", `blobs/uploads/?digest=${layerOf(image).digest}`, layerOf(image).bytes],
    ["PUT", "manifests/1", image.manifest],
    ["DELETE", "manifests/1", undefined],
  ] as const)
    refusal(await send(registry, 401, method, `/v2/team/app/${path}`, {}, body), "UNAUTHORIZED");
  assert.deepEqual(await registry.partials(), []);
});

test("an upstream's rate limit is passed on as TOOMANYREQUESTS with its Retry-After", async () => {
  await using upstream = await startUpstream();
  upstream.fault({}, { status: 429, headers: { "retry-after": "77" } });
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  const refused = await send(registry, 429, "GET", "/v2/library/app/manifests/1");
  refusal(refused, "TOOMANYREQUESTS");
  assert.equal(refused.headers["retry-after"], "77");
});

// ---- headers ----

test("a warning has code 299, no agent and no date, and fits 4096 bytes", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  const artifactType = "application/x.signature";
  upstream.add("library/app", undefined, makeArtifact({ subject: image, artifactType, payload: "signed" }));
  const clock = new MovingClock();
  const options: RegistryOptions = { upstreams: { "docker.io": upstream }, clock };
  await using registry = await startRegistry(options);
  const paths = ["manifests/1", "tags/list", `referrers/${image.digest}`];
  for (const path of paths) {
    const fresh = await send(registry, 200, "GET", `/v2/library/app/${path}`);
    assert.equal(fresh.headers["warning"], undefined);
  }
  await upstream.stop();
  clock.offsetMs = DAY;
  for (const path of paths) {
    const stale = await send(registry, 200, "GET", `/v2/library/app/${path}`);
    // Source: OCI distribution-spec, "Warnings"
    assert.match(String(stale.headers["warning"]), /^299 - "(?:[ !#-[\]-~]|\\.)+"$/);
    assert.ok(String(stale.headers["warning"]).length <= 4096);
  }
});

test("ns is echoed as OCI-Namespace where it says which upstream is meant, and nowhere else", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { hosted: { namespaces: ["team"] } },
  });
  const paths = [
    "manifests/1",
    `manifests/${image.digest}`,
    `blobs/${layerOf(image).digest}`,
    "tags/list",
    `referrers/${image.digest}`,
  ];
  for (const path of paths) {
    for (const method of ["GET", "HEAD"]) {
      const scoped = await send(registry, 200, method, `/v2/library/app/${path}?ns=docker.io`);
      assert.equal(scoped.headers["oci-namespace"], "docker.io", `${method} ${path}`);
      const bare = await send(registry, 200, method, `/v2/library/app/${path}`);
      assert.equal(bare.headers["oci-namespace"], undefined, `${method} ${path}`);
    }
  }
  await pushImage(registry, "team/app", image, "1");
  const hosted = await send(registry, 200, "GET", "/v2/team/app/manifests/1");
  assert.equal(hosted.headers["oci-namespace"], undefined);
});

// ---- digests and types ----

for (const [announced, algorithm] of [
  ["sha512", "sha512"],
  ["sha256", "sha256"],
  [undefined, "sha512"],
  ["sha512", "sha256"],
] as const satisfies [string | undefined, DigestAlgorithm][]) {
  const title = announced === undefined ? "without digest-algorithm" : `with digest-algorithm=${announced}`;
  test(`an upload ${title} takes a ${algorithm} digest, in one piece or in chunks`, async () => {
    await using registry = await startHosted();
    const query = announced === undefined ? "" : `?digest-algorithm=${announced}`;
    for (const seed of ["monolithic", "chunked"]) {
      const bytes = layerOf(makeImage({ layers: [5000], seed })).bytes;
      const digest = digestOf(bytes, algorithm);
      const location = await startUpload(registry, "team/app", query);
      let rest = bytes;
      if (seed === "chunked") {
        await send(registry, 202, "PATCH", location, { "content-range": "0-1999" }, bytes.subarray(0, 2000));
        rest = bytes.subarray(2000);
      }
      const done = await send(registry, 201, "PUT", finish(location, digest), {}, rest);
      assert.equal(done.headers["docker-content-digest"], digest);
      assert.deepEqual(await registry.pullBlob("team/app", digest), bytes);
      const head = await send(registry, 200, "HEAD", String(done.headers["location"]));
      assert.equal(head.headers["docker-content-digest"], digest);
      assert.equal(head.headers["content-length"], "5000");
    }
  });
}

test("Docker's images and lists are kept byte for byte, and told as what they are whatever the client accepts", async () => {
  await using registry = await startHosted();
  const amd64 = makeImage({ layers: [100], mediaTypes: "docker" });
  const arm64 = makeImage({
    layers: [200],
    mediaTypes: "docker",
    platform: { os: "linux", architecture: "arm64", variant: "v8" },
  });
  const list = makeIndex(
    [
      [{ os: "linux", architecture: "amd64" }, amd64],
      [{ os: "linux", architecture: "arm64", variant: "v8" }, arm64],
    ],
    "docker",
  );
  for (const each of [amd64, arm64]) await pushImage(registry, "team/app", each);
  await pushManifest(registry, "team/app", "list", list);
  await pushManifest(registry, "team/app", "amd64", {
    ...amd64,
    mediaType: `${MEDIA_TYPES.dockerImage}; charset=utf-8`,
  });
  for (const [reference, expected] of [
    ["list", list],
    ["amd64", amd64],
    [arm64.digest, arm64],
  ] as const) {
    for (const accept of [MEDIA_TYPES.ociImage, expected.mediaType, "*/*", undefined]) {
      const answer = await registry.get(`/v2/team/app/manifests/${reference}`, accept === undefined ? {} : { accept });
      assert.equal(answer.status, 200);
      assert.equal(answer.headers["content-type"], expected.mediaType);
      assert.equal(answer.headers["docker-content-digest"], expected.digest);
      assert.deepEqual(answer.bytes, expected.manifest);
    }
  }
});

test("an artifact's own type of manifest comes back as it was pushed", async () => {
  await using registry = await startHosted();
  const artifact = makeArtifact({ subject: image, artifactType: "application/x.signature", payload: "signed" });
  await pushImage(registry, "team/app", artifact, "signature");
  const answer = await send(registry, 200, "GET", "/v2/team/app/manifests/signature");
  assert.equal(answer.headers["content-type"], MEDIA_TYPES.ociImage);
  assert.deepEqual(answer.bytes, artifact.manifest);
});
