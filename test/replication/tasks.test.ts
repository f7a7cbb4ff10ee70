import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage, type Image } from "../kit/images.ts";
import { pushImage } from "../kit/hosted.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { startBetween } from "./between.ts";
import { ask, begin, ended, tasks, type Run } from "./runs.ts";

const image = (seed: number | string): Image => makeImage({ layers: [5_000], seed });

async function digestAt(registry: TestRegistry, tag: string): Promise<string | undefined> {
  const { status, headers } = await registry.send("HEAD", `/v2/team/app/manifests/${tag}`);
  return status === 200 ? (headers["docker-content-digest"] as string) : undefined;
}

function rule(url: string, further: object = {}, registry: object = {}) {
  const from = { registry: "self", repositories: ["team/app"] };
  return {
    replication: {
      registries: { dr: { url, ...registry } },
      rules: [{ name: "out", from, to: [{ registry: "dr" }], ...further }],
    },
  };
}

test("an image that can't be copied ends with its cause, and the rest goes on; mended, it is tried again by hand", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  await using source = await startRegistry({ config: rule(between.url) });
  for (const tag of ["1", "2", "3"]) await pushImage(source, "team/app", image(tag), tag);
  between.trick = ({ method, path }) =>
    method === "PUT" && path.endsWith("/manifests/2")
      ? { status: 403, body: '{"errors":[{"code":"DENIED","message":"read only"}]}' }
      : undefined;
  const run = await ended(source, await begin(source));
  assert.equal(run.state, "done");
  assert.deepEqual([run.result?.copied, run.result?.failed], [2, 1]);
  assert.match(run.result?.faults[0]?.message ?? "", /403 DENIED.*check what the credentials may write/);
  assert.deepEqual(await Promise.all(["1", "2", "3"].map((tag) => digestAt(target, tag))), [
    image("1").digest,
    undefined,
    image("3").digest,
  ]);
  const [dead] = (await tasks(source)).filter(({ state }) => state === "dead");
  assert.equal(dead?.tag, "2");
  assert.ok((await source.metric("entrepot_replication_tasks", { rule: "out", state: "dead" })) === 1);

  between.trick = () => undefined;
  await ask(source, "POST", `jobs/${dead.id}/retry`);
  await until(async () => (await digestAt(target, "2")) === image("2").digest, "the third tag is there");
  await until(
    async () => (await source.metric("entrepot_replication_tasks", { rule: "out", state: "dead" })) === 0,
    "nothing is dead",
  );
});

test("of two pushes to a tag the second has the last word, though the copy of the first is slower", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  await using source = await startRegistry({ config: rule(between.url, { on: { push: true } }) });
  const [first, second] = [makeImage({ layers: [400_000], seed: "slow" }), image("fast")];
  between.trick = ({ path }) =>
    path.includes("/blobs/uploads/") && between.hits("PUT") < 3 ? { pauseMs: 20 } : undefined;
  await pushImage(source, "team/app", first, "latest");
  await until(() => between.hits("POST") > 0, "the first copy has begun");
  await pushImage(source, "team/app", second, "latest");
  await until(
    async () => (await tasks(source)).filter(({ state }) => state === "done").length === 2,
    "both have ended",
  );
  assert.equal(await digestAt(target, "latest"), second.digest);
});

test("who asks for a run while one goes on joins it", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  await using source = await startRegistry({ config: rule(between.url) });
  await pushImage(source, "team/app", image(1), "1");
  between.trick = ({ path }) => (path.includes("/blobs/uploads/") ? { pauseMs: 20 } : undefined);
  const [one, other] = await Promise.all([begin(source), begin(source)]);
  assert.equal(one, other);
  assert.equal((await ended(source, one)).result?.copied, 1);
  assert.equal((await tasks(source)).length, 1);
});

test("a paused rule copies nothing by itself, makes up for it when it is resumed, and runs by hand all the same", async () => {
  await using target = await startRegistry();
  await using source = await startRegistry({ config: rule(target.url, { on: { push: true } }) });
  const waits = (tag: string) =>
    until(async () => {
      const task = (await tasks(source)).find((one) => one.tag === tag);
      return task?.state === "queued" && Date.parse(task.runAt) > Date.now() + 60_000;
    }, `the copy of ${tag} waits`);
  await ask(source, "POST", "replication/rules/out/pause");
  await pushImage(source, "team/app", image(1), "1");
  await waits("1");
  await ask(source, "POST", "replication/rules/out/resume");
  await until(async () => (await digestAt(target, "1")) === image(1).digest, "the first tag is there");

  await ask(source, "POST", "replication/rules/out/pause");
  await pushImage(source, "team/app", image(2), "2");
  await waits("2");
  assert.equal(await digestAt(target, "2"), undefined);
  assert.equal((await ended(source, await begin(source))).result?.copied, 1);
  assert.equal(await digestAt(target, "2"), image(2).digest);
});

test("a target that asks for patience gets it, and the copy costs no attempt", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  await using source = await startRegistry({ config: rule(between.url) });
  await pushImage(source, "team/app", image(1), "1");
  let refusals = 0;
  between.trick = ({ method, path }) => {
    if (method !== "PUT" || !path.includes("/manifests/") || refusals >= 2) return undefined;
    refusals++;
    return { status: 429, headers: { "retry-after": "1" } };
  };
  const run = await ended(source, await begin(source));
  assert.equal(run.result?.copied, 1, JSON.stringify(run));
  assert.equal(refusals, 2);
});

test("a source that does not answer fails the run, which is tried again", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  const registries = { hub: { url: between.url }, dr: { url: target.url } };
  const from = { registry: "hub", repositories: ["team/app"] };
  const rules = [{ name: "out", from, to: [{ registry: "dr", repository: "copy/app" }] }];
  await using source = await startRegistry({ config: { replication: { registries, rules } } });
  await pushImage(target, "team/app", image(1), "1");
  between.trick = () => ({ gone: true });
  const run = await begin(source);
  await until(async () => (await ask<Run>(source, "GET", `replication/runs/${run}`)).error !== undefined, "it fails");
  const waiting = await ask<Run & { attempts: number }>(source, "GET", `replication/runs/${run}`);
  assert.equal(waiting.state, "queued");
  assert.match(waiting.error ?? "", /cannot be reached|broke|closed/);
  between.trick = () => undefined;
  // By hand it need not wait.
  assert.equal(await begin(source), run);
  assert.equal((await ended(source, run)).result?.copied, 1);
});

test("what a run has begun goes on after a restart", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  const config = rule(between.url);
  let root = "";
  let run = 0;
  {
    await using source = await startRegistry({ config, leavesPartials: true });
    ({ root } = source);
    for (const tag of ["1", "2", "3"]) await pushImage(source, "team/app", image(tag), tag);
    between.trick = ({ method, path }) =>
      method === "PUT" && path.includes("/manifests/") ? { gone: true } : undefined;
    run = await begin(source);
    await until(() => between.hits("PUT", "/manifests/") > 0, "copies are about to end");
    await source.stop();
    between.trick = () => undefined;
    const sent = between.uploadedBytes();
    await using again = await startRegistry({ config, root });
    const { result } = await ended(again, run);
    assert.equal(result?.failed, 0, JSON.stringify(result));
    for (const tag of ["1", "2", "3"]) assert.equal(await digestAt(target, tag), image(tag).digest);
    assert.ok(between.uploadedBytes() - sent < 3 * 5_000, "what had arrived was not sent again");
  }
});
