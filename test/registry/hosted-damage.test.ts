import assert from "node:assert/strict";
import { open, rm, truncate } from "node:fs/promises";
import { test } from "node:test";
import { hexOf, type Digest } from "../../src/oci/digest.ts";
import { MAX_ENTRY_BYTES } from "../../src/store/memory.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { change, pushBlob, pushImage, pushManifest, send } from "../kit/hosted.ts";
import { connectTo } from "../http/raw.ts";
import { DAY, errorOf, layerOf, MovingClock } from "./clients.ts";

const image = makeImage({ layers: [MAX_ENTRY_BYTES + 40_000, 40_000], seed: "damaged" });
const [large, small] = [layerOf(image, 0), layerOf(image, 1)];

async function fileOf(registry: TestRegistry, digest: Digest): Promise<string> {
  const path = (await registry.blobFiles()).find((file) => file.endsWith(hexOf(digest)));
  assert.ok(path);
  return path;
}

async function flip(path: string, position: number): Promise<void> {
  await using file = await open(path, "r+");
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, position);
  await file.write(Buffer.from([(byte[0] ?? 0) ^ 1]), 0, 1, position);
}

/** The body that a client gets, with whether it is told that the body is whole. */
async function pullRaw(registry: TestRegistry, path: string): Promise<{ head: string; body: Buffer; whole: boolean }> {
  using client = await connectTo(registry.url);
  client.send(`GET ${path} HTTP/1.1`, "Host: x", "Connection: close");
  await client.closed;
  const end = client.received.indexOf("\r\n\r\n");
  const head = client.received.subarray(0, end).toString("latin1");
  const body = client.received.subarray(end + 4);
  const announced = /content-length: (\d+)/i.exec(head)?.[1];
  return { head, body, whole: body.length === Number(announced) };
}

/** Memory forgets with a restart; so does the knowledge of what was proven not long ago. */
async function restart(registry: TestRegistry, options: RegistryOptions = {}): Promise<TestRegistry> {
  await registry.stop();
  return startRegistry({ root: registry.root, config: { hosted: { namespaces: ["team", "other"] } }, ...options });
}

for (const [kind, harm] of [
  ["is cut short", (path: string) => truncate(path, 1000)],
  ["is longer", (path: string) => truncate(path, 1_000_000)],
  ["is missing", (path: string) => rm(path)],
  ["has a wrong byte at its start", (path: string) => flip(path, 0)],
  ["has a wrong byte at its end", (path: string) => flip(path, small.sizeBytes - 1)],
] as const) {
  for (const [size, blob] of [
    ["large", large],
    ["small", small],
  ] as const) {
    test(`a ${size} pushed blob whose file ${kind} is never served as whole, and mended by whoever pushes it again`, async () => {
      await using first = await startRegistry({ config: { hosted: { namespaces: ["team", "other"] } } });
      await pushBlob(first, "team/app", blob.bytes);
      await harm(await fileOf(first, blob.digest));
      await using registry = await restart(first);
      const path = `/v2/team/app/blobs/${blob.digest}`;

      const damaged = await pullRaw(registry, path);
      if (/^HTTP\/1.1 200/.test(damaged.head)) assert.ok(!damaged.whole, "the answer must break off");
      else {
        assert.match(damaged.head, /^HTTP\/1.1 404/);
        assert.equal(errorOf({ bytes: damaged.body }).code, "BLOB_UNKNOWN");
      }
      await registry.until(async () => (await registry.send("HEAD", path)).status === 404, "it is out of the way");
      assert.equal((await registry.get(path)).status, 404);
      assert.equal((await registry.blobFiles()).length, 0);

      await pushBlob(registry, "other/app", blob.bytes);
      await registry.pullBlob("team/app", blob.digest);
      await registry.pullBlob("other/app", blob.digest);
    });
  }
}

test("the first full read after a day proves a pushed blob once more", async () => {
  const clock = new MovingClock();
  await using registry = await startRegistry({ clock, config: { hosted: { namespaces: ["team"] } } });
  await pushBlob(registry, "team/app", large.bytes);
  await flip(await fileOf(registry, large.digest), 1);
  clock.offsetMs = DAY;
  assert.ok(!(await pullRaw(registry, `/v2/team/app/blobs/${large.digest}`)).whole);
});

test("a manifest can't be pushed while a blob that it needs is damaged", async () => {
  await using first = await startRegistry({ config: { hosted: { namespaces: ["team", "other"] } } });
  await pushImage(first, "team/app", image, "1");
  await truncate(await fileOf(first, small.digest), 10);
  await using registry = await restart(first);
  await send(registry, 404, "GET", `/v2/team/app/blobs/${small.digest}`);
  const path = "/v2/team/app/manifests/2";
  const refused = await send(registry, 404, "PUT", path, { "content-type": image.mediaType }, image.manifest);
  assert.equal(errorOf(refused).code, "MANIFEST_BLOB_UNKNOWN");
  assert.match(errorOf(refused).message, new RegExp(small.digest));
  await pushImage(registry, "team/app", image, "2");
});

test("a damaged manifest is told as such, and mended by pushing it again", async () => {
  await using first = await startRegistry({ config: { hosted: { namespaces: ["team", "other"] } } });
  await pushImage(first, "team/app", image, "1");
  change(first, "UPDATE manifests SET bytes = ? WHERE digest = ?", Buffer.from("{}"), image.digest);
  await using registry = await restart(first);
  const refused = await send(registry, 500, "GET", "/v2/team/app/manifests/1");
  assert.match(errorOf(refused).message, /push it again/);
  await pushManifest(registry, "team/app", image);
  await using again = await restart(registry);
  assert.deepEqual((await send(again, 200, "GET", "/v2/team/app/manifests/1")).bytes, image.manifest);
});
