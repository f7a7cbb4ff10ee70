import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { digestOf } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { makeImage, makeIndex, type Published } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startSink } from "../kit/sink.ts";
import { startUpstream } from "../kit/upstream.ts";
import { errorOf, published } from "./clients.ts";

const { ociImage, ociIndex, dockerImage, dockerList } = MEDIA_TYPES;
const image = makeImage({ layers: [100] });
const [config, layer] = [image.config, image.layers[0]].map((blob) => ({
  mediaType: blob?.mediaType,
  digest: blob?.digest,
  size: blob?.sizeBytes,
}));
const platform = { os: "linux", architecture: "amd64" };

const spacious = `{ "schemaVersion": 2,\n"mediaType": "${ociImage}", "x": 1e2,
  "config": ${JSON.stringify(config)}, "layers":[ ] }\n`;

/** To be asked while upstream is down. */
async function isStored(mirror: Awaited<ReturnType<typeof startRegistry>>, digest: string): Promise<boolean> {
  return (await mirror.get(`/v2/library/app/manifests/${digest}`)).status === 200;
}

for (const [name, one] of [
  ["an OCI image", makeImage({ layers: [10] })],
  ["an OCI index", makeIndex([[platform, image]])],
  ["a Docker image", makeImage({ layers: [10], mediaTypes: "docker" })],
  ["a Docker manifest list", makeIndex([[platform, image]], "docker")],
  ["an image with blanks and keys of its own", published(Buffer.from(spacious), ociImage)],
] as const) {
  test(`${name} is passed on byte for byte, and stays what it is from the cache, by tag and by digest`, async () => {
    await using upstream = await startUpstream();
    upstream.addManifest("library/app", "1", one);
    await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
    for (const round of ["cold", "cached"]) {
      for (const reference of ["1", one.digest]) {
        const answer = await mirror.get(`/v2/library/app/manifests/${reference}`);
        assert.deepEqual(answer.bytes, one.manifest, round);
        assert.equal(answer.headers["content-type"], one.mediaType);
        assert.equal(answer.headers["docker-content-digest"], one.digest);
        assert.equal(answer.headers["content-length"], String(one.manifest.length));
        assert.equal(answer.headers["content-encoding"], undefined);
      }
    }
    assert.equal(upstream.hits("GET"), 1);
  });
}

test("an image named by sha512 is pulled by that name", async () => {
  const long = makeImage({ layers: [100], algorithm: "sha512" });
  const [layer] = long.layers;
  assert.ok(layer && long.digest.startsWith("sha512:"));
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", long);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (const reference of ["1", long.digest, "1", long.digest]) {
    const answer = await mirror.get(`/v2/library/app/manifests/${reference}`);
    assert.deepEqual(answer.bytes, long.manifest);
    assert.equal(answer.headers["docker-content-digest"], long.digest);
  }
  await mirror.pullBlob("library/app", layer.digest);
  assert.equal(upstream.hits("GET"), 2);
});

test("an index is untouched, and only the platforms that are asked for are fetched", async () => {
  const images = ["amd64", "arm64", "s390x"].map((architecture) =>
    makeImage({ layers: [100], platform: { os: "linux", architecture }, seed: architecture }),
  );
  const index = makeIndex(images.map((one, at) => [{ os: "linux", architecture: `${at}` }, one]));
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", index);
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: upstream.url, prefetch: true } } });
  assert.deepEqual((await mirror.get("/v2/library/app/manifests/1")).bytes, index.manifest);
  assert.deepEqual(
    upstream.requests.map(({ method, path }) => [method, path.split("/").at(-1)]),
    [
      ["HEAD", "1"],
      ["GET", index.digest],
    ],
  );
  const [asked, ...others] = images;
  assert.ok(asked?.layers[0]);
  await mirror.get(`/v2/library/app/manifests/${asked.digest}`);
  await mirror.pullBlob("library/app", asked.layers[0].digest);
  for (const other of others) {
    for (const digest of [other.digest, other.config.digest, ...other.layers.map((one) => one.digest)]) {
      assert.equal(upstream.hits(undefined, digest), 0);
    }
  }
});

