import assert from "node:assert/strict";
import { test } from "node:test";
import { KeyedJobs } from "../../src/jobs/keyed.ts";
import { startJobs, type TestJobs } from "./jobs.ts";

interface Staged {
  keyed: KeyedJobs;
  add: (dedupe: string, further?: object) => Promise<number>;
  /** Lets the one that is run now give way. */
  handOver: (id: number) => Promise<number | undefined>;
}

function stage(jobs: TestJobs): Staged {
  const keyed = new KeyedJobs(jobs.db, jobs.clock);
  return {
    keyed,
    add: async (dedupe, further = {}) =>
      (await jobs.queue.add({ kind: "work", payload: { at: 1 }, dedupe, ...further })).id,
    handOver: async (id) => await keyed.handOver((await jobs.queue.get(id)) ?? assert.fail(), "a "),
  };
}

test("the youngest job whose key begins alike takes the place of an older one, unless it runs, is paused or over", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const { add, handOver } = stage(jobs);
  const first = await add("a 1", { priority: 5, parent: 99, runAtMs: 10 });
  assert.equal(await handOver(first), undefined);
  const second = await add("a 2");
  const third = await add("a 3");
  const others = [await add("ab"), await add("a 4", { kind: "other" })];
  assert.equal(await handOver(first), third);
  const { priority, parent, runAtMs } = (await queue.get(third)) ?? assert.fail();
  assert.deepEqual([priority, parent, runAtMs], [5, 99, 10]);
  await queue.pause(third);
  assert.equal(await handOver(first), second);
  await queue.cancel(second);
  assert.equal(await handOver(first), undefined);
  const fourth = await add("a 5", { priority: 9 });
  assert.equal((await queue.claim("work", 1000))?.job.id, fourth);
  assert.equal(await handOver(first), undefined);
  for (const id of others) assert.equal((await queue.get(id))?.parent, undefined);
});

test("one that has failed before takes the place of an older one when its time has come", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const { add, handOver } = stage(jobs);
  const first = await add("a 1", { runAtMs: 10 });
  const second = await add("a 2", { priority: 1 });
  const claim = (await queue.claim("work", 1000)) ?? assert.fail();
  assert.equal(claim.job.id, second);
  const runAtMs = jobs.clock.now() + 5000;
  const note = { progress: undefined, lines: [] };
  await queue.end(claim, note, { state: "queued", runAtMs, error: "no", free: false });
  assert.equal(await handOver(first), second);
  assert.equal((await queue.get(second))?.runAtMs, runAtMs);
});

test("a job and its parts are urged on, and what has ended is left alone", async () => {
  await using jobs = await startJobs();
  const { queue } = jobs;
  const { add, keyed } = stage(jobs);
  const runAtMs = jobs.clock.now() + 60_000;
  const run = await add("run", { runAtMs });
  const part = await add("part", { runAtMs, parent: run, payload: { at: 1, trigger: "schedule" } });
  const over = await add("over", { runAtMs, parent: run });
  const other = await add("other", { runAtMs });
  await queue.cancel(over);
  await keyed.urge(run, 20, { trigger: "hand" });
  for (const id of [run, part]) {
    const job = (await queue.get(id)) ?? assert.fail();
    assert.deepEqual([job.payload, job.priority], [{ at: 1, trigger: "hand" }, 20]);
    assert.ok(job.runAtMs <= jobs.clock.now());
  }
  for (const id of [over, other]) assert.equal((await queue.get(id))?.runAtMs, runAtMs);
});

test("of ten thousand dead jobs, those about one subject are settled without a look at the others", async () => {
  await using jobs = await startJobs();
  const { db, queue, clock } = jobs;
  await db.transaction("lazy", async (tx) => {
    for (let index = 0; index < 10_000; index++) {
      await queue.addWithin(tx, { kind: "work", payload: {}, dedupe: `rule ${index}`, subject: `tag ${index}` });
    }
    await tx.run("UPDATE jobs SET state = 'dead', ended_at = run_at");
  });
  const keyed = new KeyedJobs(db, clock);
  const { id } = await queue.add({ kind: "work", payload: {}, dedupe: "rule last" });
  const before = process.threadCpuUsage().user;
  for (let index = 0; index < 1000; index++) await keyed.settleSubject(["work"], "rule ", id, `tag ${index}`);
  // A look at all of them, each time, took 2.5 s.
  assert.ok(process.threadCpuUsage().user - before < 1_500_000);
  assert.equal((await keyed.counts(["work"], "rule ")).dead, 9000);
  await keyed.settle(["work"], "other ", id);
  assert.equal((await keyed.counts(["work"], "rule ")).dead, 9000);
  await keyed.settle(["work"], "rule ", id);
  const { dead, queued } = await keyed.counts(["work"], "rule ");
  assert.deepEqual([dead, queued], [0, 1]);
});
