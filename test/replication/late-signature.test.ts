import assert from "node:assert/strict";
import { test } from "node:test";
import { pushImage } from "../kit/hosted.ts";
import { makeArtifact, makeImage } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { startBetween } from "./between.ts";
import { run, tasks } from "./runs.ts";

const SIGNATURE = "application/vnd.dev.cosign.artifact.sig.v1+json";

function rule(url: string, attached: object) {
  const from = { registry: "self", repositories: ["team/app"] };
  const out = { name: "out", from, to: [{ registry: "dr" }], on: { push: true }, attached };
  return { replication: { registries: { dr: { url } }, rules: [out] } };
}

async function digestAt(registry: TestRegistry, reference: string): Promise<string | undefined> {
  const { status, headers } = await registry.send("HEAD", `/v2/team/app/manifests/${reference}`);
  return status === 200 ? (headers["docker-content-digest"] as string) : undefined;
}

/** How each copy ended, in order of their beginning. */
async function outcomes(registry: TestRegistry): Promise<(string | undefined)[]> {
  return (await tasks(registry)).map(({ result }) => result?.outcome);
}

test("an image that waits for its signature is copied under all its tags once that is pushed, as a tag or as a referrer", async () => {
  await using target = await startRegistry();
  const attached = { referrers: true, require: ["signature"] };
  await using source = await startRegistry({ config: rule(target.url, attached) });
  const byTag = makeImage({ layers: [1000], seed: "by tag" });
  const byReferrer = makeImage({ layers: [1000], seed: "by referrer" });
  for (const tag of ["1.0", "latest"]) await pushImage(source, "team/app", byTag, tag);
  await pushImage(source, "team/app", byReferrer, "2.0");
  await until(
    async () => (await outcomes(source)).filter((how) => how === "withheld").length === 3,
    "all are withheld",
  );
  assert.equal(await digestAt(target, "1.0"), undefined);

  const signature = `${byTag.digest.replace(":", "-")}.sig`;
  const signed = makeImage({ layers: [100], seed: "signature" });
  await pushImage(source, "team/app", signed, signature);
  for (const tag of ["1.0", "latest"]) {
    await until(async () => (await digestAt(target, tag)) === byTag.digest, `${tag} is there`);
  }
  await until(async () => (await digestAt(target, signature)) === signed.digest, "its signature is there");
  assert.equal(await digestAt(target, "2.0"), undefined);

  const referrer = makeArtifact({ subject: byReferrer, artifactType: SIGNATURE, payload: "signed" });
  await pushImage(source, "team/app", referrer);
  await until(async () => (await digestAt(target, "2.0")) === byReferrer.digest, "2.0 is there");
  await until(async () => (await digestAt(target, referrer.digest)) !== undefined, "its signature is there");
});

test("a signature that is pushed while its image is being copied gets there, too", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  await using source = await startRegistry({ config: rule(between.url, {}) });
  const image = makeImage({ layers: [400_000], seed: "large" });
  between.trick = ({ path }) => (path.includes("/blobs/uploads/") ? { pauseMs: 50 } : undefined);
  await pushImage(source, "team/app", image, "1.0");
  await until(() => between.hits("POST") > 0, "its copy has begun");
  const signature = `${image.digest.replace(":", "-")}.sig`;
  const signed = makeImage({ layers: [100], seed: "signature" });
  await pushImage(source, "team/app", signed, signature);
  await until(async () => (await digestAt(target, signature)) === signed.digest, "its signature is there");
  assert.equal(await digestAt(target, "1.0"), image.digest);
});

test("a run copies all tags of a signed image, whichever of them brings the signature", async () => {
  await using target = await startRegistry();
  const { replication } = rule(target.url, { require: ["signature"] });
  const [out] = replication.rules;
  await using source = await startRegistry({
    config: { replication: { ...replication, rules: [{ ...out, on: { push: false } }] } },
  });
  const image = makeImage({ layers: [1000], seed: "two tags" });
  for (const tag of ["1.0", "latest"]) await pushImage(source, "team/app", image, tag);
  const signed = makeImage({ layers: [100], seed: "its signature" });
  await pushImage(source, "team/app", signed, `${image.digest.replace(":", "-")}.sig`);
  assert.deepEqual((await run(source)).result?.withheld, 0);
  for (const tag of ["1.0", "latest"]) assert.equal(await digestAt(target, tag), image.digest);
  await pushImage(source, "team/app", image, "stable");
  assert.deepEqual((await run(source)).result?.withheld, 0, "the signature is at the target already");
  assert.equal(await digestAt(target, "stable"), image.digest);
});
