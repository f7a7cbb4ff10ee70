import assert from "node:assert/strict";
import { test } from "node:test";
import Sqlite from "better-sqlite3";
import { Attended } from "../../src/jobs/attended.ts";
import { exponential, Hopeless, Later, type JobContext, type Outcome } from "../../src/jobs/runner.ts";
import { until } from "../kit/registry.ts";
import { DAY, MINUTE } from "../registry/clients.ts";
import { kindOf, startJobs, untilTold, type Payload, type TestRunner } from "./jobs.ts";

const never = new AbortController().signal;
const silent = (): Promise<void> => Promise.resolve();

function add(name?: string): { kind: string; payload: Payload } {
  return { kind: "work", payload: name === undefined ? {} : { name } };
}

/** What `entrepot_job_runs_total` counts of a result. */
async function runs({ metrics }: TestRunner, result: string): Promise<number> {
  const { values } = await metrics.jobRuns.get();
  return values.find(({ labels }) => labels.result === result)?.value ?? 0;
}

test("jobs run as they are added, each once, with their result in the row and told to those who watch", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  const ran: string[] = [];
  const ended: [Payload, Outcome<unknown>][] = [];
  runner.register(
    kindOf(
      async ({ name = "" }, { attempt }) => {
        ran.push(name);
        return { name, attempt };
      },
      { ended: (payload, outcome) => void ended.push([payload, outcome]) },
    ),
  );
  const early = await jobs.queue.add(add("early"));
  const unknown = await jobs.queue.add({ kind: "unknown", payload: {} });
  runner.start();
  assert.deepEqual(await runner.watch(early.id, silent, never), {
    how: "done",
    result: { name: "early", attempt: 1 },
  });
  const late = await jobs.queue.add(add("late"));
  const watching = runner.watch(late.id, silent, never);
  runner.wake("work");
  await watching;
  assert.deepEqual(await runner.watch(late.id, silent, never), { how: "done", result: { name: "late", attempt: 1 } });
  assert.deepEqual(ran, ["early", "late"]);
  assert.deepEqual(ended[0], [{ name: "early" }, { how: "done", result: { name: "early", attempt: 1 } }]);
  assert.deepEqual((await jobs.queue.get(late.id))?.result, { name: "late", attempt: 1 });
  assert.equal((await jobs.queue.get(unknown.id))?.state, "queued", "nobody knows its kind");
  assert.equal(await runs(running, "done"), 2);
  await assert.rejects(runner.watch(999, silent, never), /^RangeError: there is no job 999$/);
});

test("so many of a kind run at a time as it allows, and kinds do not wait for each other", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  const doors = new Map<string, PromiseWithResolvers<void>>();
  let [now, most] = [0, 0];
  const behindDoor = async ({ name = "" }: Payload): Promise<void> => {
    const door = Promise.withResolvers<void>();
    doors.set(name, door);
    most = Math.max(most, ++now);
    await door.promise;
    now--;
  };
  runner.register(kindOf(behindDoor, { concurrency: 2 }));
  runner.register(kindOf(async () => "other", { kind: "other" }));
  runner.start();
  for (let n = 0; n < 5; n++) await jobs.queue.add(add(String(n)));
  runner.wake();
  await until(() => doors.size === 2, "two have begun");
  const other = await jobs.queue.add({ kind: "other", payload: {} });
  runner.wake("other");
  assert.deepEqual(await runner.watch(other.id, silent, never), { how: "done", result: "other" });
  assert.equal(doors.size, 2);
  for (let n = 0; n < 5; n++) {
    await until(() => doors.has(String(n)), `job ${n} has begun`);
    doors.get(String(n))?.resolve();
  }
  await until(async () => (await jobs.queue.list({ state: "done", limit: 10 })).length === 6, "all are done");
  assert.equal(most, 2);
});

