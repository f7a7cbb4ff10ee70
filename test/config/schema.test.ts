import assert from "node:assert/strict";
import { test } from "node:test";
import { ConfigError } from "../../src/config/faults.ts";
import { configJsonSchema, schemaAt, type JsonSchema } from "../../src/config/json-schema.ts";
import { defaultConfig, parseConfig } from "../../src/config/load.ts";
import { parseListen, type EndpointConfig } from "../../src/config/schema.ts";
import { folderWith } from "./files.ts";

/** The faults of a tree as `path cause`. */
function faultsOf(input: unknown): string[] {
  try {
    parseConfig(input);
  } catch (error) {
    assert.ok(error instanceof ConfigError);
    for (const fault of error.faults) assert.ok(fault.remedy.length > 0, `${fault.path} has a remedy`);
    return error.faults.map(({ path, cause }) => `${path} ${cause}`);
  }
  return [];
}

function upstreamFaults(entry: object): string[] {
  return faultsOf({ upstreams: { "ghcr.io": { url: "https://ghcr.io", ...entry } } });
}

function authOf(auth: object): EndpointConfig["auth"] {
  return parseConfig({ upstreams: { "docker.io": { auth } } }).upstreams["docker.io"]?.auth;
}

test("without anything given, Docker Hub is mirrored on loopback", () => {
  const config = defaultConfig();
  assert.equal(config.server.listen, "127.0.0.1:5000");
  assert.equal(config.storage.cacheMaxSize, 50 * 2 ** 30);
  assert.deepEqual(Object.keys(config.upstreams), ["docker.io"]);
  const hub = config.upstreams["docker.io"];
  assert.equal(hub?.url, "https://registry-1.docker.io");
  assert.equal(hub?.default, true);
  assert.deepEqual(hub?.aliases, ["index.docker.io", "registry-1.docker.io"]);
  assert.equal(hub?.tagTtl, 300_000);
  assert.equal(hub?.ranges.segment, 8 * 2 ** 20);
});

test("the configuration is frozen to its leaves", () => {
  const config = defaultConfig();
  assert.ok(Object.isFrozen(config));
  assert.ok(Object.isFrozen(config.server.progress));
  assert.ok(Object.isFrozen(config.upstreams["docker.io"]?.aliases));
});

test("an upstream given replaces Docker Hub", () => {
  assert.deepEqual(Object.keys(parseConfig({ upstreams: { "ghcr.io": { url: "https://ghcr.io" } } }).upstreams), [
    "ghcr.io",
  ]);
  assert.deepEqual(parseConfig({ upstreams: {} }).upstreams, {});
});

test("an entry docker.io keeps what is built in for the keys that it leaves out", () => {
  const hub = parseConfig({ upstreams: { "docker.io": { tagTtl: "1h", aliases: ["hub.local"] } } }).upstreams[
    "docker.io"
  ];
  assert.equal(hub?.url, "https://registry-1.docker.io");
  assert.equal(hub?.default, true);
  assert.deepEqual(hub?.aliases, ["hub.local"]);
  assert.equal(hub?.tagTtl, 3_600_000);
  assert.deepEqual(parseConfig({ upstreams: { "docker.io": null } }), defaultConfig());
});

test("an entry docker.io is not the default where another is", () => {
  const { upstreams } = parseConfig({
    upstreams: { "docker.io": {}, "quay.io": { url: "https://quay.io", default: true } },
  });
  assert.equal(upstreams["docker.io"]?.default, false);
  assert.equal(upstreams["quay.io"]?.default, true);
});

test("an empty section holds nothing but defaults; an empty value is a fault", () => {
  assert.deepEqual(parseConfig({ server: null, log: null, upstreams: null, hosted: null }), defaultConfig());
  assert.deepEqual(faultsOf({ server: { listen: null } }), ["server.listen is empty"]);
});

