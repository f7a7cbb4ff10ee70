import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { Brakes, CAPACITY, networkOf, type Attempt } from "../../src/access/brakes.ts";

const LIMITS = { failures: 3, interval: 60_000 };
const newBrakes = (): Brakes => new Brakes(() => LIMITS);

/** Makes a try. @returns what became of it */
function tryOnce(
  brakes: Brakes,
  outcome: "right" | "wrong",
  { address = "192.0.2.1", account = "alice", at = 0 },
): string {
  const verdict = brakes.begin(address, account, at);
  if (verdict.kind === "go") verdict.attempt.end(outcome, at);
  return verdict.kind;
}

test("after too many wrong tries nothing is tried until the interval has passed", () => {
  const brakes = newBrakes();
  for (const at of [0, 10, 20]) assert.equal(tryOnce(brakes, "wrong", { at }), "go");
  const verdict = brakes.begin("192.0.2.1", "alice", 20_000);
  assert.deepEqual(verdict, { kind: "spent", retryAfterMs: 40_000, isFirst: true });
  assert.deepEqual(brakes.begin("192.0.2.1", "alice", 21_000), { kind: "spent", retryAfterMs: 39_000, isFirst: false });
  assert.equal(tryOnce(brakes, "right", { at: 60_000 }), "go");
});

test("right tries do not count", () => {
  const brakes = newBrakes();
  for (let at = 0; at < 1000; at++) {
    assert.equal(tryOnce(brakes, "right", { at, account: `user${at}` }), "go");
  }
});

test("an address is slowed down whatever accounts it tries, and an account from wherever it is tried", () => {
  const sprayed = newBrakes();
  for (const account of ["a", "b", "c"]) tryOnce(sprayed, "wrong", { account });
  assert.equal(tryOnce(sprayed, "wrong", { account: "d" }), "spent");
  assert.equal(tryOnce(sprayed, "wrong", { account: "d", address: "192.0.2.2" }), "go");

  const besieged = newBrakes();
  for (const address of ["192.0.2.1", "192.0.2.2", "192.0.2.3"]) tryOnce(besieged, "wrong", { address });
  assert.equal(tryOnce(besieged, "right", { address: "192.0.2.4" }), "spent");
});

test("who has logged in lately from an address is not slowed down by others there, or by others' tries on the account", () => {
  const brakes = newBrakes();
  tryOnce(brakes, "right", {});
  for (let i = 0; i < 10; i++) {
    tryOnce(brakes, "wrong", { account: `guess${i}` });
    tryOnce(brakes, "wrong", { address: `198.51.100.${i}` });
  }
  assert.equal(tryOnce(brakes, "right", { account: "bob" }), "spent");
  assert.equal(tryOnce(brakes, "right", { address: "192.0.2.77" }), "spent");
  for (let i = 0; i < 3; i++) assert.equal(tryOnce(brakes, "wrong", {}), "go");
  assert.equal(tryOnce(brakes, "right", {}), "spent", "its own wrong tries count");
});

test("a thousand tries at once are no way around: beyond the places that are left they wait", () => {
  const brakes = newBrakes();
  const attempts: Attempt[] = [];
  const kinds = Array.from({ length: 1000 }, () => {
    const verdict = brakes.begin("192.0.2.1", "alice", 0);
    if (verdict.kind === "go") attempts.push(verdict.attempt);
    return verdict.kind;
  });
  assert.equal(attempts.length, LIMITS.failures);
  assert.ok(kinds.slice(3).every((kind) => kind === "wait"));
  attempts[0]?.end("dropped", 1);
  assert.equal(brakes.begin("192.0.2.1", "alice", 1).kind, "go");
  for (const attempt of attempts.slice(1)) attempt.end("wrong", 2);
});

test("a clock that is set back does not lengthen the wait", () => {
  const brakes = newBrakes();
  for (let i = 0; i < 3; i++) tryOnce(brakes, "wrong", { at: 10_000_000 });
  assert.equal(tryOnce(brakes, "wrong", { at: 5_000 }), "go");
});

