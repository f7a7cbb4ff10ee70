import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { opensAtMs } from "../../src/replication/window.ts";

const MINUTE = 60_000;
const DAY = 86_400_000;
const at = (iso: string): number => Date.parse(iso);
const opens = (window: string | undefined, iso: string): string => new Date(opensAtMs(window, at(iso))).toISOString();

test("a window over midnight is open on both sides of it, its end excluded, and one that is shut opens the same evening", () => {
  const night = "20:00-06:00";
  assert.equal(opens(night, "2030-01-01T20:00:00.000Z"), "2030-01-01T20:00:00.000Z");
  assert.equal(opens(night, "2030-01-02T05:59:59.999Z"), "2030-01-02T05:59:59.999Z");
  assert.equal(opens(night, "2030-01-02T06:00:00.000Z"), "2030-01-02T20:00:00.000Z");
  assert.equal(opens("09:30-17:00", "2030-02-28T17:00:00.000Z"), "2030-03-01T09:30:00.000Z");
  assert.equal(opens("09:30-17:00", "2030-02-28T09:29:00.000Z"), "2030-02-28T09:30:00.000Z");
  assert.equal(opens(undefined, "2030-02-28T17:00:00.000Z"), "2030-02-28T17:00:00.000Z");
});

test("whenever somebody asks, it is the first minute of the day's windows from then on", () => {
  const minute = fc.integer({ min: 0, max: 1439 });
  const text = (given: number): string =>
    `${String(Math.floor(given / 60)).padStart(2, "0")}:${String(given % 60).padStart(2, "0")}`;
  fc.assert(
    fc.property(minute, minute, fc.integer({ min: 0, max: 40_000 * DAY }), (from, to, nowMs) => {
      fc.pre(from !== to);
      const isOpen = (ms: number): boolean => {
        const of = Math.floor((ms % DAY) / MINUTE);
        return from < to ? of >= from && of < to : of >= from || of < to;
      };
      const opensMs = opensAtMs(`${text(from)}-${text(to)}`, nowMs);
      assert.ok(opensMs >= nowMs && opensMs < nowMs + DAY);
      assert.ok(isOpen(opensMs));
      if (opensMs > nowMs) assert.ok(!isOpen(nowMs) && !isOpen(opensMs - 1));
      for (let ms = nowMs; ms < opensMs; ms += 7 * MINUTE) assert.ok(!isOpen(ms));
    }),
  );
});
