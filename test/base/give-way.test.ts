import assert from "node:assert/strict";
import { test } from "node:test";
import { atOnce, givingWay, inTurns } from "../../src/base/give-way.ts";
import { inParallel } from "../../src/base/in-parallel.ts";

function spend(ms: number): void {
  for (const untilMs = performance.now() + ms; performance.now() < untilMs;);
}

/** How often the event loop comes round while the work goes on. */
async function turnsDuring(work: () => Promise<unknown>): Promise<number> {
  let turns = 0;
  let next = setImmediate(function count() {
    turns++;
    next = setImmediate(count);
  });
  await work();
  clearImmediate(next);
  return turns;
}

test("many who wait for nothing let others have the event loop every few milliseconds, together and not one by one", async () => {
  const giveWay = givingWay();
  const work = async (): Promise<void> => {
    for (let step = 0; step < 10; step++) {
      await giveWay();
      spend(1);
    }
  };
  const alone = (): Promise<unknown> => Promise.all(Array.from({ length: 16 }, async () => spend(10)));
  assert.equal(await turnsDuring(alone), 0);
  const turns = await turnsDuring(() => Promise.all(Array.from({ length: 16 }, work)));
  // 160 ms of work, of which each who waits for the others' rest does a step of 1 ms afterwards.
  assert.ok(turns >= 8, String(turns));
});

test("work in steps comes to the same at once and in turns, and ends with its signal", async () => {
  const count = function* (): Generator<void, number, void> {
    for (let step = 1; ; step++) {
      spend(1);
      yield;
      if (step === 30) return step;
    }
  };
  assert.equal(atOnce(count()), 30);
  const turns = await turnsDuring(async () => assert.equal(await inTurns(count(), new AbortController().signal), 30));
  assert.ok(turns >= 3, String(turns));
  await assert.rejects(inTurns(count(), AbortSignal.abort(new Error("enough"))), /enough/);
});

test("so many at a time and no more, and the answers in order", async () => {
  let running = 0;
  let most = 0;
  const answers = await inParallel([3, 1, 2, 5, 4], 2, async (number) => {
    most = Math.max(most, ++running);
    for (let turn = 0; turn < number; turn++) await Promise.resolve();
    running--;
    return number * 10;
  });
  assert.deepEqual(answers, [30, 10, 20, 50, 40]);
  assert.equal(most, 2);
});

test("after the first failure nothing more is begun", async () => {
  const begun: number[] = [];
  const work = inParallel([1, 2, 3, 4, 5], 2, async (number) => {
    begun.push(number);
    await Promise.resolve();
    if (number === 2) throw new Error("the second");
  });
  await assert.rejects(work, /the second/);
  assert.deepEqual(begun, [1, 2, 3]);
});