test("wrong secrets have a brake of their own", () => {
  const brakes = newBrakes();
  for (let i = 0; i < 3; i++) assert.equal(brakes.wrongSecret("192.0.2.1", 0).kind, "go");
  assert.equal(brakes.wrongSecret("192.0.2.1", 0).kind, "spent");
  assert.equal(tryOnce(brakes, "right", {}), "go");
});

test("of an IPv6 network of 64 bits all addresses are one client", () => {
  assert.equal(networkOf("2001:db8:1:2:a:b:c:d"), "2001:db8:1:2");
  assert.equal(networkOf("2001:db8:1:2::1"), networkOf("2001:0db8:0001:0002:ffff::"));
  assert.notEqual(networkOf("2001:db8:1:2::1"), networkOf("2001:db8:1:3::1"));
  assert.equal(networkOf("::1"), "0:0:0:0");
  assert.equal(networkOf("fe80::1%eth0"), "fe80:0:0:0");
  assert.equal(networkOf("64:ff9b::192.0.2.1"), "64:ff9b:0:0");
  assert.equal(networkOf("192.0.2.1"), "192.0.2.1");
  assert.equal(networkOf(""), "");
});

test("memory is bounded, whatever is tried from wherever", () => {
  const brakes = newBrakes();
  for (let i = 0; i < 3 * CAPACITY; i++) {
    tryOnce(brakes, i % 2 === 0 ? "wrong" : "right", { address: `10.0.${i >> 8}.${i & 255}`, account: `user${i}` });
  }
  assert.ok(brakes.size <= 2 * CAPACITY);
});

test("whatever is tried in whatever order, no more wrong tries than the limits allow are ever let through", () => {
  const step = fc.record({
    wait: fc.nat({ max: 30_000 }),
    address: fc.constantFrom("192.0.2.1", "192.0.2.2"),
    account: fc.constantFrom("alice", "bob", "carol"),
    outcome: fc.constantFrom("wrong" as const, "dropped" as const),
    ends: fc.nat({ max: 5 }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const brakes = newBrakes();
      const wrongs: { at: number; keys: string[] }[] = [];
      let open: { end: (at: number) => void }[] = [];
      let at = 0;
      for (const { wait, address, account, outcome, ends } of steps) {
        at += wait;
        const verdict = brakes.begin(address, account, at);
        if (verdict.kind === "spent") assert.ok(verdict.retryAfterMs > 0 && verdict.retryAfterMs <= LIMITS.interval);
        if (verdict.kind === "wait") assert.ok(open.length > 0, "nothing is under way that it could wait for");
        if (verdict.kind === "go") {
          open.push({
            end: (now) => {
              verdict.attempt.end(outcome, now);
              if (outcome === "wrong") wrongs.push({ at: now, keys: [address, account] });
            },
          });
        }
        for (const one of open.slice(0, ends)) one.end(at);
        open = open.slice(ends);
      }
      for (const one of open) one.end(at);
      for (const key of ["192.0.2.1", "192.0.2.2", "alice", "bob", "carol"]) {
        const times = wrongs.filter(({ keys }) => keys.includes(key)).map((each) => each.at);
        for (const from of times) {
          const within = times.filter((time) => time >= from && time < from + LIMITS.interval).length;
          // The end of one interval and the beginning of the next one.
          assert.ok(within <= 2 * LIMITS.failures, `${within} wrong tries of ${key} within an interval`);
        }
      }
    }),
  );
});

test("what is refused anyway does not push what was counted out of memory", () => {
  const brakes = newBrakes();
  for (let i = 0; i < LIMITS.failures; i++) assert.equal(tryOnce(brakes, "wrong", { account: "root" }), "go");
  for (let i = 0; i <= CAPACITY; i++) assert.equal(tryOnce(brakes, "wrong", { account: `made-up-${i}` }), "spent");
  assert.equal(tryOnce(brakes, "wrong", { account: "root" }), "spent");
  assert.equal(tryOnce(brakes, "wrong", { account: "root", address: "192.0.2.2" }), "spent");
});
