import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, hexOf, type Digest } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { startDocker } from "./dockerd.ts";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { startHub } from "./hub.ts";
import { makeFolder, run } from "./machine.ts";
import { makePodman } from "./podman.ts";
import { copyIn, copyOut, inspect, listTags } from "./skopeo.ts";

const MAIN = join(import.meta.dirname, "../../src/main.ts");

test("what a registry:2 has stored is taken over from its data directory, and pulled with the digests that it had", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  const { single, multi } = hub;
  const host = new URL(hub.url).host;
  await hub.push(single.source, "team/app:oci");
  await hub.push(single.source, "team/app:schema2", ["--format", "v2s2"]);
  await hub.push(multi.source, "team/app:multi");
  await copyIn(`docker://${host}/team/app:multi`, `${host}/team/copy:multi`, ["--src-tls-verify=false"]);
  const oci = await inspect(`${host}/team/app:oci`);
  const schema2 = digestOf(Buffer.from(await inspect(`${host}/team/app:schema2`)));
  const source = new Source(hub.url);
  await source.mount("team/app", "team/mounted", oci);
  assert.equal(await source.tag("team/mounted", "mounted", oci), single.digest);
  // A deleted manifest takes its tags with it; one whose tag has moved stays, without a name.
  const deleted = await source.tag("team/app", "gone", variantOf(oci, "deleted"));
  await source.expect(202, "DELETE", `/v2/team/app/manifests/${deleted}`);
  await source.expect(404, "GET", "/v2/team/app/manifests/gone");
  const untagged = await source.tag("team/app", "moved", variantOf(oci, "untagged"));
  const moved = await source.tag("team/app", "moved", variantOf(oci, "moved"));
  const upload = await source.sendHalf("team/app", randomBytes(200_000));
  await hub.stop();
  const data = join(folder.path, "hub");
  const unfinished = join(data, `docker/registry/v2/repositories/team/app/_uploads/${upload}/data`);
  assert.equal((await readFile(unfinished)).length, 100_000);

  await using entrepot = await startEntrepot(folder.path, { upstreams: UNREACHABLE });
  const importArgs = [MAIN, "import", data, "--server", entrepot.url, "--json"];
  await assert.rejects(
    run({ path: process.execPath }, importArgs),
    /"kind":"repository","name":"library\/interop-single"/,
  );
  const again = await run({ path: process.execPath }, [...importArgs, "--into", "old"]);
  const events = again
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  const { type, leftOut, unserved, blobs, copied, verified } = events.at(-1) ?? {};
  // The blobs are here since the first time.
  assert.deepEqual(
    { type, leftOut, unserved, copied, verified },
    { type: "done", leftOut: 0, unserved: 2, copied: 0, verified: true },
  );
  assert.ok(typeof blobs === "number");
  assert.deepEqual(
    events
      .filter((event) => event["type"] === "unserved")
      .map(({ where, reason }) => `${String(where)}: ${String(reason)}`),
    [
      `"repositories/team/app/_manifests/revisions/sha256/${hexOf(deleted)}": the manifest was deleted`,
      `"repositories/team/app/_uploads/${upload}": the upload was not finished`,
    ],
  );

  await using docker = await startDocker(folder.path);
  for (const prefix of ["", "old/"]) {
    const app = `${entrepot.host}/${prefix}team/app`;
    assert.deepEqual(await listTags(app), ["moved", "multi", "oci", "schema2"]);
    const images: [string, Digest][] = [
      [`${app}:oci`, single.digest],
      [`${app}:schema2`, schema2],
      [`${app}:multi`, multi.digest],
      [`${app}:moved`, moved],
      [`${app}@${untagged}`, untagged],
      [`${entrepot.host}/${prefix}team/copy:multi`, multi.digest],
      [`${entrepot.host}/${prefix}team/mounted:mounted`, single.digest],
    ];
    for (const [image, digest] of images) {
      await docker.run("pull", "--quiet", image);
      const named = await docker.run("image", "inspect", "--format", "{{json .RepoDigests}}", image);
      const repository = image.replace(/(?::[a-z0-9]+|@sha256:.*)$/, "");
      assert.ok((JSON.parse(named) as string[]).includes(`${repository}@${digest}`), `${image} is ${named}`);
      const copy = join(folder.path, `copy-${prefix.length}-${images.findIndex(([one]) => one === image)}`);
      assert.equal(await copyOut(image, copy), digest);
    }
    await assert.rejects(docker.run("pull", "--quiet", `${app}@${deleted}`), /manifest unknown|not found/);
    assert.equal(
      (JSON.parse(await inspect(`${app}:schema2`)) as { mediaType: string }).mediaType,
      MEDIA_TYPES.dockerImage,
    );
  }
  const { podman } = await makePodman(folder.path);
  await podman("pull", "--quiet", "--tls-verify=false", `${entrepot.host}/team/app:multi`);
  assert.deepEqual(entrepot.refusals(500), []);
  assert.ok((await readdir(join(data, "docker/registry/v2/blobs/sha256"))).length > 0, "the source is gone");
});

/** The same image under another digest. */
function variantOf(manifest: string, name: string): string {
  return JSON.stringify({ ...(JSON.parse(manifest) as object), annotations: { "org.example.variant": name } });
}

/** What clients ask of the old registry beside pushes. */
class Source {
  readonly #url: string;

  constructor(url: string) {
    this.#url = url;
  }

  /** @param path of the registry, or a whole address @returns the answer's headers */
  async expect(
    status: number,
    method: string,
    path: string,
    body?: { bytes: string | Uint8Array<ArrayBuffer>; type: string },
  ): Promise<Headers> {
    const answer = await fetch(new URL(path, this.#url), {
      method,
      ...(body ? { body: body.bytes, headers: { "content-type": body.type } } : {}),
    });
    assert.equal(answer.status, status, `${method} ${path}: ${await answer.text()}`);
    return answer.headers;
  }

  /** Gives a repository the blobs of an image that another one has. */
  async mount(from: string, to: string, manifest: string): Promise<void> {
    const { config, layers } = JSON.parse(manifest) as { config: { digest: Digest }; layers: { digest: Digest }[] };
    for (const { digest } of [config, ...layers]) {
      await this.expect(201, "POST", `/v2/${to}/blobs/uploads/?mount=${digest}&from=${from}`);
    }
  }

  async tag(repository: string, tag: string, manifest: string): Promise<Digest> {
    const body = { bytes: manifest, type: MEDIA_TYPES.ociImage };
    await this.expect(201, "PUT", `/v2/${repository}/manifests/${tag}`, body);
    return digestOf(Buffer.from(manifest));
  }

  /** Begins to push a blob and leaves after half of it. @returns the upload's id */
  async sendHalf(repository: string, blob: Buffer): Promise<string> {
    const begun = await this.expect(202, "POST", `/v2/${repository}/blobs/uploads/`);
    const half = { bytes: new Uint8Array(blob.subarray(0, blob.length / 2)), type: "application/octet-stream" };
    const sent = await this.expect(202, "PATCH", begun.get("location") ?? "", half);
    return sent.get("docker-upload-uuid") ?? "";
  }
}
