import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import * as fc from "fast-check";
import { isSettled, planRule } from "../../src/replication/plan.ts";
import { runPlan, type RunOutcome } from "../../src/replication/run.ts";
import { has, pushImage } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex, type Image } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { openRule } from "./opened.ts";

const IMAGES = ["a", "b", "c"].map((seed) => makeImage({ layers: [500, 700], seed }));
const [first, second, third] = IMAGES as [Image, Image, Image];
const INDEX = makeIndex([
  [{ os: "linux", architecture: "amd64" }, first],
  [{ os: "linux", architecture: "arm64" }, second],
]);
const CONTENTS = [...IMAGES, INDEX];

let hub: Upstream;
let dr: TestRegistry;
before(async () => {
  hub = await startUpstream();
  dr = await startRegistry();
});
after(async () => {
  await hub[Symbol.asyncDispose]();
  await dr[Symbol.asyncDispose]();
});

async function withRule<T>(
  rule: object,
  work: (made: {
    plan: () => ReturnType<typeof planRule>;
    run: (plan: Awaited<ReturnType<typeof planRule>>) => Promise<RunOutcome[]>;
  }) => Promise<T>,
): Promise<T> {
  await using opened = await openRule({
    registries: { hub: { url: hub.url }, dr: { url: dr.url } },
    rules: [{ name: "rule", ...rule }],
  });
  const { rule: parsed, registries } = opened;
  const signal = AbortSignal.timeout(30_000);
  return await work({
    plan: () => planRule(parsed, registries, { sizes: false, nowMs: Date.now(), signal }),
    run: async (plan) => {
      const outcomes: RunOutcome[] = [];
      await runPlan(plan, parsed, registries, (outcome) => outcomes.push(outcome), signal);
      return outcomes;
    },
  });
}

let worlds = 0;
const tagged = fc.dictionary(fc.constantFrom("1", "2", "3.1", "latest", "v1"), fc.nat(CONTENTS.length - 1));

test("whatever is at both sides, a plan after a run of it is empty, and what a rule protects has stayed", async () => {
  await fc.assert(
    fc.asyncProperty(
      tagged,
      fc.dictionary(fc.constantFrom("1", "2", "latest", "v1"), fc.nat(IMAGES.length - 1)),
      fc.record({
        existing: fc.constantFrom("replace", "keep"),
        immutable: fc.subarray(["v*"]),
        backup: fc.constantFrom("{{tag}}-prev", "old-{{tag}}"),
      }),
      fc.boolean(),
      async (source, target, write, referrers) => {
        const name = `world-${worlds++}/app`;
        // About one platform of the index, which is an image of its own, too.
        const artifact = makeArtifact({ subject: second, artifactType: "a/b", payload: name });
        for (const [tag, which] of Object.entries(source)) hub.add(name, tag, CONTENTS[which] ?? first);
        if (Object.keys(source).length > 0) {
          hub.add(name, `${first.digest.replace(":", "-")}.sig`, third);
          hub.add(name, undefined, artifact);
        }
        for (const [tag, which] of Object.entries(target)) await pushImage(dr, name, IMAGES[which] ?? first, tag);
        const rule = {
          from: { registry: "hub", repositories: [name] },
          to: [{ registry: "dr" }],
          attached: { referrers },
          write,
        };
        await withRule(rule, async ({ plan, run }) => {
          const planned = await plan();
          const outcomes = await run(planned);
          assert.deepEqual(
            outcomes.filter(({ outcome }) => outcome === "failed"),
            [],
          );
          const next = await plan();
          assert.ok(isSettled(next), JSON.stringify(next.repositories));
          assert.deepEqual(await run(next), []);
        });
        for (const [tag, which] of Object.entries(target)) {
          const stays = write.existing === "keep" || (write.immutable.length > 0 && tag === "v1") || !(tag in source);
          const wanted = stays ? IMAGES[which] : CONTENTS[source[tag] ?? 0];
          const { headers } = await dr.send("HEAD", `/v2/${name}/manifests/${tag}`);
          assert.equal(headers["docker-content-digest"], wanted?.digest, tag);
        }
        const isNew = Object.entries(source).some(([tag, which]) => CONTENTS[which] === INDEX && !(tag in target));
        if (referrers && isNew) assert.ok(await has(dr, name, artifact), "what refers to a platform came along");
      },
    ),
    { numRuns: 25 },
  );
});

test("a tag that came to the target after the plan is not moved where the rule keeps what is there", async () => {
  hub.add("late/app", "1", first);
  const rule = {
    from: { registry: "hub", repositories: ["late/app"] },
    to: [{ registry: "dr" }],
    write: { existing: "keep" },
  };
  await withRule(rule, async ({ plan, run }) => {
    const planned = await plan();
    await pushImage(dr, "late/app", second, "1");
    const [outcome] = await run(planned);
    assert.equal(outcome?.outcome, "kept");
  });
  const { headers } = await dr.send("HEAD", "/v2/late/app/manifests/1");
  assert.equal(headers["docker-content-digest"], second.digest);
});