test("HEAD and GET say the same, cold and cached, by tag and by digest", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  const differing = new Set(["date", "x-request-id", "connection", "keep-alive"]);
  const told = ({ headers, status }: { headers: object; status: number }): unknown => [
    status,
    Object.fromEntries(Object.entries(headers).filter(([name]) => !differing.has(name))),
  ];
  for (const type of [image.mediaType, "application/json", `${image.mediaType}; charset=utf-8`, undefined]) {
    upstream.clearFaults();
    upstream.fault({ path: "/manifests/" }, { headers: { "content-type": type } });
    await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
    for (const reference of [image.digest, "1"]) {
      const path = `/v2/library/app/manifests/${reference}`;
      const cold = await mirror.send("HEAD", path);
      assert.equal(cold.bytes.length, 0);
      assert.equal(cold.headers["content-type"], image.mediaType, String(type));
      const get = await mirror.get(path);
      assert.deepEqual(told(cold), told(get));
      assert.deepEqual(told(await mirror.send("HEAD", path)), told(get));
    }
  }
});

test("HEAD of a cold digest costs a HEAD, no GET", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const head = await mirror.send("HEAD", `/v2/library/app/manifests/${image.digest}`);
  assert.equal(head.status, 200);
  assert.equal(upstream.hits("GET"), 0);
  const absent = await mirror.send("HEAD", `/v2/library/app/manifests/${digestOf(Buffer.from("no"))}`);
  assert.equal(absent.status, 404);
  assert.equal(absent.bytes.length, 0);
});

test("If-None-Match is answered 304 without a body", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const path = "/v2/library/app/manifests/1";
  const { headers } = await mirror.get(path);
  assert.equal(headers["etag"], `"${image.digest}"`);
  for (const condition of [`"${image.digest}"`, `W/"${image.digest}"`, `"x", "${image.digest}"`, "*"]) {
    for (const method of ["GET", "HEAD"]) {
      const answer = await mirror.send(method, path, { "if-none-match": condition });
      assert.equal(answer.status, 304, condition);
      assert.equal(answer.bytes.length, 0);
      assert.equal(answer.headers["etag"], headers["etag"]);
    }
  }
  assert.equal((await mirror.get(path, { "if-none-match": '"sha256:other"' })).status, 200);

  const blob = image.layers[0]?.digest;
  const known = await mirror.get(`/v2/library/app/blobs/${blob}`, { "if-none-match": `"${blob}"` });
  assert.equal(known.status, 304);
  assert.equal(upstream.hits("GET", blob), 0, "who has a blob already costs no download");
});

const confused = { schemaVersion: 2, mediaType: ociImage, config, layers: [layer], manifests: [] };
const nested = (depth: number): Buffer =>
  Buffer.from(`{"schemaVersion":2,"mediaType":"${ociImage}","layers":${"[".repeat(depth)}${"]".repeat(depth)}}`);

