import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { parseConfig } from "../../src/config/load.ts";
import { isDigest, type Digest } from "../../src/oci/digest.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { createTarget } from "../../src/remote/target.ts";
import { deleteTag } from "../../src/replication/deletion.ts";
import { endpointOf } from "../../src/replication/rules.ts";
import { makeFolder, startDaemon } from "./machine.ts";

const CONFIG = Buffer.from("{}");
const CONFIG_DIGEST = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const TYPE = "application/vnd.oci.image.manifest.v1+json";
const REPOSITORY = "mirror/app" as RepositoryName;

async function startDockerRegistry(folder: string, deletes: boolean) {
  const root = join(folder, `deletes-${deletes}`);
  await mkdir(root);
  const config = join(folder, `deletes-${deletes}.yaml`);
  const content = {
    version: "0.1",
    storage: { filesystem: { rootdirectory: root }, delete: { enabled: deletes } },
    http: { addr: "127.0.0.1:0" },
  };
  await writeFile(config, JSON.stringify(content));
  const { daemon, match } = await startDaemon("docker-registry", ["serve", config], /listening on (127[.0-9]+:\d+)/);
  return { url: `http://${match[1]}`, [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose]() };
}

/** An image under two tags. @returns its digest */
async function fill(url: string): Promise<Digest> {
  const started = await fetch(`${url}/v2/${REPOSITORY}/blobs/uploads/`, { method: "POST" });
  const place = new URL(started.headers.get("location") ?? "", url);
  place.searchParams.set("digest", CONFIG_DIGEST);
  assert.equal((await fetch(place, { method: "PUT", body: CONFIG })).status, 201);
  const manifest = JSON.stringify({
    schemaVersion: 2,
    mediaType: TYPE,
    config: { mediaType: "application/vnd.oci.image.config.v1+json", digest: CONFIG_DIGEST, size: 2 },
    layers: [],
  });
  let digest: string | null = null;
  for (const tag of ["1", "latest"]) {
    const headers = { "content-type": TYPE };
    const put = await fetch(`${url}/v2/${REPOSITORY}/manifests/${tag}`, { method: "PUT", headers, body: manifest });
    assert.equal(put.status, 201, await put.text());
    digest = put.headers.get("docker-content-digest");
  }
  assert.ok(digest !== null && isDigest(digest));
  return digest;
}

async function headOf(url: string, tag: string): Promise<{ status: number; digest: string | null }> {
  const answer = await fetch(`${url}/v2/${REPOSITORY}/manifests/${tag}`, { method: "HEAD", headers: { accept: TYPE } });
  return { status: answer.status, digest: answer.headers.get("docker-content-digest") };
}

async function openTarget(url: string) {
  const { dr } = parseConfig({ replication: { registries: { dr: { url } } } }).replication.registries;
  assert.ok(dr);
  const log = await createLog({ level: "silent", format: "json", destination: { write: () => undefined } });
  const observe = { request: () => undefined, received: () => undefined };
  return await createTarget(endpointOf(dr), { clock: systemClock, log, observe });
}

test("a tag of docker-registry, which deletes no tags, goes, and the other tag of its image stays", async () => {
  await using folder = await makeFolder();
  await using registry = await startDockerRegistry(folder.path, true);
  await using target = await openTarget(registry.url);
  const digest = await fill(registry.url);
  const deletion = { repository: REPOSITORY, tag: "1" as Tag, expected: digest };
  const signal = AbortSignal.timeout(30_000);
  assert.equal(await deleteTag(target, deletion, signal), "deleted");
  assert.equal((await headOf(registry.url, "1")).status, 404);
  assert.deepEqual(await headOf(registry.url, "latest"), { status: 200, digest });
  assert.equal(await deleteTag(target, deletion, signal), "absent");
});

test("where docker-registry deletes nothing, the tag stays as it is, and the failure names the remedy", async () => {
  await using folder = await makeFolder();
  await using registry = await startDockerRegistry(folder.path, false);
  await using target = await openTarget(registry.url);
  const digest = await fill(registry.url);
  const deletion = { repository: REPOSITORY, tag: "1" as Tag, expected: digest };
  await assert.rejects(
    deleteTag(target, deletion, AbortSignal.timeout(30_000)),
    /UNSUPPORTED.*turn deletion on there \(storage\.delete\.enabled/,
  );
  assert.deepEqual(await headOf(registry.url, "1"), { status: 200, digest });
});
