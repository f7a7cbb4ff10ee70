import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { makeImage, virtualBlob } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { pushBlob, pushManifest, send } from "../kit/hosted.ts";
import { errorOf } from "../registry/clients.ts";
import { connectTo } from "./raw.ts";

const { digest } = makeImage({ layers: [10] });

test("a push to a cached name is refused in words, whatever its method, and reaches no upstream", async () => {
  await using upstream = await startUpstream();
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (const [method, path] of [
    ["POST", "blobs/uploads/"],
    ["POST", `blobs/uploads/?mount=${digest}&from=library/other`],
    ["PATCH", "blobs/uploads/3f2a"],
    ["PUT", `blobs/uploads/3f2a?digest=${digest}`],
    ["GET", "blobs/uploads/3f2a"],
    ["DELETE", "blobs/uploads/3f2a"],
    ["PUT", "manifests/1"],
    ["DELETE", "manifests/1"],
    ["DELETE", `manifests/${digest}`],
    ["DELETE", `blobs/${digest}`],
  ] as const) {
    for (const name of ["library/app", "docker.io/library/app", "docker.io/app"]) {
      const answer = await mirror.send(method, `/v2/${name}/${path}`, {}, method === "GET" ? undefined : "{}");
      assert.equal(answer.status, 405, `${method} ${path}`);
      assert.equal(answer.headers["allow"], "GET, HEAD");
      assert.equal(errorOf(answer).code, "UNSUPPORTED");
      assert.match(
        errorOf(answer).message,
        /docker\.io\/library\/app is a cached copy of docker\.io: push to docker\.io itself/,
      );
    }
  }
  assert.equal(upstream.hits(), 0);
});

test("a connection whose push was refused serves the next request", async () => {
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: "http://127.0.0.1:1" } } });
  using client = await connectTo(mirror.url);
  const body = "x".repeat(300_000);
  client.send("PUT /v2/library/app/manifests/1 HTTP/1.1", "Host: x", `Content-Length: ${body.length}`);
  await client.until(/"UNSUPPORTED"/);
  client.socket.write(body);
  client.send("GET /livez HTTP/1.1", "Host: x");
  await client.until(/"alive"/);
});

test("a body that goes on and on after the refusal is not read to its end", async () => {
  await using mirror = await startRegistry({ upstreams: { "docker.io": { url: "http://127.0.0.1:1" } } });
  using client = await connectTo(mirror.url);
  client.send("PATCH /v2/library/app/blobs/uploads/3f2a HTTP/1.1", "Host: x", `Content-Length: ${2 ** 40}`);
  client.socket.write(Buffer.alloc(64 * 1024));
  await client.until(/"UNSUPPORTED"/);
  const drip = setInterval(() => client.socket.write("x"), 50);
  try {
    await client.closed;
  } finally {
    clearInterval(drip);
  }
  assert.equal((await mirror.get("/livez")).status, 200);
});

test("who looks before a first push is told 404 where upstream refuses strangers, and only there", async () => {
  await using upstream = await startUpstream({ auth: { kind: "bearer" } });
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  for (const path of [`newteam/app/blobs/${digest}`, `newteam/app/manifests/${digest}`, "newteam/app/manifests/1"]) {
    const [head, get, ns] = await Promise.all([
      mirror.send("HEAD", `/v2/${path}`),
      mirror.send("GET", `/v2/${path}`),
      mirror.send("HEAD", `/v2/${path}?ns=docker.io`),
    ]);
    assert.deepEqual([head.status, get.status, ns.status], [404, 403, 403], path);
  }
  assert.equal((await mirror.send("HEAD", `/v2/library/app/blobs/${digest}`)).status, 403);
  await using closed = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { access: { open: false } },
  });
  assert.equal((await closed.send("HEAD", `/v2/newteam/app/blobs/${digest}`)).status, 403);
  const refused = await closed.send("POST", "/v2/newteam/app/blobs/uploads/");
  assert.equal(refused.status, 401);
  assert.match(errorOf(refused).message, /log in to push to newteam\/app/);
});

// ---- bodies ----

const team = { config: { hosted: { namespaces: ["team", "other"] } } };

async function startUpload(registry: TestRegistry, repository = "team/app"): Promise<string> {
  const answer = await send(registry, 202, "POST", `/v2/${repository}/blobs/uploads/`);
  return String(answer.headers["location"]);
}

