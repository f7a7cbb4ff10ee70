import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { makeImage, virtualBlob } from "../kit/images.ts";
import { startUpstream } from "../kit/upstream.ts";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { startHub } from "./hub.ts";
import { makeFolder, run } from "./machine.ts";
import { copyOut, inspect, listTags } from "./skopeo.ts";

const MAIN = join(import.meta.dirname, "../../src/main.ts");
const TEAMS = { upstreams: UNREACHABLE, hosted: { namespaces: ["team", "back"] } };

async function copy(...args: string[]): Promise<Record<string, unknown>> {
  const told = await run({ path: process.execPath }, [MAIN, "copy", ...args, "--json"]);
  return JSON.parse(told.trimEnd().split("\n").at(-1) ?? "") as Record<string, unknown>;
}

test("images go from docker-registry to Entrepot and back into docker-registry, digest for digest", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  await using entrepot = await startEntrepot(folder.path, TEAMS);
  const place = new URL(hub.url).host;
  for (const name of ["single", "multi"] as const) {
    const source = `${place}/library/interop-${name}:v1`;
    assert.equal((await copy(source, `${entrepot.host}/team/${name}`))["copied"], 1);
    assert.equal(await copyOut(`${entrepot.host}/team/${name}:v1`, join(folder.path, `in-${name}`)), hub[name].digest);
    assert.equal((await copy(`${entrepot.host}/team/${name}:v1`, `${place}/back/${name}`))["copied"], 1);
    assert.equal(await copyOut(`${place}/back/${name}:v1`, join(folder.path, `out-${name}`)), hub[name].digest);
    assert.equal(await inspect(`${place}/back/${name}:v1`), await inspect(source));
    const again = await copy(`${entrepot.host}/team/${name}`, `${place}/back/${name}`, "--all-tags");
    assert.deepEqual([again["unchanged"], again["sentBytes"], again["requests"]], [1, 0, 3]);
  }
});

test("a large blob goes into docker-registry in chunks", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  await using source = await startUpstream();
  const image = makeImage({ layers: [virtualBlob(150 * 1024 * 1024, "large")] });
  source.add("team/large", "1", image);
  const target = `${new URL(hub.url).host}/large/app`;
  assert.equal((await copy(`${source.host}/team/large:1`, target))["copied"], 1);
  assert.equal(await copyOut(`${target}:1`, join(folder.path, "large")), image.digest);
});

test("what refers to an image is listed by its tag at docker-registry, which has no API for that, and found there again", async () => {
  await using folder = await makeFolder();
  await mkdir(join(folder.path, "samples"), { recursive: true });
  await using hub = await startHub(folder.path);
  await using entrepot = await startEntrepot(folder.path, TEAMS);
  const place = new URL(hub.url).host;
  const { digest } = hub.single;
  await copy(`${place}/library/interop-single:v1`, `${entrepot.host}/team/app`);
  const config = Buffer.from("{}");
  const empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
  const type = "application/vnd.oci.image.manifest.v1+json";
  const base = `${entrepot.url}/v2/team/app`;
  await fetch(`${base}/blobs/uploads/?digest=${empty}`, { method: "POST", body: config });
  const subject = (await fetch(`${base}/manifests/v1`, { method: "HEAD", headers: { accept: type } })).headers;
  for (const note of ["one", "two"]) {
    const manifest = {
      schemaVersion: 2,
      mediaType: type,
      artifactType: "application/vnd.example.note",
      config: { mediaType: "application/vnd.oci.empty.v1+json", digest: empty, size: 2 },
      layers: [],
      subject: { mediaType: subject.get("content-type"), digest, size: Number(subject.get("content-length")) },
      annotations: { note },
    };
    const headers = { "content-type": type };
    const put = await fetch(`${base}/manifests/${note}`, { method: "PUT", headers, body: JSON.stringify(manifest) });
    assert.equal(put.status, 201, await put.text());
  }
  await copy(`${entrepot.host}/team/app:v1`, `${place}/signed/app`);
  const tag = digest.replace(":", "-");
  assert.deepEqual((await listTags(`${place}/signed/app`)).toSorted(), [tag, "v1"]);
  const listed = JSON.parse(await inspect(`${place}/signed/app:${tag}`)) as { manifests: unknown[] };
  assert.equal(listed.manifests.length, 2);
  await copy(`${place}/signed/app:v1`, `${entrepot.host}/back/app`);
  const answer = await fetch(`${entrepot.url}/v2/back/app/referrers/${digest}`);
  assert.equal(((await answer.json()) as { manifests: unknown[] }).manifests.length, 2);
});
