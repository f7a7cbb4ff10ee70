import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { systemClock } from "../../src/base/clock.ts";
import { Feed, type Told } from "../../src/replication/feed.ts";
import type { FeedEvent } from "../../src/replication/tasks.ts";

const LIMITS = { events: 5, tasks: 3, progressMs: 1 };

function task(id: number, state: Extract<FeedEvent, { type: "task" }>["state"]): FeedEvent {
  return { type: "task", task: id, rule: "base", subject: `dr app:${id}`, state };
}

function progress(id: number, doneBytes: number): FeedEvent {
  return {
    type: "progress",
    task: id,
    rule: "base",
    subject: `dr app:${id}`,
    doneBytes,
    totalBytes: 100,
    sentBytes: 0,
  };
}

const LAST = task(99, "done");

/** What a watcher is told up to {@link LAST}. */
async function upToLast(watched: AsyncGenerator<Told>): Promise<Told[]> {
  const told: Told[] = [];
  for await (const one of watched) {
    told.push(one);
    if (one.event === LAST) break;
  }
  return told;
}

test("each watcher is told everything in order, from when he came on", async () => {
  const feed = new Feed(systemClock);
  const { signal } = new AbortController();
  feed.publish(task(1, "running"));
  const [early, other] = [feed.subscribe(signal), feed.subscribe(signal)];
  const events = [task(2, "running"), task(2, "done"), LAST];
  for (const event of events) feed.publish(event);
  for (const told of [await upToLast(early), await upToLast(other)]) {
    assert.deepEqual(
      told.map(({ event }) => event),
      events,
    );
    assert.ok(told.every(({ id }, at) => at === 0 || id === (told[at - 1]?.id ?? 0) + 1));
  }
});

test("who comes back is told what happened meanwhile; who was away for too long, or knew an earlier daemon, that he missed something", async () => {
  const feed = new Feed(systemClock, LIMITS);
  const { signal } = new AbortController();
  const first = feed.subscribe(signal);
  feed.publish(task(1, "running"));
  const place = (await first.next()).value?.id;
  feed.publish(task(1, "done"));
  feed.publish(LAST);
  const back = await upToLast(feed.subscribe(signal, place));
  assert.deepEqual(
    back.map(({ event }) => event),
    [task(1, "done"), LAST],
  );
  for (let id = 2; id < 9; id++) feed.publish(task(id, "running"));
  feed.publish(LAST);
  for (const late of [place, 17, Number.MAX_SAFE_INTEGER]) {
    const { value } = await feed.subscribe(signal, late).next();
    assert.deepEqual(value?.event, { type: "missed" });
  }
});

test("a watcher who comes is told how far each unfinished copy is; a slow one, only the newest of it", async () => {
  const feed = new Feed(systemClock, LIMITS);
  const { signal } = new AbortController();
  feed.publish(progress(1, 10));
  feed.publish(progress(2, 10));
  feed.publish(task(2, "done"));
  const watched = feed.subscribe(signal);
  assert.deepEqual((await watched.next()).value?.event, progress(1, 10));
  for (let done = 11; done < 60; done++) feed.publish(progress(1, done));
  assert.deepEqual((await watched.next()).value?.event, progress(1, 59));
});

test("it ends with its signal and with the feed, also while nothing happens", { timeout: 5000 }, async () => {
  const feed = new Feed(systemClock);
  const leaving = new AbortController();
  const [one, other] = [feed.subscribe(leaving.signal), feed.subscribe(new AbortController().signal)];
  const ends = [one.next(), other.next()];
  leaving.abort();
  assert.equal((await ends[0])?.done, true);
  feed.end();
  assert.equal((await ends[1])?.done, true);
  assert.equal((await feed.subscribe(new AbortController().signal).next()).done, true);
});

test("whatever happens how fast, a watcher is told all that ended, in order, or that he missed something", async () => {
  const step = fc.oneof(
    fc.record({ what: fc.constant("task" as const), task: fc.nat(6), ends: fc.boolean() }),
    fc.record({ what: fc.constant("progress" as const), task: fc.nat(6), ends: fc.constant(false) }),
    fc.record({ what: fc.constant("read" as const), task: fc.constant(0), ends: fc.constant(false) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const feed = new Feed(systemClock, { ...LIMITS, progressMs: 0 });
      const watched = feed.subscribe(new AbortController().signal);
      feed.publish(task(0, "running"));
      const { value: first } = await watched.next();
      assert.ok(first);
      const happened: FeedEvent[] = [];
      const told: Told[] = [];
      for (const [at, { what, task: id, ends }] of steps.entries()) {
        if (what === "progress") feed.publish(progress(id, at));
        if (what === "task") {
          const event = task(id, ends ? "done" : "running");
          happened.push(event);
          feed.publish(event);
        }
        // Only where there is something to be told.
        if (what === "read" && (told.at(-1) ?? first).id < first.id + happened.length) {
          const { value } = await watched.next();
          if (value) told.push(value);
        }
      }
      feed.publish(LAST);
      told.push(...(await upToLast(watched)));
      const lasting = told.filter(({ event }) => event.type !== "progress");
      const missed = lasting.some(({ event }) => event.type === "missed");
      const heard = lasting.filter(({ event }) => event.type !== "missed").map(({ event }) => event);
      if (missed) {
        let from = 0;
        for (const event of heard.slice(0, -1)) {
          from = happened.findIndex((one, at) => at >= from && one === event) + 1;
          assert.ok(from > 0, "in order");
        }
      } else assert.deepEqual(heard, [...happened, LAST]);
      assert.ok(told.every(({ id }, at) => at === 0 || id >= (told[at - 1]?.id ?? 0)));
    }),
    { numRuns: 200 },
  );
});
