import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { rm } from "node:fs/promises";
import { test } from "node:test";
import { HTTP, type CloudEvent } from "cloudevents";
import { Metrics } from "../../src/base/metrics.ts";
import { parseConfig } from "../../src/config/load.ts";
import { Journal } from "../../src/events/journal.ts";
import { Webhooks } from "../../src/events/webhooks.ts";
import { JobRunner, type JobKind } from "../../src/jobs/runner.ts";
import type { RepositoryName } from "../../src/oci/reference.ts";
import { startJobs } from "../jobs/jobs.ts";
import { pushBlob, pushManifest, select, send } from "../kit/hosted.ts";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { isSigned, ok, startReceiver, status, type Answering, type Receiver } from "./receiver.ts";

const IMAGE = makeImage({ layers: [1000] });

interface DistributionEvent {
  id: string;
  action: string;
  target: { repository: string; tag?: string; digest?: string; mediaType?: string; size?: number };
  request: { id?: string; addr?: string; method?: string };
}

/** Written from distribution's documentation of notifications. */
function read({ body, headers }: { body: string; headers: Record<string, unknown> }): DistributionEvent[] {
  assert.equal(headers["content-type"], "application/vnd.docker.distribution.events.v2+json");
  const { events } = JSON.parse(body) as { events: DistributionEvent[] };
  for (const event of events) {
    assert.match(event.id, /^[0-9a-f-]{36}$/);
    assert.ok(["push", "pull", "mount", "delete", "ping"].includes(event.action));
    for (const part of ["target", "request", "actor", "source"]) {
      assert.equal(typeof event[part as "target"], "object", part);
    }
  }
  return events;
}

function tagsOf(receiver: Receiver): (string | undefined)[] {
  return (receiver.taken as unknown as DistributionEvent[]).map(({ target }) => target.tag);
}

function daemon(webhooks: object[], root?: string): Promise<TestRegistry> {
  return startRegistry({
    config: { webhooks: webhooks as Record<string, unknown>[], hosted: { namespaces: ["team"] } },
    ...(root === undefined ? {} : { root }),
  });
}

async function pushBlobs(registry: TestRegistry, repository = "team/app", image: Image = IMAGE): Promise<void> {
  for (const blob of image.blobs.values()) await pushBlob(registry, repository, blob.bytes);
}

/** Pushes manifests one after another. @returns their tags */
async function pushTags(
  registry: TestRegistry,
  count: number,
  prefix = "t",
  repository = "team/app",
): Promise<string[]> {
  const tags = Array.from({ length: count }, (_, index) => `${prefix}${index}`);
  for (const tag of tags) await pushManifest(registry, repository, IMAGE, tag);
  return tags;
}

async function api(registry: TestRegistry, method: string, path: string, expected = 200, body = {}): Promise<object> {
  const headers: Record<string, string> = method === "GET" ? {} : { "content-type": "application/json" };
  const content = method === "GET" ? undefined : JSON.stringify(body);
  const answer = await send(registry, expected, method, `/api/v1${path}`, headers, content);
  return JSON.parse(answer.bytes.toString()) as object;
}

/** Waits for the end of the job that an answer names. */
async function jobOf(registry: TestRegistry, answer: object): Promise<Record<string, unknown>> {
  let job: Record<string, unknown> = {};
  await until(async () => {
    job = (await api(registry, "GET", `/jobs/${(answer as { job: number }).job}`)) as Record<string, unknown>;
    return job["endedAt"] !== undefined;
  }, "the job has ended");
  return job;
}

function cursor(registry: TestRegistry, name = "ci"): Record<string, unknown> {
  return select(registry, "SELECT * FROM webhook_cursors WHERE endpoint = ?", name)[0] ?? {};
}

function failures(registry: TestRegistry): Record<string, unknown>[] {
  return select(registry, "SELECT * FROM webhook_failures ORDER BY id");
}

test("a push is told, signed, with who did it and what it was", async () => {
  await using receiver = await startReceiver();
  await using registry = await daemon([{ name: "ci", url: receiver.url, secret: "s3cret" }]);
  await pushBlobs(registry);
  await pushTags(registry, 1);
  await receiver.took(1);
  const [request] = receiver.received;
  assert.ok(request);
  assert.ok(isSigned(request, "s3cret"));
  const [event] = read(request);
  assert.deepEqual([event?.action, event?.target.repository, event?.target.tag], ["push", "team/app", "t0"]);
  assert.deepEqual(
    [event?.target.digest, event?.target.mediaType, event?.target.size],
    [IMAGE.digest, IMAGE.mediaType, IMAGE.manifest.length],
  );
  assert.equal(event?.request.addr, "127.0.0.1");
  assert.equal(await registry.metric("entrepot_webhook_deliveries_total", { endpoint: "ci", result: "delivered" }), 1);
  assert.equal(await registry.metric("entrepot_webhook_pending", { endpoint: "ci" }), 0);
});

