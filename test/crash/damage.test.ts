import assert from "node:assert/strict";
import { open, readdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { run as runCommand } from "../cli/processes.ts";
import { makeImage, virtualBlob, type Content, type Image } from "../kit/images.ts";
import { configFile } from "./daemon.ts";
import { assertBlob, assertImage, assertSound, blobPath, makeStorage, MIB, run } from "./stage.ts";

const [ONE, TWO] = ["team/one", "team/two"] as const;

function largeLayerOf(image: Image): Content {
  const [layer] = image.layers;
  assert.ok(layer);
  return layer;
}

async function flipBit(path: string, at: number): Promise<void> {
  await using file = await open(path, "r+");
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, at);
  byte[0] = (byte[0] ?? 0) ^ 1;
  await file.write(byte, 0, 1, at);
}

/** Runs `entrepot scrub --json` as an operator does. */
async function scrub(...args: string[]): Promise<{ status: number | null; events: Record<string, unknown>[] }> {
  const { status, stdout, stderr } = await runCommand(["scrub", "--json", ...args]);
  assert.equal(stderr, "");
  const lines = stdout.trimEnd().split("\n");
  return { status, events: lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
}

test("a stored file was cut short: it is not served as whole but taken out of the way, and a push repairs it for all who have it", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  const image = makeImage({ layers: [3 * MIB], seed: "cut" });
  const layer = largeLayerOf(image);
  await using running = await run(root);
  const { client } = running;
  for (const repository of [ONE, TWO]) await client.pushImage(repository, "1", image);
  await truncate(blobPath(root, layer.digest), 2 * MIB);
  const refused = await client.get(`/v2/${ONE}/blobs/${layer.digest}`);
  assert.equal(refused.status, 404, refused.bytes.toString());
  assert.match(refused.bytes.toString(), /damaged.*push it again/);
  assert.equal((await readdir(join(root, "quarantine"))).length, 1);
  assert.equal((await client.send("HEAD", `/v2/${TWO}/blobs/${layer.digest}`)).status, 404);
  await client.pushBlob(ONE, layer, "monolithic");
  for (const repository of [ONE, TWO]) await assertImage(client, repository, "1", image);
  await assertSound(client, root);
});

test("a bit flipped in a file that is being served: its first full read breaks off before the end, and a push repairs it", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  const image = makeImage({ layers: [3 * MIB], seed: "flipped" });
  const layer = largeLayerOf(image);
  {
    await using running = await run(root);
    await running.client.pushImage(ONE, "1", image);
  }
  await flipBit(blobPath(root, layer.digest), MIB);
  await using running = await run(root);
  const { client } = running;
  await assert.rejects(client.get(`/v2/${ONE}/blobs/${layer.digest}`));
  assert.equal((await client.get(`/v2/${ONE}/blobs/${layer.digest}`)).status, 404);
  await client.pushBlob(ONE, layer, "chunked");
  await assertImage(client, ONE, "1", image);
});

for (const where of ["the daemon", "the storage of a daemon that was killed"] as const) {
  test(`\`entrepot scrub\` on ${where}: it names the blob in which a bit has flipped and who has it, and a push repairs it for all of them`, async () => {
    await using storage = await makeStorage();
    const { root } = storage;
    const images = [0, 1].map((seed) => makeImage({ layers: [virtualBlob(400_000, "shared"), 2_000], seed }));
    const [first, second] = images as [Image, Image];
    const layer = largeLayerOf(first);
    {
      await using running = await run(root);
      const { client, daemon } = running;
      await client.pushImage(ONE, "1", first);
      await client.pushImage(TWO, "1", second);
      assert.equal((await scrub("--server", daemon.url)).status, 0);
      await flipBit(blobPath(root, layer.digest), 123_456);
      if (where !== "the daemon") await daemon.kill();
      const { status, events } = await scrub(
        ...(where === "the daemon" ? ["--server", daemon.url] : ["--config", configFile(root)]),
      );
      assert.equal(status, 1);
      const [finding, ...others] = events.filter(({ type }) => type === "finding");
      assert.deepEqual(others, []);
      assert.equal(finding?.["kind"], "damaged");
      assert.equal(finding["digest"], layer.digest);
      assert.deepEqual([...(finding["repositories"] as string[])].sort(), [ONE, TWO]);
      assert.deepEqual([...(finding["manifests"] as string[])].sort(), [first.digest, second.digest].sort());
      assert.match(String(finding["message"]), /push it again to repair it/);
    }
    assert.equal((await readdir(join(root, "quarantine"))).length, 1);
    await using running = await run(root);
    const { client, daemon } = running;
    assert.equal((await client.get(`/v2/${TWO}/blobs/${layer.digest}`)).status, 404);
    // Nobody collects what manifests still point to.
    await client.run("gc");
    await client.pushBlob(TWO, layer, "chunked");
    await assertImage(client, ONE, "1", first);
    await assertImage(client, TWO, "1", second);
    assert.equal((await scrub("--server", daemon.url)).status, 0);
  });
}

for (const [what, tear] of [
  ["cut within a page", (log: Buffer) => log.subarray(0, -1500)],
  ["cut after garbage", (log: Buffer) => Buffer.concat([log.subarray(0, -40_000), Buffer.alloc(9_000, 0x5a)])],
  ["zeros at its end", (log: Buffer) => Buffer.concat([log.subarray(0, -20_000), Buffer.alloc(20_000)])],
] as const) {
  test(`a power loss leaves a torn log (${what}): the database opens sound, with everything up to some push and nothing by halves`, async () => {
    await using storage = await makeStorage();
    const { root } = storage;
    const images = Array.from({ length: 6 }, (_, seed) => makeImage({ layers: [20_000], seed }));
    {
      await using running = await run(root);
      for (const [index, image] of images.entries()) await running.client.pushImage(ONE, `v${index}`, image);
      await running.daemon.kill();
    }
    const log = join(root, "entrepot.db-wal");
    const written = await readFile(log);
    assert.ok(written.length > 200_000, "the log holds what was pushed");
    await writeFile(log, tear(written));
    await using running = await run(root);
    const { client } = running;
    await assertSound(client, root);
    const held = [];
    for (const [index, image] of images.entries()) {
      const { status } = await client.get(`/v2/${ONE}/manifests/v${index}`);
      if (status !== 404) await assertImage(client, ONE, `v${index}`, image);
      held.push(status === 200);
    }
    assert.deepEqual(
      held,
      held.toSorted((a, b) => Number(b) - Number(a)),
      "the first ones are held",
    );
    assert.equal(held[0], true);
    assert.equal(held.at(-1), false);
    for (const [index, image] of images.entries()) await client.pushImage(ONE, `v${index}`, image);
    for (const [index, image] of images.entries()) await assertImage(client, ONE, `v${index}`, image);
    await assertBlob(client, ONE, largeLayerOf(images[0] as Image));
    await assertSound(client, root);
  });
}
