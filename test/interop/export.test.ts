import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { startContainerd } from "./containerd.ts";
import { startDocker } from "./dockerd.ts";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { makeFolder, run } from "./machine.ts";
import { makePodman } from "./podman.ts";
import { makeSamples } from "./samples.ts";
import { copyIn, copyOut } from "./skopeo.ts";

const MAIN = join(import.meta.dirname, "../../src/main.ts");
const TEAMS = { upstreams: UNREACHABLE, hosted: { namespaces: ["team", "copy"] } };

function entrepotTool(...args: string[]): Promise<string> {
  return run({ path: process.execPath }, [MAIN, ...args]);
}

/** @returns the digest of what the archive has under the tag; skopeo checks each blob */
async function digestIn(archive: string, tag: string, folder: string): Promise<Digest> {
  await run("skopeo", ["copy", "--quiet", "--all", `oci-archive:${archive}:${tag}`, `dir:${folder}`]);
  return digestOf(await readFile(join(folder, "manifest.json")));
}

test("skopeo, podman and containerd read an archive that was exported", async () => {
  await using folder = await makeFolder();
  const samples = await makeSamples(folder.path);
  await using entrepot = await startEntrepot(folder.path, TEAMS);
  await using containerd = await startContainerd(folder.path);
  const { podman } = await makePodman(folder.path);
  const nameOf = (tag: string): string => `team/app:${tag}`;
  for (const [tag, { source }] of Object.entries(samples)) await copyIn(source, `${entrepot.host}/${nameOf(tag)}`);
  const out = join(folder.path, "out.tar");
  await entrepotTool("export", ...Object.keys(samples).map(nameOf), out, "--server", entrepot.url);
  await containerd.ctr("images", "import", "--all-platforms", out);
  const digestHere = (tag: string): Promise<string> =>
    podman("image", "inspect", "--format", "{{.Digest}}", `localhost/${nameOf(tag)}`);
  for (const [tag, { digest }] of Object.entries(samples)) {
    assert.equal(await digestIn(out, tag, join(folder.path, `${tag}-read`)), digest);
    await podman("pull", "--quiet", `oci-archive:${out}:${tag}`);
    assert.equal(await digestHere(tag), digest);
    assert.equal(await containerd.digestOf(nameOf(tag)), digest);
    // Of a file with one image, podman needs to be told no name.
    const single = join(folder.path, `${tag}.tar`);
    await entrepotTool("export", nameOf(tag), single, "--server", entrepot.url);
    await podman("image", "rm", `localhost/${nameOf(tag)}`);
    await podman("load", "--quiet", "--input", single);
    assert.equal(await digestHere(tag), digest);
  }
});

test("what skopeo, podman and containerd write as an archive is imported", async () => {
  await using folder = await makeFolder();
  const samples = await makeSamples(folder.path);
  await using entrepot = await startEntrepot(folder.path, TEAMS);
  await using containerd = await startContainerd(folder.path);
  const { podman } = await makePodman(folder.path);
  for (const [tag, { source, digest }] of Object.entries(samples)) {
    const archive = (tool: string): string => join(folder.path, `${tag}-${tool}.tar`);
    const imported = async (tool: string): Promise<Digest> => {
      const name = `copy/${tool}:${tag}`;
      await entrepotTool("import", archive(tool), "--as", name, "--server", entrepot.url);
      return copyOut(`${entrepot.host}/${name}`, join(folder.path, `${tag}-${tool}`));
    };
    await run("skopeo", ["copy", "--quiet", "--all", source, `oci-archive:${archive("skopeo")}:${tag}`]);
    assert.equal(await imported("skopeo"), digest);
    // Beside the layout, it writes the manifest.json that "docker load" reads, as newer dockers do, too.
    await containerd.ctr("images", "import", "--all-platforms", "--base-name", "team/app", archive("skopeo"));
    await containerd.ctr("images", "export", "--all-platforms", archive("containerd"), `team/app:${tag}`);
    assert.equal(await imported("containerd"), digest);
    // It compresses layers anew, and knows one platform.
    await podman("load", "--quiet", "--input", archive("skopeo"));
    const [id = ""] = (await podman("images", "--quiet")).split("\n");
    await podman("save", "--quiet", "--format", "oci-archive", "--output", archive("podman"), id);
    assert.equal(await imported("podman"), await digestIn(archive("podman"), "", join(folder.path, `${tag}-read`)));
    await podman("image", "rm", "--force", id);
  }
});

test("what docker saves in its older way is imported by the way that the error names, and docker gets what was exported by skopeo", async () => {
  await using folder = await makeFolder();
  const { single, multi } = await makeSamples(folder.path);
  await using entrepot = await startEntrepot(folder.path, TEAMS);
  await using docker = await startDocker(folder.path);
  const at = ["--server", entrepot.url];
  const names = { v1: `${entrepot.host}/team/app:v1`, v2: `${entrepot.host}/team/app:v2` };
  await copyIn(single.source, names.v1);
  await copyIn(multi.source, names.v2);
  const ids: Record<string, string> = {};
  for (const name of Object.values(names)) {
    await docker.run("pull", "--quiet", name);
    ids[name] = await docker.run("image", "inspect", "--format", "{{.Id}}", name);
  }
  const layersOf = (image: string): Promise<string> =>
    docker.run("image", "inspect", "--format", "{{json .RootFS.Layers}}", image);

  const saved = join(folder.path, "saved.tar");
  await docker.run("save", "--output", saved, ...Object.values(names));
  const refused = await entrepotTool("import", saved, ...at).catch((error: Error) => error.message);
  const [, remedy = ""] = /skopeo (copy docker-archive:FILE:NAME:TAG oci-archive:NEW:TAG)/.exec(refused) ?? [];
  for (const [tag, name] of Object.entries(names)) {
    const layout = join(folder.path, `${tag}-layout.tar`);
    const told = remedy.replace("FILE:NAME:TAG", `${saved}:${name}`).replace("NEW:TAG", `${layout}:${tag}`);
    await run("skopeo", told.split(" "));
    await entrepotTool("import", layout, "--as", `copy/app:${tag}`, ...at);
    const copy = `${entrepot.host}/copy/app:${tag}`;
    await docker.run("pull", "--quiet", copy);
    assert.equal(await layersOf(copy), await layersOf(name));
  }

  const out = join(folder.path, "out.tar");
  await entrepotTool("export", "team/app:v1", "team/app:v2", out, ...at);
  // Without containerd's image store, docker reads no layout itself.
  await assert.rejects(docker.run("load", "--input", out));
  for (const tag of Object.keys(names)) {
    const engine = ["--dest-daemon-host", `unix://${join(folder.path, "docker.sock")}`];
    const loaded = `loaded/app:${tag}`;
    await run("skopeo", ["copy", "--quiet", ...engine, `oci-archive:${out}:${tag}`, `docker-daemon:${loaded}`]);
    assert.equal(
      await docker.run("image", "inspect", "--format", "{{.Id}}", loaded),
      ids[`${entrepot.host}/team/app:${tag}`],
    );
  }
});
