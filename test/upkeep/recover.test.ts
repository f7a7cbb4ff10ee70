import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, hexOf } from "../../src/oci/digest.ts";
import { makeImage, type ImageBlob } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";

const DAY_MS = 86_400_000;

async function writeAged(path: string, bytes: Buffer, ageMs: number): Promise<void> {
  await mkdir(join(path, ".."), { recursive: true });
  await writeFile(path, bytes);
  const then = new Date(Date.now() - ageMs);
  await utimes(path, then, then);
}

test("a start removes files without a row and partial files of last week, and keeps the rest", async () => {
  const root = await mkdtemp(join(tmpdir(), "entrepot-recover-"));
  try {
    const image = makeImage({ layers: [300_000] });
    const layer = image.layers[0] as ImageBlob;
    await using upstream = await startUpstream();
    upstream.add("library/app", "1", image);
    await using first = await startRegistry({ upstreams: { "docker.io": upstream }, root, leavesPartials: true });
    await first.pullBlob("library/app", layer.digest);
    await first.until(async () => (await first.blobFiles()).length === 1, "it is stored");
    await first.stop();

    const part = (text: string): string => `sha256-${hexOf(digestOf(Buffer.from(text)))}.part`;
    await writeAged(join(root, "staging", part("old")), Buffer.alloc(10), 8 * DAY_MS);
    await writeAged(join(root, "staging", `${part("old parallel")}-10`), Buffer.alloc(10), 8 * DAY_MS);
    await writeAged(join(root, "staging", part("young")), Buffer.alloc(10), DAY_MS);
    for (const [algorithm, ageMs] of [
      ["sha256", 1000],
      ["sha512", 30 * DAY_MS],
    ] as const) {
      const hex = hexOf(digestOf(Buffer.from("orphan"), algorithm));
      await writeAged(join(root, "blobs", algorithm, hex.slice(0, 2), hex), Buffer.from("orphan"), ageMs);
    }

    await using mirror = await startRegistry({ upstreams: { "docker.io": upstream }, root, leavesPartials: true });
    await mirror.until(
      () => mirror.log.some(({ msg }) => msg === "removed what an earlier run left behind"),
      "it has put things in order",
    );
    assert.deepEqual(await readdir(join(root, "staging")), [part("young")]);
    const left = await mirror.blobFiles();
    assert.deepEqual(
      left.map((path) => path.endsWith(hexOf(layer.digest))),
      [true],
    );
    await mirror.pullBlob("library/app", layer.digest);
    assert.equal(upstream.hits("GET", layer.digest), 1);
  } finally {
    await rm(root, { recursive: true });
  }
});
