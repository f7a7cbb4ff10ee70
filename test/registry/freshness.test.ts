import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { freshness, mayServeStale, type TagFacts } from "../../src/registry/freshness.ts";
import { Beliefs } from "../../src/registry/shared.ts";

const facts: fc.Arbitrary<TagFacts> = fc.record({
  nowMs: fc.integer({ min: 0, max: 5000 }),
  checkedAtMs: fc.option(fc.integer({ min: 0, max: 5000 }), { nil: undefined }),
  knownAbsent: fc.boolean(),
  tagTtl: fc.integer({ min: 0, max: 1000 }),
  maxStale: fc.integer({ min: 0, max: 3000 }),
  mayAsk: fc.boolean(),
  rateRemaining: fc.option(fc.integer({ min: 0, max: 20 }), { nil: undefined }),
  rateKeep: fc.integer({ min: 0, max: 20 }),
});

function property(check: (facts: TagFacts, ageMs: number) => void): void {
  fc.assert(
    fc.property(facts, (given) => check(given, given.nowMs - (given.checkedAtMs ?? given.nowMs))),
    { numRuns: 2000 },
  );
}

test("nothing stored is served that is older than both tagTtl and maxStale, and nothing at all where nothing is stored", () => {
  property((given, ageMs) => {
    const serves = ["fresh", "stale", "revalidate"].includes(freshness(given));
    if (given.checkedAtMs === undefined) assert.equal(serves, false);
    if (ageMs >= given.tagTtl && ageMs > given.maxStale) assert.equal(serves, false);
  });
});

test("only what was checked within tagTtl, and not in the future, is believed without asking", () => {
  property((given, ageMs) => {
    const believed = given.checkedAtMs !== undefined && ageMs >= 0 && ageMs < given.tagTtl && !given.knownAbsent;
    assert.equal(freshness(given) === "fresh", believed);
  });
});

test("a tag that has to be asked for is asked for, unless there is something to serve and asking makes no sense", () => {
  property((given, ageMs) => {
    if (given.knownAbsent || freshness(given) === "fresh") return;
    const usable = given.checkedAtMs !== undefined && mayServeStale(ageMs, given.maxStale);
    const sparing = !given.mayAsk || (given.rateRemaining ?? Infinity) <= given.rateKeep;
    assert.equal(freshness(given), usable ? (sparing ? "stale" : "revalidate") : "absent");
  });
});

test("a tag that upstream does not have is not asked for", () => {
  property((given) => assert.equal(freshness(given) === "negative", given.knownAbsent));
});

test("with time a tag goes from fresh to being asked for to absent, and never back", () => {
  const order = ["fresh", "stale", "revalidate", "absent"];
  property((given) => {
    if (given.checkedAtMs === undefined || given.nowMs < given.checkedAtMs || given.knownAbsent) return;
    const later = freshness({ ...given, nowMs: given.nowMs + 700 });
    assert.ok(order.indexOf(later) >= order.indexOf(freshness(given)));
  });
});

test("a belief lasts its time, ends when the clock is set back, and the oldest goes when there are too many", () => {
  fc.assert(
    fc.property(fc.nat(1000), fc.nat(1000), fc.nat(3000), (from, lasting, now) => {
      const beliefs = new Beliefs();
      beliefs.believe("key", from, lasting);
      assert.equal(beliefs.holds("key", now), now >= from && now < from + lasting);
      assert.equal(beliefs.holds("other", now), false);
    }),
  );
  const beliefs = new Beliefs();
  for (let i = 0; i <= 10_000; i++) beliefs.believe(`${i}`, 0, 10);
  assert.equal(beliefs.holds("0", 0), false);
  assert.equal(beliefs.holds("1", 0), true);
});