async function rangeOf(registry: TestRegistry, location: string): Promise<unknown> {
  return (await send(registry, 204, "GET", location)).headers["range"];
}

function logged(registry: TestRegistry, wanted: Record<string, unknown>): Record<string, unknown> | undefined {
  return registry.log.find((line) => Object.entries(wanted).every(([key, value]) => line[key] === value));
}

test("a body that breaks off is told in the log; the client learns the offset and goes on from there", async () => {
  await using registry = await startRegistry(team);
  const bytes = virtualBlob(3_000_000, "broken off").bytes;
  const location = await startUpload(registry);
  const sent = 2_500_001;
  {
    using client = await connectTo(registry.url);
    client.send(`PATCH ${location} HTTP/1.1`, "Host: x", `Content-Length: ${bytes.length}`);
    await new Promise<void>((resolve) => client.socket.write(bytes.subarray(0, sent), () => resolve()));
    client.socket.end();
    await client.closed;
  }
  await registry.until(() => logged(registry, { code: 499, method: "PATCH" }) !== undefined, "it is logged");
  const line = logged(registry, { code: 499, method: "PATCH" });
  assert.equal(line?.["handler"], "upload");
  assert.equal(line["bytes"], sent);
  assert.equal(await registry.metric("entrepot_uploads_in_progress"), 1);
  assert.equal(await rangeOf(registry, location), `0-${sent - 1}`);
  await send(
    registry,
    202,
    "PATCH",
    location,
    { "content-range": `${sent}-${bytes.length - 1}` },
    bytes.subarray(sent),
  );
  const whole = digestOf(bytes);
  await send(registry, 201, "PUT", `${location}?digest=${whole}`);
  assert.deepEqual(await registry.pullBlob("team/app", whole), bytes);
  assert.equal(await registry.metric("entrepot_uploads_in_progress"), 0);
});

test("who sends a byte now and then is cut, keeps what came, and others push meanwhile", async () => {
  await using registry = await startRegistry({
    config: { ...team.config, server: { progress: { minBytes: "1KiB", interval: "300ms" } } },
  });
  const location = await startUpload(registry);
  using client = await connectTo(registry.url);
  client.send(`PATCH ${location} HTTP/1.1`, "Host: x", "Content-Length: 100000");
  let dripped = 0;
  const drip = setInterval(() => {
    if (client.socket.writable) client.socket.write("x", () => dripped++);
  }, 20);
  try {
    await pushBlob(registry, "team/app", Buffer.from("meanwhile"));
    await client.closed;
  } finally {
    clearInterval(drip);
  }
  await registry.until(() => logged(registry, { code: 499, method: "PATCH" }) !== undefined, "it is logged");
  const came = Number(logged(registry, { code: 499, method: "PATCH" })?.["bytes"]);
  assert.ok(came > 0 && came <= dripped, `${came} of ${dripped}`);
  assert.equal(await rangeOf(registry, location), `0-${came - 1}`);
  const whole = digestOf(Buffer.from("x".repeat(came)));
  await send(registry, 201, "PUT", `${location}?digest=${whole}`);
});

test("the log line of a push says what was pushed and how much of it came", async () => {
  await using registry = await startRegistry(team);
  const image = makeImage({ layers: [5000], seed: "logged" });
  const [layer] = image.layers;
  assert.ok(layer);
  const location = await startUpload(registry);
  await send(registry, 202, "PATCH", location, {}, layer.bytes.subarray(0, 2000));
  await send(registry, 201, "PUT", `${location}?digest=${layer.digest}`, {}, layer.bytes.subarray(2000));
  await pushBlob(registry, "team/app", image.config.bytes);
  await pushManifest(registry, "team/app", image, "v1");
  await send(registry, 201, "POST", `/v2/other/app/blobs/uploads/?mount=${layer.digest}&from=team/app`);
  await send(registry, 400, "POST", `/v2/team/app/blobs/uploads/?digest=${digest}`, {}, "wrong");
  for (const line of [
    { handler: "upload", method: "PATCH", code: 202, bytes: 2000 },
    { handler: "upload", method: "PUT", code: 201, bytes: 3000, digest: layer.digest },
    { handler: "uploads", method: "POST", code: 201, bytes: image.config.sizeBytes, digest: image.config.digest },
    { handler: "manifest", method: "PUT", code: 201, bytes: image.manifest.length, digest: image.digest },
    { handler: "uploads", method: "POST", code: 201, result: "mounted", digest: layer.digest },
    { handler: "uploads", method: "POST", code: 400, error: "DIGEST_INVALID", bytes: 5 },
  ])
    await registry.until(() => logged(registry, line) !== undefined, JSON.stringify(line));
});

