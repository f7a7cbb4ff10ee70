import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { startEntrepot } from "./entrepot.ts";
import { startHub } from "./hub.ts";
import { makeFolder } from "./machine.ts";
import { ALWAYS_ASK, assertSurvivesOutage } from "./outage.ts";
import { copyOut, inspect, listTags } from "./skopeo.ts";

test("skopeo copies every platform by the prefixed name, and again after the upstream is gone", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: { "docker.io": { url: hub.url, ...ALWAYS_ASK } },
  });
  const copies = join(folder.path, "copies");

  await assertSurvivesOutage(
    {
      pull: (image) => copyOut(`${entrepot.host}/docker.io/library/${image}:v1`, `${copies}-${image}`),
      forget: async () => {
        for (const image of ["interop-single", "interop-multi"]) await rm(`${copies}-${image}`, { recursive: true });
      },
    },
    { hub, entrepot, upstream: "docker.io", expectedBytes: hub.single.totalBytes + hub.multi.totalBytes },
  );
});

test("skopeo reads a Docker manifest list, its images by digest, and the list of tags", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  await using entrepot = await startEntrepot(folder.path, { upstreams: { "docker.io": { url: hub.url } } });
  await hub.push(hub.multi.source, "team/list:v1", ["--format", "v2s2"]);
  await hub.push(hub.single.source, "team/list:v2");

  const atHub = await inspect(`${new URL(hub.url).host}/team/list:v1`);
  const list = JSON.parse(atHub) as { mediaType: string; manifests: { digest: Digest }[] };
  assert.equal(list.mediaType, MEDIA_TYPES.dockerList);
  assert.equal(await inspect(`${entrepot.host}/team/list:v1`), atHub);
  assert.equal(await copyOut(`${entrepot.host}/team/list:v1`, join(folder.path, "copy")), digestOf(Buffer.from(atHub)));
  for (const { digest } of list.manifests) {
    assert.equal(digestOf(Buffer.from(await inspect(`${entrepot.host}/team/list@${digest}`))), digest);
  }
  assert.deepEqual(await listTags(`${entrepot.host}/team/list`), ["v1", "v2"]);
});
