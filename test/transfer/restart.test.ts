import assert from "node:assert/strict";
import { cp, mkdtemp, open, readdir, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { hexOf } from "../../src/oci/digest.ts";
import { makeImage, type ImageBlob } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { assertWhole, Client, type Outcome } from "./client.ts";
import { MIB, REPOSITORY, startStage } from "./stage.ts";

const image = makeImage({ layers: [12 * MIB] });
const layer = image.layers[0] as ImageBlob;

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "entrepot-restart-"));
});
after(() => rm(folder, { recursive: true, force: true }));

async function startImageUpstream(): Promise<Upstream> {
  const upstream = await startUpstream();
  upstream.add(REPOSITORY, "1", image);
  return upstream;
}

function start(upstream: Upstream, root: string, drainTimeout: string): Promise<TestRegistry> {
  return startRegistry({
    upstreams: { "docker.io": upstream },
    root,
    config: { server: { drainTimeout } },
    leavesPartials: true,
  });
}

const pull = (mirror: TestRegistry, headers?: Record<string, string>): Client =>
  new Client(`${mirror.url}/v2/${REPOSITORY}/blobs/${layer.digest}`, headers);

/** A pull that upstream holds after 8 MiB, and that the end of the daemon cuts. */
async function stopInMidPull(upstream: Upstream, root: string): Promise<Outcome> {
  const mirror = await start(upstream, root, "20ms");
  const gate = upstream.hold({ path: layer.digest, nth: 1 }, 8 * MIB);
  const client = pull(mirror);
  await mirror.until(
    async () => (await mirror.metric("entrepot_upstream_received_bytes_total")) === 8 * MIB,
    "the mirror has 8 MiB",
  );
  await mirror.stop();
  gate.release();
  assert.deepEqual(await readdir(join(root, "staging")), [`sha256-${hexOf(layer.digest)}.part`]);
  upstream.resetCounters();
  return client.outcome;
}

test("a daemon that is stopped lets pulls end that end in time", async () => {
  await using upstream = await startImageUpstream();
  await using mirror = await start(upstream, await mkdtemp(join(folder, "root-")), "20s");
  const gate = upstream.hold({ path: layer.digest }, MIB);
  const clients = [pull(mirror), pull(mirror)];
  await mirror.until(() => clients.every(({ received }) => received > 0), "both are under way");
  const stopped = mirror.stop();
  gate.release();
  await Promise.all(clients.map((client) => assertWhole(client, layer)));
  await stopped;
  assert.equal((await mirror.blobFiles()).length, 1);
  assert.deepEqual(await mirror.partials(), []);
});

test("a daemon that is stopped in mid-pull cuts it at the deadline, and the next one goes on where it ended", async () => {
  await using upstream = await startImageUpstream();
  const root = await mkdtemp(join(folder, "root-"));
  assert.equal((await stopInMidPull(upstream, root)).whole, false);
  await using mirror = await start(upstream, root, "2s");
  await assertWhole(pull(mirror), layer);
  assert.deepEqual(
    upstream.requests.map(({ headers }) => headers.range),
    [`bytes=${8 * MIB - 1}-`],
  );
  await mirror.until(async () => (await mirror.blobFiles()).length === 1, "the blob is stored");
  assert.deepEqual(await mirror.partials(), []);
});

test("a partial file whose bytes were changed is proven wrong, discarded, and fetched anew", async () => {
  await using upstream = await startImageUpstream();
  const root = await mkdtemp(join(folder, "root-"));
  await stopInMidPull(upstream, root);
  {
    await using file = await open(join(root, "staging", `sha256-${hexOf(layer.digest)}.part`), "r+");
    await file.write(Buffer.alloc(100), 0, 100, 2 * MIB);
  }
  await using mirror = await start(upstream, root, "2s");
  const first = await pull(mirror).outcome;
  assert.ok(!first.whole && first.sizeBytes < layer.sizeBytes);
  await assertWhole(pull(mirror), layer);
  await mirror.until(async () => (await mirror.blobFiles()).length === 1, "the blob is stored");
  // The disk lied, not upstream.
  assert.equal(await mirror.metric("entrepot_digest_mismatches_total"), 0);
  assert.equal(await mirror.metric("entrepot_cache_errors_total", { operation: "resume" }), 1);
});