test("a failure is tried again later and later, and after its attempts the job is dead until it is retried", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  const attempts: number[] = [];
  let works = false;
  runner.register(
    kindOf(
      async (_, { attempt }) => {
        attempts.push(attempt);
        if (!works) throw new Error(`failure ${attempt}`);
      },
      { backoffMs: exponential(MINUTE, DAY) },
    ),
  );
  runner.start();
  const { id } = await jobs.queue.add(add());
  const watching = runner.watch(id, silent, never);
  runner.wake();
  for (const attempt of [1, 2]) {
    await until(async () => (await jobs.queue.get(id))?.error === `failure ${attempt}`, `failure ${attempt} is stored`);
    const job = await jobs.queue.get(id);
    const waitMs = (job?.runAtMs ?? 0) - jobs.clock.now();
    const mostMs = MINUTE * 2 ** (attempt - 1);
    assert.ok(waitMs > mostMs / 2 - 1000 && waitMs <= mostMs + 1, `${waitMs} ms`);
    assert.equal(job?.state, "queued");
    jobs.clock.offsetMs += mostMs;
    runner.wake();
  }
  const outcome = await watching;
  assert.match(String(outcome.how === "dead" && outcome.error), /^Error: failure 3$/);
  assert.deepEqual(attempts, [1, 2, 3]);
  assert.equal((await jobs.queue.get(id))?.state, "dead");
  assert.deepEqual([await runs(running, "failed"), await runs(running, "dead")], [2, 1]);
  const again = await runner.watch(id, silent, never);
  assert.match(String(again.how === "dead" && again.error), /^Error: failure 3$/, "as its row tells it");
  works = true;
  assert.equal(await jobs.queue.retry(id), true);
  const retried = runner.watch(id, silent, never);
  runner.wake();
  assert.deepEqual(await retried, { how: "done", result: undefined });
});

test("what is hopeless is dead at once, so is a payload that can't be read; later costs no attempt", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  let asked = 0;
  runner.register(
    kindOf(
      async ({ name }, { attempt }) => {
        if (name === "hopeless") throw new Hopeless("it is gone");
        if (asked++ < 5) throw new Later("not yet", jobs.clock.now());
        return attempt;
      },
      {
        attempts: 2,
        parse: (payload) => {
          assert.ok("name" in (payload as object), "no name");
          return payload as Payload;
        },
      },
    ),
  );
  runner.start();
  const ids = [add("hopeless"), add(), add("later")].map(async (job) => (await jobs.queue.add(job)).id);
  const [hopeless = 0, unreadable = 0, later = 0] = await Promise.all(ids);
  const watching = [hopeless, unreadable, later].map((id) => runner.watch(id, silent, never));
  runner.wake();
  const outcomes = await Promise.all(watching);
  assert.deepEqual(
    outcomes.map(({ how }) => how),
    ["dead", "dead", "done"],
  );
  assert.deepEqual(outcomes[2], { how: "done", result: 1 }, "its attempts are still there");
  assert.deepEqual([(await jobs.queue.get(hopeless))?.attempts, asked], [1, 6]);
  assert.match((await jobs.queue.get(unreadable))?.error ?? "", /^what is stored of it can't be read: no name$/);
  assert.equal(await runs(running, "later"), 5);
});

test("progress goes to those who watch at once and to the row within about a second, lines with it", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  const finish = Promise.withResolvers<void>();
  runner.register(
    kindOf(async (_, context: JobContext<unknown>) => {
      for (let n = 0; n < 100; n++) {
        await context.progress({ n });
        context.line(`step ${n}`);
      }
      await finish.promise;
      await context.tell({ aside: true });
      await context.progress({ n: 100 });
      context.line("the end");
    }),
  );
  const { id } = await jobs.queue.add(add());
  const told: unknown[] = [];
  const left = new AbortController();
  const watching = runner.watch(id, async (event) => void told.push(event), never);
  const leaving = runner.watch(id, silent, left.signal);
  const failing = runner.watch(id, () => Promise.reject(new Error("the socket broke")), never);
  runner.start();
  await assert.rejects(failing, /the socket broke/);
  await until(() => told.length === 100, "all is told");
  assert.equal((await jobs.queue.get(id))?.progress, undefined, "one write for many");
  left.abort(new Error("left"));
  await assert.rejects(leaving, /^Error: left$/);
  await until(async () => (await jobs.queue.get(id))?.progress !== undefined, "the row is written");
  assert.deepEqual((await jobs.queue.get(id))?.progress, { n: 99 });
  assert.equal((await jobs.queue.lines(id, 0, 1000)).length, 100);
  finish.resolve();
  assert.equal((await watching).how, "done");
  assert.deepEqual(told.slice(100), [{ aside: true }, { n: 100 }]);
  assert.deepEqual((await jobs.queue.get(id))?.progress, { n: 100 });
  assert.equal((await jobs.queue.lines(id, 0, 1000)).at(-1)?.text, "the end");
});

