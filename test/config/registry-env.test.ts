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

test("the htpasswd file logs in owners, nothing is open beside it, and TLS is served: as a swarm stack says it", async () => {
  const { config, origins, warnings } = await loadConfig({
    env: {
      REGISTRY_AUTH: "htpasswd",
      // Compose's list form hands the quotes over.
      REGISTRY_AUTH_HTPASSWD_REALM: '"Onsen Registry"',
      REGISTRY_AUTH_HTPASSWD_PATH: "/auth/htpasswd",
      REGISTRY_HTTP_ADDR: "0.0.0.0:5000",
      REGISTRY_HTTP_TLS_CERTIFICATE: "/run/secrets/registry.onsen.lan.crt",
      REGISTRY_HTTP_TLS_KEY: "/run/secrets/registry.onsen.lan.key",
    },
  });
  assert.deepEqual(config.access.htpasswd, { path: "/auth/htpasswd", role: "owner" });
  assert.equal(config.access.open, false);
  assert.deepEqual(config.server.tls, {
    certificate: "/run/secrets/registry.onsen.lan.crt",
    key: "/run/secrets/registry.onsen.lan.key",
  });
  assert.equal(origins.get("access.htpasswd.role"), "REGISTRY_AUTH");
  assert.equal(origins.get("access.htpasswd.path"), "REGISTRY_AUTH_HTPASSWD_PATH");
  assert.deepEqual(warnings, []);
});

test("a path of a password file alone asks for a login, too, and a role that is given stays", async () => {
  const env = { REGISTRY_AUTH_HTPASSWD_PATH: "/auth/htpasswd", ENTREPOT_ACCESS__HTPASSWD__ROLE: "viewer" };
  const { config } = await loadConfig({ env });
  assert.deepEqual(config.access.htpasswd, { path: "/auth/htpasswd", role: "viewer" });
  assert.equal(config.access.open, false);
  await using folder = await folderWith({ "entrepot.yaml": "access: {htpasswd: {path: /old, role: contributor}}\n" });
  const both = await loadConfig({ file: folder.path("entrepot.yaml"), env: { REGISTRY_AUTH_HTPASSWD_PATH: "/new" } });
  assert.deepEqual(both.config.access.htpasswd, { path: "/new", role: "contributor" });
});

test("access control and TLS that cannot be done are refused with a remedy, never left out", async () => {
  const cases: [env: Record<string, string>, source: string, cause: RegExp][] = [
    [{ REGISTRY_AUTH: "htpasswd" }, "REGISTRY_AUTH", /REGISTRY_AUTH_HTPASSWD_PATH is not set/],
    [{ REGISTRY_AUTH: "token" }, "REGISTRY_AUTH", /tokens of another service/],
    [{ REGISTRY_AUTH_TOKEN_REALM: "https://auth" }, "REGISTRY_AUTH_TOKEN_REALM", /tokens of another service/],
    [{ REGISTRY_AUTH: "silly" }, "REGISTRY_AUTH", /access control that is not there/],
    [{ REGISTRY_AUTH_SILLY_REALM: "x" }, "REGISTRY_AUTH_SILLY_REALM", /access control that is not there/],
    [{ REGISTRY_AUTH: "none", REGISTRY_AUTH_HTPASSWD_PATH: "/a" }, "REGISTRY_AUTH", /is none, and .*_PATH is set/],
    [{ REGISTRY_HTTP_TLS_CLIENTCAS_0: "/ca" }, "REGISTRY_HTTP_TLS_CLIENTCAS_0", /nobody but those who have a client/],
    [{ REGISTRY_HTTP_TLS_LETSENCRYPT_EMAIL: "a@b" }, "REGISTRY_HTTP_TLS_LETSENCRYPT_EMAIL", /Let's Encrypt/],
    [{ REGISTRY_HTTP_TLS_KEY: "/key" }, "REGISTRY_HTTP_TLS_KEY", /is missing/],
    [
      { REGISTRY_AUTH_HTPASSWD_PATH: "/a", ENTREPOT_ACCESS__OPEN: "everywhere" },
      "ENTREPOT_ACCESS__OPEN",
      /leaves access.htpasswd without effect/,
    ],
  ];
  for (const [env, source, cause] of cases) {
    await assert.rejects(loadConfig({ env }), (error: ConfigError) => {
      assert.deepEqual(
        error.faults.map((fault) => fault.source),
        [source],
        JSON.stringify(env),
      );
      assert.match(error.faults[0]?.cause ?? "", cause);
      assert.ok((error.faults[0]?.remedy ?? "").length > 10);
      return true;
    });
  }
});

test("that nobody is asked for a login opens nothing, and is told", async () => {
  const { config, warnings } = await loadConfig({ env: { REGISTRY_AUTH: "none" } });
  assert.equal(config.access.open, undefined);
  assert.deepEqual(warnings.length, 1);
  assert.match(warnings[0] ?? "", /ENTREPOT_ACCESS__OPEN=everywhere/);
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
    env: {
      REGISTRY_LOG_LEVEL: "debug",
      REGISTRY_PROXY_USERNAME: "me",
      REGISTRY_AUTH: "",
      REGISTRY_AUTH_HTPASSWD_PATH: "",
    },
  });
  assert.deepEqual(warnings, [
    "REGISTRY_LOG_LEVEL is ignored: it has no counterpart here",
    "REGISTRY_PROXY_USERNAME is ignored: REGISTRY_PROXY_REMOTEURL is not set",
  ]);
});