test("the SDK of CloudEvents takes what an endpoint of that format gets", async () => {
  await using receiver = await startReceiver();
  await using registry = await daemon([{ name: "ci", url: receiver.url, format: "cloudevents" }]);
  await pushBlobs(registry);
  await pushTags(registry, 2);
  await send(registry, 202, "DELETE", "/v2/team/app/manifests/t0");
  await receiver.took(3);
  const events = receiver.received.flatMap(
    ({ headers, body }) => HTTP.toEvent({ headers, body }) as CloudEvent<unknown>[],
  );
  assert.ok(events.every((event) => event.validate()));
  assert.deepEqual(
    events.map(({ type, subject }) => `${type} ${subject}`),
    [
      "io.entrepot.image.push team/app:t0",
      "io.entrepot.image.push team/app:t1",
      "io.entrepot.image.delete team/app:t0",
    ],
  );
});

test("an endpoint gets what it wants: actions, repositories, and nothing that was refused", async () => {
  await using pushes = await startReceiver();
  await using deletes = await startReceiver();
  await using registry = await daemon([
    { name: "pushes", url: pushes.url, actions: ["push"], repositories: ["team/app", "team/x/**"] },
    { name: "deletes", url: deletes.url, actions: ["delete"] },
  ]);
  for (const repository of ["team/app", "team/other", "team/x/y"]) {
    await pushBlobs(registry, repository);
    await pushTags(registry, 1, "t", repository);
  }
  await send(registry, 404, "DELETE", "/v2/team/app/manifests/none");
  await send(registry, 202, "DELETE", "/v2/team/other/manifests/t0");
  await Promise.all([pushes.took(2), deletes.took(1)]);
  const told = (receiver: Receiver): string[] =>
    (receiver.taken as unknown as DistributionEvent[]).map(({ action, target }) => `${action} ${target.repository}`);
  assert.deepEqual(told(pushes), ["push team/app", "push team/x/y"]);
  assert.deepEqual(told(deletes), ["delete team/other"]);
});

test("many pushes are few requests, and none waits for an endpoint", async () => {
  await using slow = await startReceiver((response) => void setTimeout(() => response.writeHead(200).end(), 300));
  await using registry = await daemon([{ name: "ci", url: slow.url }]);
  await pushBlobs(registry);
  const tags = await pushTags(registry, 150);
  await until(() => slow.received.reduce((sum, one) => sum + read(one).length, 0) === 150, "all are sent");
  assert.ok(slow.received.length <= 15, `${slow.received.length} requests`);
  assert.deepEqual(
    slow.received.flatMap((one) => read(one).map(({ target }) => target.tag)),
    tags,
  );
});

test("a batch that fails is sent again as it was, and what comes after it waits: the order stays", async () => {
  const flaky: Answering = (response, received, count) => status(count <= 2 ? 503 : 200)(response, received, count);
  await using receiver = await startReceiver(flaky);
  await using registry = await daemon([{ name: "ci", url: receiver.url }]);
  await pushBlobs(registry);
  const first = await pushTags(registry, 3, "a");
  await receiver.arrived(1);
  const second = await pushTags(registry, 3, "b");
  await until(() => receiver.taken.length === 6, "all are told in the end");
  assert.deepEqual(tagsOf(receiver), [...first, ...second]);
  const [one, again, third] = receiver.received;
  assert.ok(one && again && third);
  for (const repeated of [again, third]) {
    assert.equal(repeated.headers["x-entrepot-delivery"], one.headers["x-entrepot-delivery"]);
    assert.equal(repeated.body, one.body);
  }
  assert.notEqual(receiver.received[3]?.headers["x-entrepot-delivery"], one.headers["x-entrepot-delivery"]);
  // The first pause is 1 to 2 s, the next 2 to 4.
  assert.ok(again.atMs - one.atMs >= 950 && again.atMs - one.atMs < 4_000, `${again.atMs - one.atMs}`);
  assert.ok(third.atMs - again.atMs >= 1_950, `${third.atMs - again.atMs}`);
  // The receiver knows a moment earlier than the row.
  const [newest] = select(registry, "SELECT MAX(id) AS id FROM events");
  await until(() => cursor(registry)["event_id"] === newest?.["id"], "the cursor is at the newest event");
  const { failures: streak, failing_since, error } = cursor(registry);
  assert.deepEqual([streak, failing_since, error], [0, null, null]);
  assert.equal(registry.log.filter(({ msg }) => msg === "a webhook does not take events: it is tried again").length, 1);
  assert.equal(registry.log.filter(({ msg }) => msg === "a webhook takes events again").length, 1);
});

