import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { connectTo } from "./raw.ts";

test("an upstream that never answers does not keep the daemon from stopping", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", makeImage({ layers: [1000] }));
  const silence = upstream.hold({ path: "/manifests/" });
  await using mirror = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { server: { drainTimeout: "100ms" } },
  });
  using client = await connectTo(mirror.url);
  client.send("GET /v2/library/app/manifests/1 HTTP/1.1", "Host: x");
  await silence.reached;
  const startedMs = performance.now();
  await mirror.stop();
  // The deadline for a first byte alone is 15 s, and there are three tries.
  assert.ok(performance.now() - startedMs < 8_000);
  silence.release();
});

test("a target that is no path is answered with 400, and is counted as answered", async () => {
  await using mirror = await startRegistry();
  using client = await connectTo(mirror.url);
  client.send("GET http://[/ HTTP/1.1", "Host: x", "Connection: close");
  await client.closed;
  assert.match(client.received.toString("latin1"), /^HTTP\/1\.1 400 /);
  assert.equal(await mirror.metric("entrepot_http_requests_in_flight"), 0);
});