test("all faults are told at once, also those between keys", () => {
  const faults = faultsOf({
    server: { listen: "nowhere", drainTimeout: 30, lisen: 1 },
    log: { level: "inof", requests: "yes" },
    storage: { root: "", minFree: true },
    upstreams: {
      "docker.io": { aliases: ["ghcr.io"], ranges: { connections: 17, segment: "1KiB" } },
      "ghcr.io": { default: true, connections: 1.5 },
      "quay.io": { url: "https://quay.io", default: true },
      Bad: { url: "https://bad.example.com" },
    },
    hosted: { namespaces: ["library", "a.b", "quay.io", "team"] },
  });
  assert.deepEqual(faults.sort(), [
    "hosted.namespaces[0] cannot be a hosted namespace",
    "hosted.namespaces[1] cannot be a hosted namespace",
    "hosted.namespaces[2] cannot be a hosted namespace",
    "log.level must be one of trace, debug, info, warn, error, fatal, silent",
    "log.requests must be true or false",
    "server.drainTimeout is not a duration",
    "server.lisen is not a key",
    "server.listen is not an address to listen on",
    "storage.minFree is not a size",
    "storage.root is empty",
    "upstreams.Bad is not a name for an upstream",
    "upstreams.docker.io.aliases[0] is a name of upstream ghcr.io already",
    "upstreams.docker.io.ranges.connections is not a whole number from 1 to 16",
    "upstreams.docker.io.ranges.segment is not a size from 1MiB",
    "upstreams.ghcr.io.connections is not a whole number from 1 to 256",
    "upstreams.ghcr.io.url is missing",
    "upstreams.quay.io.default is true, and so is that of ghcr.io",
  ]);
});

test("a tree that is no configuration at all is one fault", () => {
  assert.deepEqual(faultsOf(["a"]), [" must be a mapping"]);
  assert.deepEqual(faultsOf({ upstreams: ["docker.io"] }), ["upstreams must be a mapping"]);
  assert.deepEqual(faultsOf({ upstreams: { "docker.io": "https://registry-1.docker.io" } }), [
    "upstreams.docker.io must be a mapping",
  ]);
});

test("an unknown key names the nearest known one", () => {
  const remedy = (input: object) => {
    try {
      parseConfig(input);
    } catch (error) {
      return (error as ConfigError).faults[0]?.remedy;
    }
    return undefined;
  };
  assert.equal(remedy({ serve: {} }), "did you mean server?");
  assert.equal(remedy({ upstreams: { "docker.io": { tagTTL: "1m" } } }), "did you mean tagTtl?");
  assert.equal(remedy({ upstreams: { "docker.io": { auth: { usrname: "me" } } } }), "did you mean username?");
  assert.equal(remedy({ log: { colour: true } }), "known are level, format, requests");
  assert.equal(remedy({ log: { level: "wran" } }), "did you mean warn?");
});

test("listens on a host, every interface, IPv6 or a Unix socket", () => {
  assert.deepEqual(parseListen("127.0.0.1:5000"), { host: "127.0.0.1", port: 5000 });
  assert.deepEqual(parseListen("localhost:0"), { host: "localhost", port: 0 });
  assert.deepEqual(parseListen(":5000"), { host: undefined, port: 5000 });
  assert.deepEqual(parseListen("[::1]:5000"), { host: "::1", port: 5000 });
  assert.deepEqual(parseListen("unix:/run/entrepot.sock"), { path: "/run/entrepot.sock" });
  for (const text of [
    "",
    "5000",
    "localhost",
    ":",
    "::1:5000",
    "[nope]:1",
    "a:65536",
    "a:-1",
    "unix:",
    "http://a:1",
    "a b:1",
  ]) {
    assert.equal(parseListen(text), undefined, text);
  }
});

test("addresses are normalised, and those with credentials, a query or another scheme are refused", () => {
  const { upstreams, server } = parseConfig({
    server: { publicUrl: "https://Registry.example.com/" },
    upstreams: { a: { url: "http://A.example.com:8080/prefix/", proxy: "http://me:s%40crt@proxy:3128" } },
  });
  assert.equal(server.publicUrl, "https://registry.example.com");
  assert.equal(upstreams["a"]?.url, "http://a.example.com:8080/prefix");
  assert.equal(upstreams["a"]?.proxy, "http://me:s%40crt@proxy:3128/");
  for (const url of ["ftp://a", "a.example.com", "https://me:pw@a", "https://a?b", "https://a#b", ""]) {
    assert.equal(upstreamFaults({ url }).length, 1, url);
  }
  assert.equal(faultsOf({ server: { publicUrl: "https://a.example.com/prefix" } }).length, 1);
});

test("proxies that are trusted are addresses or networks", () => {
  const trustedProxies = ["127.0.0.1", "10.0.0.0/8", "::1", "fd00::/8"];
  assert.deepEqual(parseConfig({ server: { trustedProxies } }).server.trustedProxies, trustedProxies);
  assert.equal(
    faultsOf({ server: { trustedProxies: ["10.0.0.0/33", "proxy", "10.0.0.0/8/8", "10.0.0.0/"] } }).length,
    4,
  );
});

