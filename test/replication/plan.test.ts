import assert from "node:assert/strict";
import { test } from "node:test";
import { parseConfig } from "../../src/config/load.ts";
import { planRule, isSettled, type PlanOptions, type RulePlan } from "../../src/replication/plan.ts";
import { pushImage, pushManifest } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { openAll } from "./opened.ts";

const NOW_MS = Date.UTC(2026, 5, 20);
const amd64 = makeImage({ layers: [40_000, 30_000] });
const arm64 = makeImage({ layers: [50_000], seed: "arm", platform: { os: "linux", architecture: "arm64" } });
const index = makeIndex([
  [{ os: "linux", architecture: "amd64" }, amd64],
  [{ os: "linux", architecture: "arm64" }, arm64],
]);
const other = makeImage({ layers: [1000], seed: "other" });

interface Place {
  url: string;
}

/** Plans a rule from `hub` to `dr`. */
async function plan(
  hub: Place & { quota?: object },
  dr: Place,
  rule: { repositories?: string[]; to?: string } & Record<string, unknown>,
  options: Partial<PlanOptions> = {},
): Promise<RulePlan> {
  const { repositories = ["library/app"], to = "mirror/{{path}}", ...rest } = rule;
  const { replication } = parseConfig({
    replication: {
      registries: { hub: { url: hub.url, quota: hub.quota ?? {} }, dr: { url: dr.url } },
      rules: [
        { name: "rule", from: { registry: "hub", repositories }, to: [{ registry: "dr", repository: to }], ...rest },
      ],
    },
  });
  const [parsed] = replication.rules;
  assert.ok(parsed);
  await using opened = await openAll(replication.registries);
  return await planRule(parsed, opened.registries, {
    sizes: false,
    nowMs: NOW_MS,
    signal: AbortSignal.timeout(20_000),
    ...options,
  });
}

function actions({ repositories }: RulePlan): Record<string, string> {
  return Object.fromEntries(
    repositories.flatMap(({ target, tags }) => tags.map(({ tag, action }) => [`${target}:${tag}`, action])),
  );
}

test("a plan tells what is new, what moves and what is there, for one HEAD of each tag on each side", async () => {
  await using hub = await startUpstream();
  await using dr = await startUpstream();
  hub.add("library/app", "1", index);
  hub.add("library/app", "2", other);
  hub.add("library/app", "3", amd64);
  dr.add("mirror/library/app", "1", index);
  dr.add("mirror/library/app", "2", amd64);

  const found = await plan(hub, dr, {});
  assert.deepEqual(actions(found), {
    "mirror/library/app:3": "copy",
    "mirror/library/app:2": "replace",
    "mirror/library/app:1": "same",
  });
  assert.deepEqual(found.faults, []);
  assert.equal(isSettled(found), false);
  const [replaced] = found.repositories[0]?.tags.filter(({ tag }) => tag === "2") ?? [];
  assert.deepEqual(replaced && "was" in replaced && replaced.was, amd64.digest);
  // The list of tags, and three HEADs.
  assert.deepEqual(found.requests, { hub: 4, dr: 3 });
});

test("where both sides are alike, the plan is empty", async () => {
  await using hub = await startUpstream();
  await using dr = await startUpstream();
  for (const tag of ["1", "latest"]) {
    hub.add("library/app", tag, index);
    dr.add("mirror/library/app", tag, index);
  }
  assert.equal(isSettled(await plan(hub, dr, {})), true);
});

test("what happens to a tag that moved is the rule's to say", async () => {
  await using hub = await startUpstream();
  await using dr = await startUpstream();
  hub.add("library/app", "v1", other);
  hub.add("library/app", "latest", other);
  dr.add("mirror/library/app", "v1", amd64);
  dr.add("mirror/library/app", "latest", amd64);
  const of = async (write: object) => actions(await plan(hub, dr, { write }));
  const both = (v1: string, latest: string) => ({ "mirror/library/app:v1": v1, "mirror/library/app:latest": latest });
  assert.deepEqual(await of({ existing: "keep" }), both("keep", "keep"));
  assert.deepEqual(await of({ existing: "fail" }), both("fail", "fail"));
  assert.deepEqual(await of({ immutable: ["v*"] }), both("keep", "replace"));
  const { repositories } = await plan(hub, dr, { write: { backup: "{{tag}}-prev" } });
  assert.deepEqual(
    repositories[0]?.tags.map((one) => one.action === "replace" && one.backup),
    ["v1-prev", "latest-prev"],
  );
});

