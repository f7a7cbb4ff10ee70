import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { parseContentRange, parseRange } from "../../src/oci/range.ts";

const sizes = fc.nat({ max: 50 });
const positions = fc.nat({ max: 60 });

/** What RFC 9110 §14.1.2 selects, byte by byte. */
function selected(sizeBytes: number, wanted: (position: number) => boolean): number[] {
  return Array.from({ length: sizeBytes }, (_, position) => position).filter(wanted);
}

function bytesOf(range: ReturnType<typeof parseRange>, sizeBytes: number): number[] | undefined {
  if (range === undefined) return undefined;
  if (range === "unsatisfiable") return [];
  assert.ok(range.firstByte >= 0 && range.lastByte < sizeBytes && range.firstByte <= range.lastByte);
  return selected(sizeBytes, (position) => position >= range.firstByte && position <= range.lastByte);
}

test("a range selects what the RFC says, and one that selects nothing is unsatisfiable", () => {
  fc.assert(
    fc.property(sizes, positions, positions, (sizeBytes, first, last) => {
      assert.deepEqual(
        bytesOf(parseRange(`bytes=${first}-${last}`, sizeBytes), sizeBytes),
        selected(sizeBytes, (position) => position >= first && position <= last),
      );
      assert.deepEqual(
        bytesOf(parseRange(`bytes=${first}-`, sizeBytes), sizeBytes),
        selected(sizeBytes, (position) => position >= first),
      );
      assert.deepEqual(
        bytesOf(parseRange(`bytes=-${last}`, sizeBytes), sizeBytes),
        selected(sizeBytes, (position) => position >= sizeBytes - last),
      );
    }),
    { numRuns: 1000 },
  );
});

test("the edges of a range", () => {
  assert.deepEqual(parseRange("bytes=0-0", 1), { firstByte: 0, lastByte: 0 });
  assert.deepEqual(parseRange("bytes=0-9999999999999999", 10), { firstByte: 0, lastByte: 9 });
  for (const header of ["bytes=500-0", "bytes=10-", "bytes=-0", "bytes=-"]) {
    assert.equal(parseRange(header, 10), "unsatisfiable", header);
  }
  assert.equal(parseRange("bytes=0-", 0), "unsatisfiable");
  assert.equal(parseRange("bytes=-5", 0), "unsatisfiable");
});

test("a Range that is no single range of bytes is ignored", () => {
  const ignored = [
    undefined,
    "",
    "bytes",
    "bytes=",
    "items=0-1",
    "bytes=0-1,4-5",
    "bytes=a-b",
    "bytes=0x1-2",
    "bytes=1.5-2",
    "bytes=--1",
    "0-1",
  ];
  for (const header of ignored) assert.equal(parseRange(header, 10), undefined, header);
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), sizes, (header, sizeBytes) => {
      bytesOf(parseRange(header, sizeBytes), sizeBytes);
      parseContentRange(header);
    }),
  );
});

test("a Content-Range that fits its size is read, any other is not", () => {
  fc.assert(
    fc.property(positions, positions, fc.option(sizes, { nil: undefined }), (firstByte, lastByte, sizeBytes) => {
      const read = parseContentRange(`bytes ${firstByte}-${lastByte}/${sizeBytes ?? "*"}`);
      const fits = firstByte <= lastByte && lastByte < (sizeBytes ?? Infinity);
      assert.deepEqual(read, fits ? { firstByte, lastByte, sizeBytes } : undefined);
    }),
  );
  for (const header of [
    undefined,
    "",
    "bytes */10",
    "bytes 0-9",
    "bytes 0-9/",
    "items 0-9/10",
    "bytes 0-9/10, 0-1/2",
    "bytes -1-9/10",
  ]) {
    assert.equal(parseContentRange(header), undefined, header);
  }
});

test("a megabyte of nonsense is read at once", () => {
  const started = performance.now();
  for (const piece of ["0", "-", " ", "bytes=", "0-1,", "bytes 0-"]) {
    const header = `bytes=${piece.repeat(1_000_000 / piece.length)}`;
    parseRange(header, 10);
    parseContentRange(header);
  }
  assert.ok(performance.now() - started < 1000);
});