test("a dead endpoint is asked once in a pause however much is pushed, harms no other, and gets all when it is back", async () => {
  await using dead = await startReceiver();
  await using alive = await startReceiver();
  await dead.stop();
  await using registry = await daemon([
    { name: "ci", url: dead.url },
    { name: "audit", url: alive.url },
  ]);
  await pushBlobs(registry);
  const tags = await pushTags(registry, 40);
  await alive.took(40);
  await until(() => cursor(registry)["failures"] === 1, "the first try has failed");
  tags.push(...(await pushTags(registry, 40, "u")));
  await alive.took(80);
  const failed = await registry.metric("entrepot_webhook_deliveries_total", { endpoint: "ci", result: "failed" });
  assert.ok(failed <= 2, `${failed} tries`);
  assert.equal(await registry.metric("entrepot_webhook_pending", { endpoint: "ci" }), 80);
  assert.match(String(cursor(registry)["error"]), /ECONNREFUSED/);
  await dead.start();
  await dead.took(80);
  assert.deepEqual(tagsOf(dead), tags);
  assert.deepEqual(tagsOf(alive), tags);
});

test("Retry-After is waited for", async () => {
  const busy: Answering = (response, received, count) =>
    count === 1 ? status(429, { "retry-after": "3" })(response, received, count) : ok(response, received, count);
  await using receiver = await startReceiver(busy);
  await using registry = await daemon([{ name: "ci", url: receiver.url }]);
  await pushBlobs(registry);
  await pushTags(registry, 1);
  await receiver.took(1);
  const [one, again] = receiver.received;
  assert.ok(one && again && again.atMs - one.atMs >= 2_950, "three seconds have passed");
});

test("a job that lasts as long as events come keeps nothing of its waits", async () => {
  await using receiver = await startReceiver();
  await using jobs = await startJobs();
  const { db, clock, queue, log } = jobs;
  let signal = new AbortController().signal;
  class ObservedRunner extends JobRunner {
    override register<P extends object, E, R>(kind: JobKind<P, E, R>): void {
      const run: typeof kind.run = (payload, context) =>
        kind.run(payload, { ...context, signal: (signal = context.signal) });
      super.register({ ...kind, run });
    }
  }
  const metrics = new Metrics();
  const runner = new ObservedRunner({ queue, clock, log, metrics });
  const { events, webhooks: config } = parseConfig({ webhooks: [{ name: "ci", url: receiver.url }] });
  const onFault = (_operation: string, error: unknown): void => assert.fail(error as Error);
  const shared = { db, clock, log, metrics, onFault };
  await using journal = new Journal({ ...shared, config: () => events });
  const origin = { publicUrl: undefined, hostname: "here", instanceId: "1" };
  await using webhooks = new Webhooks({ ...shared, journal, queue, runner, config, origin });
  await using stack = new AsyncDisposableStack();
  stack.defer(() => runner.stop());
  await webhooks.start();
  runner.start();
  const repository = "team/app" as RepositoryName;
  const by = { actor: "somebody" };
  for (let count = 1; count <= 3; count++) {
    await db.transaction("durable", (tx) =>
      journal.recordWithin(tx, [{ action: "push", outcome: "done", repository, by }]),
    );
    journal.recorded();
    await receiver.took(count);
  }
  assert.ok(getEventListeners(signal, "abort").length <= 1);
});

test("an endpoint whose job is cancelled while it waits for its next try is told all the same", async () => {
  await using receiver = await startReceiver(status(503, { "retry-after": "3000" }));
  await using registry = await daemon([{ name: "ci", url: receiver.url }]);
  await pushBlobs(registry);
  const tags = await pushTags(registry, 1);
  let waiting: { id: number } | undefined;
  await until(async () => {
    const { items } = (await api(registry, "GET", "/jobs?kind=webhook&state=queued")) as { items: { id: number }[] };
    waiting = receiver.received.length === 1 ? items[0] : undefined;
    return waiting !== undefined;
  }, "it waits");
  receiver.answer(ok);
  await api(registry, "POST", `/jobs/${waiting?.id}/cancel`);
  await receiver.took(1);
  assert.deepEqual(tagsOf(receiver), tags);
});

