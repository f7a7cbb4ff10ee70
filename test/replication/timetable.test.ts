import assert from "node:assert/strict";
import { test } from "node:test";
import { parseConfig } from "../../src/config/load.ts";
import { JobSchedule } from "../../src/jobs/schedule.ts";
import { RuleBook } from "../../src/replication/rule-book.ts";
import { scheduledRun, scheduleRuns } from "../../src/replication/timetable.ts";
import { startJobs, type TestJobs } from "../jobs/jobs.ts";
import { until } from "../kit/registry.ts";
import { BY, startJournal } from "./record.ts";

const REGISTRIES = { dr: { url: "https://dr.example:5000" } };

function rule(name: string, on: object): object {
  return { name, from: { registry: "self", repositories: [`team/${name}`] }, to: [{ registry: "dr" }], on };
}

function at({ clock }: TestJobs, iso: string): void {
  clock.offsetMs = Date.parse(iso) - Date.now();
}

async function added({ queue }: TestJobs): Promise<string[]> {
  return (await queue.list({ limit: 100 })).map(({ kind, payload }) => `${kind} ${JSON.stringify(payload)}`).toSorted();
}

test("rules run by their cron within their window, those of the API too; paused ones, and such as have none, do not", async () => {
  await using jobs = await startJobs();
  const { replication } = parseConfig({
    replication: {
      registries: REGISTRIES,
      rules: [
        rule("hourly", { cron: "0 * * * *" }),
        rule("nightly", { cron: "0 * * * *", window: "20:00-06:00" }),
        rule("paused", { cron: "0 * * * *" }),
        rule("never", { cron: "never" }),
        rule("by-hand", { push: true }),
      ],
    },
  });
  await using journal = await startJournal(jobs.db);
  const rules = await RuleBook.open({ ...jobs, journal, config: () => replication });
  const { name: _, ...made } = { ...rule("made", { cron: "0 * * * *" }) } as Record<string, unknown>;
  await rules.put("made", made, BY);
  const look = async (): Promise<void> => {
    const schedule = new JobSchedule({ ...jobs, runner: jobs.runner().runner, look: () => undefined });
    scheduleRuns({ schedule, rules, isPaused: (name) => name === "paused" });
    schedule.start();
    await schedule.stop();
  };
  at(jobs, "2030-01-01T12:30:00Z");
  await look();
  at(jobs, "2030-01-01T13:00:01Z");
  await look();
  const run = (name: string): string => `replicate {"rule":"${name}","trigger":"schedule"}`;
  assert.deepEqual(await added(jobs), [run("hourly"), run("made")]);
  at(jobs, "2030-01-01T20:00:01Z");
  await look();
  // Those that are unfinished are joined.
  assert.deepEqual(await added(jobs), [run("hourly"), run("made"), run("nightly")]);
});

test("a rule that the API adds has its place in the schedule at once, and tells when it runs next", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { replication } = parseConfig({ replication: { registries: REGISTRIES } });
  await using journal = await startJournal(jobs.db);
  const rules = await RuleBook.open({ ...jobs, journal, config: () => replication });
  const schedule = new JobSchedule({ ...jobs, runner: running.runner, look: () => undefined });
  scheduleRuns({ schedule, rules, isPaused: () => false });
  at(jobs, "2030-01-01T12:30:00Z");
  schedule.start();
  const { name: _, ...given } = rule("made", { cron: "0 13 * * *", window: "20:00-06:00" }) as Record<string, unknown>;
  const made = await rules.put("made", given, BY);
  const known = async (): Promise<number> => (await jobs.db.all("SELECT name FROM schedules")).length;
  await until(async () => (await known()) === 1, "it counts from now");
  await schedule.stop();
  const dueAtMs = (await schedule.dueAtMs(scheduledRun(made.rule))) ?? assert.fail();
  assert.equal(new Date(dueAtMs).toISOString(), "2030-01-01T20:00:00.000Z");
});
