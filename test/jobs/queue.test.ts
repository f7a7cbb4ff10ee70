import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import type { Claim, Ending, JobState } from "../../src/jobs/queue.ts";
import { DAY, MINUTE } from "../registry/clients.ts";
import { startJobs, type TestJobs } from "./jobs.ts";

const NOTHING = { progress: undefined, lines: [] };
const LEASE = MINUTE;

async function claimed({ queue }: TestJobs, kind = "work"): Promise<Claim> {
  return (await queue.claim(kind, LEASE)) ?? assert.fail("nothing is due");
}

async function added({ queue }: TestJobs, job: Partial<Parameters<typeof queue.add>[0]> = {}): Promise<number> {
  return (await queue.add({ kind: "work", payload: {}, ...job })).id;
}

test("what is added is claimed by priority, then by its time, and not before it", async () => {
  await using jobs = await startJobs();
  const nowMs = jobs.clock.now();
  const late = await added(jobs, { runAtMs: nowMs + DAY, priority: 9 });
  const first = await added(jobs);
  const second = await added(jobs);
  const urgent = await added(jobs, { priority: 1 });
  await added(jobs, { kind: "other" });
  const order: number[] = [];
  for (let claim = await jobs.queue.claim("work", LEASE); claim; claim = await jobs.queue.claim("work", LEASE))
    order.push(claim.job.id);
  assert.deepEqual(order, [urgent, first, second]);
  assert.equal(await jobs.queue.nextAtMs("work"), nowMs + DAY);
  jobs.clock.offsetMs = DAY;
  assert.equal((await claimed(jobs)).job.id, late);
});

test("a key joins the unfinished job that has it, queued or running, and only that", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const first = await queue.add({ kind: "work", payload: { n: 1 }, dedupe: "a" });
  assert.equal(first.joined, false);
  assert.deepEqual(await queue.add({ kind: "work", payload: { n: 2 }, dedupe: "a" }), { id: first.id, joined: true });
  assert.equal((await queue.add({ kind: "other", payload: {}, dedupe: "a" })).joined, false);
  assert.equal((await queue.add({ kind: "work", payload: {}, dedupe: "b" })).joined, false);
  const claim = await claimed(jobs);
  assert.deepEqual(claim.job.payload, { n: 1 });
  assert.equal((await queue.add({ kind: "work", payload: {}, dedupe: "a" })).joined, true);
  assert.equal(await queue.end(claim, NOTHING, { state: "done", result: { ok: true } }), "done");
  assert.equal((await queue.add({ kind: "work", payload: {}, dedupe: "a" })).joined, false);
});

test("a job added in a transaction that is rolled back is not there", async () => {
  await using jobs = await startJobs();
  const work = jobs.db.transaction("durable", async (tx) => {
    await jobs.queue.addWithin(tx, { kind: "work", payload: {} });
    throw new Error("no");
  });
  await assert.rejects(work, /^Error: no$/);
  assert.deepEqual(await jobs.queue.list({ limit: 10 }), []);
});

test("a lease that has run out is lost: the job runs again, and who lost it can neither note nor end", async () => {
  await using jobs = await startJobs();
  const { queue, clock } = jobs;
  const id = await added(jobs);
  const slow = await claimed(jobs);
  clock.offsetMs = LEASE - 1000;
  assert.deepEqual(await queue.renew([slow], LEASE), { lost: [], cancelled: [], paused: [], freed: 0 });
  clock.offsetMs += LEASE + 1000;
  assert.deepEqual(
    await queue.renew([slow], LEASE),
    { lost: [], cancelled: [], paused: [], freed: 0 },
    "late, but nobody else came",
  );
  clock.offsetMs += LEASE + 1000;
  assert.equal((await queue.renew([], LEASE)).freed, 1);
  assert.deepEqual((await queue.renew([slow], LEASE)).lost, [slow]);
  const next = await claimed(jobs);
  assert.deepEqual([next.job.id, next.job.attempts], [id, 2]);
  assert.equal(await queue.end(slow, NOTHING, { state: "done", result: 1 }), undefined);
  await queue.note(slow, { progress: { from: "slow" }, lines: [{ atMs: 1, text: "slow" }] });
  const row = await queue.get(id);
  assert.deepEqual([row?.state, row?.progress, await queue.lines(id, 0, 10)], ["running", undefined, []]);
});

