import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdir, writeFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import type { Digest } from "../../src/oci/digest.ts";
import { startDocker } from "./dockerd.ts";
import { startEntrepot, UNREACHABLE, type Entrepot } from "./entrepot.ts";
import { buildGoTool } from "./go-tools.ts";
import { eventually, makeFolder, run } from "./machine.ts";
import { startPeer } from "./peers.ts";
import { makePodman } from "./podman.ts";
import { digestAt, replicate, startReplicating } from "./replicating.ts";
import { makeSamples } from "./samples.ts";
import { copyIn, copyOut, listTags } from "./skopeo.ts";

const SBOM_TYPE = "application/spdx+json";
const SOON_MS = 1_000;

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
  assert.match(undone, new RegExp(`^run \\d+ takes back run ${id} of base: done; 2 taken back`, "m"));
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

test("an image that was pushed without its signature waits for it, and what is attached later follows to docker-registry", async () => {
  await using folder = await makeFolder();
  const { multi } = await makeSamples(folder.path);
  const regctl = await buildGoTool("regctl", folder.path);
  await using target = await startPeer("docker-registry", join(folder.path, "target"));
  await using entrepot = await startReplicating(folder.path, { target }, [
    {
      name: "out",
      from: { registry: "self", repositories: ["team/app"] },
      to: [{ registry: "target" }],
      attached: { referrers: true, require: ["signature"] },
      on: { push: true },
    },
  ]);
  for (const { host } of [target, entrepot]) await regctl("registry", "set", host, "--tls", "disabled");
  const copy = `${target.host}/team/app:v1`;
  const note = join(folder.path, "note.json");
  await writeFile(note, "{}");
  const attach = (type: string): Promise<string> => {
    const subject = ["--subject", `${entrepot.host}/team/app:v1`, "--artifact-type", type];
    const content = ["--file", note, "--file-media-type", "application/json"];
    return regctl("artifact", "put", ...subject, ...content, "--format", "{{.Manifest.GetDescriptor.Digest}}");
  };
  const attached = async (): Promise<string[]> => {
    const listed = await regctl("artifact", "list", copy, "--format", "{{json .Descriptors}}");
    return (JSON.parse(listed) as { digest: string }[]).map(({ digest }) => digest).toSorted();
  };
  await copyIn(multi.source, `${entrepot.host}/team/app:v1`);
  await eventually("it is withheld", async () => {
    const withheld = { rule: "out", outcome: "withheld" };
    return (await entrepot.metric("entrepot_replication_images_total", withheld)) === 1;
  });
  assert.equal(await digestAt(copy), undefined);
  const signature = await attach("application/vnd.dev.cosign.artifact.sig.v1+json");
  await eventually("it is there", async () => (await digestAt(copy)) === multi.digest);
  assert.deepEqual(await attached(), [signature]);
  const sbom = await attach(SBOM_TYPE);
  await eventually("its SBOM is there", async () => (await attached()).length === 2);
  assert.deepEqual(await attached(), [signature, sbom].toSorted());
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

/** A port that nobody listens on: each of two daemons has to know the other's. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