test("a partial file longer than the blob does not wedge it", async () => {
  await using upstream = await startImageUpstream();
  const root = await mkdtemp(join(folder, "root-"));
  await stopInMidPull(upstream, root);
  await truncate(join(root, "staging", `sha256-${hexOf(layer.digest)}.part`), layer.sizeBytes + 5000);
  await using mirror = await start(upstream, root, "2s");
  await assertWhole(pull(mirror), layer);
  await mirror.until(async () => (await mirror.blobFiles()).length === 1, "the blob is stored");
});

test("a partial file that is whole is served only after its repository's upstream has said that it has the blob", async () => {
  await using upstream = await startImageUpstream();
  const root = await mkdtemp(join(folder, "root-"));
  await stopInMidPull(upstream, root);
  {
    await using file = await open(join(root, "staging", `sha256-${hexOf(layer.digest)}.part`), "r+");
    let at = 0;
    for (const chunk of layer.chunks(0, layer.sizeBytes))
      at += (await file.write(chunk, 0, chunk.length, at)).bytesWritten;
  }
  await using mirror = await start(upstream, root, "2s");
  assert.equal((await mirror.get(`/v2/${REPOSITORY}/manifests/1`)).status, 200);
  const stranger = await mirror.get(`/v2/library/stranger/blobs/${layer.digest}`);
  assert.equal(stranger.status, 404);
  upstream.resetCounters();
  await assertWhole(pull(mirror), layer);
  assert.equal(upstream.bytesSent(layer.digest), 1);
  await mirror.until(async () => (await mirror.blobFiles()).length === 1, "the blob is stored");
});

test("a daemon killed while a blob comes over several connections: only what lies near its first hole is fetched again", async () => {
  const [CONNECTIONS, SEGMENT] = [4, MIB];
  const ranges = { connections: CONNECTIONS, minSize: "1MiB", segment: `${SEGMENT}`, slowerThan: "1GiB" };
  await using stage = await startStage(32 * MIB, {
    upstream: { bytesPerSecondPerConnection: 8 * MIB },
    config: { upstream: { ranges }, server: { drainTimeout: "20ms" } },
    leavesPartials: true,
  });
  const { upstream, mirror } = stage;
  const large = stage.layer;
  assert.equal((await mirror.get(`/v2/${REPOSITORY}/manifests/1`)).status, 200);
  upstream.resetCounters();
  const client = stage.pull();
  await mirror.until(() => client.received > 16 * MIB, "half of it is here");
  const gate = upstream.hold({ path: large.digest }, SEGMENT / 2);
  await upstream.waitFor(() => {
    const open = upstream.requests.filter(({ state }) => state === "open");
    return open.length === CONNECTIONS && open.every(({ bytesSent }) => bytesSent === SEGMENT / 2);
  });
  const heldAt = upstream.bytesSent(large.digest);
  // What a kill leaves is what the folder holds at that moment: the watermark, half a segment behind each hole.
  const killed = await mkdtemp(join(folder, "root-"));
  await cp(join(mirror.root, "staging"), join(killed, "staging"), { recursive: true });
  await mirror.stop();
  gate.release();
  upstream.resetCounters();
  await using next = await startRegistry({
    upstreams: { "docker.io": { url: upstream.url, ranges: { connections: 1 } } },
    root: killed,
  });
  await assertWhole(new Client(`${next.url}/v2/${REPOSITORY}/blobs/${large.digest}`), large);
  await next.until(async () => (await next.blobFiles()).length === 1, "the blob is stored");
  const [only, ...others] = upstream.requests;
  assert.deepEqual(others, []);
  const [, first] = /^bytes=(\d+)-$/.exec(only?.headers.range ?? "") ?? [];
  // Two steps of 4 MiB: the last one may not have been written down when the folder was copied.
  assert.ok(Number(first) >= heldAt - CONNECTIONS * SEGMENT - 8 * MIB, `resumed at ${first} of ${heldAt}`);
});
