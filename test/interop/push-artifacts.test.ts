import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import type { Digest } from "../../src/oci/digest.ts";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { startGate } from "./gate.ts";
import { buildGoTool } from "./go-tools.ts";
import { makeFolder, run } from "./machine.ts";
import { makeSamples } from "./samples.ts";
import { copyOut } from "./skopeo.ts";

const SBOM_TYPE = "application/spdx+json";
const SIGNATURE_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json";
/** A layer of 6 MiB comes in six pieces, each saying where it belongs. */
const CHUNK_BYTES = 1024 * 1024;
const WITHOUT_LAYERS_BYTES = 64 * 1024;

test("regctl pushes an image and what refers to it, finds it all, copies it all, and deletes it", async () => {
  await using folder = await makeFolder();
  const { multi } = await makeSamples(folder.path);
  const regctl = await buildGoTool("regctl", folder.path);
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team"] },
  });
  await using gate = await startGate(entrepot.host);
  const chunks = ["--blob-max", String(CHUNK_BYTES), "--blob-chunk", String(CHUNK_BYTES)];
  await regctl("registry", "set", gate.host, "--tls", "disabled", ...chunks);
  const referrersOf = async (image: string, ...filter: string[]): Promise<Referrer[]> => {
    const format = ["--format", "{{json .Descriptors}}"];
    return JSON.parse(await regctl("artifact", "list", image, ...format, ...filter)) as Referrer[];
  };
  const digestOf = (image: string): Promise<string> => regctl("image", "digest", image);
  const image = `${gate.host}/team/app:v1`;
  await regctl("image", "copy", multi.source.replace("oci:", "ocidir://"), image);
  assert.equal(await digestOf(image), multi.digest);
  const patches = await entrepot.metric("entrepot_http_requests_total", { method: "PATCH" });
  assert.ok(patches >= 12, `two layers of 6 MiB came in ${patches} pieces`);

  const sbom = join(folder.path, "sbom.json");
  await writeFile(sbom, '{"spdxVersion":"SPDX-2.3"}');
  const payload = join(folder.path, "payload.json");
  await writeFile(payload, `{"critical":{"image":{"docker-manifest-digest":"${multi.digest}"}}}`);
  const attach = async (type: string, file: string, note: string): Promise<string> => {
    const options = [
      "--artifact-type",
      type,
      "--file",
      file,
      "--file-media-type",
      type,
      "--annotation",
      `note=${note}`,
    ];
    const format = "{{.Manifest.GetDescriptor.Digest}}";
    return regctl("artifact", "put", "--subject", image, ...options, "--format", format);
  };
  const sbomDigest = await attach(SBOM_TYPE, sbom, "what is in it");
  const signatureDigest = await attach(SIGNATURE_TYPE, payload, "who made it");
  // As cosign signs by default: a tag made of the digest.
  const hex = multi.digest.slice("sha256:".length);
  const signatureTag = `${gate.host}/team/app:sha256-${hex}.sig`;
  await regctl("artifact", "put", "--file", payload, "--file-media-type", SIGNATURE_TYPE, signatureTag);

  assert.deepEqual(
    new Map(
      (await referrersOf(image)).map(({ digest, artifactType, annotations }) => [digest, [artifactType, annotations]]),
    ),
    new Map([
      [sbomDigest, [SBOM_TYPE, { note: "what is in it" }]],
      [signatureDigest, [SIGNATURE_TYPE, { note: "who made it" }]],
    ]),
  );
  const [found, ...more] = await referrersOf(image, "--filter-artifact-type", SBOM_TYPE);
  assert.equal(found?.digest, sbomDigest);
  assert.deepEqual(more, []);
  const get = ["artifact", "get", "--filter-artifact-type", SBOM_TYPE, "--subject"];
  assert.equal(await regctl(...get, image), await readFile(sbom, "utf8"));

  // To another repository, with everything; the layers are mounted.
  const before = gate.sentBytes;
  const copy = `${gate.host}/team/released:v1`;
  await regctl("image", "copy", "--referrers", "--digest-tags", image, copy);
  const sent = gate.sentBytes - before;
  assert.ok(sent < WITHOUT_LAYERS_BYTES, `${sent} bytes were sent for layers that were there`);
  assert.equal(await digestOf(copy), multi.digest);
  assert.deepEqual(digestsOf(await referrersOf(copy)), [sbomDigest, signatureDigest].sort());
  assert.equal(await regctl(...get, copy), await readFile(sbom, "utf8"));
  assert.equal(await digestOf(signatureTag.replace("app", "released")), await digestOf(signatureTag));
  assert.equal(await copyOut(copy, join(folder.path, "copy")), multi.digest);
  const repositories = (await regctl("repo", "ls", gate.host)).split("\n");
  assert.deepEqual(repositories, ["team/app", "team/released"]);

  // An index under the tag for registries without an API of referrers, made by a client of those.
  const old = `${gate.host}/team/app:old`;
  await regctl("artifact", "put", "--artifact-type", "application/vnd.example", "--file", sbom, old);
  await regctl("index", "create", `${gate.host}/team/app:sha256-${hex}`, "--digest", await digestOf(old));
  const merged = [sbomDigest, signatureDigest, await digestOf(old)].sort();
  assert.deepEqual(digestsOf(await referrersOf(image)), merged);

  await regctl("manifest", "delete", `${gate.host}/team/app@${signatureDigest}`);
  assert.ok(!digestsOf(await referrersOf(image)).includes(signatureDigest));
  await regctl("tag", "delete", image);
  assert.deepEqual((await regctl("tag", "ls", `${gate.host}/team/app`)).split("\n"), [
    "old",
    `sha256-${hex}`,
    `sha256-${hex}.sig`,
  ]);
  // What the tag named is there, by its digest.
  assert.equal(await digestOf(`${gate.host}/team/app@${multi.digest}`), multi.digest);
  await regctl("manifest", "delete", `${gate.host}/team/app@${multi.digest}`);
  await assert.rejects(digestOf(`${gate.host}/team/app@${multi.digest}`), /not found/);
  assert.equal(await digestOf(copy), multi.digest);
  assert.deepEqual(entrepot.refusals(500), []);
});

