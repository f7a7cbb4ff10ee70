import assert from "node:assert/strict";
import { test } from "node:test";
import { ConfigError } from "../../src/config/faults.ts";
import { defaultConfig, loadConfig } from "../../src/config/load.ts";
import { folderWith } from "./files.ts";

/** The faults of an environment as `source: cause; remedy`. */
async function faultsOf(env: NodeJS.ProcessEnv, file?: string): Promise<string[]> {
  try {
    await loadConfig({ file, env });
  } catch (error) {
    assert.ok(error instanceof ConfigError);
    return error.faults.map(({ source, cause, remedy }) => `${source}: ${cause}; ${remedy}`);
  }
  return [];
}

test("a variable overrides a file", async () => {
  await using folder = await folderWith({ "entrepot.yaml": "server: {listen: :1, drainTimeout: 1s}\n" });
  const env = { ENTREPOT_SERVER__LISTEN: ":2" };
  const { config, origins } = await loadConfig({ file: folder.path("entrepot.yaml"), env });
  assert.equal(config.server.listen, ":2");
  assert.equal(config.server.drainTimeout, 1000);
  assert.equal(origins.get("server.listen"), "ENTREPOT_SERVER__LISTEN");
});

test("values are YAML: numbers, truth, lists, mappings, sizes", async () => {
  const { config } = await loadConfig({
    env: {
      ENTREPOT_LOG__REQUESTS: "false",
      ENTREPOT_SERVER__TRUSTEDPROXIES: "[10.0.0.0/8, ::1]",
      ENTREPOT_SERVER__PROGRESS: "{interval: 5s}",
      ENTREPOT_STORAGE__MINFREE: "1GiB",
      ENTREPOT_STORAGE__MEMORYCACHE: "1048576",
      ENTREPOT_UPSTREAMS__DOCKER_IO__TAGTTL: "7s",
      ENTREPOT_UPSTREAMS__DOCKER_IO__RANGES__CONNECTIONS: "1",
      ENTREPOT_UPSTREAMS__DOCKER_IO__FALLBACKS: "[{url: https://mirror.example.com}]",
    },
  });
  assert.equal(config.log.requests, false);
  assert.deepEqual(config.server.trustedProxies, ["10.0.0.0/8", "::1"]);
  assert.equal(config.server.progress.interval, 5000);
  assert.equal(config.storage.minFree, 2 ** 30);
  assert.equal(config.storage.memoryCache, 2 ** 20);
  const hub = config.upstreams["docker.io"];
  assert.equal(hub?.url, "https://registry-1.docker.io");
  assert.equal(hub?.tagTtl, 7000);
  assert.equal(hub?.ranges.connections, 1);
  assert.equal(hub?.fallbacks[0]?.url, "https://mirror.example.com");
});

test("a text needs no quotes, whatever it looks like", async () => {
  for (const password of ["1234", "true", "a #b: c", "*star", "{x", "null", "@at", "'quoted'"]) {
    const { config } = await loadConfig({
      env: {
        ENTREPOT_UPSTREAMS__DOCKER_IO__AUTH__USERNAME: "me",
        ENTREPOT_UPSTREAMS__DOCKER_IO__AUTH__PASSWORD: password,
        ENTREPOT_SERVER__LISTEN: "[::1]:5000",
      },
    });
    assert.deepEqual(config.upstreams["docker.io"]?.auth, { username: "me", password: password.replaceAll("'", "") });
    assert.equal(config.server.listen, "[::1]:5000");
  }
});

test("a section is set before the keys in it", async () => {
  const { config } = await loadConfig({
    env: { ENTREPOT_LOG__LEVEL: "debug", ENTREPOT_LOG: "{level: warn, format: json}" },
  });
  assert.equal(config.log.level, "debug");
  assert.equal(config.log.format, "json");
});

test("upstreams of a file are found by their names", async () => {
  await using folder = await folderWith({ "entrepot.yaml": "upstreams: {my-registry: {url: http://a}}\n" });
  const file = folder.path("entrepot.yaml");
  const { config } = await loadConfig({ file, env: { ENTREPOT_Upstreams__My_Registry__tagTtl: "1s" } });
  assert.equal(config.upstreams["my-registry"]?.tagTtl, 1000);
  assert.deepEqual(await faultsOf({ ENTREPOT_UPSTREAMS__DOCKER_IO__TAGTTL: "1s" }, file), [
    "ENTREPOT_UPSTREAMS__DOCKER_IO__TAGTTL: is not the name of a setting; known are ENTREPOT_UPSTREAMS__MY_REGISTRY",
  ]);
});

test("a name that fits two upstreams is a fault", async () => {
  const upstreams = "{a.b: {url: http://a}, a-b: {url: http://b}}";
  const [fault] = await faultsOf({ ENTREPOT_UPSTREAMS: upstreams, ENTREPOT_UPSTREAMS__A_B__TAGTTL: "1s" });
  assert.match(fault ?? "", /could mean a\.b or a-b/);
});

test("an unknown variable is a fault that names the nearest", async () => {
  assert.deepEqual(await faultsOf({ ENTREPOT_SERVER__LISTEM: ":1", ENTREPOT_SERVR__LISTEN: ":1" }), [
    "ENTREPOT_SERVER__LISTEM: is not the name of a setting; did you mean ENTREPOT_SERVER__LISTEN?",
    "ENTREPOT_SERVR__LISTEN: is not the name of a setting; did you mean ENTREPOT_SERVER?",
  ]);
  assert.deepEqual(await faultsOf({ ENTREPOT_SERVER__LISTEN__HOST: "a" }), [
    "ENTREPOT_SERVER__LISTEN__HOST: is not the name of a setting; set ENTREPOT_SERVER__LISTEN as a whole",
  ]);
});

test("a bad value names its variable", async () => {
  const faults = await faultsOf({
    ENTREPOT_STORAGE__MINFREE: "lots",
    ENTREPOT_LOG: "{level: ",
    ENTREPOT_HOSTED: "{namespace: [a]}",
  });
  assert.equal(faults.length, 3);
  assert.ok(faults.some((fault) => fault.startsWith("ENTREPOT_LOG: is not YAML")));
  assert.ok(faults.some((fault) => fault.startsWith("ENTREPOT_STORAGE__MINFREE: is not a size")));
  assert.ok(faults.some((fault) => fault.startsWith("ENTREPOT_HOSTED: is not a key; did you mean namespaces?")));
});

test("empty variables and those that Kubernetes adds say nothing", async () => {
  const { config, warnings } = await loadConfig({
    env: {
      ENTREPOT_SERVER__PUBLICURL: "",
      ENTREPOT_CONFIG: "",
      ENTREPOT_PORT: "tcp://10.0.0.1:5000",
      ENTREPOT_PORT_5000_TCP_ADDR: "10.0.0.1",
      ENTREPOT_SERVICE_HOST: "10.0.0.1",
      ENTREPOT_SERVICE_PORT_HTTP: "5000",
    },
  });
  assert.deepEqual(config, defaultConfig());
  assert.deepEqual(warnings, []);
});
