import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { startDocker } from "./dockerd.ts";
import { startEntrepot, UNREACHABLE, type Entrepot } from "./entrepot.ts";
import { buildGoTool } from "./go-tools.ts";
import { eventually, makeFolder, run } from "./machine.ts";
import { missingPeer, PEERS, startPeer, type Peer, type PeerKind } from "./peers.ts";
import { makePodman } from "./podman.ts";
import { makeSamples } from "./samples.ts";
import { copyIn, copyOut, inspect, listTags } from "./skopeo.ts";

const MAIN = join(import.meta.dirname, "../../src/main.ts");
const SBOM_TYPE = "application/spdx+json";
const SIGNATURE_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json";
const SOON_MS = 1_000;
/** Indexes of which parts are missing. */
const TAKES_SPARSE: ReadonlySet<PeerKind> = new Set(["distribution 3"]);

interface Platforms {
  only?: string[];
  index?: string;
}

interface Tags {
  name: string;
  from: { registry: string; repositories: string[] };
  to: { registry: string; repository?: string }[];
  platforms?: Platforms;
  [further: string]: unknown;
}

/** A daemon with these rules between registries. */
function startReplicating(folder: string, peers: Record<string, Peer>, rules: Tags[]): Promise<Entrepot> {
  const registries = Object.fromEntries(Object.entries(peers).map(([name, { url }]) => [name, { url }]));
  return startEntrepot(folder, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team", "here"] },
    replication: { registries, rules },
  });
}

/** Runs a command of `entrepot replicate` against a daemon, without a terminal. @throws Error with what it wrote, for an exit status other than 0 */
function replicate(entrepot: Entrepot, ...args: string[]): Promise<string> {
  return run({ path: process.execPath }, [MAIN, "replicate", ...args, "--server", entrepot.url]);
}

/** Runs a rule. @returns how each image ended, by `registry repository:tag` */
async function outcomes(entrepot: Entrepot, rule: string): Promise<Record<string, string>> {
  const told = await replicate(entrepot, "run", rule, "--json");
  const lines = told.split("\n").filter((line) => line !== "");
  return Object.fromEntries(
    lines.map((line) => {
      const { registry, name, outcome } = JSON.parse(line) as Record<string, string>;
      return [`${registry} ${name}`, String(outcome)];
    }),
  );
}

/** The digest of what a name leads to, as skopeo sees it; undefined: nothing. */
async function digestAt(name: string): Promise<Digest | undefined> {
  return await inspect(name).then(
    (bytes) => digestOf(Buffer.from(bytes)),
    () => undefined,
  );
}

test("by the commands, a rule is looked at, run, followed and taken back, from docker-registry to docker-registry", async () => {
  await using folder = await makeFolder();
  const { single, multi } = await makeSamples(folder.path);
  await using source = await startPeer("docker-registry", join(folder.path, "source"));
  await using target = await startPeer("docker-registry", join(folder.path, "target"));
  await copyIn(single.source, `${source.host}/team/app:1.0`);
  await copyIn(multi.source, `${source.host}/team/app:2.0`);
  await copyIn(multi.source, `${source.host}/team/app:nightly`);
  await copyIn(multi.source, `${target.host}/mirror/team/app:1.0`);
  await using entrepot = await startReplicating(folder.path, { source, target }, [
    {
      name: "base",
      from: { registry: "source", repositories: ["team/*"] },
      to: [{ registry: "target", repository: "mirror/{{path}}" }],
      tags: { semver: ">=1.0", exclude: ["nightly"] },
    },
  ]);
  const copy = (tag: string): string => `${target.host}/mirror/team/app:${tag}`;
  const short = (digest: Digest): string => digest.slice(0, "sha256:".length + 12);

  const plan = await replicate(entrepot, "plan", "base", "--sizes");
  assert.match(plan, /^source team\/app → target mirror\/team\/app$/m);
  assert.match(plan, new RegExp(`replace +1\\.0 +${short(single.digest)} +was ${short(multi.digest)}`));
  assert.match(plan, new RegExp(`copy +2\\.0 +${short(multi.digest)}`));
  assert.match(plan, /tags: 1 to copy, 1 to replace; 1 left out/);
  assert.deepEqual(await listTags(`${target.host}/mirror/team/app`), ["1.0"]);

  const told = await replicate(entrepot, "run", "base");
  const [, id = ""] = /^run (\d+) of base \(hand\): done; 2 copied; /m.exec(told) ?? [told];
  assert.match(told, /✓ target mirror\/team\/app:2\.0: copied/);
  assert.equal(await copyOut(copy("1.0"), join(folder.path, "out-1")), single.digest);
  assert.equal(await copyOut(copy("2.0"), join(folder.path, "out-2")), multi.digest);
  assert.deepEqual((await listTags(`${target.host}/mirror/team/app`)).toSorted(), ["1.0", "2.0"]);
  assert.match(await replicate(entrepot, "plan", "base"), /tags: 2 unchanged; 1 left out/);
  assert.match(await replicate(entrepot, "status"), new RegExp(`^base +none +0 +0 +0 .* ${id} done$`, "m"));
  assert.match(await replicate(entrepot, "log", id), new RegExp(`^run ${id} of base \\(hand\\): done; 2 copied`));

  const undone = await replicate(entrepot, "undo", id);
  assert.match(undone, /^run \d+ of base/m);
  assert.equal(await digestAt(copy("1.0")), multi.digest);
  assert.deepEqual(await listTags(`${target.host}/mirror/team/app`), ["1.0"]);
  assert.match(await replicate(entrepot, "status"), new RegExp(`base is paused: run ${id} was taken back`));
  await replicate(entrepot, "resume", "base");
  assert.deepEqual(await outcomes(entrepot, "base"), {
    "target mirror/team/app:1.0": "copied",
    "target mirror/team/app:2.0": "copied",
  });
  await assert.rejects(replicate(entrepot, "run", "other"), /there is no rule other; there are base/);
  assert.deepEqual(entrepot.refusals(500), []);
});