test("sizes count what several images share once, and only what the target lacks", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  hub.add("library/app", "1", index);
  hub.add("library/app", "2", index);
  hub.add("library/copy", "1", amd64);
  await pushImage(dr, "mirror/library/app", arm64, "old");
  const found = await plan(hub, dr, { repositories: ["library/{app,copy}"] }, { sizes: true });
  assert.deepEqual(found.faults, []);
  assert.deepEqual(found.sizes, {
    targets: [
      {
        registry: "dr",
        // The index and amd64 for one repository, amd64 for the other.
        manifests: 3,
        blobs: amd64.blobs.size,
        bytes: [...amd64.blobs.values()].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
        present: arm64.blobs.size,
        mounts: amd64.blobs.size,
      },
    ],
    pulls: 3,
    requests: { hub: 13, dr: 27 },
  });
});

test("sizes leave out platforms that the rule does", async () => {
  await using hub = await startUpstream();
  await using dr = await startUpstream();
  hub.add("library/app", "1", index);
  const { sizes } = await plan(hub, dr, { platforms: { only: ["linux/arm64"] } }, { sizes: true });
  assert.equal(sizes?.targets[0]?.blobs, arm64.blobs.size);
  assert.equal(sizes?.targets[0]?.manifests, 2);
  const none = await plan(hub, dr, { platforms: { only: ["linux/s390x"] } }, { sizes: true });
  assert.match(none.faults[0]?.message ?? "", /has nothing for linux\/s390x/);
});

test("pulls of the source's rate limit that are to be left to others are not spent on sizes", async () => {
  await using hub = await startUpstream({ rateLimit: { limit: 100, remaining: 40, windowSeconds: 21_600 } });
  await using dr = await startUpstream();
  hub.add("library/app", "1", amd64);
  const found = await plan({ url: hub.url, quota: { keep: 40 } }, dr, {}, { sizes: true });
  assert.match(found.faults[0]?.message ?? "", /40 pulls left, and replication\.registries\.hub\.quota\.keep is 40/);
  assert.deepEqual(found.pulls, { remaining: 40, limit: 100, keep: 40 });
  assert.equal(hub.rateLimit?.remaining, 40);
});

test("tags that are named after an image go with it, once, and not where it stays behind", async () => {
  await using hub = await startUpstream();
  await using dr = await startUpstream();
  const signature = `${index.digest.replace(":", "-")}.sig`;
  hub.add("library/app", "1", index);
  hub.add("library/app", "latest", index);
  hub.add("library/app", signature, other);
  const found = await plan(hub, dr, {});
  assert.deepEqual(found.repositories[0]?.tags.map(({ tag }) => tag).toSorted(), ["1", "latest", signature].toSorted());
  const without = await plan(hub, dr, { attached: { digestTags: false } });
  assert.deepEqual(
    without.repositories[0]?.tags.map(({ tag }) => tag),
    ["1", "latest"],
  );

  dr.add("mirror/library/app", "1", other);
  const kept = await plan(hub, dr, { tags: { match: ["1"] }, write: { existing: "keep" } });
  assert.deepEqual(actions(kept), { "mirror/library/app:1": "keep" });
});

test("referrers that the target lacks are part of the plan, by the API and by the fallback's tag", async () => {
  const sbom = makeArtifact({ subject: amd64, artifactType: "application/spdx+json", payload: "sbom" });
  for (const referrers of [true, false]) {
    await using hub = await startUpstream({ referrers });
    await using dr = await startUpstream();
    hub.add("library/app", "1", amd64);
    hub.add("library/app", undefined, sbom);
    dr.add("mirror/library/app", "1", amd64);
    const rule = { attached: { referrers: true, digestTags: false } };
    const found = await plan(hub, dr, rule);
    assert.deepEqual(found.repositories[0]?.tags[0]?.referrers, [sbom.digest], `API: ${referrers}`);
    assert.equal(isSettled(found), false);
    dr.add("mirror/library/app", undefined, sbom);
    assert.equal(isSettled(await plan(hub, dr, rule)), true);
  }
});

test("an image without a signature is withheld where the rule wants one", async () => {
  await using hub = await startUpstream();
  await using dr = await startUpstream();
  hub.add("library/app", "signed", amd64);
  hub.add("library/app", "unsigned", other);
  const notation = "application/vnd.cncf.notary.signature";
  hub.add("library/app", undefined, makeArtifact({ subject: amd64, artifactType: notation, payload: "it is me" }));
  assert.deepEqual(actions(await plan(hub, dr, { attached: { require: ["signature"] } })), {
    "mirror/library/app:signed": "copy",
    "mirror/library/app:unsigned": "withhold",
  });
});