test("what was not taken after all tries is set aside, and later events have their turn", async () => {
  await using receiver = await startReceiver(status(500, {}, "no room"));
  await using registry = await daemon([{ name: "ci", url: receiver.url, attempts: 2 }]);
  await pushBlobs(registry);
  await pushTags(registry, 3, "a");
  await until(() => failures(registry).length === 1, "the batch is set aside");
  const [failure] = failures(registry);
  assert.equal(failure?.["events"], 3);
  assert.match(String(failure?.["error"]), /answered 500 \(no room\)/);
  assert.equal(receiver.received.length, 2);
  receiver.answer(ok);
  await pushTags(registry, 2, "b");
  await receiver.took(2);
  assert.deepEqual(tagsOf(receiver), ["b0", "b1"]);
  assert.equal(await registry.metric("entrepot_webhook_deliveries_total", { endpoint: "ci", result: "given_up" }), 1);
});

test("what was set aside is sent once more by hand, under the ids of before", async () => {
  await using receiver = await startReceiver(status(500));
  await using registry = await daemon([{ name: "ci", url: receiver.url, attempts: 1 }]);
  await pushBlobs(registry);
  const tags = await pushTags(registry, 3);
  await until(() => failures(registry).length === 1, "the batch is set aside");
  const list = (await api(registry, "GET", "/webhooks/ci/failures")) as { items: { id: number; events: number }[] };
  assert.deepEqual(
    list.items.map(({ events }) => events),
    [3],
  );
  const path = `/webhooks/ci/failures/${list.items[0]?.id}/redeliver`;

  const refused = await jobOf(registry, await api(registry, "POST", path, 202));
  assert.equal(refused["state"], "dead");
  assert.match(String(refused["error"]), /answered 500/);
  assert.equal(failures(registry)[0]?.["redelivered_at"], null);

  receiver.answer(ok);
  const done = await jobOf(registry, await api(registry, "POST", path, 202));
  assert.deepEqual([done["state"], done["result"]], ["done", { delivered: 3 }]);
  assert.deepEqual(tagsOf(receiver), tags);
  assert.notEqual(failures(registry)[0]?.["redelivered_at"], null);
  const deliveries = new Set(receiver.received.map(({ headers }) => headers["x-entrepot-delivery"]));
  assert.equal(deliveries.size, 1);
  await api(registry, "POST", "/webhooks/ci/failures/99/redeliver", 404);
  await api(registry, "POST", "/webhooks/none/failures/1/redeliver", 404);
});

test("events of the past are sent again by their ids or their time, only those that the endpoint wants", async () => {
  await using receiver = await startReceiver();
  await using registry = await daemon([{ name: "ci", url: receiver.url, repositories: ["team/app"] }]);
  for (const repository of ["team/app", "team/other"]) await pushBlobs(registry, repository);
  await pushTags(registry, 120);
  await pushTags(registry, 1, "x", "team/other");
  await receiver.took(120);
  const ids = select(registry, "SELECT id FROM events WHERE tag IN ('t5', 't117') ORDER BY id").map(({ id }) =>
    Number(id),
  );
  const job = await api(registry, "POST", "/webhooks/ci/redeliver", 202, { from: ids[0], to: ids[1] });
  assert.deepEqual((await jobOf(registry, job))["result"], { delivered: 113 });
  assert.deepEqual(tagsOf(receiver).slice(120), tagsOf(receiver).slice(5, 118));
  const at = select(registry, "SELECT MIN(at) AS at FROM events")[0]?.["at"];
  const all = await api(registry, "POST", "/webhooks/ci/redeliver", 202, { since: new Date(Number(at)).toISOString() });
  assert.deepEqual((await jobOf(registry, all))["result"], { delivered: 120 });
  const none = await api(registry, "POST", "/webhooks/ci/redeliver", 202, { since: "2199-01-01T00:00:00Z" });
  assert.deepEqual((await jobOf(registry, none))["result"], { delivered: 0 });
  for (const wrong of [
    {},
    { to: 3 },
    { from: 5, to: 3 },
    { from: 1, since: "2026-01-01T00:00:00Z" },
    { since: "soon" },
  ]) {
    await api(registry, "POST", "/webhooks/ci/redeliver", 400, wrong);
  }
});

