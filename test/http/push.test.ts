import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
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
    config: { hosted: { pushFrom: "nowhere" } },
  });
  assert.equal((await closed.send("HEAD", `/v2/newteam/app/blobs/${digest}`)).status, 403);
  const refused = await closed.send("POST", "/v2/newteam/app/blobs/uploads/");
  assert.equal(refused.status, 403);
  assert.match(errorOf(refused).message, /hosted\.pushFrom is nowhere, and this request comes from 127\.0\.0\.1/);
});
