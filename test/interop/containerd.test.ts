import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { startEntrepot } from "./entrepot.ts";
import { startHub } from "./hub.ts";
import { makeFolder, run, startDaemon } from "./machine.ts";
import { ALWAYS_ASK, assertSurvivesOutage } from "./outage.ts";

test("containerd with hosts.toml names the upstream by ?ns=, pulls, and pulls again after the upstream is gone", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  // Not the default upstream: without ?ns= its repositories are not found.
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: {
      "docker.io": { url: "http://127.0.0.1:9" },
      "registry.example": { url: hub.url, ...ALWAYS_ASK },
    },
  });
  await using containerd = await startContainerd(folder.path, "registry.example", entrepot.url);

  await assertSurvivesOutage(containerd, {
    hub,
    entrepot,
    upstream: "registry.example",
    expectedBytes: hub.single.sizeBytes + hub.multi.sizeBytes,
  });
});

async function startContainerd(folder: string, registry: string, mirror: string) {
  const config = join(folder, "containerd.toml");
  const socket = join(folder, "containerd.sock");
  const hosts = join(folder, "hosts");
  await writeFile(
    config,
    `version = 2
root = "${folder}/containerd"
state = "${folder}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "${socket}"
[ttrpc]
  address = "${socket}.ttrpc"
`,
  );
  await mkdir(join(hosts, registry), { recursive: true });
  // Nobody answers at the server itself: what comes, comes through the mirror.
  await writeFile(
    join(hosts, registry, "hosts.toml"),
    `server = "http://127.0.0.1:9"\n[host."${mirror}"]\n  capabilities = ["pull", "resolve"]\n`,
  );
  const { daemon } = await startDaemon("containerd", ["--config", config], /containerd successfully booted/);
  const ctr = (...args: string[]): Promise<string> => run("ctr", ["--address", socket, ...args]);
  const nameOf = (image: string): string => `${registry}/library/${image}:v1`;
  return {
    pull: async (image: string) => {
      await ctr("images", "pull", "--hosts-dir", hosts, "--snapshotter", "native", nameOf(image));
      const listed = await ctr("images", "list", `name==${nameOf(image)}`);
      return /sha256:[0-9a-f]{64}/.exec(listed)?.[0] ?? "no digest";
    },
    forget: async () => {
      // --sync waits for the collection of the content, too.
      await ctr("images", "remove", "--sync", nameOf("interop-single"), nameOf("interop-multi"));
      const left = await ctr("content", "list", "--quiet");
      if (left.trim() !== "") throw new Error(`containerd kept ${left}`);
    },
    [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose](),
  };
}
