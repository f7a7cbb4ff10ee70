import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { startHub } from "./hub.ts";
import { makeFolder, run } from "./machine.ts";
import { makePodman } from "./podman.ts";
import { makeSamples } from "./samples.ts";
import { copyIn, copyOut, inspect, listTags } from "./skopeo.ts";

test("skopeo pushes an image and every platform of an index from a layout, lists them, and deletes them", async () => {
  await using folder = await makeFolder();
  const { single, multi } = await makeSamples(folder.path);
  // skopeo asks what is there before it pushes anything.
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team"] },
  });
  const repository = `${entrepot.host}/team/app`;
  const { podman } = await makePodman(folder.path);

  await copyIn(single.source, `${repository}:single`);
  await copyIn(single.source, `${repository}:same`);
  await copyIn(multi.source, `${repository}:multi`);
  // The list of a Docker engine of old, made of the same layers.
  await copyIn(multi.source, `${repository}:docker`, ["--format", "v2s2"]);
  assert.deepEqual(await listTags(repository), ["docker", "multi", "same", "single"]);
  assert.equal(await copyOut(`${repository}:single`, join(folder.path, "single")), single.digest);
  assert.equal(await copyOut(`${repository}:multi`, join(folder.path, "multi")), multi.digest);
  const list = await inspect(`${repository}:docker`);
  assert.equal((JSON.parse(list) as { mediaType: string }).mediaType, MEDIA_TYPES.dockerList);
  assert.equal(await copyOut(`${repository}:docker`, join(folder.path, "docker")), digestOf(Buffer.from(list)));
  const { manifests } = JSON.parse(await inspect(`${repository}:multi`)) as { manifests: { digest: Digest }[] };
  for (const { digest } of manifests)
    assert.equal(digestOf(Buffer.from(await inspect(`${repository}@${digest}`))), digest);
  await podman("pull", "--quiet", "--tls-verify=false", `${repository}:multi`);
  const pulled = await podman("image", "inspect", "--format", "{{json .RepoDigests}}", `${repository}:multi`);
  assert.ok((JSON.parse(pulled) as string[]).includes(`${repository}@${multi.digest}`), pulled);

  // From one repository to another of the same registry.
  const elsewhere = `${entrepot.host}/team/elsewhere:v1`;
  await copyIn(`docker://${repository}:multi`, elsewhere, ["--src-tls-verify=false"]);

  // It deletes what the tag names, and so every tag of that.
  await run("skopeo", ["delete", "--tls-verify=false", `docker://${repository}:single`]);
  assert.deepEqual(await listTags(repository), ["docker", "multi"]);
  await run("skopeo", ["delete", "--tls-verify=false", `docker://${repository}:multi`]);
  for (const gone of [":single", ":same", `@${single.digest}`, ":multi", `@${multi.digest}`])
    await assert.rejects(inspect(`${repository}${gone}`), /manifest unknown/i, `${gone} is served after its deletion`);
  assert.equal(await copyOut(elsewhere, join(folder.path, "elsewhere")), multi.digest);
  assert.deepEqual(entrepot.refusals(500), []);
});

test("a first push makes its namespace though its names were asked of the upstream and are not there", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  await using entrepot = await startEntrepot(folder.path, { upstreams: { "docker.io": { url: hub.url } } });
  const name = `${entrepot.host}/newcomers/app:v1`;
  await assert.rejects(inspect(name), /unknown/i);
  await copyIn(hub.single.source, name);
  assert.equal(await copyOut(name, join(folder.path, "copy")), hub.single.digest);
  // From now on it is hosted: what is absent is asked of nobody.
  await hub.push(hub.multi.source, "newcomers/other:v1");
  await assert.rejects(inspect(`${entrepot.host}/newcomers/other:v1`), /unknown/i);
});
