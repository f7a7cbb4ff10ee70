import { test } from "node:test";
import { startDocker } from "./dockerd.ts";
import { startEntrepot } from "./entrepot.ts";
import { startHub } from "./hub.ts";
import { makeFolder } from "./machine.ts";
import { ALWAYS_ASK, assertSurvivesOutage } from "./outage.ts";

test("dockerd with registry-mirrors pulls through Entrepot, and again after its upstream is gone", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: { "docker.io": { url: hub.url, ...ALWAYS_ASK } },
  });
  await using docker = await startDocker(folder.path, { mirrors: [entrepot.url] });

  await assertSurvivesOutage(
    {
      pull: async (image) => {
        await docker.run("pull", "--quiet", `${image}:v1`);
        const [named] = JSON.parse(
          await docker.run("image", "inspect", "--format", "{{json .RepoDigests}}", `${image}:v1`),
        ) as string[];
        return named?.split("@")[1] ?? "no digest";
      },
      forget: async () => void (await docker.run("image", "rm", "interop-single:v1", "interop-multi:v1")),
    },
    { hub, entrepot, upstream: "docker.io", expectedBytes: hub.single.sizeBytes + hub.multi.sizeBytes },
  );
});
