/** How much registries are asked: counted on the way to them, and as plans tell it before. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { planRule, type RulePlan } from "../../src/replication/plan.ts";
import { runPlan, type RunOutcome } from "../../src/replication/run.ts";
import { startPeer } from "../interop/peers.ts";
import { pushImage, pushManifest } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { startBetween, type Between } from "./between.ts";
import { openRule } from "./opened.ts";

const JSON_TYPE = { "content-type": "application/json" };
const PLATFORMS = ["amd64", "arm64", "s390x"].map((architecture) => ({ os: "linux", architecture }));
const small = makeImage({ layers: [5_000] });
const layer = (seed: string): Buffer => Buffer.alloc(20_000, seed);
const index = (seed: string) =>
  makeIndex(
    PLATFORMS.map((platform) => [
      platform,
      makeImage({ layers: [layer(platform.architecture), 4_000], seed: `${seed} ${platform.architecture}`, platform }),
    ]),
  );

interface Stage extends AsyncDisposable {
  hub: Upstream;
  /** The ways to them. */
  toHub: Between;
  toDr: Between;
  /** Forgets what has passed. */
  clear(): void;
}

/** @param dr where copies go */
async function startStage(dr: { url: string }): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const hub = stack.use(await startUpstream());
  const toHub = stack.use(await startBetween(hub.url));
  const toDr = stack.use(await startBetween(dr.url));
  const owned = stack.move();
  const clear = (): void => {
    toHub.passed.length = 0;
    toDr.passed.length = 0;
  };
  return { hub, toHub, toDr, clear, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** docker-registry with a folder of its own. */
async function startOther(): Promise<{ url: string } & AsyncDisposable> {
  const folder = await mkdtemp(join(tmpdir(), "entrepot-requests-"));
  const peer = await startPeer("docker-registry", join(folder, "registry"));
  return {
    url: peer.url,
    [Symbol.asyncDispose]: async () => {
      await peer[Symbol.asyncDispose]();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function ruled({ toHub, toDr }: Pick<Stage, "toHub" | "toDr">, further: object = {}) {
  const from = { registry: "hub", repositories: ["team/{app,web}"] };
  return {
    registries: { hub: { url: toHub.url }, dr: { url: toDr.url } },
    rules: [{ name: "out", from, to: [{ registry: "dr", repository: "copies/{{path}}" }], ...further }],
  };
}

function counts({ passed }: Between): Record<string, number> {
  return Object.fromEntries(
    Object.entries(Object.groupBy(passed, ({ method }) => method)).map(([method, all]) => [method, all?.length ?? 0]),
  );
}

async function ask<T>(registry: TestRegistry, path: string, body?: object): Promise<T> {
  const answer = await registry.send("POST", `/api/v1/replication/${path}`, JSON_TYPE, JSON.stringify(body));
  assert.ok(answer.status < 300, answer.bytes.toString());
  return JSON.parse(answer.bytes.toString()) as T;
}

/** Runs the rule in a daemon, to its end. */
async function run(daemon: TestRegistry): Promise<void> {
  const { run: id } = await ask<{ run: number }>(daemon, "rules/out/run");
  interface Run {
    state: string;
    result?: { failed: number; faults: unknown[] };
  }
  let ended: Run | undefined;
  await until(async () => {
    ended = JSON.parse((await daemon.get(`/api/v1/replication/runs/${id}`)).bytes.toString()) as Run;
    return ended.state === "done";
  }, `run ${id} ends`);
  assert.deepEqual([ended?.result?.failed, ended?.result?.faults], [0, []]);
}

/** Plans and runs the rule without a daemon. */
async function runHere(stage: Stage, further: object, between: (plan: RulePlan) => void): Promise<RunOutcome[]> {
  await using opened = await openRule(ruled(stage, further));
  const { rule, registries } = opened;
  const signal = AbortSignal.timeout(30_000);
  const nowMs = Date.now();
  between(await planRule(rule, registries, { sizes: true, nowMs, signal }));
  const outcomes: RunOutcome[] = [];
  const plan = await planRule(rule, registries, { sizes: false, nowMs, signal });
  await runPlan(plan, rule, registries, (outcome) => outcomes.push(outcome), signal);
  return outcomes;
}

for (const [kind, start] of [
  ["Entrepot", startRegistry],
  ["docker-registry", startOther],
] as const) {
  test(`what an image costs at ${kind}, in requests`, async () => {
    await using dr = await start();
    await using stage = await startStage(dr);
    const { hub, toDr } = stage;
    await using daemon = await startRegistry({ config: { replication: ruled(stage) } });
    hub.add("team/web", "0", makeImage({ layers: [10], seed: "web" }));
    hub.add("team/app", "0", makeImage({ layers: [10], seed: "app" }));
    await run(daemon);
    /** Without the tags at rest, each of which the plan asks for. */
    const takes = async (tag: string): Promise<Record<string, number>> => {
      stage.clear();
      await run(daemon);
      const atRest = toDr.passed.filter(({ path }) => /\/manifests\/\w+$/.test(path) && !path.endsWith(`/${tag}`));
      const { HEAD = 0, ...others } = counts(toDr);
      return { HEAD: HEAD - atRest.length, ...others };
    };
    hub.add("team/app", "small", small);
    // The tag for the plan, for the task and before it moves; the image; each of two blobs. The tag's manifest is put once.
    assert.deepEqual(await takes("small"), { HEAD: 6, POST: 2, PUT: 3 });
    hub.add("team/app", "index", index("first"));
    // The tag three times, the index; each of nine blobs. Three manifests and that of the tag.
    assert.deepEqual(await takes("index"), { HEAD: 13, POST: 9, PUT: 13 });
    hub.add("team/web", "shared", index("second"));
    // Layers of three platforms are mounted from the other repository.
    assert.deepEqual(await takes("shared"), { HEAD: 10, POST: 9, PUT: 10 });
  });
}

/** Tags that are new, that move and that stay; content that is there, that is elsewhere and that several share. */
async function fill({ hub }: Stage, dr: TestRegistry): Promise<void> {
  const there = makeImage({ layers: [700], seed: "there" });
  hub.add("team/app", "1", index("first"));
  hub.add("team/app", "latest", index("first"));
  hub.add("team/app", "2", small);
  hub.add("team/web", "1", index("second"));
  hub.add("team/web", "2", small);
  hub.add("team/web", "3", there);
  hub.add("team/web", "4", there);
  for (const tag of ["3", "old"]) await pushImage(dr, "copies/team/web", there, tag);
  await pushImage(dr, "copies/team/web", makeImage({ layers: [800], seed: "old" }), "1");
}

const RULES = {
  plain: {},
  "with signatures": { attached: { digestTags: true } },
  "with all that refers to it": { attached: { digestTags: true, referrers: true } },
  "with backups": { write: { backup: "{{tag}}-prev" }, tags: { exclude: ["*-prev"] } },
  "for one platform": { platforms: { only: ["linux/arm64"], index: "rewrite" } },
};

function sign({ hub }: Stage): void {
  const tag = `${index("first").digest.replace(":", "-")}.sig`;
  hub.add("team/app", tag, makeImage({ layers: [300], seed: "signature" }));
  const sbom = makeArtifact({ subject: small, artifactType: "application/spdx+json", payload: "sbom" });
  hub.add("team/app", undefined, sbom);
}

for (const [what, further] of Object.entries(RULES)) {
  test(`a plan tells how many requests a run sends: ${what}`, async () => {
    await using dr = await startRegistry();
    await using stage = await startStage(dr);
    await fill(stage, dr);
    if (what.startsWith("with")) sign(stage);
    let told: RulePlan | undefined;
    const outcomes = await runHere(stage, further, (plan) => {
      told = plan;
      stage.clear();
    });
    assert.deepEqual(
      outcomes.filter(({ outcome }) => outcome === "failed"),
      [],
    );
    assert.deepEqual(told?.faults, []);
    assert.deepEqual(told?.sizes?.requests, { hub: stage.toHub.passed.length, dr: stage.toDr.passed.length });
  });

  test(`a plan of the daemon tells how many requests its run sends: ${what}`, async () => {
    await using dr = await startRegistry();
    await using stage = await startStage(dr);
    await fill(stage, dr);
    if (what.startsWith("with")) sign(stage);
    await using daemon = await startRegistry({ config: { replication: ruled(stage, further) } });
    const { sizes } = await ask<RulePlan>(daemon, "rules/out/plan", { sizes: true });
    stage.clear();
    await run(daemon);
    assert.deepEqual(sizes?.requests, { hub: stage.toHub.passed.length, dr: stage.toDr.passed.length });
  });
}

test("a thousand tags that have not changed cost one request each and side, and their list; of this registry none", async () => {
  await using dr = await startUpstream();
  await using stage = await startStage(dr);
  const ruleFrom = (name: string, registry: string, target: string) => ({
    name,
    from: { registry, repositories: ["team/app"] },
    to: [{ registry: "dr", repository: target }],
  });
  const rules = [ruleFrom("own", "self", "own/{{path}}"), ruleFrom("others", "hub", "copies/{{path}}")];
  await using daemon = await startRegistry({ config: { replication: { ...ruled(stage), rules } } });
  const tags = Array.from({ length: 1000 }, (_, at) => `v${at}`);
  for (const tag of tags) {
    stage.hub.add("team/app", tag, small);
    for (const name of ["own", "copies"]) dr.add(`${name}/team/app`, tag, small);
    await (tag === "v0" ? pushImage : pushManifest)(daemon, "team/app", small, tag);
  }
  const plan = async (name: string): Promise<RulePlan> => {
    stage.clear();
    return await ask<RulePlan>(daemon, `rules/${name}/plan`, { sizes: true });
  };
  const own = await plan("own");
  assert.deepEqual([own.sizes?.requests, counts(stage.toDr)], [{ dr: 1000 }, { HEAD: 1000 }]);
  const others = await plan("others");
  assert.deepEqual(others.sizes?.requests, { hub: 1001, dr: 1000 });
  assert.deepEqual([counts(stage.toHub), counts(stage.toDr)], [{ GET: 1, HEAD: 1000 }, { HEAD: 1000 }]);
});
