import assert from "node:assert/strict";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { Metrics } from "../../src/base/metrics.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { Config } from "../../src/config/schema.ts";
import type { Database } from "../../src/db/database.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import type { NewEvent } from "../../src/events/event.ts";
import { Journal } from "../../src/events/journal.ts";
import { JobQueue } from "../../src/jobs/queue.ts";
import { digestOf } from "../../src/oci/digest.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { PushEvents } from "../../src/replication/push-events.ts";
import { RuleBook } from "../../src/replication/rule-book.ts";
import { until } from "../kit/registry.ts";
import { BY } from "./record.ts";

interface Stage extends AsyncDisposable {
  db: Database;
  queue: JobQueue;
  rules: RuleBook;
  configure: (section: object) => void;
  /** Records them as a push does: in a transaction of its own. */
  record: (...events: Partial<NewEvent>[]) => Promise<void>;
  /** A daemon's look at events. */
  start: () => Promise<PushEvents>;
  /** What became tasks, in order. */
  tasks: () => Promise<string[]>;
  woken: string[];
  onWoken: () => void;
  /** While it is set, adding fails. */
  failure: Error | undefined;
  faults: unknown[];
}

const DIGEST = digestOf(Buffer.from("an image"));
const DR = { dr: { url: "https://dr.example:5000" } };

function section(...repositories: string[]): object {
  const rules = repositories.map((repository) => ({
    name: repository.replaceAll(/\W/g, "-").replace(/^-*/, "r"),
    from: { registry: "self", repositories: [repository] },
    to: [{ registry: "dr" }],
    on: { push: true },
  }));
  return { registries: DR, rules };
}

async function stage(given: object = section("team/**")): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(await mkdtempDisposable(join(tmpdir(), "entrepot-events-")));
  const db = stack.use(await openSqlite(join(folder.path, "entrepot.db")));
  const log = await createLog({ level: "info", format: "json", destination: { write: () => undefined } });
  const faults: unknown[] = [];
  const onFault = (_: string, error: unknown): void => void faults.push(error);
  const events = { keep: 0, pulls: true };
  const journal = stack.use(
    new Journal({ db, clock: systemClock, config: () => events, log, metrics: new Metrics(), onFault }),
  );
  const read = (raw: object): Config["replication"] => parseConfig({ replication: raw }).replication;
  let config = read(given);
  const rules = await RuleBook.open({ db, clock: systemClock, log, journal, config: () => config });
  const queue = new JobQueue(db, systemClock);
  const woken: string[] = [];
  const owned = stack.move();
  const s: Omit<Stage, typeof Symbol.asyncDispose> = {
    db,
    queue,
    rules,
    woken,
    faults,
    failure: undefined,
    onWoken: () => undefined,
    configure: (raw) => void (config = read(raw)),
    record: async (...more) => {
      const all = more.map((event): NewEvent => ({
        action: "push",
        outcome: "done",
        repository: "team/app" as RepositoryName,
        tag: "1" as Tag,
        digest: DIGEST,
        by: { actor: "ci" },
        ...event,
      }));
      await db.transaction("lazy", (tx) => journal.recordWithin(tx, all));
      journal.recorded();
    },
    start: async () => {
      const pushEvents = owned.use(
        new PushEvents({
          db,
          journal,
          rules,
          onFault,
          wake: (kind) => {
            woken.push(kind);
            s.onWoken();
          },
          pushedWithin: async (tx, { registry, repository, tag, digest }, trigger) => {
            if (s.failure) throw s.failure;
            await queue.addWithin(tx, {
              kind: "copy:dr",
              payload: {},
              subject: `${trigger} ${registry} ${repository}:${tag} ${digest}`,
            });
            return ["copy:dr"];
          },
        }),
      );
      await pushEvents.start();
      return pushEvents;
    },
    tasks: async () =>
      (await queue.list({ limit: 100 })).map(({ subject = "" }) => subject.replace(` ${DIGEST}`, "")).toReversed(),
  };
  return Object.assign(s, { [Symbol.asyncDispose]: () => owned.disposeAsync() });
}

