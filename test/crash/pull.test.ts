import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { hexOf } from "../../src/oci/digest.ts";
import { makeImage, type ImageBlob } from "../kit/images.ts";
import { startRegistry, until } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { assertWhole, Client } from "../transfer/client.ts";

const MIB = 1024 * 1024;
const REPOSITORY = "library/app";
const MAIN = fileURLToPath(new URL("../../src/main.ts", import.meta.url));

interface Daemon extends AsyncDisposable {
  readonly url: string;
  readonly process: ChildProcess;
  /** As a power switch does. */
  kill(): Promise<void>;
}

/** The daemon as a process of its own. */
async function startDaemon(root: string, upstream: Upstream, ranges: object): Promise<Daemon> {
  const file = `${root}.yaml`;
  const config = {
    server: { listen: "127.0.0.1:0" },
    log: { format: "json" },
    storage: { root, minFree: 0 },
    upstreams: { "docker.io": { url: upstream.url, default: true, prefetch: false, ranges } },
  };
  await writeFile(file, JSON.stringify(config));
  const child = spawn(process.execPath, [MAIN, "serve", "--config", file], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(child, "exit");
  const kill = async (): Promise<void> => {
    child.kill("SIGKILL");
    await exited;
  };
  for await (const line of createInterface({ input: child.stdout })) {
    const { msg, address } = JSON.parse(line) as { msg: string; address: string };
    if (msg !== "entrepot is ready") continue;
    child.stdout.resume();
    return { url: address, process: child, kill, [Symbol.asyncDispose]: kill };
  }
  await kill();
  throw new Error("the daemon ended before it was ready");
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
      {
        await using daemon = await startDaemon(root, upstream, ranges);
        assert.equal((await new Client(`${daemon.url}/v2/${REPOSITORY}/manifests/1`).outcome).status, 200);
        const client = new Client(`${daemon.url}${path}`);
        await until(() => client.received > 0.9 * layerBytes, "most of it is here");
        await daemon.kill();
        assert.equal((await client.outcome).whole, false);
        const [partial] = await readdir(join(root, "staging"));
        assert.equal(partial, `sha256-${hexOf(layer.digest)}.part${ranges === FOUR ? "s" : ""}`);
      }
      upstream.resetCounters();
      {
        await using daemon = await startDaemon(root, upstream, ONE);
        await assertWhole(new Client(`${daemon.url}${path}`), layer);
        await until(async () => (await readdir(join(root, "staging"))).length === 0, "it is stored");
        await assertWhole(new Client(`${daemon.url}${path}`), layer);
      }
      const [only, ...others] = upstream.requests;
      assert.deepEqual(others, []);
      const [, first] = /^bytes=(\d+)-$/.exec(only?.headers.range ?? "") ?? [];
      // What a parallel download leaves may have holes in its last 128 MiB.
      assert.ok(Number(first) >= (ranges === FOUR ? 10 * MIB : 0.9 * layerBytes - 1), `resumed at ${first}`);
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
