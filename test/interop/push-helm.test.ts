import assert from "node:assert/strict";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { buildGoTool } from "./go-tools.ts";
import { makeFolder } from "./machine.ts";
import { copyOut, inspect, listTags } from "./skopeo.ts";

test("helm pushes a chart, shows it, and pulls it back byte for byte", async () => {
  await using folder = await makeFolder();
  const helm = await buildGoTool("helm", folder.path);
  // It asks what is there before it pushes anything.
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team"] },
  });
  const chart = join(folder.path, "harbour");
  await mkdir(join(chart, "templates"), { recursive: true });
  await writeFile(join(chart, "Chart.yaml"), "apiVersion: v2\nname: harbour\nversion: 0.1.0+tide.1\n");
  await writeFile(
    join(chart, "templates/map.yaml"),
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\n",
  );
  await helm("package", chart, "--destination", folder.path);
  const archive = await readFile(join(folder.path, "harbour-0.1.0+tide.1.tgz"));

  const charts = `oci://${entrepot.host}/team/charts`;
  // A tag can't hold a plus.
  await helm("push", join(folder.path, "harbour-0.1.0+tide.1.tgz"), charts, "--plain-http");
  const repository = `${entrepot.host}/team/charts/harbour`;
  assert.deepEqual(await listTags(repository), ["0.1.0_tide.1"]);
  assert.match(await helm("show", "chart", `${charts}/harbour`, "--plain-http"), /^version: 0\.1\.0\+tide\.1$/m);
  const pulled = join(folder.path, "pulled");
  await mkdir(pulled);
  await helm("pull", `${charts}/harbour`, "--plain-http", "--destination", pulled);
  assert.deepEqual(await readFile(join(pulled, "harbour-0.1.0+tide.1.tgz")), archive);

  const manifest = await inspect(`${repository}:0.1.0_tide.1`);
  const { config, layers } = JSON.parse(manifest) as { config: { mediaType: string }; layers: { digest: Digest }[] };
  assert.equal(config.mediaType, "application/vnd.cncf.helm.config.v1+json");
  assert.equal(layers[0]?.digest, digestOf(archive));
  assert.equal(await copyOut(`${repository}:0.1.0_tide.1`, join(folder.path, "copy")), digestOf(Buffer.from(manifest)));
  assert.deepEqual(entrepot.refusals(500), []);
});