test("what is cancelled while it runs does not come back, however its run ends", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const again = { state: "queued", runAtMs: 0, error: "no", free: false } as const;
  const failed = await added(jobs);
  const claim = await claimed(jobs);
  assert.equal(await queue.cancel(failed), "running");
  assert.deepEqual((await queue.renew([claim], LEASE)).cancelled, [claim]);
  assert.equal(await queue.end(claim, NOTHING, again), "cancelled");
  const killed = await added(jobs);
  await claimed(jobs);
  assert.equal(await queue.cancel(killed), "running");
  await queue.free();
  assert.equal((await queue.get(killed))?.state, "cancelled");
  const queued = await added(jobs);
  assert.equal(await queue.cancel(queued), "cancelled");
  assert.equal(await queue.cancel(queued), undefined);
  assert.equal(await queue.claim("work", LEASE), undefined);
});

test("what is paused is not claimed, and still joined by its key; it goes on when it is resumed, not before its time", async () => {
  await using jobs = await startJobs();
  const { queue, clock } = jobs;
  const runAtMs = clock.now() + DAY;
  const id = await added(jobs, { dedupe: "a", runAtMs });
  assert.equal(await queue.pause(id), "paused");
  assert.equal(await queue.pause(id), undefined, "it is paused already");
  clock.offsetMs = DAY;
  assert.deepEqual([await queue.claim("work", LEASE), await queue.nextAtMs("work")], [undefined, undefined]);
  assert.deepEqual(await queue.add({ kind: "work", payload: {}, dedupe: "a" }), { id, joined: true });
  assert.deepEqual(await queue.counts(), [{ kind: "work", state: "paused", jobs: 1 }]);
  assert.equal(await queue.resume(id), true);
  assert.equal(await queue.resume(id), false, "it is not paused any more");
  assert.deepEqual([(await claimed(jobs)).job.id, (await queue.get(id))?.runAtMs], [id, runAtMs]);
});

test("what is asked to pause while it runs is paused however its run ends, unless it is done, cancelled or resumed", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const again = { state: "queued", runAtMs: 0, error: "no", free: true } as const;
  const endedAs = async (between: (id: number) => Promise<unknown>, ending: Ending = again): Promise<unknown> => {
    const id = await added(jobs, { priority: 1 });
    const claim = await claimed(jobs);
    assert.equal(await queue.pause(id), "running");
    await between(id);
    const told = await queue.renew([claim], LEASE);
    const state = await queue.end(claim, NOTHING, ending);
    await queue.cancel(id);
    return [told.paused.length, told.cancelled.length, state];
  };
  const nothing = (): Promise<void> => Promise.resolve();
  assert.deepEqual(await endedAs(nothing), [1, 0, "paused"]);
  assert.deepEqual(await endedAs(nothing, { state: "done", result: 1 }), [1, 0, "done"]);
  assert.deepEqual(await endedAs((id) => queue.resume(id)), [0, 0, "queued"]);
  assert.deepEqual(await endedAs((id) => queue.cancel(id)), [0, 1, "cancelled"]);
  const cancelled = await added(jobs);
  await claimed(jobs);
  await queue.cancel(cancelled);
  assert.deepEqual([await queue.pause(cancelled), await queue.resume(cancelled)], [undefined, false]);
  const killed = await added(jobs);
  await claimed(jobs);
  await queue.pause(killed);
  await queue.free();
  assert.deepEqual(
    [(await queue.get(cancelled))?.state, (await queue.get(killed))?.state],
    ["cancelled", "paused"],
    "their process was killed",
  );
  assert.equal(await queue.resume(killed), true);
  const claim = await claimed(jobs);
  assert.equal(await queue.end(claim, NOTHING, again), "queued", "it was asked before, and that is over");
});

