import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { startContainerd } from "./containerd.ts";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { makeFolder, run } from "./machine.ts";
import { makeSamples } from "./samples.ts";
import { copyOut } from "./skopeo.ts";

test("containerd pushes an image and an index of every platform, and pulls them back", async () => {
  await using folder = await makeFolder();
  const { single, multi } = await makeSamples(folder.path);
  // It asks what is there before it pushes anything.
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team"] },
  });
  await using containerd = await startContainerd(folder.path);
  const samples = [
    { name: `${entrepot.host}/team/single:v1`, ...single },
    { name: `${entrepot.host}/team/multi:v1`, ...multi },
  ];
  for (const [at, { name, source, digest }] of samples.entries()) {
    const archive = join(folder.path, `${at}.tar`);
    await run("skopeo", ["copy", "--quiet", "--all", source, `oci-archive:${archive}:${name}`]);
    await containerd.ctr("images", "import", "--all-platforms", "--no-unpack", archive);
    assert.equal(await containerd.digestOf(name), digest);
    await containerd.ctr("images", "push", "--plain-http", name);
    // Where the content is there, the tag alone moves.
    const again = name.replace(":v1", ":v2");
    await containerd.ctr("images", "push", "--plain-http", again, name);
  }
  await containerd.forget(...samples.map(({ name }) => name));
  for (const [at, { name, digest }] of samples.entries()) {
    for (const tag of [name, name.replace(":v1", ":v2")]) {
      await containerd.ctr("images", "pull", "--plain-http", "--all-platforms", "--snapshotter", "native", tag);
      assert.equal(await containerd.digestOf(tag), digest);
      assert.equal(await copyOut(tag, join(folder.path, `copy-${at}-${tag.slice(-2)}`)), digest);
    }
  }
  assert.deepEqual(entrepot.refusals(500), []);
});
