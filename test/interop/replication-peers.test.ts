import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { buildGoTool } from "./go-tools.ts";
import { makeFolder } from "./machine.ts";
import { missingPeer, PEERS, startPeer, type PeerKind } from "./peers.ts";
import { digestAt, replicate, startReplicating } from "./replicating.ts";
import { makeSamples } from "./samples.ts";
import { copyIn, copyOut } from "./skopeo.ts";

const SBOM_TYPE = "application/spdx+json";
const SIGNATURE_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json";
/** Indexes of which parts are missing. */
const TAKES_SPARSE: ReadonlySet<PeerKind> = new Set(["distribution 3"]);

for (const kind of PEERS) {
  test(`an index, what refers to it, and its signature go from ${kind} to Entrepot and back, and what is not signed stays`, async (t) => {
    await using folder = await makeFolder();
    const missing = await missingPeer(kind, folder.path);
    if (missing !== undefined) return t.skip(missing);
    const { single, multi } = await makeSamples(folder.path);
    const crane = await buildGoTool("crane", folder.path);
    const regctl = await buildGoTool("regctl", folder.path);
    await using peer = await startPeer(kind, join(folder.path, "peer"));
    const attached = { referrers: true, require: ["signature"] };
    await using entrepot = await startReplicating(folder.path, { peer }, [
      {
        name: "in",
        from: { registry: "peer", repositories: ["team/app"] },
        to: [{ registry: "self", repository: "here/{{name}}" }],
        attached,
      },
      {
        name: "back",
        from: { registry: "self", repositories: ["here/app"] },
        to: [{ registry: "peer", repository: "back/{{name}}" }],
        attached,
      },
    ]);
    for (const { host } of [peer, entrepot]) await regctl("registry", "set", host, "--tls", "disabled");

    const image = `${peer.host}/team/app:v1`;
    await copyIn(multi.source, image);
    await copyIn(single.source, `${peer.host}/team/app:unsigned`);
    const sbom = join(folder.path, "sbom.json");
    await writeFile(sbom, '{"spdxVersion":"SPDX-2.3"}');
    const put = (...args: string[]): Promise<string> =>
      regctl("artifact", "put", "--file", sbom, "--format", "{{.Manifest.GetDescriptor.Digest}}", ...args);
    const types = ["--artifact-type", SBOM_TYPE, "--file-media-type", SBOM_TYPE];
    const sbomDigest = await put("--subject", image, ...types);
    // As cosign signs by default.
    const signature = `sha256-${multi.digest.slice("sha256:".length)}.sig`;
    const signatureDigest = await put("--file-media-type", SIGNATURE_TYPE, `${peer.host}/team/app:${signature}`);

    const assertWhole = async (repository: string, name: string): Promise<void> => {
      const copy = `${repository}:v1`;
      assert.equal(await copyOut(copy, join(folder.path, name)), multi.digest);
      assert.equal(await crane("digest", copy), multi.digest);
      await crane("validate", "--remote", copy);
      const listed = await regctl("artifact", "list", copy, "--format", "{{json .Descriptors}}");
      const referrers = JSON.parse(listed) as { digest: string; artifactType: string }[];
      assert.deepEqual(
        referrers.map(({ digest, artifactType }) => [digest, artifactType]),
        [[sbomDigest, SBOM_TYPE]],
      );
      const found = await regctl("artifact", "get", "--subject", copy, "--filter-artifact-type", SBOM_TYPE);
      assert.equal(found, await readFile(sbom, "utf8"));
      assert.equal(await regctl("image", "digest", `${repository}:${signature}`), signatureDigest);
      assert.equal(await digestAt(`${repository}:unsigned`), undefined);
    };
    assert.match(await replicate(entrepot, "plan", "in"), /withhold +unsigned/);
    assert.match(await replicate(entrepot, "run", "in"), /done; 1 copied, 1 withheld; /);
    await assertWhole(`${entrepot.host}/here/app`, "in");
    assert.match(await replicate(entrepot, "run", "back"), /done; 1 copied; /);
    await assertWhole(`${peer.host}/back/app`, "back");
    // The image and its signature.
    for (const [rule, rest] of Object.entries({ in: "2 unchanged, 1 withheld", back: "2 unchanged" })) {
      assert.match(await replicate(entrepot, "run", rule), new RegExp(`done; 0 copied, ${rest}; 0 B sent`));
    }
    assert.deepEqual(entrepot.refusals(500), []);
  });

  test(`of an index, ${kind} gets all platforms, or one under the index's own digest or a new one`, async (t) => {
    await using folder = await makeFolder();
    const missing = await missingPeer(kind, folder.path);
    if (missing !== undefined) return t.skip(missing);
    const { multi } = await makeSamples(folder.path);
    const crane = await buildGoTool("crane", folder.path);
    await using peer = await startPeer(kind, join(folder.path, "peer"));
    const only = ["linux/amd64"];
    await using entrepot = await startReplicating(
      folder.path,
      { peer },
      ["all", "sparse", "rewrite"].map((index) => ({
        name: index,
        from: { registry: "self", repositories: ["team/app"] },
        to: [{ registry: "peer", repository: `${index}/{{name}}` }],
        platforms: { only, index },
      })),
    );
    await copyIn(multi.source, `${entrepot.host}/team/app:v1`);
    const source = `${entrepot.host}/team/app:v1`;
    const at = (index: string): string => `${peer.host}/${index}/app:v1`;
    const amd64 = await crane("digest", "--platform", "linux/amd64", source);
    const arm64 = await crane("digest", "--platform", "linux/arm64", source);

    assert.match(await replicate(entrepot, "run", "all"), /done; 1 copied; /);
    assert.equal(await copyOut(at("all"), join(folder.path, "all")), multi.digest);
    assert.equal(await crane("digest", "--platform", "linux/arm64", at("all")), arm64);

    if (TAKES_SPARSE.has(kind)) {
      assert.match(await replicate(entrepot, "run", "sparse"), /done; 1 copied; /);
      assert.equal(await digestAt(at("sparse")), multi.digest);
      await crane("validate", "--remote", `${peer.host}/sparse/app@${amd64}`);
      assert.equal(await digestAt(`${peer.host}/sparse/app@${arm64}`), undefined);
      assert.match(await replicate(entrepot, "plan", "sparse"), /tags: 1 unchanged/);
    } else {
      const refusal = /✗ peer sparse\/app:v1: .* it takes no index without all of its platforms; .*index: rewrite/;
      await assert.rejects(replicate(entrepot, "run", "sparse"), refusal);
      assert.equal(await digestAt(at("sparse")), undefined);
    }

    assert.match(await replicate(entrepot, "run", "rewrite"), /done; 1 copied; /);
    const rewritten = await copyOut(at("rewrite"), join(folder.path, "rewrite"));
    const index = JSON.parse(await crane("manifest", at("rewrite"))) as { manifests: { digest: string }[] };
    assert.deepEqual(
      index.manifests.map(({ digest }) => digest),
      [amd64],
    );
    assert.notEqual(rewritten, multi.digest);
    assert.match(await replicate(entrepot, "plan", "rewrite"), /tags: 1 unchanged/);
    assert.deepEqual(entrepot.refusals(500), []);
  });
}
