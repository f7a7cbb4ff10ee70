import assert from "node:assert/strict";
import { test } from "node:test";
import { imageBars } from "../../src/cli/image-bars.ts";

const MIB = 1024 * 1024;

function images(count: number, name = (index: number) => `dr mirror/library/node:18.${index}.0`) {
  return Array.from({ length: count }, (_, index) => ({
    name: name(index),
    doneBytes: index * MIB,
    totalBytes: 20 * MIB,
  }));
}

test("the bars of images stand in columns, each with the name of its image", () => {
  assert.deepEqual(imageBars(images(2), 79, 20), [
    "dr mirror/library/node:18.0.0  ░░░░░░░░░░░░░░░░░░░░   0%  0 B of 20.0 MiB",
    "dr mirror/library/node:18.1.0  █░░░░░░░░░░░░░░░░░░░   5%  1.0 MiB of 20.0 MiB",
  ]);
  assert.deepEqual(imageBars(images(1), 39, 20), ["dr mirr…ry/node:18.0.0  ░░░░░░░░░░   0%"]);
});

test("no line is wider than the terminal, no block higher, and what is not shown is counted", () => {
  const long = images(61, (index) => `dr team/an-application-with-a-name-that-fits-no-line:release-2026.11.${index}`);
  for (const width of [20, 39, 79, 119, 199]) {
    for (const height of [1, 2, 5, 12, 50]) {
      const lines = imageBars(long, width, height);
      assert.ok(lines.length <= Math.min(12, height), `${lines.length} lines of ${height}`);
      for (const line of lines) assert.ok(line.length <= width, `${line.length} of ${width}: ${line}`);
    }
  }
  const lines = imageBars(long, 79, 20);
  assert.equal(lines.at(-1), "and 50 other images");
  assert.match(lines[3] ?? "", /^dr team\/\S+….*:release-2026\.11\.3 /, "the tag is not cut off");
});
