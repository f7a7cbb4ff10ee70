import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { readFile } from "node:fs/promises";
import { startDocker } from "./dockerd.ts";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { makeFolder, run } from "./machine.ts";
import { makePodman } from "./podman.ts";
import { makeSamples } from "./samples.ts";
import { copyIn, copyOut } from "./skopeo.ts";

const MAIN = join(import.meta.dirname, "../../src/main.ts");

function entrepotTool(...args: string[]): Promise<string> {
  return run({ path: process.execPath }, [MAIN, ...args]);
}

/** @returns the digest of what the archive has under the tag; skopeo checks each blob */
async function digestIn(archive: string, tag: string, folder: string): Promise<Digest> {
  await run("skopeo", ["copy", "--quiet", "--all", `oci-archive:${archive}:${tag}`, `dir:${folder}`]);
  return digestOf(await readFile(join(folder, "manifest.json")));
}

test("skopeo reads an archive that was exported, and one that it wrote is imported", async () => {
  await using folder = await makeFolder();
  const samples = await makeSamples(folder.path);
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team", "copy"] },
  });
  const at = ["--server", entrepot.url];
  for (const [tag, { source, digest }] of Object.entries(samples)) {
    await copyIn(source, `${entrepot.host}/team/app:${tag}`);
    const out = join(folder.path, `${tag}.tar`);
    await entrepotTool("export", `team/app:${tag}`, out, ...at);
    assert.equal(await digestIn(out, tag, join(folder.path, `${tag}-read`)), digest);

    const written = join(folder.path, `${tag}-written.tar`);
    await run("skopeo", ["copy", "--quiet", "--all", source, `oci-archive:${written}:${tag}`]);
    await entrepotTool("import", written, "--as", `copy/app:${tag}`, ...at);
    assert.equal(await copyOut(`${entrepot.host}/copy/app:${tag}`, join(folder.path, `${tag}-copy`)), digest);
  }
});

test("what docker saved in its older way is imported by the way that the error names, and podman loads what was exported", async () => {
  await using folder = await makeFolder();
  const { single } = await makeSamples(folder.path);
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team", "copy"] },
  });
  await using docker = await startDocker(folder.path);
  const at = ["--server", entrepot.url];
  const name = `${entrepot.host}/team/app:v1`;
  await copyIn(single.source, name);
  await docker.run("pull", "--quiet", name);
  const saved = join(folder.path, "saved.tar");
  await docker.run("save", "--output", saved, name);
  await assert.rejects(entrepotTool("import", saved, ...at), /skopeo copy docker-archive:FILE oci-archive:NEW:TAG/);
  const layout = join(folder.path, "layout.tar");
  await run("skopeo", ["copy", "--quiet", `docker-archive:${saved}`, `oci-archive:${layout}:v1`]);
  await entrepotTool("import", layout, "--as", "copy/app:v1", ...at);
  const layersOf = (image: string): Promise<string> =>
    docker.run("image", "inspect", "--format", "{{json .RootFS.Layers}}", image);
  const copy = `${entrepot.host}/copy/app:v1`;
  await docker.run("pull", "--quiet", copy);
  assert.equal(await layersOf(copy), await layersOf(name));

  const out = join(folder.path, "out.tar");
  await entrepotTool("export", "team/app:v1", out, ...at);
  const { podman } = await makePodman(folder.path);
  await podman("load", "--quiet", "--input", out);
  await podman("image", "exists", "team/app:v1");
});