test("cancelling takes out of the queue what waits, and ends what runs", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  let begun = 0;
  const ended: [Payload, string, number][] = [];
  runner.register(
    kindOf(
      (_, { signal }) => {
        begun++;
        return untilTold(signal);
      },
      { ended: (payload, { how }, jobId) => void ended.push([payload, how, jobId]) },
    ),
  );
  runner.start();
  const [first, second] = [await jobs.queue.add(add("first")), await jobs.queue.add(add("second"))];
  const watching = [first, second].map(({ id }) => runner.watch(id, silent, never));
  runner.wake();
  await until(() => begun === 1, "it has begun");
  assert.equal(await runner.cancel(second.id), "cancelled");
  assert.equal(await runner.cancel(first.id), "running");
  assert.deepEqual(await Promise.all(watching), [{ how: "cancelled" }, { how: "cancelled" }]);
  assert.deepEqual(
    (await jobs.queue.list({ limit: 10 })).map(({ state }) => state),
    ["cancelled", "cancelled"],
  );
  assert.equal(await runner.cancel(first.id), undefined);
  assert.equal(begun, 1);
  // Whoever counts on a job has to know that it will not run.
  assert.deepEqual(ended, [
    [{ name: "second" }, "cancelled", second.id],
    [{ name: "first" }, "cancelled", first.id],
  ]);
});

test("a pause ends the run at no cost and keeps the job until it is resumed; who watches stays, and learns of its end", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  const begun: number[] = [];
  const ended: string[] = [];
  let works = false;
  runner.register(
    kindOf(
      async (_, context: JobContext<unknown>) => {
        begun.push(context.attempt);
        if (!works) await untilTold(context.signal);
        await context.progress({ works });
      },
      { attempts: 1, ended: (_, { how }) => void ended.push(how) },
    ),
  );
  runner.start();
  const { id } = await jobs.queue.add(add());
  const told: unknown[] = [];
  const watching = runner.watch(id, async (event) => void told.push(event), never);
  runner.wake();
  await until(() => begun.length === 1, "it has begun");
  const paused = until(async () => (await jobs.queue.get(id))?.state === "paused", "it is paused");
  assert.equal(await runner.pause(id), "running");
  await paused;
  await until(() => ended.length === 1, "its kind was told");
  await runner.expose();
  const { values } = await running.metrics.jobs.get();
  assert.equal(values.find(({ labels }) => labels.state === "paused")?.value, 1);
  assert.equal(await runs(running, "paused"), 1);
  assert.equal(await runner.pause(id), undefined, "it is paused already");
  const other = await jobs.queue.add(add());
  works = true;
  runner.wake();
  assert.equal((await runner.watch(other.id, silent, never)).how, "done");
  assert.equal(await jobs.queue.resume(id), true);
  runner.wake("work");
  assert.deepEqual(await watching, { how: "done", result: undefined });
  assert.deepEqual([begun, ended, told], [[1, 1, 1], ["paused", "done", "done"], [{ works: true }]]);
});

test("what is resumed before its run has ended runs again at once, and what is cancelled then is cancelled", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  const doors: PromiseWithResolvers<void>[] = [];
  const ended: string[] = [];
  runner.register(
    kindOf(
      async (_, { attempt, signal }) => {
        const door = Promise.withResolvers<void>();
        doors.push(door);
        await door.promise;
        signal.throwIfAborted();
        return attempt;
      },
      { attempts: 1, ended: (_, { how }) => void ended.push(how) },
    ),
  );
  runner.start();
  const first = await jobs.queue.add(add());
  const watching = runner.watch(first.id, silent, never);
  runner.wake();
  await until(() => doors.length === 1, "it has begun");
  assert.equal(await runner.pause(first.id), "running");
  assert.equal(await jobs.queue.resume(first.id), true);
  doors[0]?.resolve();
  await until(() => doors.length === 2, "it has begun again");
  doors[1]?.resolve();
  assert.deepEqual(await watching, { how: "done", result: 1 });
  const second = await jobs.queue.add(add());
  const cancelling = runner.watch(second.id, silent, never);
  runner.wake();
  await until(() => doors.length === 3, "the second one has begun");
  assert.equal(await runner.pause(second.id), "running");
  assert.equal(await runner.cancel(second.id), "running");
  doors[2]?.resolve();
  assert.deepEqual(await cancelling, { how: "cancelled" });
  assert.deepEqual(ended, ["later", "done", "cancelled"]);
});

