import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { MAX_ENTRY_BYTES, MemoryCache } from "../../src/store/memory.ts";

const content = (text: string): Buffer => Buffer.alloc(100, text);

test("what was used longest ago leaves memory first", () => {
  const memory = new MemoryCache(300);
  const [a, b, c, d] = ["a", "b", "c", "d"].map((text) => digestOf(content(text))) as [never, never, never, never];
  memory.set(a, content("a"));
  memory.set(b, content("b"));
  memory.set(c, content("c"));
  assert.ok(memory.get(a));
  memory.set(d, content("d"));
  assert.deepEqual(
    [a, b, c, d].map((digest) => memory.get(digest) !== undefined),
    [true, false, true, true],
  );
});

test("removing and setting twice keep the count true", () => {
  const memory = new MemoryCache(300);
  const digests = ["a", "b", "c"].map((text) => digestOf(content(text)));
  for (let round = 0; round < 5; round++) {
    for (const [index, digest] of digests.entries()) {
      memory.set(digest, content("abc".charAt(index)));
      memory.set(digest, content("abc".charAt(index)));
    }
    assert.ok(digests.every((digest) => memory.get(digest)));
    for (const digest of digests) {
      memory.delete(digest);
      memory.delete(digest);
    }
    assert.ok(digests.every((digest) => !memory.get(digest)));
  }
});

test("large content is never kept in memory", () => {
  const memory = new MemoryCache(Infinity);
  const large = Buffer.alloc(MAX_ENTRY_BYTES + 1);
  memory.set(digestOf(large), large);
  assert.equal(memory.get(digestOf(large)), undefined);
});
