import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { formatDuration, formatSize, parseDuration, parseSize } from "../../src/config/units.ts";

test("durations are a whole number and a unit", () => {
  assert.deepEqual(
    ["250ms", "30s", "5m", "12h", "7d", "0s"].map(parseDuration),
    [250, 30_000, 300_000, 43_200_000, 604_800_000, 0],
  );
  for (const text of ["", "30", "s", "1.5h", "-1s", "1 s", "1S", "1h30m", "30s ", "٣s"]) {
    assert.equal(parseDuration(text), undefined, text);
  }
});

test("sizes are a whole number and a binary or decimal unit, or bytes", () => {
  const sizes = ["512KiB", "10MiB", "50GiB", "1TiB", "1kB", "2MB", "3GB", "1TB", "7B", "4096", "10 MiB"].map(parseSize);
  const expected = [2 ** 19, 10 * 2 ** 20, 50 * 2 ** 30, 2 ** 40, 1000, 2e6, 3e9, 1e12, 7, 4096, 10 * 2 ** 20];
  assert.deepEqual(sizes, expected);
  for (const text of ["", "MiB", "1.5GiB", "-1", "10mib", "10KB", "10M", "1e3", "10MiB/s"]) {
    assert.equal(parseSize(text), undefined, text);
  }
});

test("what cannot be counted exactly is refused", () => {
  assert.equal(parseDuration("9007199254740991d"), undefined);
  assert.equal(parseSize("99999999999TiB"), undefined);
});

test("a duration that is written is read back the same", () => {
  fc.assert(fc.property(fc.maxSafeNat(), (ms) => parseDuration(formatDuration(ms)) === ms));
  fc.assert(
    fc.property(fc.nat(100_000), fc.constantFrom("ms", "s", "m", "h", "d"), (count, unit) => {
      const ms = parseDuration(`${count}${unit}`);
      return ms !== undefined && parseDuration(formatDuration(ms)) === ms;
    }),
  );
});

test("a size that is written is read back the same", () => {
  fc.assert(fc.property(fc.maxSafeNat(), (bytes) => parseSize(formatSize(bytes)) === bytes));
  fc.assert(
    fc.property(fc.nat(8000), fc.constantFrom(10, 20, 30, 40), (count, power) => {
      const bytes = count * 2 ** power;
      return parseSize(formatSize(bytes)) === bytes;
    }),
  );
});

test("the largest unit without loss is written", () => {
  assert.deepEqual([0, 250, 90_000, 3_600_000, 2_592_000_000].map(formatDuration), ["0s", "250ms", "90s", "1h", "30d"]);
  assert.deepEqual([0, 1500, 10 * 2 ** 20, 50 * 2 ** 30].map(formatSize), ["0B", "1500B", "10MiB", "50GiB"]);
});
