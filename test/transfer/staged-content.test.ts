import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { digestOf, hexOf, type Digest } from "../../src/oci/digest.ts";
import { FileBlobStore } from "../../src/store/blobs-fs.ts";
import { StagedContent } from "../../src/transfer/staged-content.ts";
import { MIB } from "./stage.ts";

let root: string;
before(async () => {
  root = await mkdtemp(join(tmpdir(), "entrepot-content-"));
});
after(() => rm(root, { recursive: true, force: true }));

async function start(digest: Digest): Promise<{ content: StagedContent; presentBytes: number; faults: unknown[] }> {
  const { staged, sizeBytes } = await (await FileBlobStore.open(root)).stage(digest);
  const faults: unknown[] = [];
  const content = new StagedContent(staged, sizeBytes, (operation, error) => faults.push([operation, error]));
  return { content, presentBytes: sizeBytes, faults };
}

test("what is written in any order, and what an earlier run left, is hashed behind the watermark", async () => {
  const bytes = randomBytes(5 * MIB);
  const digest = digestOf(bytes);
  const part = (from: number, to: number): Buffer[] => [bytes.subarray(from * MIB, to * MIB)];
  const first = await start(digest);
  await first.content.write(part(0, 1), 0);
  first.content.follow(MIB);
  await first.content.file.keep(MIB);
  await first.content.close();
  const { content, presentBytes, faults } = await start(digest);
  assert.equal(presentBytes, MIB);
  await content.write(part(3, 4), 3 * MIB);
  await content.write(part(1, 3), MIB);
  content.follow(4 * MIB);
  assert.equal((await content.sound()).hash.copy().digest("hex"), hexOf(digestOf(bytes.subarray(0, 4 * MIB))));
  await content.write(part(4, 5), 4 * MIB);
  content.follow(5 * MIB);
  assert.equal(await content.proves(), true);
  await content.file.discard();
  await content.close();
  assert.deepEqual([...first.faults, ...faults], []);
});

test("after a restart only what is written from then on counts, though the pump was reading", async () => {
  const bytes = randomBytes(4 * MIB);
  const { content, faults } = await start(digestOf(bytes));
  await content.write([randomBytes(3 * MIB)], MIB);
  await content.write([randomBytes(MIB)], 0);
  content.follow(4 * MIB);
  content.restart();
  await content.file.keep(0);
  await content.write([bytes], 0);
  content.follow(bytes.length);
  assert.equal(await content.proves(), true);
  await content.file.discard();
  await content.close();
  assert.deepEqual(faults, []);
});

test("how much of a file with holes is sound is written down as it grows, never beyond the watermark", async () => {
  const { content, faults } = await start(digestOf(randomBytes(1)));
  const mark = async (): Promise<number> => {
    const [name] = await readdir(join(root, "staging"));
    return Number(/\.part-(\d+)$/.exec(name ?? "")?.[1]);
  };
  await content.allowHoles();
  assert.equal(await mark(), 0);
  await content.write([Buffer.alloc(8 * MIB)], 8 * MIB);
  await content.write([Buffer.alloc(8 * MIB)], 0);
  assert.equal(await mark(), 0);
  content.follow(16 * MIB);
  await content.write([Buffer.alloc(MIB)], 20 * MIB);
  assert.equal(await mark(), 16 * MIB);
  await content.file.discard();
  await content.close();
  assert.deepEqual(faults, []);
});

test("a download that is given up while what an earlier run left is read back: that is no fault", async () => {
  const digest = digestOf(randomBytes(1));
  const first = await start(digest);
  await first.content.write([randomBytes(16 * MIB)], 0);
  await first.content.close();
  const { content, presentBytes, faults } = await start(digest);
  assert.equal(presentBytes, 16 * MIB);
  await content.file.read(Buffer.alloc(1), 0);
  await content.close();
  // Whoever goes on behind the back of a closed file would be met by the next one to use its descriptor.
  const next = await start(digest);
  assert.equal((await next.content.sound()).sizeBytes, 16 * MIB);
  await next.content.file.discard();
  await next.content.close();
  assert.deepEqual([...faults, ...next.faults], []);
});
