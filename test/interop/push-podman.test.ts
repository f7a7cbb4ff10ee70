import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { makeFolder } from "./machine.ts";
import { makePodman, type Engine } from "./podman.ts";
import { copyOut, listTags } from "./skopeo.ts";

const LAYER_BYTES = 1024 * 1024;

test("podman and buildah push what they built, find it by a search, and pull each other's images", async () => {
  await using folder = await makeFolder();
  // Both ask what is there before they push anything.
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team"] },
  });
  const { podman, buildah } = await makePodman(folder.path);
  const context = join(folder.path, "context");
  await mkdir(context);
  await writeFile(join(context, "file"), randomBytes(LAYER_BYTES));
  await writeFile(join(context, "Containerfile"), 'FROM scratch\nCOPY file /file\nCMD ["/file"]\n');
  const push = async (engine: Engine, image: string, name = image, format = "oci"): Promise<string> => {
    const file = join(folder.path, "digest");
    const options = ["--quiet", "--tls-verify=false", "--digestfile", file, "--format", format];
    await engine("push", ...options, image, `docker://${name}`);
    return readFile(file, "utf8");
  };

  const built = `${entrepot.host}/team/podman:v1`;
  await podman("build", "--quiet", "--tag", built, context);
  const builtDigest = await push(podman, built);

  const container = await buildah("from", "scratch");
  await buildah("copy", "--quiet", container, join(context, "file"), "/by-buildah");
  const committed = `${entrepot.host}/team/buildah:v1`;
  await buildah("commit", "--quiet", "--rm", container, committed);
  const committedDigest = await push(buildah, committed);
  const dockerDigest = await push(buildah, committed, `${committed}-docker`, "v2s2");
  assert.notEqual(dockerDigest, committedDigest);

  // Images made of several that lie here.
  const list = `${entrepot.host}/team/list:v1`;
  await buildah("manifest", "create", list, committed);
  await buildah("manifest", "push", "--quiet", "--all", "--tls-verify=false", list, `docker://${list}`);

  const found = await podman("search", "--tls-verify=false", "--format", "{{.Name}}", `${entrepot.host}/team`);
  const names = ["buildah", "list", "podman"].map((name) => `${entrepot.host}/team/${name}`);
  assert.deepEqual(found.split("\n").sort(), names);
  assert.deepEqual(await listTags(`${entrepot.host}/team/buildah`), ["v1", "v1-docker"]);

  await podman("image", "rm", "--all", "--force");
  assert.equal(await podman("image", "list", "--quiet"), "");
  for (const [engine, image, digest] of [
    [buildah, built, builtDigest],
    [podman, committed, committedDigest],
    [podman, `${committed}-docker`, dockerDigest],
  ] as const) {
    await engine("pull", "--quiet", "--tls-verify=false", image);
    const pulled = await podman("image", "inspect", "--format", "{{json .RepoDigests}}", image);
    assert.ok(pulled.includes(digest), pulled);
    assert.equal(await copyOut(image, join(folder.path, digest)), digest);
  }
  await copyOut(list, join(folder.path, "list"));
  assert.deepEqual(entrepot.refusals(500), []);
});
