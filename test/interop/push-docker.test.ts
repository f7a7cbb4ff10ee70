import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { startDocker, type Docker } from "./dockerd.ts";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { startGate } from "./gate.ts";
import { startHub } from "./hub.ts";
import { makeFolder } from "./machine.ts";
import { copyOut } from "./skopeo.ts";

const LAYER_BYTES = 3 * 1024 * 1024;
/** Manifests, configs, and the heads of requests, of an image whose layers need not be sent. */
const WITHOUT_LAYERS_BYTES = 64 * 1024;

test("docker pushes what it built, finds it by a search, and pulls it back; layers go over the line once", async () => {
  await using folder = await makeFolder();
  // The first push to team makes it a namespace; of others it asks whether the layers are there before it pushes.
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["my-built"] },
  });
  await using gate = await startGate(entrepot.host);
  await using docker = await startDocker(folder.path);
  const image = `${gate.host}/team/built:v1`;
  await build(docker, folder.path, image, "scratch");
  const digest = await push(docker, image);
  assert.ok(gate.sentBytes > 2 * LAYER_BYTES, "both layers were sent");

  assert.equal(await docker.run("search", "--format", "{{.Name}}", `${gate.host}/built`), "team/built");
  assert.equal(await docker.run("search", `${gate.host}/absent`, "--format", "{{.Name}}"), "");

  // Other repositories get the same layers by a mount, also one without a namespace.
  const copies = [`${gate.host}/team/deeper/copy:v2`, `${gate.host}/my-built:latest`];
  for (const copy of copies) {
    await docker.run("tag", image, copy);
    const before = gate.sentBytes;
    assert.equal(await push(docker, copy), digest);
    const sent = gate.sentBytes - before;
    assert.ok(sent < WITHOUT_LAYERS_BYTES, `${sent} bytes were sent for layers that were there`);
  }
  const catalog: unknown = await (await fetch(`${entrepot.url}/v2/_catalog`)).json();
  assert.deepEqual(catalog, { repositories: ["my-built", "team/built", "team/deeper/copy"] });

  await docker.run("image", "rm", image, ...copies);
  for (const name of [image, ...copies]) {
    assert.equal(await pull(docker, name), digest);
    await docker.run("image", "rm", name);
  }
  assert.equal(await copyOut(`${entrepot.host}/team/deeper/copy:v2`, join(folder.path, "copy")), digest);
  assert.deepEqual(entrepot.refusals(500), []);
});

test("what docker built on a base image from the mirror is pushed without the base, and pulls without its upstream", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  await using entrepot = await startEntrepot(folder.path, { upstreams: { "docker.io": { url: hub.url } } });
  await using gate = await startGate(entrepot.host);
  await using docker = await startDocker(folder.path);
  const base = `${gate.host}/docker.io/library/interop-single:v1`;
  assert.equal(await pull(docker, base), hub.single.digest);

  const image = `${gate.host}/team/derived:v1`;
  await build(docker, folder.path, image, base);
  const before = gate.sentBytes;
  const digest = await push(docker, image);
  const sent = gate.sentBytes - before;
  const own = 2 * LAYER_BYTES;
  assert.ok(sent >= own && sent < own + WITHOUT_LAYERS_BYTES, `${sent} bytes were sent for ${own} of its own`);

  await hub.stop();
  await docker.run("image", "rm", image, base);
  assert.equal(await pull(docker, image), digest);
  assert.equal(await copyOut(`${entrepot.host}/team/derived:v1`, join(folder.path, "copy")), digest);
  assert.deepEqual(entrepot.refusals(500), []);
});

/** Builds an image of two layers on a base. Nothing runs in it. */
async function build(docker: Docker, folder: string, tag: string, base: string): Promise<void> {
  const context = join(folder, "context");
  await mkdir(context);
  await writeFile(join(context, "Dockerfile"), `FROM ${base}\nCOPY one /one\nCOPY two /two\nCMD ["/one"]\n`);
  for (const file of ["one", "two"]) await writeFile(join(context, file), randomBytes(LAYER_BYTES));
  await docker.run("build", "--quiet", "--tag", tag, context);
}

/** @returns the digest that docker says it pushed */
async function push(docker: Docker, name: string): Promise<string> {
  const output = await docker.run("push", name);
  return /digest: (sha256:[0-9a-f]{64})/.exec(output)?.[1] ?? output;
}

/** @returns the digest that docker says it has; it checks the content itself */
async function pull(docker: Docker, name: string): Promise<string> {
  await docker.run("pull", "--quiet", name);
  const digests = JSON.parse(
    await docker.run("image", "inspect", "--format", "{{json .RepoDigests}}", name),
  ) as string[];
  const repository = name.slice(0, name.lastIndexOf(":"));
  return digests.find((named) => named.startsWith(`${repository}@`))?.split("@")[1] ?? digests.join(" ");
}
