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
  await using mirror = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { hosted: { namespaces: ["team"] } },
  });
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
    ["POST", "tags/list"],
  ] as const) {
    for (const name of ["library/app", "docker.io/library/app", "app"]) {
      const answer = await mirror.send(method, `/v2/${name}/${path}`, {}, method === "GET" ? undefined : "{}");
      assert.equal(answer.status, 405, `${method} ${path}`);
      assert.equal(answer.headers["allow"], "GET, HEAD");
      assert.equal(errorOf(answer).code, "UNSUPPORTED");
      assert.match(
        errorOf(answer).message,
        /docker\.io\/library\/app is a cached copy of docker\.io: push to docker\.io itself/,
      );
    }
    const hosted = await mirror.send(method, `/v2/team/app/${path}`);
    assert.equal(hosted.status, 405);
    assert.match(errorOf(hosted).message, /hosted here/);
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
