import assert from "node:assert/strict";
import { test } from "node:test";
import { parseConfig } from "../../src/config/load.ts";
import { pushImage, select, send } from "../kit/hosted.ts";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { MINUTE, MovingClock } from "../registry/clients.ts";
import { startBetween } from "./between.ts";
import { ask, begin, ended, JSON_TYPE, tasks } from "./runs.ts";

const image = (seed: number | string): Image => makeImage({ layers: [5_000], seed });

function section(url: string, further: object = {}, name = "dr") {
  const from = { registry: "self", repositories: ["team/app"] };
  return { registries: { [name]: { url } }, rules: [{ name: "out", from, to: [{ registry: name }], ...further }] };
}

async function digestAt(registry: TestRegistry, tag: string): Promise<string | undefined> {
  const { status, headers } = await registry.send("HEAD", `/v2/team/app/manifests/${tag}`);
  return status === 200 ? (headers["docker-content-digest"] as string) : undefined;
}

const waits = (registry: TestRegistry, count: number): Promise<void> =>
  until(async () => {
    const all = await tasks(registry);
    return all.length === count && all.every(({ runAt }) => Date.parse(runAt) > Date.now() + 60_000);
  }, `${count} tasks wait for their time`);

test("a tag that is pushed back to what waits to be copied ends there, though what was pushed between has been copied", async () => {
  await using target = await startRegistry();
  await using source = await startRegistry({ config: { replication: section(target.url, { on: { push: true } }) } });
  await ask(source, "POST", "replication/rules/out/pause");
  await pushImage(source, "team/app", image("b"), "latest");
  await waits(source, 1);
  const [first] = await tasks(source);
  assert.ok(first);
  await ask(source, "POST", `jobs/${first.id}/pause`);
  await pushImage(source, "team/app", image("a"), "latest");
  await until(async () => (await tasks(source)).length === 2, "the second push has its task");
  await ask(source, "POST", "replication/rules/out/resume");
  await until(async () => (await digestAt(target, "latest")) === image("a").digest, "the second one is copied");
  await pushImage(source, "team/app", image("b"), "latest");
  await ask(source, "POST", `jobs/${first.id}/resume`);
  await ask(source, "POST", "replication/rules/out/resume");
  await until(async () => (await tasks(source)).every(({ state }) => state === "done"), "all have ended");
  assert.equal(await digestAt(target, "latest"), image("b").digest);
});

test("of many pushes that have waited, only the newest is copied", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  const replication = section(between.url, { on: { push: true } });
  await using source = await startRegistry({ config: { replication } });
  await ask(source, "POST", "replication/rules/out/pause");
  for (const [index, seed] of ["a", "b", "c"].entries()) {
    await pushImage(source, "team/app", image(seed), "latest");
    await waits(source, index + 1);
  }
  await ask(source, "POST", "replication/rules/out/resume");
  await until(async () => (await tasks(source)).every(({ state }) => state === "done"), "all have ended");
  const outcomes = (await tasks(source)).map(({ result }) => result?.outcome);
  assert.equal(outcomes.filter((outcome) => outcome === "copied").length, 1, String(outcomes));
  assert.equal(between.hits("PUT", "/manifests/latest"), 1);
  assert.equal(await digestAt(target, "latest"), image("c").digest);
});

test("a run by hand goes on where it joins a scheduled one, whose rule was paused meanwhile", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  const clock = new MovingClock();
  clock.offsetMs = Date.parse("2030-01-01T11:30:00Z") - Date.now();
  const replication = section(between.url, { on: { cron: "0 * * * *" } });
  await using source = await startRegistry({ clock, config: { replication } });
  await pushImage(source, "team/app", image(1), "1");
  between.trick = ({ method, path }) => (method === "PUT" && path.includes("/manifests/") ? { gone: true } : undefined);
  await until(() => select(source, "SELECT 1 FROM schedules WHERE name LIKE 'replicate %'").length === 1, "it counts");
  clock.offsetMs += 31 * MINUTE;
  // Whoever changes rules has the schedule looked at.
  const other = JSON.stringify({ from: { registry: "dr", repositories: ["x"] }, to: [{ registry: "self" }] });
  await send(source, 201, "PUT", "/api/v1/replication/rules/other", JSON_TYPE, other);
  await until(async () => {
    const [task] = await tasks(source);
    return task?.state === "queued" && between.hits("PUT", "/manifests/") > 0;
  }, "its copy has failed, and waits");
  await ask(source, "POST", "replication/rules/out/pause");
  between.trick = () => undefined;
  const [task] = await tasks(source);
  const run = await begin(source);
  assert.equal(run, task?.run);
  assert.equal((await ended(source, run)).result?.copied, 1);
  assert.equal(await digestAt(target, "1"), image(1).digest);
});

