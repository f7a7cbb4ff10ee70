import assert from "node:assert/strict";
import { test } from "node:test";
import type { ConfigError } from "../../src/config/faults.ts";
import { defaultConfig, loadConfig } from "../../src/config/load.ts";
import { folderWith } from "./files.ts";

test("address, root and deletion of registry:2 work as they do there", async () => {
  const { config, origins, warnings } = await loadConfig({
    env: {
      REGISTRY_HTTP_ADDR: "0.0.0.0:5000",
      REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY: "/var/lib/registry",
      REGISTRY_STORAGE_DELETE_ENABLED: "true",
    },
  });
  assert.equal(config.server.listen, "0.0.0.0:5000");
  assert.equal(config.storage.root, "/var/lib/registry");
  assert.equal(origins.get("storage.root"), "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY");
  assert.deepEqual(warnings, []);
});

test("Docker Hub as the remote is the upstream docker.io, with its credentials", async () => {
  const { config, origins } = await loadConfig({
    env: {
      REGISTRY_PROXY_REMOTEURL: "https://registry-1.docker.io",
      REGISTRY_PROXY_USERNAME: "me",
      REGISTRY_PROXY_PASSWORD: "1234",
    },
  });
  const hub = config.upstreams["docker.io"];
  assert.deepEqual(hub, { ...defaultConfig().upstreams["docker.io"], auth: { username: "me", password: "1234" } });
  assert.equal(origins.get("upstreams.docker.io.url"), "REGISTRY_PROXY_REMOTEURL");
  assert.equal(origins.get("upstreams.docker.io.auth.username"), "REGISTRY_PROXY_USERNAME");
  assert.equal(origins.get("upstreams.docker.io.auth.password"), "REGISTRY_PROXY_PASSWORD");
});

test("another remote is the default upstream, named by its host where that is a name", async () => {
  for (const [url, name] of [
    ["https://ghcr.io", "ghcr.io"],
    ["http://localhost:5001", "upstream"],
    ["http://[::1]:5001", "upstream"],
  ] as const) {
    const { config } = await loadConfig({ env: { REGISTRY_PROXY_REMOTEURL: url } });
    assert.deepEqual(Object.keys(config.upstreams), [name]);
    assert.equal(config.upstreams[name]?.url, url);
    assert.equal(config.upstreams[name]?.default, true);
  }
});

test("credentials replace those of a file, and ENTREPOT_ variables stand above", async () => {
  await using folder = await folderWith({
    "entrepot.yaml": "upstreams: {docker.io: {tagTtl: 1s, auth: {credentialHelper: pass}}}\nserver: {listen: :1}\n",
  });
  const { config } = await loadConfig({
    file: folder.path("entrepot.yaml"),
    env: {
      REGISTRY_HTTP_ADDR: ":2",
      REGISTRY_PROXY_REMOTEURL: "https://registry-1.docker.io",
      REGISTRY_PROXY_USERNAME: "me",
      REGISTRY_PROXY_PASSWORD: "pw",
      ENTREPOT_SERVER__LISTEN: ":3",
    },
  });
  assert.equal(config.server.listen, ":3");
  assert.equal(config.upstreams["docker.io"]?.tagTtl, 1000);
  assert.deepEqual(config.upstreams["docker.io"]?.auth, { username: "me", password: "pw" });
});

test("access control and TLS are refused, never left out", async () => {
  const env = {
    REGISTRY_AUTH: "htpasswd",
    REGISTRY_AUTH_HTPASSWD_PATH: "/auth/htpasswd",
    REGISTRY_HTTP_TLS_CERTIFICATE: "/certs/crt",
    REGISTRY_HTTP_TLS_KEY: "/certs/key",
  };
  await assert.rejects(loadConfig({ env }), (error: ConfigError) => {
    assert.deepEqual(
      error.faults.map(({ source }) => source),
      Object.keys(env),
    );
    return true;
  });
});

test("a bad value names its variable", async () => {
  const env = { REGISTRY_HTTP_ADDR: "nowhere", REGISTRY_PROXY_REMOTEURL: "docker.io", REGISTRY_PROXY_USERNAME: "me" };
  await assert.rejects(loadConfig({ env }), (error: ConfigError) => {
    assert.deepEqual(error.faults.map(({ source, path }) => `${source} ${path}`).sort(), [
      "REGISTRY_HTTP_ADDR server.listen",
      "REGISTRY_PROXY_REMOTEURL upstreams.upstream.url",
      "REGISTRY_PROXY_USERNAME upstreams.upstream.auth",
    ]);
    return true;
  });
});

test("what has no counterpart is a warning, what is empty says nothing", async () => {
  const { warnings } = await loadConfig({
    env: { REGISTRY_LOG_LEVEL: "debug", REGISTRY_PROXY_USERNAME: "me", REGISTRY_AUTH: "" },
  });
  assert.deepEqual(warnings, [
    "REGISTRY_LOG_LEVEL is ignored: it has no counterpart here",
    "REGISTRY_PROXY_USERNAME is ignored: REGISTRY_PROXY_REMOTEURL is not set",
  ]);
});