test("aliases and realms are hosts", () => {
  assert.deepEqual(
    upstreamFaults({ aliases: ["localhost:5000", "[::1]:5000", "a_b.local"], realms: ["auth.example.com"] }),
    [],
  );
  assert.equal(upstreamFaults({ aliases: ["https://a", "a/b", "A.example.com", "", "a:port", "*.a"] }).length, 6);
});

test("an alias cannot stand for two upstreams, nor a hosted namespace for one", () => {
  const aliases = ["mirror"];
  const upstreams = { a: { url: "http://a", aliases }, b: { url: "http://b", aliases } };
  assert.deepEqual(faultsOf({ upstreams, hosted: { namespaces: ["mirror"] } }), [
    "upstreams.b.aliases[0] is a name of upstream a already",
    "hosted.namespaces[0] is a name of upstream a",
  ]);
});

test("a registry is opened to strangers only by a word that says so, and never beside a password file", () => {
  const faultsFor = (listen: string, access: object) => faultsOf({ server: { listen }, access });
  for (const listen of ["127.0.0.1:5000", "127.1.2.3:1", "[::1]:5000", "localhost:5000", "unix:/run/entrepot.sock"]) {
    assert.deepEqual(faultsFor(listen, { open: true }), [], listen);
  }
  for (const listen of [":5000", "0.0.0.0:5000", "[::]:5000", "10.0.0.1:5000", "registry.example.com:5000"]) {
    assert.deepEqual(faultsFor(listen, { open: true }), [
      `access.open is true, and ${listen} is reached from other machines`,
    ]);
    assert.deepEqual(faultsFor(listen, { open: "everywhere" }), []);
    assert.deepEqual(faultsFor(listen, { open: false }), []);
    assert.deepEqual(faultsFor(listen, {}), []);
  }
  for (const open of [true, "everywhere"]) {
    assert.deepEqual(faultsOf({ access: { open, htpasswd: { path: "/auth/htpasswd" } } }), [
      "access.open leaves access.htpasswd without effect: nobody has to log in",
    ]);
  }
  assert.deepEqual(faultsOf({ access: { open: false, htpasswd: { path: "/auth/htpasswd" } } }), []);
});

test("TLS is for addresses, not for Unix sockets", () => {
  const tls = { certificate: "/crt", key: "/key" };
  assert.deepEqual(faultsOf({ server: { tls } }), []);
  assert.deepEqual(faultsOf({ server: { tls, listen: "unix:/run/entrepot.sock" } }), [
    "server.tls is not for a Unix socket",
  ]);
  assert.deepEqual(faultsOf({ server: { tls: { certificate: "/crt" } } }), ["server.tls.key is missing"]);
});

test("two webhooks do not share a name, and an address holds no credentials", () => {
  const [ci, audit] = [
    { name: "ci", url: "https://ci.example.com/hook" },
    { name: "audit", url: "http://127.0.0.1:9000/" },
  ];
  assert.deepEqual(faultsOf({ webhooks: [ci, audit] }), []);
  assert.deepEqual(faultsOf({ webhooks: [ci, audit, ci] }), ["webhooks[2].name is the name of another webhook"]);
  const withPassword = { name: "x", url: "https://me:pw@ci.example.com/" };
  assert.deepEqual(faultsOf({ webhooks: [withPassword] }), [
    "webhooks[0].url is not an http or https URL without credentials",
  ]);
  assert.equal(faultsOf({ webhooks: [{ ...ci, secret: "a", secretFile: "b" }] }).length, 1);
});

test("a client certificate and its key come together", () => {
  assert.deepEqual(upstreamFaults({ tls: { ca: "ca.pem", certificate: "a.pem", key: "a.key" } }), []);
  assert.deepEqual(upstreamFaults({ tls: { certificate: "a.pem" } }), [
    "upstreams.ghcr.io.tls.certificate stands without key",
  ]);
  assert.deepEqual(upstreamFaults({ tls: { key: "a.key" } }), ["upstreams.ghcr.io.tls.key stands without certificate"]);
});

test("deadlines are neither nothing nor longer than a day", () => {
  assert.equal(upstreamFaults({ timeouts: { connect: "0s", firstByte: "2d", progress: "1d" } }).length, 2);
});

