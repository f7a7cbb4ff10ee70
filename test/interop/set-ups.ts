import { mkdir, writeFile } from "node:fs/promises";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { run, startDaemon, type Daemon } from "./machine.ts";

/** What stands around a registry that people have: names, an authority of their own, passwords in a file. */

/** An address of this machine that docker does not take for itself: it trusts loopback without asking. */
export function outerAddress(): string {
  const found = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .find(({ internal, family }) => !internal && family === "IPv4");
  if (!found) throw new Error("this test needs an IPv4 address beside loopback");
  return found.address;
}

export interface Certified {
  /** The authority's certificate. */
  ca: string;
  certificate: string;
  key: string;
}

/** An authority of one's own, and what it signed for a name: files in a folder. */
export async function certify(folder: string, name: string): Promise<Certified> {
  await mkdir(folder, { recursive: true });
  const at = (file: string): string => join(folder, file);
  // Nothing in it has a space.
  const openssl = (command: string): Promise<string> => run("openssl", command.split(" "), { cwd: folder });
  await writeFile(at("names"), `subjectAltName=DNS:${name}\n`);
  await openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=own-authority");
  await openssl(`req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=${name}`);
  await openssl(
    "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile names -out server.crt",
  );
  return { ca: at("ca.crt"), certificate: at("server.crt"), key: at("server.key") };
}

/** A password file as `htpasswd -Bbn NAME PASSWORD` writes it. */
export async function passwordFile(path: string, users: Record<string, string>): Promise<void> {
  const lines = await Promise.all(Object.entries(users).map(([name, word]) => run("htpasswd", ["-Bbn", name, word])));
  await writeFile(path, lines.join(""));
}

/** A registry that was set up by the variables of `registry:2`, and nothing else. @returns it, and where it listens, as a URL */
export async function startReplaced(
  env: Record<string, string>,
  upstream: string,
): Promise<{ daemon: Daemon; url: string }> {
  const { daemon, match } = await startDaemon(
    { path: process.execPath },
    [join(import.meta.dirname, "../../src/main.ts"), "serve"],
    /"address":"([^"]+)"/,
    { env: { ...env, ENTREPOT_LOG__FORMAT: "json", ENTREPOT_UPSTREAMS__DOCKER_IO__URL: upstream } },
  );
  return { daemon, url: match[1] ?? "" };
}

/** nginx with this as the `http` section of its configuration. */
export async function startNginx(folder: string, http: string): Promise<Daemon> {
  const at = join(folder, "nginx");
  await mkdir(at);
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((kind) => `${kind}_temp_path ${join(at, kind)};`)
    .join("\n");
  const file = join(at, "nginx.conf");
  await writeFile(
    file,
    `user root;\npid ${join(at, "pid")};\nerror_log stderr notice;\ndaemon off;\nevents {}\nhttp {\naccess_log off;\n${temporary}\n${http}\n}\n`,
  );
  const { daemon } = await startDaemon("nginx", ["-c", file, "-p", at], /start worker process/);
  return daemon;
}
