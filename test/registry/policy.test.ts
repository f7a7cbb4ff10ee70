import assert from "node:assert/strict";
import { test } from "node:test";
import { parseConfig } from "../../src/config/load.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { immutableTags } from "../../src/registry/policy.ts";
import { makeImage, makeIndex, type Image } from "../kit/images.ts";
import { startRegistry, type Answer, type TestRegistry } from "../kit/registry.ts";
import { pushImage, pushManifest, send } from "../kit/hosted.ts";
import { errorOf } from "./clients.ts";

const [one, two] = ["1", "2"].map((seed) => makeImage({ layers: [100], seed })) as [Image, Image];
const rules = { team: ["v*", "[0-9]*"], "*-prod": ["*"] };

function start(hosted: Record<string, unknown> = {}): Promise<TestRegistry> {
  return startRegistry({
    config: { hosted: { namespaces: ["team", "other", "shop-prod"], immutableTags: rules, ...hosted } },
  });
}

function put(registry: TestRegistry, path: string, { manifest, mediaType }: Image): Promise<Answer> {
  return registry.send("PUT", `/v2/${path}`, { "content-type": mediaType }, manifest);
}

async function assertDenied(answer: Promise<Answer>, tag: string): Promise<void> {
  const refused = await answer;
  assert.equal(refused.status, 403, refused.bytes.toString());
  assert.equal(errorOf(refused).code, "DENIED");
  assert.match(errorOf(refused).message, new RegExp(`:${tag} is immutable by hosted.immutableTags`));
}

test("globs of namespaces and of tags say together which tags are immutable", () => {
  const immutable = immutableTags({ team: ["v*", "1.?", "*.0"], "*-prod": ["*"], "{a,b}": ["{x,y}"], none: [] });
  for (const [repository, tag, expected] of [
    ["team/app", "v1", true],
    ["team/app/deep", "v1", true],
    ["team", "v1", true],
    ["team/app", "1.2", true],
    ["team/app", "2.0", true],
    ["team/app", "latest", false],
    ["team/app", "V1", false],
    ["team/app", "1.22", false],
    ["other/team", "v1", false],
    ["teams/app", "v1", false],
    ["shop-prod/app", "latest", true],
    ["shop-prod/app", "_x", true],
    ["shop-prod-x/app", "latest", false],
    ["a/app", "x", true],
    ["b/app", "z", false],
    ["none/app", "x", false],
  ] as const)
    assert.equal(immutable(repository as RepositoryName, tag as Tag), expected, `${repository}:${tag}`);
  assert.equal(immutableTags({})("team/app" as RepositoryName, "v1" as Tag), false);
});

test("an immutable tag is pushed once; the same again is fine, another is not, nor is its delete", async () => {
  await using registry = await start();
  for (const repository of ["team/app", "other/app", "shop-prod/app"]) {
    await pushImage(registry, repository, one);
    await pushImage(registry, repository, two);
  }
  for (const [path, tag] of [
    ["team/app", "v1"],
    ["team/app", "1.0"],
    ["shop-prod/app", "latest"],
  ] as const) {
    await pushManifest(registry, path, one, tag);
    await pushManifest(registry, path, one, tag);
    await assertDenied(put(registry, `${path}/manifests/${tag}`, two), tag);
    await assertDenied(registry.send("DELETE", `/v2/${path}/manifests/${tag}`), tag);
    const kept = await send(registry, 200, "HEAD", `/v2/${path}/manifests/${tag}`);
    assert.equal(kept.headers["docker-content-digest"], one.digest);
  }
  for (const [path, tag] of [
    ["team/app", "latest"],
    ["other/app", "v1"],
  ] as const) {
    await pushManifest(registry, path, one, tag);
    await pushManifest(registry, path, two, tag);
    await send(registry, 202, "DELETE", `/v2/${path}/manifests/${tag}`);
  }
});

test("a manifest under an immutable tag can't be deleted, nor one that an index under such a tag needs", async () => {
  await using registry = await start();
  const index = makeIndex([[{ os: "linux", architecture: "amd64" }, one]]);
  const outer = makeIndex([[{ os: "linux", architecture: "arm64" }, two]]);
  await pushImage(registry, "team/app", one);
  await pushManifest(registry, "team/app", index);
  await pushImage(registry, "team/app", two, "dev");
  await pushManifest(registry, "team/app", outer, "dev2");
  const nested = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: index.mediaType,
      manifests: [{ mediaType: index.mediaType, digest: index.digest, size: index.manifest.byteLength }],
    }),
  );
  await send(registry, 201, "PUT", "/v2/team/app/manifests/v1", { "content-type": index.mediaType }, nested);
  for (const digest of [index.digest, one.digest]) {
    await assertDenied(registry.send("DELETE", `/v2/team/app/manifests/${digest}`), "v1");
    await send(registry, 200, "GET", `/v2/team/app/manifests/${digest}`);
  }
  await send(registry, 202, "DELETE", `/v2/team/app/manifests/${two.digest}`);
  // One of its tags is enough to keep it, and then it keeps the others.
  await pushManifest(registry, "team/app", one, "latest");
  await pushManifest(registry, "team/app", one, "v2");
  await assertDenied(registry.send("DELETE", `/v2/team/app/manifests/${one.digest}`), "v[12]");
  await send(registry, 200, "GET", "/v2/team/app/manifests/latest");
});

test("rules that are reloaded hold from the next request on", async () => {
  await using registry = await start({ immutableTags: {} });
  await pushImage(registry, "team/app", one, "v1");
  await pushImage(registry, "team/app", two, "v1");
  const reload = (hosted: Record<string, unknown>): string[] =>
    registry.app.reload(
      parseConfig({
        server: { listen: "127.0.0.1:0" },
        storage: { root: registry.root },
        hosted: { namespaces: ["team", "other", "shop-prod"], ...hosted },
      }),
    ).changed;
  assert.ok(reload({ immutableTags: rules, delete: false }).some((key) => key.startsWith("hosted.immutableTags")));
  await assertDenied(put(registry, "team/app/manifests/v1", one), "v1");
  await send(registry, 405, "DELETE", "/v2/team/app/manifests/v1");
  reload({ immutableTags: {} });
  await pushManifest(registry, "team/app", one, "v1");
  await send(registry, 202, "DELETE", "/v2/team/app/manifests/v1");
});

test("of two first pushes of an immutable tag at once, one is told that it came too late", async () => {
  await using registry = await start();
  for (const image of [one, two]) await pushImage(registry, "team/app", image);
  const answers = await Promise.all([one, two].map((image) => put(registry, "team/app/manifests/v1", image)));
  assert.deepEqual(new Set(answers.map(({ status }) => status)), new Set([201, 403]));
  const winner = answers.find(({ status }) => status === 201);
  const kept = await send(registry, 200, "HEAD", "/v2/team/app/manifests/v1");
  assert.equal(kept.headers["docker-content-digest"], winner?.headers["docker-content-digest"]);
});
