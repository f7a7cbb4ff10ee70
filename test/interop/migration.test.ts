import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
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
  // Within one registry, layers are mounted from one repository to the other.
  await copyIn(`docker://${host}/team/app:multi`, `${host}/team/copy:multi`, ["--src-tls-verify=false"]);
  const schema2 = await inspect(`${host}/team/app:schema2`);
  // A tag that is deleted as registry:2 has it done: only its folder's link goes.
  await hub.push(single.source, "team/app:gone");
  const begun = await fetch(`${hub.url}/v2/team/app/blobs/uploads/`, { method: "POST" });
  assert.equal(begun.status, 202);
  await hub.stop();
  const data = join(folder.path, "hub");
  await run({ path: "/bin/rm" }, [
    "-r",
    join(data, "docker/registry/v2/repositories/team/app/_manifests/tags/gone/current"),
  ]);

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

  for (const prefix of ["", "old/"]) {
    const app = `${entrepot.host}/${prefix}team/app`;
    assert.deepEqual(await listTags(app), ["multi", "oci", "schema2"]);
    assert.equal(await copyOut(`${app}:oci`, join(folder.path, `${prefix.length}-oci`)), single.digest);
    assert.equal(await copyOut(`${app}:multi`, join(folder.path, `${prefix.length}-multi`)), multi.digest);
    assert.equal(
      (JSON.parse(await inspect(`${app}:schema2`)) as { mediaType: string }).mediaType,
      MEDIA_TYPES.dockerImage,
    );
    const copied2 = await copyOut(`${app}:schema2`, join(folder.path, `${prefix.length}-schema2`));
    assert.equal(copied2, digestOf(Buffer.from(schema2)));
    const copy = `${entrepot.host}/${prefix}team/copy:multi`;
    assert.equal(await copyOut(copy, join(folder.path, `${prefix.length}-copy`)), multi.digest);
  }
  const { podman } = await makePodman(folder.path);
  await podman("pull", "--quiet", "--tls-verify=false", `${entrepot.host}/team/app:multi`);
  assert.deepEqual(entrepot.refusals(500), []);
  assert.ok((await readdir(join(data, "docker/registry/v2/blobs/sha256"))).length > 0, "the source is gone");
});
