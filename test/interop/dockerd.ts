import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { run, startDaemon } from "./machine.ts";

/** A Docker engine of its own, beside any other one on the machine. */
export interface Docker extends AsyncDisposable {
  /** Runs `docker ARGS…` against it. @returns its standard output, trimmed @throws Error with all that it wrote */
  run(...args: string[]): Promise<string>;
}

/** Starts dockerd with everything that it has under `folder`. It makes no network: containers have the host's or none. */
export async function startDocker(folder: string, options: { mirrors?: string[] } = {}): Promise<Docker> {
  const socket = `unix://${join(folder, "docker.sock")}`;
  const config = join(folder, "dockerd.json");
  await writeFile(
    config,
    JSON.stringify({
      "data-root": join(folder, "docker"),
      "exec-root": join(folder, "docker-exec"),
      pidfile: join(folder, "docker.pid"),
      hosts: [socket],
      bridge: "none",
      iptables: false,
      ip6tables: false,
      "ip-forward": false,
      "ip-masq": false,
      "registry-mirrors": options.mirrors ?? [],
      "insecure-registries": ["127.0.0.0/8"],
    }),
  );
  const { daemon } = await startDaemon("dockerd", ["--config-file", config], /API listen on/);
  const env = {
    DOCKER_HOST: socket,
    // Not the user's own logins and contexts.
    DOCKER_CONFIG: join(folder, "docker-client"),
    // The builder inside of every engine: the newer one is a program apart.
    DOCKER_BUILDKIT: "0",
  };
  return {
    run: async (...args) => (await run("docker", args, { env })).trim(),
    [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose](),
  };
}
