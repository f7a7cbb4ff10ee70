import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import type { RateLimit } from "../../src/remote/remote.ts";
import { PullLine, pullsAtMs } from "../../src/replication/budget.ts";

const NOW_MS = Date.UTC(2026, 5, 20);
const WINDOW_SECONDS = 21_600;

function reading(remaining: number, ageMs = 0, limit = 100): RateLimit {
  return { limit, remaining, windowSeconds: WINDOW_SECONDS, at: NOW_MS - ageMs };
}

test("a registry that tells of no limit is not waited for", () => {
  assert.equal(pullsAtMs(undefined, { keep: 40, taken: 5, pulls: 10 }, NOW_MS), undefined);
});

test("copies take what is left beside the reserve, and not what others of them are taking", () => {
  assert.equal(pullsAtMs(reading(50), { keep: 40, taken: 0, pulls: 10 }, NOW_MS), undefined);
  assert.notEqual(pullsAtMs(reading(50), { keep: 40, taken: 1, pulls: 10 }, NOW_MS), undefined);
  // A pull comes back every 216 s.
  assert.equal(pullsAtMs(reading(40), { keep: 40, taken: 0, pulls: 1 }, NOW_MS), NOW_MS + 216_000);
});

test("a reserve that is the whole limit is looked at again a window later", () => {
  const spending = { keep: 100, taken: 0, pulls: 1 };
  assert.equal(pullsAtMs(reading(100), spending, NOW_MS), NOW_MS + WINDOW_SECONDS * 1000);
});

const limits = fc.record({
  limit: fc.integer({ min: 1, max: 5000 }),
  share: fc.double({ min: 0, max: 1, noNaN: true }),
});
const spendings = fc.record({
  keep: fc.integer({ min: 0, max: 6000 }),
  taken: fc.integer({ min: 0, max: 50 }),
  pulls: fc.integer({ min: 1, max: 200 }),
});

test("whoever begins leaves the reserve, by what was told last; whoever waits begins when he was told", () => {
  fc.assert(
    fc.property(limits, spendings, fc.integer({ min: 0, max: 2 * WINDOW_SECONDS * 1000 }), (one, spending, ageMs) => {
      const told = reading(Math.floor(one.limit * one.share), ageMs, one.limit);
      const atMs = pullsAtMs(told, spending, NOW_MS);
      const { keep, taken, pulls } = spending;
      const left = Math.min(one.limit, told.remaining + (ageMs * one.limit) / (WINDOW_SECONDS * 1000)) - taken;
      if (atMs === undefined) {
        assert.ok(left - Math.min(pulls, one.limit - keep) >= keep - 1e-6);
        return;
      }
      assert.ok(atMs > NOW_MS);
      if (one.limit <= keep) return;
      // When the others have made theirs.
      const then = pullsAtMs(told, { ...spending, taken: 0 }, Math.max(atMs, NOW_MS) + 1);
      assert.equal(then, undefined);
    }),
  );
});

test("those who wait come back one after the other, none later than a window", () => {
  const line = new PullLine();
  const first = NOW_MS + 1000;
  const turns = Array.from({ length: 200 }, () => line.join(first, reading(40), 1, NOW_MS));
  assert.deepEqual(turns.slice(0, 3), [first, first + 216_000, first + 432_000]);
  assert.equal(Math.max(...turns), NOW_MS + WINDOW_SECONDS * 1000);
});
