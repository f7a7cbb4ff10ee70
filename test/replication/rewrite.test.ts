import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { MEDIA_TYPES, parseManifest } from "../../src/oci/manifest.ts";
import { chooseChildren, type ProvenManifest } from "../../src/replication/copy-manifests.ts";
import { isSettled, planRule, type RulePlan } from "../../src/replication/plan.ts";
import { rewriteIndex, type RewriteMemory } from "../../src/replication/rewrite.ts";
import { runPlan, type RunOutcome } from "../../src/replication/run.ts";
import { has, pushImage, send } from "../kit/hosted.ts";
import { makeArtifact, makeImage, type Image, type Published } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { openRule } from "./opened.ts";

const ARCHITECTURES = ["amd64", "arm64", "s390x"];
const [amd64, arm64, s390x] = ARCHITECTURES.map((architecture) =>
  makeImage({ layers: [400], seed: architecture, platform: { os: "linux", architecture } }),
) as [Image, Image, Image];
const attestations = [amd64, arm64].map(({ digest }) => makeImage({ layers: [60], seed: `about ${digest}` }));

interface Entry {
  content: Published;
  platform?: object;
  annotations?: object;
}

function pointTo({ content, ...more }: Entry): object {
  const { mediaType, digest, manifest } = content;
  return { mediaType, digest, size: manifest.byteLength, ...more };
}

function indexOf(entries: Entry[], fields: object = {}): Published {
  const mediaType = MEDIA_TYPES.ociIndex;
  const body = { schemaVersion: 2, mediaType, manifests: entries.map(pointTo), ...fields };
  // Not as it would be written anew: whatever is not rewritten has to stay byte for byte.
  const manifest = Buffer.from(JSON.stringify(body, undefined, 3));
  return { manifest, mediaType, digest: digestOf(manifest) };
}

function forPlatform(content: Published, architecture: string): Entry {
  return { content, platform: { os: "linux", architecture } };
}

function attesting(content: Published, { digest }: Published): Entry {
  const annotations = { "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": digest };
  return { content, platform: { os: "unknown", architecture: "unknown" }, annotations };
}

const INDEX = indexOf(
  [
    forPlatform(amd64, "amd64"),
    forPlatform(arm64, "arm64"),
    forPlatform(s390x, "s390x"),
    attesting(attestations[0] ?? amd64, amd64),
    attesting(attestations[1] ?? arm64, arm64),
  ],
  { annotations: { "org.opencontainers.image.title": "app" }, "x-more": [1, { two: 2 }] },
);

function prove({ manifest, mediaType, digest }: Published): ProvenManifest {
  return { digest, bytes: manifest, manifest: parseManifest(manifest, mediaType) };
}

function rewrite(index: Published, platforms: string[]): ProvenManifest {
  const proven = prove(index);
  return rewriteIndex(proven, chooseChildren("app", proven.manifest.manifests, platforms).chosen, new Map());
}

function bodyOf({ bytes }: { bytes: Buffer }): Record<string, unknown> & { manifests: { digest: string }[] } {
  return JSON.parse(bytes.toString()) as ReturnType<typeof bodyOf>;
}

test("a rewritten index lists the chosen platforms with their attestations, and else says what it said", () => {
  const { manifests, ...rest } = bodyOf(rewrite(INDEX, ["linux/amd64"]));
  const { manifests: listed, ...before } = bodyOf({ bytes: INDEX.manifest });
  assert.deepEqual(rest, before);
  assert.deepEqual(manifests, [listed[0], listed[3]]);
});

test("whatever is chosen, the digest depends on source and platforms alone, and all of them are the index itself", () => {
  const platforms = ARCHITECTURES.map((one) => `linux/${one}`);
  fc.assert(
    fc.property(fc.subarray(platforms, { minLength: 1 }), fc.func(fc.integer()), (only, order) => {
      const made = rewrite(INDEX, only);
      const shuffled = only.toSorted((a, b) => order(a) - order(b));
      assert.equal(rewrite(INDEX, shuffled).digest, made.digest);
      assert.equal(made.digest, digestOf(made.bytes));
      const again = rewrite({ ...INDEX, manifest: made.bytes, digest: made.digest }, only);
      assert.equal(again.digest, made.digest);
      if (only.length === platforms.length) assert.deepEqual(made.bytes, INDEX.manifest);
    }),
  );
});

// ---- between registries ----

class Memory implements RewriteMemory {
  readonly #known = new Map<string, Digest>();