test("what waits can be put ahead of the others or behind them", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const ids = [await added(jobs), await added(jobs, { priority: 5 }), await added(jobs), await added(jobs)];
  const [first = 0, urgent = 0, second = 0, third = 0] = ids;
  await added(jobs, { kind: "other", priority: 9 });
  assert.equal(await queue.prioritise(third, undefined), true);
  assert.equal((await queue.get(third))?.priority, 6);
  assert.equal(await queue.prioritise(third, undefined), true, "it is ahead already");
  assert.equal((await queue.get(third))?.priority, 6);
  await queue.prioritise(first, -1);
  await queue.pause(second);
  assert.equal(await queue.prioritise(second, 7), true, "paused ones wait, too");
  await queue.resume(second);
  const order: number[] = [];
  for (let claim = await queue.claim("work", LEASE); claim; claim = await queue.claim("work", LEASE))
    order.push(claim.job.id);
  assert.deepEqual(order, [second, third, urgent, first]);
  assert.deepEqual([await queue.prioritise(first, 1), await queue.prioritise(99, 1)], [false, false]);
});

test("a job's parts are counted, read in pages with what became of them, and cancelled together", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const parent = await added(jobs, { kind: "run" });
  const parts: number[] = [];
  await jobs.db.transaction("lazy", async (tx) => {
    for (let n = 0; n < 1200; n++)
      parts.push((await queue.addWithin(tx, { kind: "work", payload: {}, parent, subject: `part ${n}` })).id);
  });
  const others = [await added(jobs), await added(jobs, { parent: parent + 9999 })];
  await queue.end(await claimed(jobs), NOTHING, { state: "done", result: { copied: 1 } });
  await queue.end(await claimed(jobs), NOTHING, { state: "dead", error: "no" });
  const running = await claimed(jobs);
  await queue.pause(parts[3] ?? 0);
  assert.deepEqual(
    new Map((await queue.countsOf(parent)).map(({ state, jobs: many }) => [state, many])),
    new Map([
      ["done", 1],
      ["dead", 1],
      ["running", 1],
      ["paused", 1],
      ["queued", 1196],
    ]),
  );
  const base = { result: undefined, error: undefined };
  assert.deepEqual(await queue.resultsOf(parent, 0, 2), [
    { ...base, id: parts[0], state: "done", subject: "part 0", result: { copied: 1 } },
    { ...base, id: parts[1], state: "dead", subject: "part 1", error: "no" },
  ]);
  const page = await queue.resultsOf(parent, parts[1] ?? 0, 2000);
  assert.deepEqual(
    page.map(({ id }) => id),
    parts.slice(2),
  );
  const { cancelled, asked } = await queue.cancelPart(parent);
  assert.deepEqual([new Set(cancelled.map(({ id }) => id)), asked], [new Set(parts.slice(3)), [running.job.id]]);
  assert.ok(cancelled.every(({ state }) => state === "cancelled"));
  assert.deepEqual(await queue.cancelPart(parent), { cancelled: [], asked });
  for (const id of others) assert.equal((await queue.get(id))?.state, "queued");
  assert.equal(
    await queue.end(running, NOTHING, { state: "queued", runAtMs: 0, error: "no", free: false }),
    "cancelled",
  );
  assert.equal(await queue.retry(parts[1] ?? 0), true);
  assert.equal((await queue.get(parts[1] ?? 0))?.parent, parent, "also of what is retried by hand");
});

