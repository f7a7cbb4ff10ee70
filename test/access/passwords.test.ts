import assert from "node:assert/strict";
import { test } from "node:test";
import { hashSync } from "bcryptjs";
import { isHashable, Passwords } from "../../src/access/passwords.ts";
import { RegistryError } from "../../src/oci/errors.ts";

async function medianMs(work: () => Promise<unknown>): Promise<number> {
  const times: number[] = [];
  for (let round = 0; round < 5; round++) {
    const startedAt = performance.now();
    await work();
    times.push(performance.now() - startedAt);
  }
  return times.sort((a, b) => a - b)[2] ?? 0;
}

test("a password matches its own hash, and those that htpasswd -B writes, and no other does", async () => {
  await using passwords = new Passwords();
  const hash = await passwords.hash("gürkensalat: mit dill");
  assert.match(hash, /^\$2b\$10\$/);
  assert.equal(await passwords.matches("gürkensalat: mit dill", hash), true);
  assert.equal(await passwords.matches("gürkensalat: mit Dill", hash), false);
  assert.equal(await passwords.matches("bee", hashSync("bee", 5).replace("$2b$", "$2y$")), true);
  assert.equal(await passwords.matches("bee", hashSync("bee", 4).replace("$2b$", "$2a$")), true);
  assert.equal(await passwords.matches("anything", undefined), false);
});

test("a wrong password takes as long for a user that is not there, and for one with a cheap hash, as for any other", async () => {
  await using passwords = new Passwords();
  const own = await passwords.hash("correct horse");
  const cheap = hashSync("correct horse", 5);
  const wrong = await medianMs(() => passwords.matches("battery staple", own));
  const unknown = await medianMs(() => passwords.matches("battery staple", undefined));
  const wrongCheap = await medianMs(() => passwords.matches("battery staple", cheap));
  // A machine under load is noisy; without care, the factors would be a hundred, and thirty.
  for (const [what, ms] of Object.entries({ unknown, wrongCheap })) {
    assert.ok(ms > wrong / 2.5 && ms < wrong * 2.5, `${what}: ${ms} ms, against ${wrong} ms`);
  }
});

test("the event loop goes on while passwords are checked", async () => {
  await using passwords = new Passwords();
  await passwords.matches("the threads begin", undefined);
  let turns = 0;
  const timer = setInterval(() => (turns += 1), 1);
  const before = performance.eventLoopUtilization();
  await Promise.all(Array.from({ length: 10 }, (_, i) => passwords.matches(`wrong ${i}`, undefined)));
  clearInterval(timer);
  assert.ok(turns > 10, `${turns} turns`);
  assert.ok(performance.eventLoopUtilization(before).utilization < 0.5);
});

test("more passwords than can be checked within some seconds are refused at once", async () => {
  await using passwords = new Passwords();
  const outcomes = Array.from({ length: 400 }, (_, i) =>
    passwords.matches(`wrong ${i}`, undefined).then(
      () => "checked",
      (error: unknown) => (error instanceof RegistryError ? error.code : "stopped"),
    ),
  );
  assert.equal(await outcomes.at(-1), "TOOMANYREQUESTS");
  // What still waits ends with the daemon.
  await passwords[Symbol.asyncDispose]();
  const counts = Map.groupBy(await Promise.all(outcomes), (outcome) => outcome);
  assert.ok((counts.get("TOOMANYREQUESTS")?.length ?? 0) >= 100);
  assert.ok((counts.get("stopped")?.length ?? 0) >= 100);
});

test("threads end when they have nothing to do, and nothing is lost while they do", async () => {
  await using passwords = new Passwords({ idleMs: 5 });
  for (let i = 0; i < 12; i++) {
    assert.equal(await passwords.matches("correct", hashSync("correct", 4)), true);
    // About as long as a thread stays: some tries meet one that is ending.
    await new Promise((resolve) => setTimeout(resolve, i));
  }
});

test("what bcrypt would cut, or clients can't send, is no password", async () => {
  await using passwords = new Passwords();
  assert.equal(isHashable("x".repeat(72)), true);
  for (const unusable of ["", "x".repeat(73), "ü".repeat(37), "a\0b", "a\nb"]) {
    assert.equal(isHashable(unusable), false);
    await assert.rejects(passwords.hash(unusable));
  }
});
