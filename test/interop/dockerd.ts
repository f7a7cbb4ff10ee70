import { randomBytes } from "node:crypto";
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { find, findProgram, run, startDaemon } from "./machine.ts";

/** A Docker engine of its own, beside any other one on the machine. */
export interface Docker extends AsyncDisposable {
  /** Runs `docker ARGS…` against it. @returns its standard output, trimmed @throws Error with all that it wrote */
  run(...args: string[]): Promise<string>;
}

export interface DockerOptions {
  mirrors?: string[];
  /** Addresses of names that nobody else knows. */
  names?: Record<string, string>;
  /** Files of the authorities that vouch for registries: what lies in /etc/docker/certs.d. */
  authorities?: Record<string, string>;
}

/** Starts dockerd with everything that it has under `folder`. It makes no network: containers have the host's or none. */
export async function startDocker(folder: string, options: DockerOptions = {}): Promise<Docker> {
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
  const { path, args } =
    options.names || options.authorities
      ? await withOwnEtc(folder, options)
      : { path: findProgram("dockerd"), args: [] };
  const { daemon } = await startDaemon({ path }, [...args, "--config-file", config], /API listen on/);
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

/** What starts dockerd under mounts of its own, so that the machine's /etc stays as it is. */
async function withOwnEtc(
  folder: string,
  { names = {}, authorities = {} }: DockerOptions,
): Promise<{ path: string; args: string[] }> {
  const hosts = join(folder, "hosts");
  const lines = Object.entries({ localhost: "127.0.0.1", ...names }).map(([name, address]) => `${address} ${name}\n`);
  await writeFile(hosts, lines.join(""));
  const etc = join(folder, "etc-docker");
  await mkdir(etc);
  for (const [host, ca] of Object.entries(authorities)) {
    await mkdir(join(etc, "certs.d", host), { recursive: true });
    await copyFile(ca, join(etc, "certs.d", host, "ca.crt"));
  }
  const enter =
    'mkdir -p /etc/docker && mount --bind "$0" /etc/hosts && mount --bind "$1" /etc/docker && shift && exec "$@"';
  return {
    path: find("unshare", [], "apt-get install util-linux"),
    args: ["--mount", "sh", "-c", enter, hosts, etc, findProgram("dockerd")],
  };
}

/** Builds an image of one file, in a folder that is made for it. Nothing runs in it. */
export async function buildImage(docker: Docker, context: string, tag: string): Promise<void> {
  await mkdir(context);
  await writeFile(join(context, "Dockerfile"), 'FROM scratch\nCOPY content /content\nCMD ["/content"]\n');
  await writeFile(join(context, "content"), randomBytes(1024 * 1024));
  await docker.run("build", "--quiet", "--tag", tag, context);
}