async function cursor({ db }: Stage): Promise<number | undefined> {
  return (await db.get<{ id: number }>("SELECT event_id AS id FROM replication_cursor"))?.id;
}

test("a push that a rule waits for is a task within a tenth of a second; nothing else is one", async () => {
  await using s = await stage();
  await s.start();
  await until(async () => (await cursor(s)) === 0, "it has begun");
  await s.record(
    { tag: "1" as Tag },
    { action: "pull" },
    { action: "delete", detail: "tag" },
    { outcome: "denied" },
    { repository: "other/app" as RepositoryName },
    { tag: "2" as Tag },
  );
  await until(() => s.woken.length === 1, "its lane is woken");
  assert.deepEqual(await s.tasks(), ["push self team/app:1", "push self team/app:2"]);
  const delaysMs: number[] = [];
  for (const tag of ["3", "4", "5"]) {
    const { promise, resolve } = Promise.withResolvers<void>();
    s.onWoken = resolve;
    const begunMs = performance.now();
    await s.record({ tag: tag as Tag });
    await promise;
    delaysMs.push(performance.now() - begunMs);
  }
  // The best of three: others use this machine, too.
  assert.ok(Math.min(...delaysMs) < 100, `${delaysMs.join(", ")} ms`);
});

test("what was pushed before a rule waited for it is no task, what was pushed while the daemon was away is one, once", async () => {
  await using s = await stage();
  await s.record({ tag: "before" as Tag });
  await using first = await s.start();
  await until(async () => (await cursor(s)) === 1, "it has begun");
  await first[Symbol.asyncDispose]();
  await s.record({ tag: "meanwhile" as Tag });
  await s.start();
  await until(async () => (await s.tasks()).length === 1, "it is looked at");
  await s.record({ tag: "after" as Tag });
  await until(async () => (await s.tasks()).length === 2, "what comes then, too");
  assert.deepEqual(await s.tasks(), ["push self team/app:meanwhile", "push self team/app:after"]);
});

test("tasks and the cursor are one transaction: where adding fails neither is there, and nothing is lost or added twice", async () => {
  await using s = await stage();
  const stopped = await s.start();
  await until(async () => (await cursor(s)) === 0, "it has begun");
  s.failure = new Error("no room");
  await s.record(...Array.from({ length: 120 }, (_, i) => ({ tag: `t${i}` as Tag })));
  await until(() => s.faults.length > 0, "it fails");
  assert.deepEqual([await cursor(s), await s.tasks()], [0, []]);
  await stopped[Symbol.asyncDispose]();
  s.failure = undefined;
  await s.start();
  await until(async () => (await cursor(s)) === 120, "all of them are looked at");
  const { jobs } = (await s.db.get<{ jobs: number }>("SELECT COUNT(DISTINCT subject) AS jobs FROM jobs")) ?? {
    jobs: 0,
  };
  assert.equal(jobs, 120);
  assert.equal((await s.db.get<{ jobs: number }>("SELECT COUNT(*) AS jobs FROM jobs"))?.jobs, 120);
});

test("a rule that the API adds gets what is pushed from then on, and without any that waits there is no cursor", async () => {
  await using s = await stage({ registries: DR });
  await s.start();
  await s.record({ tag: "1" as Tag });
  await s.rules.put(
    "made",
    {
      from: { registry: "self", repositories: ["team/*"] },
      to: [{ registry: "dr" }],
      on: { push: true },
    },
    BY,
  );
  await until(async () => (await cursor(s)) !== undefined, "it has begun");
  await s.record({ tag: "2" as Tag });
  await until(() => s.woken.length > 0, "it is looked at");
  assert.deepEqual(await s.tasks(), ["push self team/app:2"]);
  await s.rules.remove("made", BY);
  await until(async () => (await cursor(s)) === undefined, "nobody waits");
  await s.record({ tag: "3" as Tag });
  s.configure(section("team/app"));
  await s.record({ tag: "4" as Tag });
  await until(() => s.woken.length > 1, "a configured one counts at the next look");
  assert.ok((await s.tasks()).includes("push self team/app:4"));
});
