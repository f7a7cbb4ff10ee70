import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import {
  formatOrigin,
  isBehind,
  isPushedLater,
  originOfCopy,
  originOfPush,
  parseOrigin,
  type Marked,
} from "../../src/oci/origin.ts";

const MINUTE = 60_000;
const DIGESTS = ["a", "b", "c"].map((seed) => digestOf(Buffer.from(seed))) as [Digest, Digest, Digest];
const [FIRST, SECOND] = DIGESTS;

test("a mark is read as it was written", () => {
  fc.assert(
    fc.property(fc.nat(1e15 - 1), fc.stringMatching(/^[\w-]{1,64}$/), (atMs, by) => {
      assert.deepEqual(parseOrigin(formatOrigin({ atMs, by })), { atMs, by });
    }),
  );
  assert.deepEqual(parseOrigin("by=site ;at=12;more=x"), { atMs: 12, by: "site" });
});

test("what is no mark is none", () => {
  for (const text of [undefined, "", "at=1", "by=a", "at=-1; by=a", "at=1e3; by=a", "at=1; by=a b", "at=9e99; by=a"]) {
    assert.equal(parseOrigin(text), undefined, text);
  }
  fc.assert(fc.property(fc.string(), (text) => void parseOrigin(text)));
});

test("a push is newer than what its registry had, also where that came from a clock that is ahead", () => {
  const nowMs = 1_000_000;
  const ahead = { atMs: nowMs + 3 * MINUTE, by: "other" };
  assert.deepEqual(originOfPush(undefined, "here", nowMs), { atMs: nowMs, by: "here" });
  assert.deepEqual(originOfPush({ atMs: nowMs - 1, by: "other" }, "here", nowMs), { atMs: nowMs, by: "here" });
  assert.deepEqual(originOfPush(ahead, "here", nowMs), { atMs: ahead.atMs + 1, by: "here" });
  const wrong = { atMs: nowMs + 900 * MINUTE, by: "other" };
  assert.deepEqual(originOfPush(wrong, "here", nowMs), { atMs: nowMs + 5 * MINUTE + 1, by: "here" });
});

test("a copy of an earlier push does not come; one of the same content leaves the newer mark", () => {
  const nowMs = 1_000_000;
  const at = (digest: Digest, atMs: number, by = "a"): Marked => ({ digest, origin: { atMs, by } });
  assert.deepEqual(originOfCopy(undefined, at(FIRST, 5), nowMs), { atMs: 5, by: "a" });
  assert.deepEqual(originOfCopy(at(FIRST, 5), at(SECOND, 6), nowMs), { atMs: 6, by: "a" });
  assert.equal(originOfCopy(at(FIRST, 6), at(SECOND, 5), nowMs), undefined);
  assert.equal(originOfCopy(at(FIRST, 6, "b"), at(SECOND, 6, "a"), nowMs), undefined);
  assert.deepEqual(originOfCopy(at(FIRST, 6), at(SECOND, 6), nowMs), { atMs: 6, by: "a" }, "made of the same push");
  assert.deepEqual(originOfCopy(at(FIRST, 6), at(FIRST, 5), nowMs), { atMs: 6, by: "a" });
  assert.deepEqual(originOfCopy(at(FIRST, 5), at(FIRST, 6), nowMs), { atMs: 6, by: "a" });
  const ahead = at(FIRST, nowMs + 60 * MINUTE);
  assert.deepEqual(originOfCopy(undefined, ahead, nowMs), { atMs: nowMs + 5 * MINUTE, by: "a" });
  assert.equal(isBehind(at(FIRST, 5), ahead, nowMs), false, "a mark that would not arrive as it is waits");
});

/** A registry with one tag; `skewMs`: how far its clock is ahead. */
class Site {
  readonly name: string;
  readonly skewMs: number;
  tag: Marked | undefined;

  constructor(name: string, skewMs: number) {
    this.name = name;
    this.skewMs = skewMs;
  }

