import assert from "node:assert/strict";
import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { startUpstream } from "../kit/upstream.ts";
import { buildImage, startDocker } from "./dockerd.ts";
import { makeFolder, run } from "./machine.ts";
import { certify, outerAddress, passwordFile, startNginx, startReplaced } from "./set-ups.ts";

/** What an operator has in front of the registry: TLS on the port that nobody has to name. */
interface Front {
  title: string;
  name: string;
  image: string;
  /** Sections of nginx's configuration. */
  http: (registry: string, listen: string, files: { certificate: string; key: string }) => string;
}

const FRONTS: Front[] = [
  {
    title: "nginx that forwards Host with the port, and the scheme",
    name: "registry.example.com",
    image: "pliutau/hello-world:v0",
    http: (registry, listen, { certificate, key }) => `
      upstream registry { server ${registry}; }
      server {
        listen ${listen}:443 ssl;
        server_name registry.example.com;
        ssl_certificate ${certificate};
        ssl_certificate_key ${key};
        location / {
          client_max_body_size 1000m;
          proxy_pass http://registry;
          proxy_set_header Host $http_host;
          proxy_set_header X-Real-IP $remote_addr;
          proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
          proxy_set_header X-Forwarded-Proto $scheme;
          proxy_read_timeout 900;
        }
      }`,
  },
  {
    title: "an older nginx that tells neither the port nor the scheme, and misspells a header",
    name: "docker.company.lan",
    image: "centos:centos6",
    http: (registry, listen, { certificate, key }) => `
      sendfile on;
      server {
        listen ${listen}:443 ssl;
        server_name docker.company.lan;
        ssl_certificate ${certificate};
        ssl_certificate_key ${key};
        client_max_body_size 3000m;
        location / {
          proxy_pass http://${registry};
          proxy_set_header Host $host;
          proxy_set_header X-Forward-For $proxy_add_x_forwarded_for;
        }
      }`,
  },
];

for (const { title, name, image, http } of FRONTS) {
  test(`behind ${title}, docker logs in, pushes, finds and pulls, and nobody else does`, async () => {
    await using folder = await makeFolder();
    await using upstream = await startUpstream();
    const address = outerAddress();
    const files = await certify(join(folder.path, "certs"), name);
    await mkdir(join(folder.path, "auth"));
    const passwords = join(folder.path, "auth", "registry.password");
    await passwordFile(passwords, { busy: "bee" });
    const root = join(folder.path, "data");
    const { daemon: registry, url } = await startReplaced(
      {
        REGISTRY_AUTH: "htpasswd",
        REGISTRY_AUTH_HTPASSWD_REALM: "Registry Realm",
        REGISTRY_AUTH_HTPASSWD_PATH: passwords,
        REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY: root,
        REGISTRY_HTTP_ADDR: "127.0.0.1:0",
      },
      upstream.url,
    );
    await using _registry = registry;
    await using _nginx = await startNginx(folder.path, http(new URL(url).host, address, files));
    await using docker = await startDocker(folder.path, {
      names: { [name]: address },
      authorities: { [name]: files.ca },
    });
    const curl = (...args: string[]): Promise<string> =>
      run("curl", ["--silent", "--include", "--insecure", "--resolve", `${name}:443:${address}`, ...args]);
    assert.match(await curl(`https://${name}/`), /^HTTP\/1\.1 200 /);

    const reference = `${name}/${image}`;
    await buildImage(docker, join(folder.path, "context"), reference);
    await assert.rejects(docker.run("push", reference), /denied|no basic auth|unauthorized|authentication required/);
    await assert.rejects(docker.run("login", "--username", "busy", "--password", "wasp", name), /unauthorized|401/i);
    await docker.run("login", "--username", "busy", "--password", "bee", name);
    await docker.run("push", reference);
    assert.ok((await readdir(root)).includes("blobs"), "the data lies under the folder that was named");

    const [repository = ""] = image.split(":");
    assert.equal(await docker.run("search", "--format", "{{.Name}}", `${name}/${repository}`), repository);
    await docker.run("image", "rm", reference);
    await docker.run("pull", reference);
    await docker.run("logout", name);
    await docker.run("image", "rm", reference);
    await assert.rejects(docker.run("pull", reference), /denied|no basic auth|unauthorized|authentication required/);

    assert.match(await curl("--user", "busy:bee", `https://${name}/v2/_catalog`), new RegExp(`"${repository}"`));
    assert.match(
      await curl(`https://${name}/v2/`),
      new RegExp(`www-authenticate: Bearer realm="https://${name}/token"`, "i"),
    );
  });
}