test("retry gives all attempts anew, to what is dead or cancelled, unless its key is taken", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const id = await added(jobs, { dedupe: "a" });
  assert.equal(await queue.retry(id), false, "it is queued");
  await queue.end(await claimed(jobs), NOTHING, { state: "dead", error: "x".repeat(5000) });
  const dead = await queue.get(id);
  assert.equal(dead?.error?.length, 2000);
  const other = await added(jobs, { dedupe: "a" });
  assert.equal(await queue.retry(id), false, "another one is unfinished");
  await queue.cancel(other);
  assert.equal(await queue.retry(id), true);
  const { job } = await claimed(jobs);
  assert.deepEqual([job.id, job.attempts, job.endedAtMs], [id, 1, undefined]);
});

test("of a job's lines the newest 1,000 stay, cut to 2,000 characters", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const id = await added(jobs);
  const claim = await claimed(jobs);
  const lines = Array.from({ length: 700 }, (_, n) => ({ atMs: n, text: `${n} ${"x".repeat(3000)}` }));
  await queue.note(claim, { progress: { share: 1 }, lines });
  await queue.end(claim, { progress: undefined, lines }, { state: "done", result: undefined });
  const page = await queue.lines(id, 0, 2000);
  assert.equal(page.length, 1000);
  assert.match(page[0]?.text ?? "", /^400 x+…$/);
  assert.ok(page.every(({ text }) => text.length === 2000));
  assert.deepEqual(
    (await queue.lines(id, page[997]?.id ?? 0, 10)).map(({ atMs }) => atMs),
    [698, 699],
  );
  assert.deepEqual((await queue.get(id))?.progress, { share: 1 });
});

test("lists are newest first, page by page, by kind, state, subject and parent", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const work = [await added(jobs), await added(jobs), await added(jobs)];
  const other = await added(jobs, { kind: "other" });
  await queue.cancel(work[1] ?? 0);
  const ids = async (filter: object): Promise<number[]> =>
    (await queue.list({ limit: 10, ...filter })).map(({ id }) => id);
  assert.deepEqual(await ids({}), [other, ...work.toReversed()]);
  assert.deepEqual(await ids({ kind: "work" }), work.toReversed());
  assert.deepEqual(await ids({ state: "queued" }), [other, work[2], work[0]]);
  assert.deepEqual(await ids({ state: "queued", kind: "work", before: work[2] }), [work[0]]);
  assert.deepEqual(await ids({ limit: 1, before: other }), [work[2]]);
  const part = await added(jobs, { subject: "app:1", parent: other });
  const single = await added(jobs, { kind: "other", subject: "app:1" });
  assert.deepEqual(await ids({ subject: "app:1" }), [single, part]);
  assert.deepEqual(await ids({ subject: "app:1", kind: "work" }), [part]);
  assert.deepEqual(await ids({ parent: other }), [part]);
  assert.deepEqual(await ids({ parent: other, state: "done" }), []);
});

test("jobs are forgotten once they ended long ago or too many have ended since, with their lines; unfinished ones never", async () => {
  await using jobs = await startJobs();
  const { queue, clock, db } = jobs;
  const signal = new AbortController().signal;
  const ended: number[] = [];
  for (let n = 0; n < 12; n++) {
    ended.push(await added(jobs));
    const claim = await claimed(jobs);
    await queue.end(claim, { progress: undefined, lines: [{ atMs: 0, text: "line" }] }, { state: "done", result: n });
    clock.offsetMs += 1000;
  }
  const queued = await added(jobs);
  const left = async (): Promise<number[]> => (await queue.list({ limit: 100 })).map(({ id }) => id).toReversed();
  assert.equal(await queue.forget(clock.now() - 10_500, 100, signal), 2);
  assert.deepEqual(await left(), [...ended.slice(2), queued]);
  assert.equal(await queue.forget(0, 3, signal), 7);
  assert.deepEqual(await left(), [...ended.slice(9), queued]);
  assert.equal((await db.all("SELECT * FROM job_lines")).length, 3);
  assert.equal(await queue.forget(clock.now() + DAY, 0, signal), 3);
  assert.deepEqual(await left(), [queued]);
});

