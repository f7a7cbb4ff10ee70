import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { Segments, WINDOW_BYTES, type Segment } from "../../src/transfer/segments.ts";

const STEP = 8 * 1024 * 1024;

test("segments never overlap, leave no gap, and keep the watermark true, whatever breaks", () => {
  const action = fc.oneof(
    { weight: 4, arbitrary: fc.record({ kind: fc.constant("take" as const) }) },
    {
      weight: 6,
      arbitrary: fc.record({
        kind: fc.constant("bring" as const),
        which: fc.nat(7),
        part: fc.double({ min: 0, max: 1, noNaN: true }),
      }),
    },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant("break" as const), which: fc.nat(7) }) },
  );
  fc.assert(
    fc.property(
      fc.nat(400 * 1024 * 1024),
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.array(action, { maxLength: 300 }),
      (size, resumedPart, actions) => {
        const resumed = Math.floor(size * resumedPart);
        const segments = new Segments(resumed);
        segments.learnSize(size);
        // What has arrived, as the network would tell it: stretches in order of their bytes.
        let here: [number, number][] = [[0, resumed]];
        const open: Segment[] = [];
        const bring = (segment: Segment, bytes: number): void => {
          const [from, to] = [segment.at, segment.at + bytes];
          assert.ok(to <= segment.end);
          for (const [a, b] of here) assert.ok(to <= a || from >= b || from === to, "no byte comes twice");
          segments.advance(segment, bytes);
          if (bytes > 0) here = merged([...here, [from, to]]);
        };
        const check = (): void => {
          const [first] = here;
          assert.ok(first);
          assert.equal(segments.contiguous, first[1], "the watermark is where the first byte is missing");
          const highest = here.at(-1)?.[1] ?? 0;
          assert.ok(highest <= segments.contiguous + WINDOW_BYTES);
        };
        for (const step of actions) {
          const segment = step.kind === "take" ? undefined : open[step.which % Math.max(1, open.length)];
          if (step.kind === "take") {
            const taken = open.length < 8 ? segments.take(STEP) : undefined;
            if (taken !== undefined && taken !== "later") open.push(taken);
          } else if (segment && step.kind === "bring") {
            bring(segment, Math.floor((segment.end - segment.at) * step.part));
            if (segment.at === segment.end) {
              segments.finish(segment);
              open.splice(open.indexOf(segment), 1);
            }
          } else if (segment) {
            segments.giveBack(segment);
            open.splice(open.indexOf(segment), 1);
          }
          check();
        }
        // However it went: what is left can be taken and completes the blob.
        for (;;) {
          const segment = open.pop() ?? segments.take(STEP);
          if (segment === undefined) break;
          assert.ok(segment !== "later", "nothing is under way, so nothing is worth waiting for");
          bring(segment, segment.end - segment.at);
          segments.finish(segment);
          check();
        }
        assert.deepEqual(here, [[0, size]]);
      },
    ),
    { numRuns: 300 },
  );
});

function merged(stretches: [number, number][]): [number, number][] {
  const result: [number, number][] = [];
  for (const [from, to] of stretches.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    const last = result.at(-1);
    if (last && from <= last[1]) last[1] = Math.max(last[1], to);
    else result.push([from, to]);
  }
  return result;
}

test("a segment goes on to the end only where it alone is missing", () => {
  const segments = new Segments(0);
  const first = segments.take(STEP);
  assert.ok(first && first !== "later");
  segments.learnSize(10 * STEP);
  const second = segments.take(STEP);
  assert.ok(second && second !== "later");
  assert.equal(segments.extend(second), false);
  segments.advance(first, STEP);
  segments.finish(first);
  assert.equal(segments.extend(second), true);
  assert.equal(second.end, 10 * STEP);
  assert.equal(segments.take(STEP), undefined);
});

test("a segment that breaks after its last byte lets the watermark pass over what lies behind it", () => {
  const segments = new Segments(0);
  segments.learnSize(300);
  const [first, second] = [segments.take(100), segments.take(200)];
  assert.ok(first && first !== "later" && second && second !== "later");
  segments.advance(second, 200);
  segments.finish(second);
  segments.advance(first, 100);
  segments.giveBack(first);
  assert.equal(segments.contiguous, 300);
  assert.equal(segments.take(100), undefined);
});

test("a step wider than the window is cut to it, and not put off for ever", () => {
  const segments = new Segments(0);
  segments.learnSize(3 * WINDOW_BYTES);
  assert.deepEqual({ ...(segments.take(2 * WINDOW_BYTES) as Segment) }, { at: 0, end: WINDOW_BYTES });
});
