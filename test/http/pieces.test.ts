import assert from "node:assert/strict";
import { test } from "node:test";
import { SharedPieces } from "../../src/http/pieces.ts";
import type { BlobReader, Content } from "../../src/store/blobs.ts";

/** A reader of content whose bytes all have the same value. */
function readerOf(value: number, sizeBytes = 20): BlobReader & { reads: number[]; content: Content } {
  const reads: number[] = [];
  return {
    sizeBytes,
    content: {},
    reads,
    read: (target, position) => {
      reads.push(position);
      const length = Math.min(target.length, sizeBytes - position);
      target.fill(value, 0, length);
      return Promise.resolve(length);
    },
    close: () => undefined,
  };
}

test("who comes while a piece is there is given it, unread", async () => {
  const pieces = new SharedPieces(8, 2);
  const first = readerOf(1);
  const second = { ...readerOf(1), content: first.content };
  const one = pieces.take(first.content, first, 0);
  const two = pieces.take(second.content, second, 0);
  assert.deepEqual(await one?.bytes, Buffer.alloc(8, 1));
  assert.deepEqual(await two?.bytes, Buffer.alloc(8, 1));
  one?.release();
  two?.release();
  // Kept for a while after the last one.
  assert.equal((await pieces.take(second.content, second, 0)?.bytes)?.length, 8);
  assert.deepEqual([first.reads, second.reads], [[0], []]);
});

test("a piece that is being written is never given to other content", async () => {
  const pieces = new SharedPieces(8, 2);
  const [one, two, three] = [readerOf(1), readerOf(2), readerOf(3)];
  const held = pieces.take(one.content, one, 0);
  const bytes = await held?.bytes;
  const left = pieces.take(two.content, two, 16);
  assert.deepEqual(await left?.bytes, Buffer.alloc(4, 2), "the end of it");
  assert.equal(pieces.take(three.content, three, 0), undefined, "all are in use");
  left?.release();
  assert.deepEqual(await pieces.take(three.content, three, 0)?.bytes, Buffer.alloc(8, 3), "in place of the idle one");
  assert.deepEqual(bytes, Buffer.alloc(8, 1));
});

test("a read that failed is not shared with whoever comes later, and gives its room back", async () => {
  const pieces = new SharedPieces(8, 1);
  const broken = readerOf(1);
  broken.read = () => Promise.reject(new Error("EIO"));
  const failed = pieces.take(broken.content, broken, 0);
  await assert.rejects(async () => failed?.bytes, /EIO/);
  failed?.release();
  const sound = { ...readerOf(1), content: broken.content };
  assert.deepEqual(await pieces.take(sound.content, sound, 0)?.bytes, Buffer.alloc(8, 1));
});
