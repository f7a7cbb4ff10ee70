import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { systemClock, type Clock } from "../../src/base/clock.ts";
import { backoffMs, retry } from "../../src/base/retry.ts";

const POLICY = { attempts: 4, baseMs: 100, maxMs: 250 };

/** Time that passes at once, and tells how much. */
function fastClock(): Clock & { slept: number[] } {
  const slept: number[] = [];
  return {
    slept,
    now: () => slept.reduce((total, ms) => total + ms, 0),
    sleep: async (ms) => {
      slept.push(ms);
    },
  };
}

test("a pause lies between nothing and a bound that doubles up to the greatest", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 2000 }),
      fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
      (attempt, random) => {
        const pause = backoffMs(POLICY, attempt, random);
        const bound = attempt === 1 ? 100 : attempt === 2 ? 200 : 250;
        assert.ok(pause >= 0 && pause < bound);
        assert.equal(pause, random * bound);
      },
    ),
  );
});

test("work is repeated until it succeeds", async () => {
  const clock = fastClock();
  const attempts: number[] = [];
  const result = await retry(
    async (attempt) => {
      attempts.push(attempt);
      if (attempt < 3) throw new Error(`try ${attempt}`);
      return "done";
    },
    () => 0,
    POLICY,
    clock,
  );
  assert.equal(result, "done");
  assert.deepEqual(attempts, [1, 2, 3]);
  assert.equal(clock.slept.length, 2);
});

test("after the last attempt the last error is thrown", async () => {
  const clock = fastClock();
  const failing = retry(
    async (attempt) => Promise.reject(new Error(`try ${attempt}`)),
    () => 0,
    POLICY,
    clock,
  );
  await assert.rejects(failing, { message: "try 4" });
  assert.equal(clock.slept.length, 3);
});

test("an error that is not worth it is thrown at once", async () => {
  const clock = fastClock();
  const failing = retry(
    async () => Promise.reject(new Error("404")),
    () => undefined,
    POLICY,
    clock,
  );
  await assert.rejects(failing, { message: "404" });
  assert.deepEqual(clock.slept, []);
});

test("what a server asked to wait is waited in full, and the jitter comes on top", async () => {
  const clock = fastClock();
  await assert.rejects(
    retry(
      async () => Promise.reject(new Error("429")),
      () => 7000,
      POLICY,
      clock,
    ),
  );
  assert.equal(clock.slept.length, 3);
  assert.ok(clock.slept.every((ms) => ms >= 7000 && ms < 7250));
});

test("an abort ends the pause with its reason, and no further attempt is made", async () => {
  const controller = new AbortController();
  let attempts = 0;
  const waiting = retry(
    async () => {
      attempts += 1;
      throw new Error("503");
    },
    () => {
      queueMicrotask(() => controller.abort(new Error("shutting down")));
      return 60_000;
    },
    POLICY,
    systemClock,
    controller.signal,
  );
  await assert.rejects(waiting, { message: "shutting down" });
  assert.equal(attempts, 1);
});

test("an abort during the work wins over its error", async () => {
  const controller = new AbortController();
  const clock = fastClock();
  const working = retry(
    async () => {
      controller.abort(new Error("shutting down"));
      throw new Error("cut off");
    },
    () => 0,
    POLICY,
    clock,
    controller.signal,
  );
  await assert.rejects(working, { message: "shutting down" });
  assert.deepEqual(clock.slept, []);
});