/** What an upstream may send that no client may ever get, and why. */
const unusable: [name: string, manifest: Published, reason: RegExp][] = [
  ["layers and manifests in one (CVE-2021-41190)", published(confused, ociImage), /both layers and manifests/],
  ["an index sent as an image", published({ schemaVersion: 2, manifests: [] }, ociImage), /list of manifests/],
  ["an image sent as an index", published({ schemaVersion: 2, config, layers: [layer] }, ociIndex), /no list/],
  [
    "a type in the body that is not the one sent",
    published({ schemaVersion: 2, mediaType: dockerImage, config, layers: [layer] }, ociImage),
    /sent as/,
  ],
  [
    "a key in other letters, which Go's decoder takes for the same",
    published({ schemaVersion: 2, mediaType: ociImage, config, layers: [layer], Manifests: [] }, ociImage),
    /Manifests/,
  ],
  [
    "schema 1",
    published({ schemaVersion: 1, name: "a" }, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    /schema 1/,
  ],
  ["a page of a captive portal", published(Buffer.from("<html>log in</html>"), "text/html"), /not JSON/],
  ["an empty body", published(Buffer.alloc(0), ociImage), /not JSON/],
  [
    "100,000 layers",
    published(
      { schemaVersion: 2, mediaType: ociImage, config, layers: Array.from({ length: 100_000 }, () => layer) },
      ociImage,
    ),
    /sends more than 4194304 bytes|100000 entries/,
  ],
  [
    "20,000 short children",
    published(
      { schemaVersion: 2, mediaType: dockerList, manifests: Array.from({ length: 20_000 }, () => ({})) },
      dockerList,
    ),
    /20000 entries/,
  ],
  ["a list a thousand lists deep", published(nested(1000), ociImage), /not a descriptor/],
  ["a list a million lists deep", published(nested(1_000_000), ociImage), /not a descriptor|not JSON/],
];

for (const [name, manifest, reason] of unusable) {
  test(`refused when pulled through: ${name}`, async () => {
    await using upstream = await startUpstream();
    upstream.addManifest("library/app", "1", manifest);
    await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
    for (const reference of ["1", manifest.digest]) {
      const answer = await mirror.get(`/v2/library/app/manifests/${reference}`);
      assert.equal(answer.status, 502);
      assert.equal(errorOf(answer).code, "UNAVAILABLE");
      assert.match(errorOf(answer).message, reason);
      assert.ok(answer.bytes.length < 2000);
    }
    await upstream.stop();
    assert.equal(await isStored(mirror, manifest.digest), false);
  });
}

test("a manifest that is not what its digest says is refused, counted and not stored", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  upstream.fault({ method: "GET", path: "/manifests/" }, { corruptByte: 20 });
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (const reference of ["1", image.digest]) {
    const answer = await mirror.get(`/v2/library/app/manifests/${reference}`);
    assert.equal(answer.status, 502);
    assert.match(errorOf(answer).message, new RegExp(`sent a manifest that is not ${image.digest}`));
  }
  assert.equal(await mirror.metric("entrepot_digest_mismatches_total"), 2);
  upstream.clearFaults();
  assert.deepEqual((await mirror.get("/v2/library/app/manifests/1")).bytes, image.manifest);
});

test("a head that names another digest than the body has moves no tag", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  const named = digestOf(Buffer.from("something else"));
  upstream.fault({ method: "HEAD" }, { headers: { "docker-content-digest": named } });
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const answer = await mirror.get("/v2/library/app/manifests/1");
  assert.equal(answer.status, 502);
  assert.match(errorOf(answer).message, /points to sha256:\w+, and does not have it/);
});

test("a manifest of 100 MB, whatever its length says, is given up after its first 4 MiB", async () => {
  const body = Buffer.alloc(1024 * 1024, " ");
  const huge = { ...published(Buffer.concat(Array.from({ length: 100 }, () => body)), ociImage) };
  await using upstream = await startUpstream();
  upstream.addManifest("library/app", "1", huge);
  upstream.fault({ method: "GET" }, { contentLength: "none" });
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (let i = 0; i < 3; i++) {
    const answer = await mirror.get("/v2/library/app/manifests/1");
    assert.equal(answer.status, 502);
    assert.match(errorOf(answer).message, /more than 4194304 bytes/);
  }
  const received = await mirror.metric("entrepot_upstream_received_bytes_total");
  assert.ok(received < 3 * 6 * 1024 * 1024, `${received} bytes were read of it`);
});

test("a gzip bomb is not unpacked: bytes are asked for as they are, and taken as they are", async () => {
  const bomb = gzipSync(Buffer.alloc(64 * 1024 * 1024, " "));
  await using sink = await startSink({
    status: 200,
    headers: { "content-type": ociImage, "content-encoding": "gzip" },
    body: bomb,
  });
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: sink.url } } });
  for (const path of ["manifests/1", `manifests/${image.digest}`, "tags/list", `referrers/${image.digest}`]) {
    const answer = await mirror.get(`/v2/library/app/${path}`);
    assert.equal(answer.status, 502, path);
  }
  for (const { headers } of sink.requests) assert.equal(headers["accept-encoding"], "identity");
  const received = await mirror.metric("entrepot_upstream_received_bytes_total");
  assert.ok(received <= sink.requests.length * bomb.length);
});