test("an image that is too old is left out, unless it is at the target already or does not tell its age", async () => {
  await using hub = await startUpstream();
  await using dr = await startUpstream();
  const created = "org.opencontainers.image.created";
  const young = makeImage({ layers: [10], seed: "young", annotations: { [created]: "2026-06-19T00:00:00Z" } });
  const old = makeImage({ layers: [10], seed: "old", annotations: { [created]: "2026-01-01T00:00:00Z" } });
  hub.add("library/app", "young", young);
  hub.add("library/app", "old", old);
  hub.add("library/app", "mute", amd64);
  const rule = { tags: { maxAge: "30d" } };
  const found = await plan(hub, dr, rule);
  assert.deepEqual(actions(found), { "mirror/library/app:young": "copy", "mirror/library/app:mute": "copy" });
  assert.deepEqual(
    found.repositories[0]?.dropped.map(({ tag, stage }) => [tag, stage]),
    [["old", "maxAge"]],
  );
  dr.add("mirror/library/app", "old", old);
  assert.equal(actions(await plan(hub, dr, rule))["mirror/library/app:old"], "same");
});

test("globs find repositories in the source's list; without a list, the fault says what to write instead", async () => {
  await using hub = await startRegistry();
  await using dr = await startUpstream();
  for (const name of ["team/app", "team/web", "other/app"]) await pushImage(hub, name, amd64, "1");
  const found = await plan(hub, dr, { repositories: ["team/*"] });
  assert.deepEqual(Object.keys(actions(found)), ["mirror/team/app:1", "mirror/team/web:1"]);
  assert.deepEqual(found.faults, []);
  // Not seen at configuration: which names there are decides.
  const flat = await plan(hub, dr, { repositories: ["*/app"], to: "flat/{{name}}" });
  assert.match(flat.faults[0]?.message ?? "", /would be flat\/app, as that of other\/app/);

  const none = await plan(hub, dr, { repositories: ["nobody/*"] });
  assert.deepEqual(
    none.faults.map(({ where, message }) => [where, message.replace(/\d+/, "N")]),
    [["nobody/*", "none of the N repositories that hub lists matches: check the globs, and what the credentials see"]],
  );

  await using mute = await startUpstream();
  mute.add("library/app", "1", amd64);
  const { faults, repositories } = await plan(mute, dr, { repositories: ["library/*", "library/app"] });
  assert.equal(faults.length, 1);
  assert.match(faults[0]?.message ?? "", /name the repositories without \*/);
  assert.equal(repositories.length, 1);
});

test("a repository or a tag that cannot be asked is one fault, and the rest goes on", async () => {
  await using hub = await startUpstream();
  await using dr = await startUpstream();
  hub.add("library/app", "1", amd64);
  hub.add("library/app", "2", other);
  hub.add("library/odd", "nightly", amd64);
  hub.fault({ method: "HEAD", path: "app/manifests/2" }, { status: 403 });
  const found = await plan(hub, dr, {
    repositories: ["library/{app,gone,odd}"],
    tags: { semver: ">=1" },
  });
  assert.deepEqual(actions(found), { "mirror/library/app:1": "copy" });
  const faults = Object.fromEntries(found.faults.map(({ where, message }) => [where, message]));
  assert.match(faults["library/gone"] ?? "", /no such repository/);
  assert.match(faults["library/odd"] ?? "", /none of its 1 tags is selected/);
  assert.match(faults["library/app:2"] ?? "", /denies this \(403/);
});

test("one source is asked once for several targets", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  hub.add("library/app", "1", amd64);
  await pushImage(dr, "b/app", amd64);
  await pushManifest(dr, "b/app", amd64, "1");
  const to = ["a/{{name}}", "b/{{name}}"].map((repository) => ({ registry: "dr", repository }));
  const { replication } = parseConfig({
    replication: {
      registries: { hub: { url: hub.url }, dr: { url: dr.url } },
      rules: [{ name: "rule", from: { registry: "hub", repositories: ["library/app"] }, to }],
    },
  });
  await using opened = await openAll(replication.registries);
  const [rule] = replication.rules;
  assert.ok(rule);
  const signal = AbortSignal.timeout(20_000);
  const found = await planRule(rule, opened.registries, { sizes: false, nowMs: NOW_MS, signal });
  assert.deepEqual(actions(found), { "a/app:1": "copy", "b/app:1": "same" });
  assert.equal(hub.hits("HEAD", "manifests/1"), 1);
});
