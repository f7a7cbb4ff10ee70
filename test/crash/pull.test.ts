import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { hexOf } from "../../src/oci/digest.ts";
import { makeImage, type ImageBlob } from "../kit/images.ts";
import { startRegistry, until } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { assertWhole, Client } from "../transfer/client.ts";
import { startDaemon, type Daemon } from "./daemon.ts";

const MIB = 1024 * 1024;
const REPOSITORY = "library/app";
/** The daemon as a process of its own. */
function startMirror(root: string, upstream: Upstream, ranges: object): Promise<Daemon> {
  const config = { upstreams: { "docker.io": { url: upstream.url, default: true, prefetch: false, ranges } } };
  return startDaemon({ root, config });
}

const ONE = { connections: 1 };
const FOUR = { connections: 4, minSize: "1MiB", segment: "1MiB", slowerThan: "1GiB" };

for (const [what, layerBytes, ranges] of [
  ["a download", 24 * MIB, ONE],
  ["a download over several connections", 160 * MIB, FOUR],
] as const) {
  test(`a daemon killed in the middle of ${what}: the next one goes on with what is sound, and stores the right bytes`, async () => {
    const image = makeImage({ layers: [layerBytes] });
    const layer = image.layers[0] as ImageBlob;
    const folder = await mkdtemp(join(tmpdir(), "entrepot-crash-"));
    try {
      const root = join(folder, "data");
      await using upstream = await startUpstream({ bytesPerSecondPerConnection: 32 * MIB });
      upstream.add(REPOSITORY, "1", image);
      const path = `/v2/${REPOSITORY}/blobs/${layer.digest}`;
      // One connection writes byte after byte; several leave holes beyond what the file's name says.
      let soundBytes = 0.9 * layerBytes;
      {
        await using daemon = await startMirror(root, upstream, ranges);
        assert.equal((await new Client(`${daemon.url}/v2/${REPOSITORY}/manifests/1`).outcome).status, 200);
        const client = new Client(`${daemon.url}${path}`);
        await until(() => client.received > 0.9 * layerBytes, "most of it is here");
        await daemon.kill();
        assert.equal((await client.outcome).whole, false);
        const [partial = ""] = await readdir(join(root, "staging"));
        const [, hex, holed] = /^sha256-([0-9a-f]+)\.part(?:-(\d+))?$/.exec(partial) ?? [];
        assert.equal(hex, hexOf(layer.digest), partial);
        if (ranges === FOUR) soundBytes = Number(holed);
      }
      upstream.resetCounters();
      {
        await using daemon = await startMirror(root, upstream, ONE);
        await assertWhole(new Client(`${daemon.url}${path}`), layer);
        await until(async () => (await readdir(join(root, "staging"))).length === 0, "it is stored");
        await assertWhole(new Client(`${daemon.url}${path}`), layer);
      }
      const [only, ...others] = upstream.requests;
      assert.deepEqual(others, []);
      const [, first] = /^bytes=(\d+)-$/.exec(only?.headers.range ?? "") ?? [];
      // A range must not be empty: it begins with the last byte that is here.
      assert.ok(
        soundBytes > MIB && Number(first) >= soundBytes - 1,
        `resumed at ${first}, ${soundBytes} bytes were sound`,
      );
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
}

test("killed between the rename and the row: the file without a row is collected at the next start, and the pull fetches it again", async () => {
  const image = makeImage({ layers: [MIB] });
  const layer = image.layers[0] as ImageBlob;
  const root = await mkdtemp(join(tmpdir(), "entrepot-crash-"));
  try {
    await using upstream = await startUpstream();
    upstream.add(REPOSITORY, "1", image);
    await using _before = await startRegistry({ upstreams: { "docker.io": upstream }, root });
    await _before.stop();
    const hex = hexOf(layer.digest);
    const orphan = join(root, "blobs/sha256", hex.slice(0, 2), hex);
    await mkdir(join(root, "blobs/sha256", hex.slice(0, 2)), { recursive: true });
    await writeFile(orphan, layer.bytes);
    const aSecondAgo = new Date(Date.now() - 1000);
    await utimes(orphan, aSecondAgo, aSecondAgo);
    await using mirror = await startRegistry({ upstreams: { "docker.io": upstream }, root });
    await mirror.until(async () => (await mirror.blobFiles()).length === 0, "the orphan is collected");
    await mirror.pullBlob(REPOSITORY, layer.digest);
    await mirror.until(async () => (await mirror.blobFiles()).length === 1, "it is stored");
    assert.equal(upstream.hits("GET", layer.digest), 1);
  } finally {
    await rm(root, { recursive: true, force: true });
  }
});