test("the parts of a job are cancelled with it: those that wait, those that are paused and those that run", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  const ended: [string | undefined, string][] = [];
  let begun = 0;
  runner.register(
    kindOf(
      (_, { signal }) => {
        begun++;
        return untilTold(signal);
      },
      { ended: ({ name }, { how }) => void ended.push([name, how]) },
    ),
  );
  const parent = 77;
  const ids: number[] = [];
  for (const name of ["runs", "paused", "queued"]) ids.push((await jobs.queue.add({ ...add(name), parent })).id);
  const [, paused = 0] = ids;
  const unknown = (await jobs.queue.add({ kind: "unknown", payload: {}, parent })).id;
  const other = await jobs.queue.add(add("other"));
  assert.equal(await runner.pause(paused), "paused");
  const watching = ids.map((id) => runner.watch(id, silent, never));
  runner.start();
  await until(() => begun === 1, "one has begun");
  assert.deepEqual(new Set(await runner.cancelPart(parent)), new Set([...ids, unknown]));
  assert.deepEqual(
    (await Promise.all(watching)).map(({ how }) => how),
    ["cancelled", "cancelled", "cancelled"],
  );
  assert.deepEqual(new Map(ended), new Map(["runs", "paused", "queued"].map((name) => [name, "cancelled"])));
  assert.deepEqual(await runner.cancelPart(parent), []);
  await until(() => begun === 2, "the other one has its turn");
  assert.equal((await jobs.queue.get(other.id))?.state, "running");
});

test("a watcher that takes nothing keeps no run from its end, and no runner from stopping", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  runner.register(
    kindOf(async (_, context) => {
      await context.progress({ far: 1 });
      await context.tell({ found: 1 });
      return untilTold(context.signal);
    }),
  );
  const [first, second] = [await jobs.queue.add(add()), await jobs.queue.add(add())];
  let told = 0;
  const stalled = (): Promise<void> => {
    told++;
    return new Promise(() => undefined);
  };
  const watching = [first, second].map(({ id }) => runner.watch(id, stalled, never));
  runner.start();
  await until(() => told === 1, "the first tells");
  assert.equal(await runner.cancel(first.id), "running");
  assert.deepEqual(await watching[0], { how: "cancelled" });
  await until(() => told === 2, "the second tells, too");
  let isStopped = false;
  void running.stop().then(() => (isStopped = true));
  await until(() => isStopped, "the runner has stopped");
  assert.deepEqual(await watching[1], { how: "stopped" });
});

test("stopping ends what runs and queues it again at no cost; the next runner goes on with it", async () => {
  await using jobs = await startJobs();
  const begun: number[] = [];
  const running = jobs.runner();
  const { runner } = running;
  runner.register(
    kindOf(
      (_, { attempt, signal }) => {
        begun.push(attempt);
        return untilTold(signal);
      },
      { attempts: 1 },
    ),
  );
  runner.start();
  const { id } = await jobs.queue.add(add());
  const watching = runner.watch(id, silent, never);
  runner.wake();
  await until(() => begun.length === 1, "it has begun");
  await running.stop();
  assert.deepEqual(await watching, { how: "stopped" });
  const { state, attempts, endedAtMs } = (await jobs.queue.get(id)) ?? assert.fail();
  assert.deepEqual([state, attempts, endedAtMs], ["queued", 0, undefined]);
  assert.deepEqual(await runner.watch(id, silent, never), { how: "stopped" }, "nobody waits for a stopped runner");
  await using next = jobs.runner();
  next.runner.register(kindOf(async (_, { attempt }) => attempt, { attempts: 1 }));
  next.runner.start();
  assert.deepEqual(await next.runner.watch(id, silent, never), { how: "done", result: 1 });
});

test("a job that ends its process again and again is dead after some tries, without running once more", async () => {
  await using jobs = await startJobs();
  await jobs.queue.add(add());
  for (let crash = 0; crash < 4; crash++) {
    assert.ok(await jobs.queue.claim("work", MINUTE));
    await jobs.queue.free();
  }
  await using running = jobs.runner();
  const ended: string[] = [];
  running.runner.register(
    kindOf(() => assert.fail("it is run"), { attempts: 1, ended: (_, { how }) => void ended.push(how) }),
  );
  running.runner.start();
  const outcome = await running.runner.watch(1, silent, never);
  assert.match(
    String(outcome.how === "dead" && outcome.error),
    /the process ended in the middle of each of its 4 runs/,
  );
  assert.deepEqual(ended, ["dead"]);
});

