import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { test } from "node:test";
import { Turns } from "../../src/base/turns.ts";

const NEVER = new AbortController().signal;

test("works of one key come one after the other, others at once, and a failure holds up nobody", async () => {
  const turns = new Turns();
  const told: string[] = [];
  const gate = Promise.withResolvers<void>();
  const first = turns.take(
    "a",
    async () => {
      await gate.promise;
      told.push("first");
      throw new Error("no");
    },
    NEVER,
  );
  const second = turns.take("a", () => Promise.resolve(told.push("second")), NEVER);
  await turns.take("b", () => Promise.resolve(told.push("other")), NEVER);
  gate.resolve();
  await assert.rejects(first, /no/);
  await second;
  assert.deepEqual(told, ["other", "first", "second"]);
});

test("who gives up while it waits lets nobody pass those before it", async () => {
  const turns = new Turns();
  const told: string[] = [];
  const gate = Promise.withResolvers<void>();
  const first = turns.take("a", () => gate.promise.then(() => told.push("first")), NEVER);
  const impatient = new AbortController();
  const second = turns.take("a", () => Promise.resolve(told.push("second")), impatient.signal);
  const third = turns.take("a", () => Promise.resolve(told.push("third")), NEVER);
  impatient.abort(new Error("enough"));
  await assert.rejects(second, /enough/);
  await turn();
  assert.deepEqual(told, []);
  gate.resolve();
  await Promise.all([first, third]);
  assert.deepEqual(told, ["first", "third"]);
});
