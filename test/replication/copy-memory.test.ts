import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { send } from "../kit/hosted.ts";
import { makeImage, virtualBlob } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";

const MIB = 1024 * 1024;
const MAIN = join(import.meta.dirname, "../../src/main.ts");
const PEAK = join(import.meta.dirname, "peak.ts");
/** What may come on top of what a small image takes: buffers on their way, garbage not yet collected. */
const GROWTH_KIB = 32 * 1024;

test("an image of a GiB is copied with the memory that a small one takes", async (t) => {
  await using source = await startUpstream();
  await using target = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  const large = makeImage({ layers: [virtualBlob(1024 * MIB, "large")], seed: "large" });
  source.add("team/app", "small", makeImage({ layers: [MIB], seed: "small" }));
  source.add("team/app", "large", large);
  const peak = async (tag: string): Promise<number> => {
    const names = [`${source.host}/team/app:${tag}`, `${new URL(target.url).host}/team/app`];
    const { stdout } = await promisify(execFile)(process.execPath, ["--import", PEAK, MAIN, "copy", ...names]);
    return Number(stdout.trimEnd().split("\n").at(-1));
  };
  const before = await peak("small");
  const after = await peak("large");
  t.diagnostic(`${before} KiB, of a GiB ${after} KiB`);
  assert.ok(after - before < GROWTH_KIB, `${before} KiB, of a GiB ${after} KiB`);
  const { sizeBytes, digest } = large.layers[0] ?? assert.fail();
  const { headers } = await send(target, 200, "HEAD", `/v2/team/app/blobs/${digest}`);
  assert.equal(Number(headers["content-length"]), sizeBytes);
});