test("many jobs of one kind do not push those of another out", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const ended = async (kind: string): Promise<number> => {
    const { id } = await queue.add({ kind, payload: {} });
    const claim = await queue.claim(kind, MINUTE);
    assert.ok(claim);
    await queue.end(claim, { progress: undefined, lines: [] }, { state: "dead", error: "it failed" });
    return id;
  };
  const rare = await ended("rare");
  const often = [await ended("often"), await ended("often"), await ended("often")];
  assert.equal(await queue.forget(0, 2, new AbortController().signal), 1);
  assert.deepEqual(
    (await queue.list({ limit: 10 })).map(({ id }) => id),
    [often[2], often[1], rare],
  );
});

type Step =
  | { do: "add"; dedupe: string | undefined; priority: number }
  | { do: "claim" }
  | { do: "end"; which: number; how: "done" | "dead" | "cancelled" | "again" | "free" }
  | { do: "cancel" | "retry" | "pause" | "resume" | "prioritise"; which: number }
  | { do: "wait" | "free" | "renew" };

const which = fc.nat(20);
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    do: fc.constant("add" as const),
    dedupe: fc.constantFrom("a", "b", undefined),
    priority: fc.nat(2),
  }),
  fc.record({ do: fc.constant("claim" as const) }),
  fc.record({
    do: fc.constant("end" as const),
    which,
    how: fc.constantFrom("done", "dead", "cancelled", "again", "free"),
  }),
  fc.record({ do: fc.constantFrom("cancel", "retry", "pause", "resume", "prioritise"), which }),
  fc.record({ do: fc.constantFrom("wait" as const, "free" as const, "renew" as const) }),
);