test("the API tells how each webhook is, and a ping what came of it", async () => {
  await using well = await startReceiver();
  await using ill = await startReceiver(status(302, { location: "https://example.com/" }));
  await using registry = await daemon([
    { name: "well", url: `${well.url}?token=geheim`, secret: "s3cret", format: "cloudevents" },
    { name: "ill", url: ill.url },
  ]);
  await pushBlobs(registry);
  await pushTags(registry, 2);
  await until(
    () => cursor(registry, "ill")["failures"] === 1 && cursor(registry, "well")["delivered_at"] !== null,
    "both were tried",
  );
  const { items } = (await api(registry, "GET", "/webhooks")) as { items: Record<string, unknown>[] };
  const [first, second] = items;
  assert.deepEqual([first?.["name"], first?.["pending"], first?.["failures"]], ["ill", 2, 1]);
  assert.match(String(first?.["error"]), /redirects \(302\) to https:\/\/example\.com\//);
  assert.deepEqual([second?.["name"], second?.["pending"], second?.["signed"]], ["well", 0, true]);
  assert.ok(!JSON.stringify(items).includes("s3cret") && !JSON.stringify(items).includes("geheim"));

  const pinged = (await api(registry, "POST", "/webhooks/well/ping")) as Record<string, unknown>;
  assert.equal(pinged["delivered"], true);
  const request = well.received.at(-1);
  assert.ok(request && isSigned(request, "s3cret"));
  const [event] = HTTP.toEvent({ headers: request.headers, body: request.body }) as CloudEvent<unknown>[];
  assert.deepEqual([event?.type, event?.id], ["io.entrepot.ping", pinged["id"]]);
  assert.match(String(((await api(registry, "POST", "/webhooks/ill/ping")) as { error?: string }).error), /redirects/);
  assert.equal(read(ill.received.at(-1) ?? assert.fail())[0]?.action, "ping");
  await api(registry, "POST", "/webhooks/none/ping", 404);
});

test("an endpoint that is new is told what happens from then on; one that is known goes on where it was", async () => {
  await using receiver = await startReceiver();
  await using other = await startReceiver();
  const known = { name: "ci", url: receiver.url };
  const first = await daemon([known]);
  try {
    await pushBlobs(first);
    await pushTags(first, 1, "a");
    await receiver.took(1);
    // Nothing is told of these before the daemon stops.
    await receiver.stop();
    await pushTags(first, 2, "b");
    await first.stop();
    await receiver.start();
    await using second = await daemon([known, { name: "new", url: other.url }], first.root);
    await receiver.took(3);
    await pushTags(second, 1, "c");
    await Promise.all([receiver.took(4), other.took(1)]);
    assert.deepEqual(tagsOf(receiver), ["a0", "b0", "b1", "c0"]);
    assert.deepEqual(tagsOf(other), ["c0"]);
  } finally {
    await first.stop();
    await rm(first.root, { recursive: true, force: true });
  }
});

test("a restart tries a failing endpoint at once, at the address that is configured now", async () => {
  await using wrong = await startReceiver(status(503, { "retry-after": "3600" }));
  await using right = await startReceiver();
  const first = await daemon([{ name: "ci", url: wrong.url }]);
  try {
    await pushBlobs(first);
    await pushTags(first, 2);
    await until(() => cursor(first)["failures"] === 1, "it has failed");
    await first.stop();
    await using second = await daemon([{ name: "ci", url: right.url }], first.root);
    await right.took(2);
    assert.deepEqual(tagsOf(right), ["t0", "t1"]);
    await until(() => cursor(second)["failures"] === 0, "it is well again");
  } finally {
    await first.stop();
    await rm(first.root, { recursive: true, force: true });
  }
});

test("the secret is in no log line and in no row", async () => {
  await using receiver = await startReceiver(status(500));
  await using registry = await daemon([{ name: "ci", url: receiver.url, secret: "geheim-7f3a", attempts: 1 }]);
  await pushBlobs(registry);
  await pushTags(registry, 1);
  await until(() => failures(registry).length === 1, "it was tried");
  const rows = ["jobs", "job_lines", "webhook_cursors", "webhook_failures", "events"].map((table) =>
    select(registry, `SELECT * FROM ${table}`),
  );
  assert.ok(!JSON.stringify([rows, registry.log]).includes("geheim-7f3a"));
});