test("what docker, podman and skopeo push is at a docker-registry within a second", async () => {
  await using folder = await makeFolder();
  const { single, multi } = await makeSamples(folder.path);
  await using target = await startPeer("docker-registry", join(folder.path, "target"));
  await using entrepot = await startReplicating(folder.path, { target }, [
    {
      name: "out",
      from: { registry: "self", repositories: ["team/**"] },
      to: [{ registry: "target" }],
      on: { push: true },
    },
  ]);
  await using docker = await startDocker(folder.path);
  const { podman } = await makePodman(folder.path);
  const arrival = async (name: string): Promise<number> => {
    const pushed = await digestAt(`${entrepot.host}/${name}`);
    assert.ok(pushed);
    const sinceMs = performance.now();
    await eventually(`${name} is at the target`, async () => (await digestAt(`${target.host}/${name}`)) === pushed);
    return performance.now() - sinceMs;
  };

  const image = `${entrepot.host}/team/docker:v1`;
  const engine = ["--dest-daemon-host", `unix://${join(folder.path, "docker.sock")}`];
  await run("skopeo", ["copy", "--quiet", ...engine, single.source, `docker-daemon:${image}`]);
  await docker.run("push", image);
  const byDocker = await arrival("team/docker:v1");
  const archive = join(folder.path, "single.tar");
  await run("skopeo", ["copy", "--quiet", single.source, `oci-archive:${archive}:single`]);
  await podman("load", "--quiet", "--input", archive);
  const [id = ""] = (await podman("images", "--quiet")).split("\n");
  await podman("push", "--tls-verify=false", id, `${entrepot.host}/team/podman:v1`);
  const byPodman = await arrival("team/podman:v1");
  await copyIn(multi.source, `${entrepot.host}/team/skopeo:v1`);
  const bySkopeo = await arrival("team/skopeo:v1");
  assert.equal(await copyOut(`${target.host}/team/skopeo:v1`, join(folder.path, "out")), multi.digest);
  // On a busy machine, not each of them.
  const [, middle = Infinity] = [byDocker, byPodman, bySkopeo].toSorted((a, b) => a - b);
  assert.ok(middle < SOON_MS, `after ${[byDocker, byPodman, bySkopeo].map(Math.round).join(", ")} ms`);
  assert.deepEqual(entrepot.refusals(500), []);
});

test("two daemons that copy every push to each other agree on one image, when both are pushed to at once, too", async () => {
  await using folder = await makeFolder();
  const { single, multi } = await makeSamples(folder.path);
  const ports = { west: await freePort(), east: await freePort() };
  const start = async (name: "west" | "east", other: "west" | "east"): Promise<Entrepot> => {
    const own = join(folder.path, name);
    await mkdir(own);
    return startEntrepot(own, {
      upstreams: UNREACHABLE,
      hosted: { namespaces: ["team"] },
      server: { listen: `127.0.0.1:${ports[name]}` },
      replication: {
        registries: { [other]: { url: `http://127.0.0.1:${ports[other]}` } },
        rules: [
          {
            name: `to-${other}`,
            from: { registry: "self", repositories: ["team/*"] },
            to: [{ registry: other }],
            on: { push: true },
          },
        ],
      },
    });
  };
  await using west = await start("west", "east");
  await using east = await start("east", "west");
  const sites = [
    { site: west, rule: "to-east" },
    { site: east, rule: "to-west" },
  ];
  const stateOf = async ({ url }: Entrepot): Promise<string | undefined> => {
    const { headers } = await fetch(`${url}/v2/team/app/manifests/v1`, { method: "HEAD" });
    const digest = headers.get("docker-content-digest");
    return digest === null ? undefined : `${digest} ${headers.get("entrepot-origin")}`;
  };
  const isIdle = async ({ site }: { site: Entrepot }): Promise<boolean> => {
    const { items } = JSON.parse(await replicate(site, "status", "--json")) as { items: Record<string, number>[] };
    return items.every(({ queued, running, waiting, dead }) => !queued && !running && !waiting && !dead);
  };
  const settle = async (): Promise<void> => {
    await eventually("both have the same", async () => {
      const state = await stateOf(west);
      return (
        state !== undefined && state === (await stateOf(east)) && (await Promise.all(sites.map(isIdle))).every(Boolean)
      );
    });
    for (const { site, rule } of sites)
      assert.match(await replicate(site, "run", rule), /done; 0 copied, 1 unchanged; /);
  };
  for (const [here, there] of [
    [single, multi],
    [multi, single],
    [single, multi],
  ] as const) {
    await Promise.all([
      copyIn(here.source, `${west.host}/team/app:v1`),
      copyIn(there.source, `${east.host}/team/app:v1`),
    ]);
    await settle();
  }
  // Afterwards, what comes last.
  for (const [{ source, digest }, { host }, at] of [
    [single, west, east],
    [multi, east, west],
  ] as const) {
    await copyIn(source, `${host}/team/app:v1`);
    await eventually("it is there", async () => (await digestAt(`${at.host}/team/app:v1`)) === digest);
    await settle();
    assert.equal(await copyOut(`${at.host}/team/app:v1`, join(folder.path, `out-${at.host}`)), digest);
  }
  for (const { site } of sites) {
    assert.deepEqual(site.refusals(500), []);
    const copies = await site.metric("entrepot_replication_images_total", { outcome: "copied" });
    assert.ok(copies <= 4, `of four pushes here, ${copies} images were copied`);
  }
});

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

/** A port that nobody listens on: each of two daemons has to know the other's. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