test("a client that waits for 100 Continue gets it, and may also be refused", async () => {
  await using registry = await startRegistry(team);
  const location = await startUpload(registry);
  using client = await connectTo(registry.url);
  client.send(`PATCH ${location} HTTP/1.1`, "Host: x", "Content-Length: 5", "Expect: 100-continue");
  await client.until(/HTTP\/1\.1 100 Continue\r\n\r\n/);
  client.socket.write("hello");
  await client.until(/HTTP\/1\.1 202 [^]*range: 0-4/i);
  client.send("PUT /v2/team/App/manifests/1 HTTP/1.1", "Host: x", "Content-Length: 5", "Expect: 100-continue");
  await client.until(/NAME_INVALID/);
});

test("requests that follow an early refusal on the same connection are answered in order", async () => {
  await using registry = await startRegistry(team);
  const location = await startUpload(registry);
  const gone = location.replace(/[^/]+$/, "00000000-0000-4000-8000-000000000000");
  for (const head of [
    [`PATCH ${gone} HTTP/1.1`],
    [`PUT ${location} HTTP/1.1`],
    [`PATCH ${location} HTTP/1.1`, "Content-Range: 7-300006"],
    ["PUT /v2/team/app/manifests/1 HTTP/1.1"],
    [`POST /v2/team/app/blobs/uploads/?digest=${digest} HTTP/1.1`],
    ["GET /v2/ HTTP/1.1"],
    ["HEAD /v2/team/app/manifests/1 HTTP/1.1"],
    ["DELETE /v2/team/app/manifests/1 HTTP/1.1"],
  ] as const) {
    using client = await connectTo(registry.url);
    client.send(...head, "Host: x", "Content-Length: 300000");
    client.socket.write("x".repeat(300_000));
    client.send("GET /livez HTTP/1.1", "Host: x");
    await client.until(/"alive"/);
    assert.equal(client.text.match(/HTTP\/1\.1 [2-5]/g)?.length, 2, head[0]);
  }
  assert.equal(await rangeOf(registry, location), "0-0");
});

test("a request whose length is said in two ways is refused before anything of it is used", async () => {
  await using registry = await startRegistry(team);
  const location = await startUpload(registry);
  for (const head of [
    ["Content-Length: 5", "Transfer-Encoding: chunked"],
    ["Content-Length: 5", "Content-Length: 6"],
    ["Content-Length: -5"],
    ["Content-Length: 5x"],
    ["Transfer-Encoding: chunked, identity"],
  ]) {
    using client = await connectTo(registry.url);
    client.send(`PATCH ${location} HTTP/1.1`, "Host: x", ...head);
    client.socket.write("5\r\nhello\r\n0\r\n\r\n");
    await client.closed;
    assert.match(client.text, /^HTTP\/1\.1 400 /, head.join(", "));
  }
  assert.equal(await rangeOf(registry, location), "0-0");
});

test("a Content-Range that is none is refused, and the upload stays as it was", async () => {
  await using registry = await startRegistry(team);
  const location = await startUpload(registry);
  for (const range of [
    "",
    " ",
    "0",
    "-",
    "0-",
    "-4",
    "4-0",
    "a-b",
    "0-4-8",
    "0-99999999999999999",
    "bytes */5",
    "0-4,5-9",
    "0x0-0x4",
    "+0-4",
  ]) {
    const refused = await registry.send("PATCH", location, { "content-range": range }, "hello");
    assert.equal(refused.status, 400, JSON.stringify(range));
    assert.match(errorOf(refused).code, /^(?:BLOB_UPLOAD_INVALID|SIZE_INVALID)$/);
  }
  assert.equal(await rangeOf(registry, location), "0-0");
  for (const range of ["bytes 0-4/10", "bytes=5-9", "10-14/*"])
    await send(registry, 202, "PATCH", location, { "content-range": range }, "hello");
  assert.equal(await rangeOf(registry, location), "0-14");
});

