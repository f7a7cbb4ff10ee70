import { test } from "node:test";
import { startEntrepot } from "./entrepot.ts";
import { startHub } from "./hub.ts";
import { makeFolder } from "./machine.ts";
import { ALWAYS_ASK, assertSurvivesOutage } from "./outage.ts";
import { makePodman } from "./podman.ts";

test("podman with a mirror in registries.conf pulls through Entrepot, and again after its upstream is gone", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  await using entrepot = await startEntrepot(folder.path, {
    upstreams: { "docker.io": { url: hub.url, ...ALWAYS_ASK } },
  });
  const { podman } = await makePodman(
    folder.path,
    `[[registry]]
location = "docker.io"
blocked = false
[[registry.mirror]]
location = "${entrepot.host}"
insecure = true
`,
  );
  const nameOf = (image: string): string => `docker.io/library/${image}:v1`;

  await assertSurvivesOutage(
    {
      pull: async (image) => {
        await podman("pull", "--quiet", nameOf(image));
        const digests = JSON.parse(
          await podman("image", "inspect", "--format", "{{json .RepoDigests}}", nameOf(image)),
        ) as string[];
        // For an index podman lists two: the index's and that of this platform's image.
        const known = image === "interop-single" ? hub.single.digest : hub.multi.digest;
        return digests.some((named) => named.endsWith(known)) ? known : digests.join(" ");
      },
      forget: async () => void (await podman("image", "rm", nameOf("interop-single"), nameOf("interop-multi"))),
    },
    { hub, entrepot, upstream: "docker.io", expectedBytes: hub.single.sizeBytes + hub.multi.sizeBytes },
  );
});
