import assert from "node:assert/strict";
import { mkdir, copyFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { startUpstream } from "../kit/upstream.ts";
import { buildImage, startDocker } from "./dockerd.ts";
import { makeFolder, run } from "./machine.ts";
import { certify, outerAddress, passwordFile, startReplaced } from "./set-ups.ts";

const NAME = "registry.onsen.lan";

test("as a swarm stack sets it up, TLS in the registry itself, docker logs in, pushes, pulls and logs out", async () => {
  await using folder = await makeFolder();
  await using upstream = await startUpstream();
  const address = outerAddress();
  const files = await certify(join(folder.path, "certs"), NAME);
  const secrets = join(folder.path, "secrets");
  const auth = join(folder.path, "auth");
  for (const path of [secrets, auth]) await mkdir(path);
  await copyFile(files.certificate, join(secrets, `${NAME}.crt`));
  await copyFile(files.key, join(secrets, `${NAME}.key`));
  await passwordFile(join(auth, "htpasswd"), { mario: "super secret" });
  const { daemon: registry, url } = await startReplaced(
    {
      REGISTRY_AUTH: "htpasswd",
      REGISTRY_AUTH_HTPASSWD_REALM: '"Onsen Registry"',
      REGISTRY_AUTH_HTPASSWD_PATH: join(auth, "htpasswd"),
      REGISTRY_HTTP_ADDR: `${address}:0`,
      REGISTRY_HTTP_TLS_CERTIFICATE: join(secrets, `${NAME}.crt`),
      REGISTRY_HTTP_TLS_KEY: join(secrets, `${NAME}.key`),
      REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY: join(folder.path, "data"),
    },
    upstream.url,
  );
  await using _registry = registry;
  assert.ok(url.startsWith(`https://${address}:`), url);
  const host = `${NAME}:${new URL(url).port}`;
  await using docker = await startDocker(folder.path, {
    names: { [NAME]: address },
    authorities: { [host]: files.ca },
  });

  await docker.run("login", "--username", "mario", "--password", "super secret", host);
  await buildImage(docker, join(folder.path, "context"), "alpine");
  const image = `${host}/my-alpine`;
  await docker.run("tag", "alpine", image);
  await docker.run("push", image);
  await docker.run("rmi", "alpine", image);
  await docker.run("pull", image);
  await docker.run("logout", host);
  await docker.run("rmi", image);
  await assert.rejects(docker.run("pull", image), /denied|no basic auth|unauthorized|authentication required/);

  const at = ["--resolve", `${NAME}:${new URL(url).port}:${address}`, `https://${host}/v2/_catalog`];
  const catalog = await run("curl", ["-su", "mario:super secret", "-k", ...at]);
  assert.equal(catalog.trim(), '{"repositories":["my-alpine"]}');
  assert.equal(await run("curl", ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", files.ca, ...at]), "401");
});
