import assert from "node:assert/strict";
import { test } from "node:test";
import { has, pushImage, pushManifest, select, send } from "../kit/hosted.ts";
import { makeImage, makeIndex, type Image, type Index } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";

const [v1, v2, arm64] = ["1", "2", "arm"].map((seed) => makeImage({ layers: [2000], seed })) as [Image, Image, Image];
const INDEX: Index = makeIndex([
  [{ os: "linux", architecture: "amd64" }, v1],
  [{ os: "linux", architecture: "arm64" }, arm64],
]);

function ruleTo(target: TestRegistry, further: object) {
  const from = { registry: "self", repositories: ["team/app"] };
  const rule = { name: "out", from, to: [{ registry: "dr", repository: "copy/{{path}}" }], ...further };
  return { config: { replication: { registries: { dr: { url: target.url } }, rules: [rule] } } };
}

interface Run {
  id: number;
  state: string;
  error?: string;
  result?: { copied: number; unchanged: number; faults: object[] };
}

async function started(registry: TestRegistry, what: string): Promise<Run> {
  const headers = { "content-type": "application/json" };
  const { bytes } = await send(registry, 202, "POST", `/api/v1/replication/${what}`, headers);
  const { run } = JSON.parse(bytes.toString()) as { run: number };
  let found: Run | undefined;
  await until(async () => {
    const answer = await registry.get(`/api/v1/replication/runs/${run}`);
    found = JSON.parse(answer.bytes.toString()) as Run;
    return found.state === "done" || found.state === "dead";
  }, `run ${run} ends`);
  assert.equal(found?.state, "done", found?.error);
  return found ?? assert.fail();
}

async function leadsTo(registry: TestRegistry, tag: string): Promise<unknown> {
  const { status, headers } = await registry.send("HEAD", `/v2/copy/team/app/manifests/${tag}`);
  return status === 200 ? headers["docker-content-digest"] : undefined;
}

async function pushIndex(registry: TestRegistry, tag: string): Promise<void> {
  for (const image of INDEX.images) await pushImage(registry, "team/app", image);
  await pushManifest(registry, "team/app", INDEX, tag);
}

test("a push to a rule whose tags go together brings the image, and the tag waits for the run", async () => {
  await using target = await startRegistry();
  const further = { write: { together: true }, on: { push: true } };
  await using source = await startRegistry(ruleTo(target, further));
  await pushImage(source, "team/app", v1, "stable");
  await until(() => has(target, "copy/team/app", v1), "the image is there");
  assert.equal(await leadsTo(target, "stable"), undefined);
  const { result } = await started(source, "rules/out/run");
  assert.deepEqual(result?.faults, []);
  assert.equal(await leadsTo(target, "stable"), v1.digest);
});

test("an index that is rewritten arrives, rests, and goes back, also where tags move together", async () => {
  for (const together of [false, true]) {
    await using target = await startRegistry();
    const further = { write: { together }, platforms: { only: ["linux/amd64"], index: "rewrite" } };
    await using source = await startRegistry(ruleTo(target, further));
    await pushImage(source, "team/app", v2, "stable");
    await started(source, "rules/out/run");
    assert.equal(await leadsTo(target, "stable"), v2.digest);

    await pushIndex(source, "stable");
    const moved = await started(source, "rules/out/run");
    assert.deepEqual([moved.result?.copied, moved.result?.faults], [1, []]);
    const { bytes, headers } = await send(target, 200, "GET", "/v2/copy/team/app/manifests/stable");
    assert.notEqual(headers["docker-content-digest"], INDEX.digest);
    const { manifests } = JSON.parse(bytes.toString()) as { manifests: { digest: string }[] };
    assert.deepEqual(
      manifests.map(({ digest }) => digest),
      [v1.digest],
    );
    const again = await started(source, "rules/out/run");
    assert.deepEqual([again.result?.copied, again.result?.unchanged, again.result?.faults], [0, 1, []]);
    // Both images that the tag has led to: they need not be read to know what they become.
    assert.equal(select(source, "SELECT digest FROM replication_rewrites").length, 2);

    await started(source, `runs/${moved.id}/undo`);
    assert.equal(await leadsTo(target, "stable"), v2.digest, `together: ${together}`);
  }
});
