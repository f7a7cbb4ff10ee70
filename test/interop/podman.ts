import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { run } from "./machine.ts";

/** Runs podman or buildah with those arguments. @returns its standard output, trimmed */
export type Engine = (...args: string[]) => Promise<string>;

/**
 * podman and buildah with everything that they have under `folder`, images in common.
 * @param registries what registries.conf holds
 */
export async function makePodman(folder: string, registries = ""): Promise<{ podman: Engine; buildah: Engine }> {
  const conf = join(folder, "registries.conf");
  await writeFile(conf, registries);
  const logins = join(folder, "auth.json");
  await writeFile(logins, "{}");
  const env = { CONTAINERS_REGISTRIES_CONF: conf, REGISTRY_AUTH_FILE: logins, BUILDAH_ISOLATION: "chroot" };
  const storage = [
    "--root",
    join(folder, "podman"),
    "--runroot",
    join(folder, "podman-run"),
    "--storage-driver",
    "vfs",
  ];
  const manners = ["--tmpdir", join(folder, "podman-tmp"), "--cgroup-manager", "cgroupfs"];
  return {
    podman: async (...args) => (await run("podman", [...storage, ...manners, ...args], { env })).trim(),
    buildah: async (...args) => (await run("buildah", [...storage, ...args], { env })).trim(),
  };
}
