import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { Readable } from "node:stream";
import { test } from "node:test";
import { promisify } from "node:util";
import { request } from "undici";
import { pushBlob, pushManifest, send } from "../kit/hosted.ts";
import { makeImage, virtualBlob, type Image } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { makeFolder } from "./archives.ts";

const MIB = 1024 * 1024;
/** What may come on top of what a small image takes: buffers on their way, garbage not yet collected. */
const GROWTH_KIB = 96 * 1024;

async function pushLarge(registry: TestRegistry, repository: string, image: Image): Promise<void> {
  await pushBlob(registry, repository, image.config.bytes);
  for (const layer of image.layers) {
    const answer = await request(`${registry.url}/v2/${repository}/blobs/uploads/?digest=${layer.digest}`, {
      method: "POST",
      headers: { "content-length": String(layer.sizeBytes) },
      body: Readable.from(layer.chunks(0, layer.sizeBytes)),
    });
    await answer.body.dump();
    assert.equal(answer.statusCode, 201);
  }
  await pushManifest(registry, repository, image, "1");
}

/** @returns the most memory that it took, in KiB */
async function peakOf(command: "export" | "import", ...args: string[]): Promise<number> {
  const script = join(import.meta.dirname, "peak.ts");
  const { stdout } = await promisify(execFile)(process.execPath, [script, command, ...args]);
  return Number(stdout);
}

test("an image of a GiB goes out and in with the memory that a small one takes", { timeout: 120_000 }, async (t) => {
  await using folder = await makeFolder();
  await using from = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await using to = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  const small = makeImage({ layers: [MIB], seed: "small" });
  const large = makeImage({ layers: [virtualBlob(1024 * MIB, "large")], seed: "large" });
  const files = { small: join(folder.path, "small.tar"), large: join(folder.path, "large.tar") };
  await pushLarge(from, "team/small", small);
  await pushLarge(from, "team/large", large);
  for (const [command, target] of [
    ["export", from],
    ["import", to],
  ] as const) {
    const peak = (size: "small" | "large"): Promise<number> =>
      peakOf(command, target.url, ...(command === "export" ? [`team/${size}:1`] : []), files[size]);
    const before = await peak("small");
    const after = await peak("large");
    t.diagnostic(`${command}: ${before} KiB, of a GiB ${after} KiB`);
    assert.ok(after - before < GROWTH_KIB, `${command}: ${before} KiB, of a GiB ${after} KiB`);
  }
  const { sizeBytes, digest } = large.layers[0] ?? assert.fail();
  const { headers } = await send(to, 200, "HEAD", `/v2/team/large/blobs/${digest}`);
  assert.equal(Number(headers["content-length"]), sizeBytes);
});
