import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { pushImage } from "../kit/hosted.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { ended, JSON_TYPE, run } from "./runs.ts";

const image = (seed: number) => makeImage({ layers: [20_000], seed });

async function digestAt(registry: TestRegistry, repository: string, tag: string): Promise<string | undefined> {
  const { status, headers } = await registry.send("HEAD", `/v2/${repository}/manifests/${tag}`);
  return status === 200 ? (headers["docker-content-digest"] as string) : undefined;
}

/** A rule `out` of everything under team/ to another daemon. */
function rule(to: TestRegistry, further: object = {}) {
  return {
    registries: { dr: { url: to.url } },
    rules: [
      {
        name: "out",
        from: { registry: "self", repositories: ["team/**"] },
        to: [{ registry: "dr", repository: "copy/{{path}}" }],
        ...further,
      },
    ],
  };
}

test("a run copies what a rule names, and the next one finds nothing to do", async () => {
  await using target = await startRegistry();
  await using source = await startRegistry({ config: { replication: rule(target) } });
  await pushImage(source, "team/app", image(1), "1.0");
  await pushImage(source, "team/app", image(2), "2.0");
  await pushImage(source, "other/app", image(3), "1.0");
  const first = await run(source);
  assert.equal(first.state, "done", first.error);
  assert.equal(first.result?.copied, 2, JSON.stringify(first));
  assert.equal(await digestAt(target, "copy/team/app", "2.0"), image(2).digest);
  assert.equal(await digestAt(target, "copy/other/app", "1.0"), undefined);
  const second = await run(source);
  assert.equal(second.result?.unchanged, 2);
  assert.equal(second.result?.copied, 0);
});

test("a push starts its copy within a second", async () => {
  await using target = await startRegistry();
  await using source = await startRegistry({ config: { replication: rule(target, { on: { push: true } }) } });
  await pushImage(source, "team/app", image(1), "1.0");
  await until(async () => (await digestAt(target, "copy/team/app", "1.0")) === image(1).digest, "the tag is there");
  await pushImage(source, "team/app", image(2), "1.0");
  await until(async () => (await digestAt(target, "copy/team/app", "1.0")) === image(2).digest, "the tag has moved");
});

test("tags that go together move when all have been copied, and back again", async () => {
  await using target = await startRegistry();
  const further = { write: { together: true } };
  await using source = await startRegistry({ config: { replication: rule(target, further) } });
  await pushImage(source, "team/app", image(1), "stable");
  assert.equal((await run(source)).result?.copied, 1);
  await pushImage(source, "team/app", image(2), "stable");
  await pushImage(source, "team/web", image(3), "stable");
  const second = await run(source);
  assert.equal(second.result?.copied, 2, JSON.stringify(second));
  assert.equal(await digestAt(target, "copy/team/app", "stable"), image(2).digest);
  assert.equal(await digestAt(target, "copy/team/web", "stable"), image(3).digest);

  const undone = await source.send("POST", `/api/v1/replication/runs/${second.id}/undo`, JSON_TYPE);
  assert.equal(undone.status, 202, undone.bytes.toString());
  const { run: id } = JSON.parse(undone.bytes.toString()) as { run: number };
  assert.equal((await ended(source, id)).state, "done");
  assert.equal(await digestAt(target, "copy/team/app", "stable"), image(1).digest);
  assert.equal(await digestAt(target, "copy/team/web", "stable"), undefined);
});

test("what the source has no more is deleted at the target, if the rule has put it there", async () => {
  await using target = await startRegistry();
  const further = { delete: { mirror: true, grace: "0s", maxPercent: 50 } };
  await using source = await startRegistry({ config: { replication: rule(target, further) } });
  for (const [index, tag] of ["1.0", "2.0", "3.0"].entries()) await pushImage(source, "team/app", image(index), tag);
  await pushImage(target, "copy/team/app", image(9), "theirs");
  assert.equal((await run(source)).result?.copied, 3);
  const gone = await source.send("DELETE", "/v2/team/app/manifests/1.0");
  assert.equal(gone.status, 202, gone.bytes.toString());
  await run(source);
  const third = await run(source);
  assert.equal(await digestAt(target, "copy/team/app", "1.0"), undefined, JSON.stringify(third));
  assert.equal(await digestAt(target, "copy/team/app", "2.0"), image(1).digest);
  assert.equal(await digestAt(target, "copy/team/app", "theirs"), image(9).digest);
});

test("what a tag led to stays under its other name, also where the rule would copy a tag of that name", async () => {
  await using target = await startRegistry();
  const further = { write: { backup: "{{tag}}-prev" } };
  await using source = await startRegistry({ config: { replication: rule(target, further) } });
  await pushImage(source, "team/app", image(1), "stable");
  await run(source);
  await pushImage(source, "team/app", image(2), "stable");
  const second = await run(source);
  assert.equal(second.result?.copied, 1, JSON.stringify(second));
  assert.equal(await digestAt(target, "copy/team/app", "stable"), image(2).digest);
  assert.equal(await digestAt(target, "copy/team/app", "stable-prev"), image(1).digest);
  assert.equal((await run(source)).result?.failed, 0);
});