test("while another process holds the database, jobs wait; what ends meanwhile is stored later, and nothing is run twice", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  const finish = Promise.withResolvers<void>();
  const ran: string[] = [];
  runner.register(
    kindOf(async ({ name = "" }) => {
      ran.push(name);
      if (name === "first") await finish.promise;
    }),
  );
  runner.start();
  const first = await jobs.queue.add(add("first"));
  const second = await jobs.queue.add(add("second"));
  const watching = [first, second].map(({ id }) => runner.watch(id, silent, never));
  runner.wake();
  await until(() => ran.length === 1, "it has begun");
  using stack = new DisposableStack();
  const other = stack.adopt(new Sqlite(jobs.file), (db) => void db.close());
  other.exec("BEGIN IMMEDIATE");
  finish.resolve();
  const refused = (): boolean => jobs.lines.some(({ msg }) => msg === "the database refuses, jobs wait");
  await until(refused, "it is refused");
  other.exec("COMMIT");
  assert.deepEqual(
    (await Promise.all(watching)).map(({ how }) => how),
    ["done", "done"],
  );
  assert.deepEqual(ran, ["first", "second"]);
});

test("a runner with nothing to do asks for nothing, until the next job is due or somebody wakes it", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const { runner } = running;
  let claims = 0;
  const claim = jobs.queue.claim.bind(jobs.queue);
  jobs.queue.claim = (...args) => {
    claims++;
    return claim(...args);
  };
  runner.register(kindOf(async () => jobs.clock.now()));
  runner.start();
  await until(() => claims === 1, "it has looked");
  const runAtMs = jobs.clock.now() + 600;
  const { id } = await jobs.queue.add({ ...add(), runAtMs });
  const watching = runner.watch(id, silent, never);
  runner.wake();
  const outcome = await watching;
  assert.ok(outcome.how === "done" && Number(outcome.result) >= runAtMs && Number(outcome.result) < runAtMs + 400);
  await until(() => claims >= 4, "it has looked once more");
  assert.ok(claims <= 5, `${claims} claims`);
});

test("whoever asks attends alone: what waits from before gives way, leaving cancels, and others are told", async () => {
  await using jobs = await startJobs();
  await using running = jobs.runner();
  const ran: string[] = [];
  const attended = new Attended<Payload, { at: string }, { ran: string }>({
    queue: jobs.queue,
    runner: running.runner,
    title: "the work",
    kind: {
      kind: "work",
      parse: (payload) => payload as Payload,
      run: async ({ name = "" }, context) => {
        ran.push(name);
        await context.progress({ at: name });
        if (name === "long") await untilTold(context.signal);
        if (name === "fails") throw new Error("it broke");
        return { ran: name };
      },
    },
  });
  const left = await jobs.queue.add({ ...add("left behind"), dedupe: "" });
  const other = await jobs.queue.add({ kind: "other", payload: {} });
  const told: object[] = [];
  const tell = async (event: object): Promise<void> => void told.push(event);
  const first = attended.start({ name: "first" }, tell, never);
  assert.throws(() => attended.start({}, tell, never), /the work is running already: wait for its end/);
  await first;
  assert.deepEqual(told.splice(0), [{ at: "first" }, { type: "done", ran: "first" }]);
  assert.deepEqual(ran, ["first"]);
  assert.equal((await jobs.queue.get(left.id))?.state, "cancelled");
  assert.equal((await jobs.queue.get(other.id))?.state, "queued");
  await attended.start({ name: "fails" }, tell, never);
  assert.deepEqual(told.splice(0), [{ at: "fails" }, { type: "failed", message: "it broke" }]);
  const leaves = new AbortController();
  const long = attended.start({ name: "long" }, tell, leaves.signal);
  await until(() => told.length === 1, "it has begun");
  leaves.abort();
  await long;
  assert.deepEqual(told.splice(0), [{ at: "long" }, { type: "failed", message: "it was cancelled" }]);
  await attended.start({ name: "gone" }, tell, AbortSignal.abort());
  assert.equal(told.length, 1);
  assert.equal(attended.isAttended, false);
});