test("a run ends whose tasks are for a registry that is configured no more", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  let root = "";
  let run = 0;
  {
    await using source = await startRegistry({
      config: { replication: section(between.url) },
      leavesPartials: true,
    });
    ({ root } = source);
    await pushImage(source, "team/app", image(1), "1");
    between.trick = ({ method }) => (method === "POST" ? { stalls: true } : undefined);
    run = await begin(source);
    await until(() => between.hits("POST") > 0, "the copy has begun");
    await source.stop();
    await using again = await startRegistry({ root, config: { replication: section(target.url, {}, "other") } });
    const { result } = await ended(again, run);
    assert.deepEqual([result?.copied, result?.failed], [1, 0], JSON.stringify(result));
    assert.equal(await digestAt(target, "1"), image(1).digest);
  }
});

test("a push is copied to a registry that a reload has brought", async () => {
  await using target = await startRegistry();
  await using source = await startRegistry();
  source.app.reload(
    parseConfig({
      server: { listen: "127.0.0.1:0" },
      storage: { root: source.root, minFree: 0 },
      replication: section(target.url, { on: { push: true } }),
    }),
  );
  await pushImage(source, "team/app", image(1), "1");
  await until(async () => (await digestAt(target, "1")) === image(1).digest, "it is there");
});

test("what is pushed and copied while a run copies is not deleted by it, grace or not", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  const further = { on: { push: true }, delete: { mirror: true, grace: "0s", maxPercent: 100 } };
  await using source = await startRegistry({ config: { replication: section(between.url, further) } });
  await ask(source, "POST", "replication/rules/out/pause");
  await pushImage(source, "team/app", image(1), "1");
  const begun = Promise.withResolvers<void>();
  let slow = true;
  between.trick = ({ method, path }) => {
    if (!slow || method !== "PUT" || !path.endsWith("/manifests/1")) return undefined;
    begun.resolve();
    return { status: 429, headers: { "retry-after": "1" } };
  };
  const run = await begin(source);
  await begun.promise;
  await ask(source, "POST", "replication/rules/out/resume");
  await pushImage(source, "team/app", image(2), "2");
  await until(async () => (await digestAt(target, "2")) === image(2).digest, "the second one is copied");
  slow = false;
  const { result } = await ended(source, run);
  assert.deepEqual([result?.copied, result?.deleted], [1, 0], JSON.stringify(result));
  assert.equal(await digestAt(target, "2"), image(2).digest);
});

test("where tags go together and one can't be copied, none is deleted either", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  const further = { write: { together: true }, delete: { mirror: true, grace: "0s", maxPercent: 100 } };
  await using source = await startRegistry({ config: { replication: section(between.url, further) } });
  for (const tag of ["1", "2"]) await pushImage(source, "team/app", image(tag), tag);
  assert.equal((await ended(source, await begin(source))).result?.copied, 2);
  await send(source, 202, "DELETE", "/v2/team/app/manifests/1");
  await pushImage(source, "team/app", image(3), "3");
  between.trick = ({ method, path }) =>
    method === "PUT" && path.includes(image(3).digest) ? { status: 403, body: "{}" } : undefined;
  const failed = await ended(source, await begin(source));
  assert.deepEqual([failed.result?.failed, failed.result?.deleted], [1, 0], JSON.stringify(failed));
  assert.match(JSON.stringify(failed.result?.faults), /none has moved, and none is deleted/);
  assert.equal(await digestAt(target, "1"), image("1").digest);
  between.trick = () => undefined;
  const { result } = await ended(source, await begin(source));
  assert.deepEqual([result?.copied, result?.failed, result?.deleted], [1, 0, 1], JSON.stringify(result));
  assert.equal(await digestAt(target, "1"), undefined);
});