test("crane makes an image in the registry, tags, copies, lists, checks and deletes it", async () => {
  await using folder = await makeFolder();
  const crane = await buildGoTool("crane", folder.path);
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team"] },
  });
  const app = `${entrepot.host}/team/app`;
  const layers = await Promise.all(
    ["one", "two"].map(async (name) => {
      await writeFile(join(folder.path, name), randomBytes(1024 * 1024));
      const tar = join(folder.path, `${name}.tar`);
      await run({ path: "tar" }, ["--create", "--file", tar, "--directory", folder.path, name]);
      return tar;
    }),
  );
  const [one = "", two = ""] = layers;
  await crane("append", "--oci-empty-base", "--new_layer", one, "--new_tag", `${app}:v1`);
  await crane("append", "--base", `${app}:v1`, "--new_layer", two, "--new_tag", `${app}:v2`);
  const digest = await crane("digest", `${app}:v2`);
  await crane("tag", `${app}:v2`, "latest");
  await crane("copy", "--all-tags", app, `${entrepot.host}/team/copies/app`);
  for (const name of [`${app}:latest`, `${entrepot.host}/team/copies/app:v2`]) {
    assert.equal(await crane("digest", name), digest);
    await crane("validate", "--remote", name);
  }
  assert.equal(await copyOut(`${app}:latest`, join(folder.path, "copy")), digest);
  assert.deepEqual((await crane("ls", app)).split("\n"), ["latest", "v1", "v2"]);
  assert.deepEqual((await crane("catalog", entrepot.host)).split("\n"), ["team/app", "team/copies/app"]);

  await crane("delete", `${app}@${digest}`);
  assert.equal(await crane("ls", app), "v1");
  await assert.rejects(crane("digest", `${app}@${digest}`), /MANIFEST_UNKNOWN|404/);
  await crane("validate", "--remote", `${entrepot.host}/team/copies/app:v2`);
  assert.deepEqual(entrepot.refusals(500), []);
});

interface Referrer {
  digest: Digest;
  artifactType?: string;
  annotations?: Record<string, string>;
}

function digestsOf(referrers: readonly Referrer[]): string[] {
  return referrers.map(({ digest }) => digest).sort();
}