  push(digest: Digest, nowMs: number): void {
    this.tag = { digest, origin: originOfPush(this.tag?.origin, this.name, nowMs + this.skewMs) };
  }

  /** @returns whether it changed anything */
  receive(copy: Marked, nowMs: number): boolean {
    const before = this.tag;
    const origin = originOfCopy(before, copy, nowMs + this.skewMs);
    if (origin) this.tag = { digest: copy.digest, origin };
    return JSON.stringify(this.tag) !== JSON.stringify(before);
  }
}

const step = fc.oneof(
  fc.record({ how: fc.constant("push" as const), site: fc.nat(2), digest: fc.constantFrom(...DIGESTS) }),
  /** A copy sets out with what its source has now. */
  fc.record({ how: fc.constant("read" as const), from: fc.nat(2), to: fc.nat(2) }),
  /** One of those under way arrives, not always the first. */
  fc.record({ how: fc.constant("arrive" as const), which: fc.nat(9) }),
);

/** Which sites copy to which. */
const SHAPES: Record<string, [number, number][]> = {
  both: [
    [0, 1],
    [1, 0],
    [1, 2],
    [2, 1],
  ],
  ring: [
    [0, 1],
    [1, 2],
    [2, 0],
  ],
};

test("whatever is pushed where, and in whatever order copies arrive, all sites come to rest with one push, which no later one preceded", () => {
  fc.assert(
    fc.property(
      fc.constantFrom("both", "ring"),
      // Within what clocks of servers are wrong by: no two are further apart than a mark may be ahead.
      fc.tuple(...[0, 1, 2].map(() => fc.integer({ min: -2 * MINUTE, max: 2 * MINUTE }))),
      fc.array(step, { maxLength: 40 }),
      (shape, skews, steps) => {
        const sites = skews.map((skewMs, index) => new Site(`site-${index}`, skewMs));
        const links = SHAPES[shape] ?? [];
        const underWay: { copy: Marked; to: Site }[] = [];
        /** Of each push: the state that it replaced. */
        const replaced: { by: Marked; was: Marked }[] = [];
        let nowMs = 10_000 * MINUTE;
        for (const one of steps) {
          nowMs += 7;
          if (one.how === "push") {
            const site = sites[one.site] as Site;
            const was = site.tag;
            site.push(one.digest, nowMs);
            if (was) replaced.push({ by: site.tag as Marked, was });
          } else if (one.how === "read") {
            const copy = sites[one.from]?.tag;
            if (copy && links.some(([from, to]) => from === one.from && to === one.to))
              underWay.push({ copy, to: sites[one.to] as Site });
          } else if (underWay.length > 0) {
            const [arrived] = underWay.splice(one.which % underWay.length, 1);
            arrived?.to.receive(arrived.copy, nowMs);
          }
        }
        for (const { copy, to } of underWay) to.receive(copy, nowMs);

        let copies = 0;
        for (let settled = false; !settled;) {
          settled = true;
          for (const [from, to] of links) {
            const [source, target] = [sites[from]?.tag, sites[to]?.tag];
            if (!source) continue;
            const clockMs = nowMs + (sites[to]?.skewMs ?? 0);
            const isWanted =
              !target ||
              (target.digest === source.digest
                ? isBehind(target, source, clockMs)
                : !isPushedLater(target, source, clockMs));
            if (!isWanted) continue;
            assert.ok(sites[to]?.receive(source, nowMs), "what a plan names is taken");
            assert.ok(++copies <= 12, "copies go round and round");
            settled = false;
          }
        }
        const [first, ...others] = sites.map(({ tag }) => tag);
        for (const other of others) assert.deepEqual(other, first);
        const last = replaced.find(({ was }) => first !== undefined && JSON.stringify(was) === JSON.stringify(first));
        assert.equal(last, undefined, "what a later push replaced has come back");
      },
    ),
    { numRuns: 2000 },
  );
});