test("a session that has ended, or is another repository's, is unknown to every method", async () => {
  await using registry = await startRegistry(team);
  const [ended, theirs] = [await startUpload(registry), await startUpload(registry, "other/app")];
  const whole = digestOf(Buffer.from("whole"));
  await send(registry, 201, "PUT", `${ended}?digest=${whole}`, {}, "whole");
  await send(registry, 202, "PATCH", theirs, {}, "whole");
  for (const location of [ended, theirs.replace("/other/", "/team/")]) {
    for (const [method, path, body] of [
      ["GET", location, undefined],
      ["HEAD", location, undefined],
      ["PATCH", location, "more"],
      ["PUT", `${location}?digest=${whole}`, undefined],
      ["PUT", `${location}?digest=${whole}`, "whole"],
      ["PUT", location, undefined],
      ["DELETE", location, undefined],
    ] as const) {
      const refused = await send(registry, 404, method, path, {}, body);
      if (method !== "HEAD") assert.equal(errorOf(refused).code, "BLOB_UPLOAD_UNKNOWN");
    }
  }
  await send(registry, 201, "PUT", `${theirs}?digest=${whole}`);
});

test("mount goes before digest: where nothing can be mounted, a session begins, and the body is not taken for the blob", async () => {
  await using registry = await startRegistry(team);
  await pushBlob(registry, "team/app", Buffer.from("here"));
  const [here, there] = ["here", "there"].map((text) => digestOf(Buffer.from(text)));
  const path = "/v2/other/app/blobs/uploads/";
  await send(registry, 201, "POST", `${path}?mount=${here}&digest=${there}`, {}, "there");
  await send(registry, 202, "POST", `${path}?mount=${there}&from=team/app&digest=${there}`, {}, "there");
  await send(registry, 404, "GET", `/v2/other/app/blobs/${there}`);
});

test("a Location is relative, or built on server.publicUrl, and leads to what it names", async () => {
  for (const [publicUrl, prefix] of [
    [undefined, ""],
    ["https://registry.example.com", "https://registry.example.com"],
  ] as const) {
    await using registry = await startRegistry({
      config: { hosted: { namespaces: ["app"] }, server: publicUrl === undefined ? {} : { publicUrl } },
    });
    for (const [name, slash] of [
      ["app", "/"],
      ["app/deep/er", ""],
      ["a%70p", "/"],
    ] as const) {
      const begun = await send(registry, 202, "POST", `/v2/${name}/blobs/uploads${slash}`);
      const location = String(begun.headers["location"]);
      assert.ok(location.startsWith(`${prefix}/v2/app`), location);
      assert.ok(location.endsWith(String(begun.headers["docker-upload-uuid"])));
      const whole = digestOf(Buffer.from(name));
      const done = await send(registry, 201, "PUT", `${location.slice(prefix.length)}?digest=${whole}`, {}, name);
      assert.ok(String(done.headers["location"]).startsWith(`${prefix}/v2/app`));
      await send(registry, 200, "GET", String(done.headers["location"]).slice(prefix.length));
    }
  }
});

test("nothing of a name, a tag or a query comes to stand in a header as it is not meant to", async () => {
  await using registry = await startRegistry(team);
  const image = makeImage({ layers: [10], seed: "headers" });
  for (const blob of image.blobs.values()) await pushBlob(registry, "team/app", blob.bytes);
  const evil = "x%0d%0aX-Evil:%201";
  for (const [method, path] of [
    ["POST", `/v2/team/${evil}/blobs/uploads/`],
    ["POST", `/v2/team/app/blobs/uploads/?mount=${digest}&from=${evil}`],
    ["POST", `/v2/team/app/blobs/uploads/?digest-algorithm=${evil}`],
    ["GET", `/v2/team/app/blobs/uploads/${evil}`],
    ["PUT", `/v2/team/app/manifests/${evil}`],
    ["PUT", `/v2/team/app/manifests/${image.digest}?tag=${evil}`],
    ["GET", `/v2/team/app/tags/list?n=1&last=${evil}`],
    ["GET", `/v2/team/app/referrers/${image.digest}?n=1&artifactType=${evil}`],
    ["GET", `/v2/_catalog?n=1&last=${evil}`],
    ["POST", `/v2/team/app/blobs/uploads/?ns=${evil}`],
  ] as const) {
    const body = method === "PUT" ? image.manifest : undefined;
    const answer = await registry.send(method, path, { "content-type": image.mediaType }, body);
    assert.ok(answer.status < 500, `${path}: ${answer.status}`);
    assert.equal(answer.headers["x-evil"], undefined, path);
  }
});