  async rewritten(source: Digest, platforms: readonly string[]): Promise<Digest | undefined> {
    return Promise.resolve(this.#known.get(`${source} ${platforms.join(" ")}`));
  }

  async remember(source: Digest, platforms: readonly string[], digest: Digest): Promise<void> {
    this.#known.set(`${source} ${platforms.join(" ")}`, digest);
    return Promise.resolve();
  }
}

interface Replicating extends AsyncDisposable {
  plan(sizes?: boolean): Promise<RulePlan>;
  run(): Promise<RunOutcome[]>;
}

async function replicate(
  hub: { url: string },
  dr: { url: string },
  more: object,
  memory?: Memory,
): Promise<Replicating> {
  const opened = await openRule({
    registries: { hub: { url: hub.url }, dr: { url: dr.url } },
    rules: [
      {
        name: "rule",
        from: { registry: "hub", repositories: ["team/app"] },
        to: [{ registry: "dr" }],
        platforms: { only: ["linux/amd64"], index: "rewrite" },
        ...more,
      },
    ],
  });
  const { rule, registries } = opened;
  const signal = AbortSignal.timeout(30_000);
  const plan = (sizes = false) =>
    planRule(rule, registries, { sizes, nowMs: Date.now(), signal, ...(memory ? { rewrites: memory } : {}) });
  return {
    plan,
    run: async () => {
      const outcomes: RunOutcome[] = [];
      await runPlan(await plan(), rule, registries, (outcome) => outcomes.push(outcome), signal);
      return outcomes;
    },
    [Symbol.asyncDispose]: () => opened[Symbol.asyncDispose](),
  };
}

async function startSource(tag = "1", root: Published = INDEX) {
  const hub = await startUpstream();
  for (const image of [amd64, arm64, s390x, ...attestations]) hub.add("team/app", undefined, image);
  hub.addManifest("team/app", tag, root);
  return hub;
}

const TARGET = { config: { hosted: { namespaces: ["team"] } } };

test("an index arrives with what was chosen at a target that takes no sparse one, and is at rest then", async () => {
  await using hub = await startSource();
  await using dr = await startRegistry(TARGET);
  await using replicating = await replicate(hub, dr, {});
  const [outcome] = await replicating.run();
  assert.deepEqual([outcome?.outcome, outcome?.notes], ["copied", []]);
  const made = rewrite(INDEX, ["linux/amd64"]);
  const { headers, bytes } = await send(dr, 200, "GET", "/v2/team/app/manifests/1");
  assert.equal(headers["docker-content-digest"], made.digest);
  assert.deepEqual(bytes, made.bytes);
  assert.ok(await has(dr, "team/app", amd64));
  assert.equal(await has(dr, "team/app", arm64), false);
  const next = await replicating.plan(true);
  assert.ok(isSettled(next), JSON.stringify(next));
  assert.deepEqual(await replicating.run(), []);
});

test("what was rewritten once is not read again to find out that nothing has changed", async () => {
  await using hub = await startSource();
  await using dr = await startRegistry(TARGET);
  await using replicating = await replicate(hub, dr, {}, new Memory());
  await replicating.run();
  const reads = hub.hits("GET", INDEX.digest);
  assert.ok(isSettled(await replicating.plan()));
  assert.equal(hub.hits("GET", INDEX.digest), reads);
});

test("what a rule protects is protected from the rewritten index, too, and a backup keeps what was there", async () => {
  await using hub = await startSource("v1");
  hub.addManifest("team/app", "latest", INDEX);
  await using dr = await startRegistry(TARGET);
  await pushImage(dr, "team/app", s390x, "v1");
  await pushImage(dr, "team/app", arm64, "latest");
  await using replicating = await replicate(hub, dr, { write: { immutable: ["v*"], backup: "{{tag}}-prev" } });
  await replicating.run();
  const leads = async (tag: string): Promise<unknown> =>
    (await send(dr, 200, "HEAD", `/v2/team/app/manifests/${tag}`)).headers["docker-content-digest"];
  assert.equal(await leads("v1"), s390x.digest);
  assert.equal(await leads("latest"), rewrite(INDEX, ["linux/amd64"]).digest);
  assert.equal(await leads("latest-prev"), arm64.digest);
  assert.ok(isSettled(await replicating.plan()));
});

test("an index within an index is rewritten with it", async () => {
  const inner = indexOf([forPlatform(amd64, "amd64"), forPlatform(arm64, "arm64")]);
  const outer = indexOf([{ content: inner }, forPlatform(s390x, "s390x")]);
  await using hub = await startSource("1", outer);
  hub.addManifest("team/app", undefined, inner);
  await using dr = await startRegistry(TARGET);
  await using replicating = await replicate(hub, dr, {});
  const [outcome] = await replicating.run();
  assert.equal(outcome?.outcome, "copied", outcome?.notes.join());
  const { bytes } = await send(dr, 200, "GET", "/v2/team/app/manifests/1");
  const [only, ...others] = bodyOf({ bytes }).manifests;
  assert.equal(others.length, 0);
  assert.equal(only?.digest, rewrite(inner, ["linux/amd64"]).digest);
  assert.ok(isSettled(await replicating.plan()));
});

test("what refers to the platforms comes along, what refers to the index as it was does not, and signed is what is signed at the source", async () => {
  await using hub = await startSource();
  const [about, whole] = [amd64, INDEX].map((subject) =>
    makeArtifact({ subject, artifactType: "a/b", payload: subject.digest }),
  ) as [Image, Image];
  hub.add("team/app", undefined, about);
  hub.add("team/app", undefined, whole);
  const signature = `${INDEX.digest.replace(":", "-")}.sig`;
  await using dr = await startRegistry(TARGET);
  const attached = { referrers: true, require: ["signature"] };
  {
    await using replicating = await replicate(hub, dr, { attached });
    assert.deepEqual(await replicating.run(), []);
  }
  hub.add("team/app", signature, arm64);
  await using replicating = await replicate(hub, dr, { attached });
  const [outcome] = await replicating.run();
  assert.equal(outcome?.outcome, "copied", outcome?.notes.join());
  assert.ok(await has(dr, "team/app", about));
  assert.equal(await has(dr, "team/app", whole), false);
  await send(dr, 404, "HEAD", `/v2/team/app/manifests/${signature}`);
  assert.ok(isSettled(await replicating.plan()));
});

test("all copies every platform, whatever else is said", async () => {
  await using hub = await startSource();
  await using dr = await startRegistry(TARGET);
  const platforms = { only: ["linux/amd64"], index: "all" };
  await using replicating = await replicate(hub, dr, { platforms });
  await replicating.run();
  const { headers } = await send(dr, 200, "HEAD", "/v2/team/app/manifests/1");
  assert.equal(headers["docker-content-digest"], INDEX.digest);
  assert.ok(await has(dr, "team/app", s390x));
});
