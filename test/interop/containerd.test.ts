import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { startContainerd } from "./containerd.ts";
import { startEntrepot } from "./entrepot.ts";
import { startHub } from "./hub.ts";
import { makeFolder } from "./machine.ts";
import { ALWAYS_ASK, assertSurvivesOutage } from "./outage.ts";

test("containerd with hosts.toml names the upstream by ?ns=, pulls, and pulls again after the upstream is gone", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  const upstream = "registry.example";
  // Not the default upstream: without ?ns= its repositories are not found.
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: {
      "docker.io": { url: "http://127.0.0.1:9" },
      [upstream]: { url: hub.url, ...ALWAYS_ASK },
    },
  });
  await using containerd = await startContainerd(folder.path);
  const hosts = join(folder.path, "hosts");
  await mkdir(join(hosts, upstream), { recursive: true });
  // Nobody answers at the server itself: what comes, comes through the mirror.
  await writeFile(
    join(hosts, upstream, "hosts.toml"),
    `server = "http://127.0.0.1:9"\n[host."${entrepot.url}"]\n  capabilities = ["pull", "resolve"]\n`,
  );
  const nameOf = (image: string): string => `${upstream}/library/${image}:v1`;

  await assertSurvivesOutage(
    {
      pull: async (image) => {
        await containerd.ctr("images", "pull", "--hosts-dir", hosts, "--snapshotter", "native", nameOf(image));
        return containerd.digestOf(nameOf(image));
      },
      forget: () => containerd.forget(nameOf("interop-single"), nameOf("interop-multi")),
    },
    { hub, entrepot, upstream, expectedBytes: hub.single.sizeBytes + hub.multi.sizeBytes },
  );
});