test("whatever happens to a queue: one unfinished job to a key, none lost, none run twice at once, none while it is paused", async () => {
  await using jobs = await startJobs();
  const { queue, clock, db } = jobs;
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      await db.transaction("lazy", (tx) => tx.run("DELETE FROM jobs"));
      const ids: number[] = [];
      /** Runs that may believe that they go on; of each job, only the newest has the lease. */
      const claims: Claim[] = [];
      const holders = new Map<number, Claim>();
      /** What a running one becomes where it would be queued. */
      const asked = new Map<number, "cancelled" | "paused">();
      const freed = async (): Promise<void> => {
        for (const id of holders.keys()) assert.equal((await queue.get(id))?.state, asked.get(id) ?? "queued");
        holders.clear();
        asked.clear();
      };
      const pick = <T>(from: readonly T[], at: number): T | undefined => from[at % Math.max(1, from.length)];
      for (const action of steps) {
        if (action.do === "add") {
          const { dedupe, priority } = action;
          const before = await queue.list({ limit: 1000 });
          const { id, joined } = await queue.add({
            kind: "work",
            payload: {},
            priority,
            ...(dedupe ? { dedupe } : {}),
          });
          const there = before.find((job) => dedupe !== undefined && job.dedupe === dedupe && isUnfinished(job.state));
          assert.deepEqual([joined, joined ? id : undefined], [there !== undefined, there?.id]);
          if (!joined) ids.push(id);
        } else if (action.do === "claim") {
          const due = (await queue.list({ limit: 1000, state: "queued" })).toSorted(
            (a, b) => b.priority - a.priority || a.runAtMs - b.runAtMs || a.id - b.id,
          );
          const claim = await queue.claim("work", LEASE);
          assert.equal(claim?.job.id, due[0]?.id);
          if (!claim) continue;
          assert.equal(holders.has(claim.job.id), false, "it runs already");
          holders.set(claim.job.id, claim);
          claims.push(claim);
        } else if (action.do === "end") {
          const claim = pick(claims, action.which);
          if (!claim) continue;
          const holds = holders.get(claim.job.id) === claim;
          const before = await queue.get(claim.job.id);
          const queued = { state: "queued", runAtMs: clock.now(), error: "no" } as const;
          const state = await queue.end(
            claim,
            NOTHING,
            action.how === "done"
              ? { state: "done", result: 1 }
              : action.how === "dead"
                ? { state: "dead", error: "no" }
                : action.how === "cancelled"
                  ? { state: "cancelled" }
                  : { ...queued, free: action.how === "free" },
          );
          assert.equal(state !== undefined, holds, "only who has the lease ends");
          const after = await queue.get(claim.job.id);
          if (!holds) assert.deepEqual(after, before);
          else assert.equal((before?.attempts ?? 0) - (after?.attempts ?? 0), action.how === "free" ? 1 : 0);
          if (!holds) continue;
          const wanted = action.how === "again" || action.how === "free" ? "queued" : action.how;
          assert.equal(state, wanted === "queued" ? (asked.get(claim.job.id) ?? wanted) : wanted);
          holders.delete(claim.job.id);
          asked.delete(claim.job.id);
        } else if ("which" in action) {
          const id = pick(ids, action.which) ?? 0;
          const before = (await queue.get(id))?.state;
          const toldToEnd = asked.get(id) === "cancelled";
          if (action.do === "cancel") {
            const found = await queue.cancel(id);
            assert.equal(
              found,
              before === "running" ? before : before && isUnfinished(before) ? "cancelled" : undefined,
            );
            if (found === "running") asked.set(id, "cancelled");
          } else if (action.do === "pause") {
            const found = await queue.pause(id);
            const isRefused = toldToEnd || (before !== "queued" && before !== "running");
            assert.equal(found, isRefused ? undefined : before === "queued" ? "paused" : "running");
            if (found === "running") asked.set(id, "paused");
          } else if (action.do === "resume") {
            assert.equal(await queue.resume(id), before === "paused" || asked.get(id) === "paused");
            assert.equal((await queue.get(id))?.state, before === "paused" ? "queued" : before);
            if (!toldToEnd) asked.delete(id);
          } else if (action.do === "prioritise") {
            const isFirst = await queue.prioritise(id, undefined);
            assert.equal(isFirst, before === "queued" || before === "paused");
            const rows = await queue.list({ limit: 1000, state: "queued" });
            const { priority = 0 } = (await queue.get(id)) ?? {};
            if (isFirst) assert.ok(rows.every((other) => other.id === id || other.priority < priority));
          } else await queue.retry(id);
        } else if (action.do === "wait") {
          clock.offsetMs += LEASE + 1;
          await queue.renew([], LEASE);
          await freed();
        } else if (action.do === "free") {
          await queue.free();
          await freed();
        } else {
          const { lost, ...ended } = await queue.renew(claims, LEASE);
          assert.deepEqual(new Set(lost), new Set(claims.filter((claim) => holders.get(claim.job.id) !== claim)));
          for (const how of ["cancelled", "paused"] as const)
            assert.deepEqual(
              new Set(ended[how].map(({ job }) => job.id)),
              new Set(ids.filter((id) => asked.get(id) === how)),
            );
        }
        const rows = await queue.list({ limit: 1000 });
        assert.deepEqual(rows.map(({ id }) => id).toReversed(), ids, "none is lost");
        const keys = rows.filter(({ state }) => isUnfinished(state)).flatMap(({ dedupe }) => dedupe ?? []);
        assert.equal(new Set(keys).size, keys.length, "two unfinished jobs have one key");
        const running = rows.filter(({ state }) => state === "running").map(({ id }) => id);
        assert.deepEqual(new Set(running), new Set(holders.keys()));
        for (const job of rows) assert.equal(job.endedAtMs === undefined, isUnfinished(job.state));
      }
    }),
    { numRuns: 150 },
  );
});

function isUnfinished(state: JobState): boolean {
  return state === "queued" || state === "running" || state === "paused";
}