test("credentials come from one source", async () => {
  await using folder = await folderWith({ secret: "hunter2\n", empty: "" });
  assert.deepEqual(authOf({ username: "me", password: "pw" }), { username: "me", password: "pw" });
  assert.deepEqual(authOf({ username: "me", passwordFile: folder.path("secret") }), {
    username: "me",
    password: "hunter2",
  });
  assert.deepEqual(authOf({ dockerConfig: "/root/.docker/config.json" }), {
    dockerConfig: "/root/.docker/config.json",
  });
  assert.deepEqual(authOf({ credentialHelper: "ecr-login" }), { credentialHelper: "ecr-login" });

  const faults = (auth: object) =>
    upstreamFaults({ auth }).map((fault) => fault.replace("upstreams.ghcr.io.auth", "auth"));
  assert.deepEqual(faults({}), ["auth needs exactly one source of credentials"]);
  assert.deepEqual(faults({ username: "me" }), ["auth has a username and no password"]);
  assert.deepEqual(faults({ password: "pw" }), ["auth has a password and no username"]);
  assert.deepEqual(faults({ username: "me", password: "pw", dockerConfig: "x" }), [
    "auth needs exactly one source of credentials",
  ]);
  assert.deepEqual(faults({ username: "me", password: "pw", passwordFile: "x" }), [
    "auth.passwordFile stands beside password",
  ]);
  assert.deepEqual(faults({ credentialHelper: "../../bin/sh" }), [
    "auth.credentialHelper is not the name of a credential helper",
  ]);
  const missing = folder.path("missing");
  assert.deepEqual(faults({ username: "me", passwordFile: missing }), [
    `auth.passwordFile cannot read ${missing} (ENOENT)`,
  ]);
  const empty = folder.path("empty");
  assert.deepEqual(faults({ username: "me", passwordFile: empty }), [
    `auth.passwordFile names the empty file ${empty}`,
  ]);
});

test("fallbacks are endpoints of their own", () => {
  const fallbacks = [{ url: "https://mirror.example.com", connections: 2 }];
  const { upstreams } = parseConfig({ upstreams: { "docker.io": { fallbacks } } });
  assert.equal(upstreams["docker.io"]?.fallbacks[0]?.connections, 2);
  assert.equal(upstreams["docker.io"]?.fallbacks[0]?.timeouts.connect, 5000);
  assert.deepEqual(upstreamFaults({ fallbacks: [{ url: "https://a", tagTtl: "5m" }] }), [
    "upstreams.ghcr.io.fallbacks[0].tagTtl is not a key",
  ]);
});

test("a fault never repeats a secret", () => {
  const secret = "hunter2";
  for (const entry of [
    { proxy: `socks://me:${secret}@proxy` },
    { url: `https://me:${secret}@ghcr.io` },
    { auth: { username: 5, password: secret } },
    { auth: { password: secret } },
  ]) {
    assert.ok(upstreamFaults(entry).length > 0);
    assert.throws(
      () => parseConfig({ upstreams: { a: { url: "http://a", ...entry } } }),
      (error: Error) => !error.message.includes(secret),
    );
  }
});

test("the JSON Schema closes every mapping, and describes every key with its default", () => {
  const undescribed: string[] = [];
  const visit = (schema: JsonSchema, path: string): void => {
    if (path !== "" && !path.endsWith("[]") && schema.description === undefined) undescribed.push(path);
    if (schema.type === "object") assert.notEqual(schema.additionalProperties, undefined, `${path} is closed`);
    for (const [key, child] of Object.entries(schema.properties ?? {}))
      visit(child, path === "" ? key : `${path}.${key}`);
    if (schema.additionalProperties) visit(schema.additionalProperties, `${path}.*`);
    if (schema.items) visit(schema.items, `${path}[]`);
  };
  visit(configJsonSchema(), "");
  assert.deepEqual(undescribed, []);

  const defaultOf = (path: string[]) => (schemaAt(path) as { default?: unknown } | undefined)?.default;
  assert.equal(defaultOf(["server", "listen"]), "127.0.0.1:5000");
  assert.equal(defaultOf(["storage", "minFree"]), "2GiB");
  assert.deepEqual(defaultOf(["upstreams", "ghcr.io", "allow"]), ["**"]);
  assert.deepEqual(defaultOf(["server", "trustedProxies"]), []);
  assert.deepEqual(schemaAt(["upstreams", "ghcr.io"])?.required, ["url"]);
  assert.equal(schemaAt(["upstreams", "docker.io"])?.required, undefined);
  assert.equal(schemaAt(["upstreams", "ghcr.io", "auth", "password"])?.writeOnly, true);
});
