import assert from "node:assert/strict";
import { test } from "node:test";
import { JobSchedule, type Scheduled, type When } from "../../src/jobs/schedule.ts";
import { until } from "../kit/registry.ts";
import { DAY, MINUTE } from "../registry/clients.ts";
import { startJobs, type TestJobs, type TestRunner } from "./jobs.ts";

/** A daemon's schedule with one job, for one look: then it has stopped. */
async function look(jobs: TestJobs, { runner }: TestRunner, when: When | undefined): Promise<JobSchedule> {
  let looks = 0;
  const schedule = new JobSchedule({ ...jobs, runner, look: () => void looks++ });
  schedule.add({ name: "clean", when: () => when, job: () => ({ kind: "clean", payload: {}, dedupe: "" }) });
  schedule.start();
  await schedule.stop();
  assert.equal(looks, 1);
  return schedule;
}

async function count({ queue }: TestJobs): Promise<number> {
  return (await queue.list({ limit: 100 })).length;
}

test("an interval counts from the end of one run to the next, over restarts, and begins with the storage's first use", async () => {
  await using jobs = await startJobs();
  const running = jobs.runner();
  const daily = { everyMs: DAY };
  await look(jobs, running, daily);
  jobs.clock.offsetMs = DAY - MINUTE;
  await look(jobs, running, daily);
  assert.equal(await count(jobs), 0);
  jobs.clock.offsetMs = DAY;
  await look(jobs, running, daily);
  assert.equal(await count(jobs), 1);
  const schedule = await look(jobs, running, daily);
  assert.equal(await count(jobs), 1, "it is unfinished");
  const claim = (await jobs.queue.claim("clean", MINUTE)) ?? assert.fail();
  await jobs.queue.end(claim, { progress: undefined, lines: [] }, { state: "done", result: undefined });
  jobs.clock.offsetMs += MINUTE;
  await schedule.ended("clean");
  jobs.clock.offsetMs += DAY - MINUTE;
  await look(jobs, running, daily);
  assert.equal(await count(jobs), 1);
  jobs.clock.offsetMs += MINUTE;
  await look(jobs, running, daily);
  assert.equal(await count(jobs), 2);
  await look(jobs, running, undefined);
  assert.deepEqual(jobs.lines, []);
});

test("a clock that was set back does not keep it waiting for longer than an interval", async () => {
  await using jobs = await startJobs();
  const running = jobs.runner();
  jobs.clock.offsetMs = 1000 * DAY;
  await look(jobs, running, { everyMs: DAY });
  jobs.clock.offsetMs = 0;
  await look(jobs, running, { everyMs: DAY });
  jobs.clock.offsetMs = DAY;
  await look(jobs, running, { everyMs: DAY });
  assert.equal(await count(jobs), 1);
});

test("cron is in UTC, and what was missed while nothing ran is made up for once", async () => {
  await using jobs = await startJobs();
  const running = jobs.runner();
  const at = (iso: string): void => void (jobs.clock.offsetMs = Date.parse(iso) - Date.now());
  const nightly = { cron: "30 3 * * *" };
  at("2030-01-01T04:00:00Z");
  await look(jobs, running, nightly);
  at("2030-01-02T03:29:50Z");
  await look(jobs, running, nightly);
  assert.equal(await count(jobs), 0);
  at("2030-01-05T12:00:00Z");
  await look(jobs, running, nightly);
  await jobs.queue.cancel(1);
  await look(jobs, running, nightly);
  assert.equal(await count(jobs), 1);
  at("2030-01-06T03:30:00Z");
  await look(jobs, running, nightly);
  assert.equal(await count(jobs), 2);
  assert.deepEqual(jobs.lines, []);
});

test("a cron expression that was changed counts from now: nothing is made up for that it would have done before", async () => {
  await using jobs = await startJobs();
  const running = jobs.runner();
  const at = (iso: string): void => void (jobs.clock.offsetMs = Date.parse(iso) - Date.now());
  at("2030-01-01T04:00:00Z");
  await look(jobs, running, { cron: "30 3 * * *" });
  at("2030-01-01T13:00:00Z");
  await look(jobs, running, { cron: "0 12 * * *" });
  assert.equal(await count(jobs), 0);
  at("2030-01-02T12:00:00Z");
  await look(jobs, running, { cron: "0 12 * * *" });
  assert.equal(await count(jobs), 1);
});

test("it wakes when a job is due, without waiting for the next look", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const schedule = new JobSchedule({ ...jobs, runner: running.runner, look: () => undefined });
  schedule.add({
    name: "clean",
    when: () => ({ everyMs: 300 }),
    job: () => ({ kind: "clean", payload: {}, dedupe: "" }),
  });
  schedule.start();
  await until(async () => (await count(jobs)) === 1, "it is added");
  await schedule.stop();
});

test("what is outside its hours is put off until they begin, and added once", async () => {
  await using jobs = await startJobs();
  const running = jobs.runner();
  const at = (iso: string): void => void (jobs.clock.offsetMs = Date.parse(iso) - Date.now());
  const evening = (atMs: number): number => Math.max(atMs, Date.parse("2030-01-01T20:00:00Z"));
  const nightly: Scheduled = {
    name: "clean",
    when: () => ({ cron: "0 12 * * *" }),
    opensAtMs: evening,
    job: () => ({ kind: "clean", payload: {}, dedupe: "" }),
  };
  const lookOnce = async (): Promise<JobSchedule> => {
    const schedule = new JobSchedule({ ...jobs, runner: running.runner, look: () => undefined });
    schedule.add(nightly);
    schedule.start();
    await schedule.stop();
    return schedule;
  };
  at("2030-01-01T11:00:00Z");
  const schedule = await lookOnce();
  const dueAt = async (): Promise<string> => new Date((await schedule.dueAtMs(nightly)) ?? assert.fail()).toISOString();
  assert.equal(await dueAt(), "2030-01-01T20:00:00.000Z");
  at("2030-01-01T19:00:00Z");
  await lookOnce();
  assert.equal(await count(jobs), 0);
  assert.equal(await dueAt(), "2030-01-01T20:00:00.000Z");
  at("2030-01-01T20:00:01Z");
  await lookOnce();
  await lookOnce();
  assert.equal(await count(jobs), 1);
  assert.equal(await dueAt(), "2030-01-02T12:00:00.000Z");
});

test("a list that changes while it runs counts at once", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const schedule = new JobSchedule({ ...jobs, runner: running.runner, look: () => undefined });
  let list: Scheduled[] = [];
  let looks = 0;
  schedule.addAll(() => {
    looks++;
    return list;
  });
  schedule.start();
  await until(() => looks === 1, "it has looked");
  list = [{ name: "new", when: () => ({ everyMs: 1 }), job: () => ({ kind: "new", payload: {}, dedupe: "" }) }];
  schedule.changed();
  await until(async () => (await count(jobs)) === 1, "it is added");
  await schedule.stop();
});