test("a run of tags that go together waits for the copy that a push has begun, and then moves its tag", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  const further = { on: { push: true }, write: { together: true } };
  await using source = await startRegistry({ config: { replication: section(between.url, further) } });
  let slow = true;
  between.trick = ({ method, path }) =>
    slow && method === "PUT" && path.includes("/manifests/")
      ? { status: 429, headers: { "retry-after": "1" } }
      : undefined;
  await pushImage(source, "team/app", image(1), "1");
  await until(() => between.hits("PUT", "/manifests/") > 0, "the push is being copied");
  const [pushed] = await tasks(source);
  const run = await begin(source);
  await until(async () => (await tasks(source))[0]?.run === run, "it is a part of the run");
  assert.equal(await digestAt(target, "1"), undefined);
  slow = false;
  const { result } = await ended(source, run);
  assert.deepEqual([result?.copied, result?.failed], [1, 0], JSON.stringify(result));
  assert.deepEqual(
    (await tasks(source)).map(({ id }) => id),
    [pushed?.id],
  );
  assert.equal(await digestAt(target, "1"), image(1).digest);
});

test("what a push has brought before counts as copied by the run that moves its tag", async () => {
  await using target = await startRegistry();
  const further = { on: { push: true }, write: { together: true } };
  await using source = await startRegistry({ config: { replication: section(target.url, further) } });
  await pushImage(source, "team/app", image(1), "1");
  await until(async () => (await tasks(source))[0]?.state === "done", "its content is there");
  assert.equal(await digestAt(target, "1"), undefined);
  const { result } = await ended(source, await begin(source));
  assert.deepEqual([result?.copied, result?.unchanged], [1, 0]);
  assert.equal(await digestAt(target, "1"), image(1).digest);
});

test("a rule knows the tag that it has put there, though it was stopped before the answer came", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  const replication = section(between.url, { delete: { mirror: true, grace: "0s", maxPercent: 100 } });
  await using source = await startRegistry({ config: { replication }, leavesPartials: true });
  for (const tag of ["1", "2"]) await pushImage(source, "team/app", image(tag), tag);
  let isLost = false;
  between.trick = ({ method, path }) => {
    if (isLost) return { gone: true };
    if (method !== "PUT" || !path.endsWith("/manifests/1")) return undefined;
    isLost = true;
    return { lost: true };
  };
  const first = await begin(source);
  await until(async () => (await digestAt(target, "1")) === image("1").digest, "the tag is there");
  await source.stop();
  between.trick = () => undefined;
  await using again = await startRegistry({ config: { replication }, root: source.root });
  assert.equal((await ended(again, first)).result?.failed, 0);
  await send(again, 202, "DELETE", "/v2/team/app/manifests/1");
  const { result } = await ended(again, await begin(again));
  assert.equal(result?.deleted, 1, JSON.stringify(result));
  assert.equal(await digestAt(target, "1"), undefined);
});

test("two rules that bring the same blob to one repository at the same time send it once", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  const rule = (name: string) => ({
    name,
    from: { registry: "self", repositories: ["team/app"] },
    to: [{ registry: "dr" }],
    tags: { match: [`${name}-*`] },
  });
  const replication = { registries: { dr: { url: between.url } }, rules: [rule("a"), rule("b")] };
  await using source = await startRegistry({ config: { replication } });
  const shared = makeImage({ layers: [3_000_000], seed: "shared" });
  for (const tag of ["a-1", "b-1"]) await pushImage(source, "team/app", shared, tag);
  between.trick = ({ path }) => (path.includes("/blobs/uploads/") ? { pauseMs: 5 } : undefined);
  const runs = await Promise.all(
    ["a", "b"].map((name) => ask<{ run: number }>(source, "POST", `replication/rules/${name}/run`)),
  );
  for (const { run } of runs) assert.equal((await ended(source, run)).result?.failed, 0);
  const bytes = [...shared.blobs.values()].reduce((sum, blob) => sum + blob.bytes.length, 0);
  assert.equal(between.uploadedBytes(), bytes);
  for (const tag of ["a-1", "b-1"]) assert.equal(await digestAt(target, tag), shared.digest);
});
