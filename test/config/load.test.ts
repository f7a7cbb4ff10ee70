import assert from "node:assert/strict";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { parse } from "yaml";
import { ConfigError, type Fault } from "../../src/config/faults.ts";
import { configJsonSchema, type JsonSchema } from "../../src/config/json-schema.ts";
import { defaultConfig, loadConfig, parseConfig, type LoadedConfig } from "../../src/config/load.ts";
import { folderWith } from "./files.ts";

const SHIPPED = join(import.meta.dirname, "../../config");

async function loadText(text: string, env: NodeJS.ProcessEnv = {}): Promise<LoadedConfig> {
  await using folder = await folderWith({ "entrepot.yaml": text });
  return await loadConfig({ file: folder.path("entrepot.yaml"), env });
}

async function faultsOf(loading: Promise<unknown>): Promise<readonly Fault[]> {
  const error = await loading.then(
    () => assert.fail("the configuration is good"),
    (error: unknown) => error,
  );
  assert.ok(error instanceof ConfigError, String(error));
  return error.faults;
}

test("default.yaml says exactly what holds without it", async () => {
  const text = await readFile(join(SHIPPED, "default.yaml"), "utf8");
  assert.deepEqual(parseConfig(parse(text)), defaultConfig());
});

test("default.yaml names every key", async () => {
  const text = await readFile(join(SHIPPED, "default.yaml"), "utf8");
  const keys = new Set<string>();
  const visit = ({ properties, additionalProperties, items }: JsonSchema): void => {
    for (const [key, child] of Object.entries(properties ?? {})) {
      keys.add(key);
      visit(child);
    }
    if (additionalProperties) visit(additionalProperties);
    if (items) visit(items);
  };
  visit(configJsonSchema());
  keys.delete("password"); // named in the words beside passwordFile
  assert.deepEqual(
    [...keys].filter((key) => !new RegExp(`^[ #-]*${RegExp.escape(key)}:`, "m").test(text)),
    [],
  );
});

test("every configuration that is shipped is valid", async () => {
  for (const name of await readdir(SHIPPED)) await loadConfig({ file: join(SHIPPED, name), env: {} });
});

test("without a file and variables the defaults hold", async () => {
  const { config, origins, warnings } = await loadConfig({ env: {} });
  assert.deepEqual(config, defaultConfig());
  assert.deepEqual(new Set(origins.values()), new Set(["default"]));
  assert.deepEqual(warnings, []);
});

test("a file that changes one key leaves all others as they are", async () => {
  await using folder = await folderWith({ "entrepot.yaml": "# ours\nserver:\n  listen: :5001\n" });
  const file = folder.path("entrepot.yaml");
  const { config, origins } = await loadConfig({ file, env: {} });
  assert.deepEqual(config, { ...defaultConfig(), server: { ...defaultConfig().server, listen: ":5001" } });
  assert.equal(origins.get("server.listen"), `${file}:3`);
  assert.equal(origins.get("server.drainTimeout"), "default");
  assert.equal(origins.get("upstreams.docker.io.tagTtl"), "default");
});

test("ENTREPOT_CONFIG names the file, and an explicit one wins", async () => {
  await using folder = await folderWith({ "a.yaml": "log: {level: debug}", "b.yaml": "log: {level: warn}" });
  const env = { ENTREPOT_CONFIG: folder.path("a.yaml") };
  assert.equal((await loadConfig({ env })).config.log.level, "debug");
  assert.equal((await loadConfig({ file: folder.path("b.yaml"), env })).config.log.level, "warn");
});

test("loading again sees what changed", async () => {
  await using folder = await folderWith({ secret: "one" });
  const env = {
    ENTREPOT_UPSTREAMS__DOCKER_IO__AUTH: `{username: me, passwordFile: ${folder.path("secret")}}`,
  };
  const passwordNow = async () => {
    const auth = (await loadConfig({ env })).config.upstreams["docker.io"]?.auth;
    return auth && "password" in auth && auth.password;
  };
  assert.equal(await passwordNow(), "one");
  await writeFile(folder.path("secret"), "two\n");
  assert.equal(await passwordNow(), "two");
});

test("an empty file holds nothing but defaults", async () => {
  for (const text of ["", "# nothing\n", "server:\n", "---\n"])
    assert.deepEqual((await loadText(text)).config, defaultConfig());
});

test("a file that cannot be read is a fault that names it", async () => {
  const [fault] = await faultsOf(loadConfig({ file: "/nowhere/entrepot.yaml", env: {} }));
  assert.equal(fault?.source, "/nowhere/entrepot.yaml");
  assert.match(fault?.cause ?? "", /ENOENT/);
});

test("faults carry file, line and column, in the file's order", async () => {
  await using folder = await folderWith({
    "entrepot.yaml": [
      "server:",
      "  lisen: :5000",
      "upstreams:",
      "  ghcr.io:",
      "    tagTtl: 5",
      "  quay.io: {url: https://quay.io, aliases: [a, /b]}",
      "storage: {minFree: lots}",
    ].join("\n"),
  });
  const file = folder.path("entrepot.yaml");
  const faults = await faultsOf(loadConfig({ file, env: {} }));
  assert.deepEqual(
    faults.map(({ source, line, column, path }) => ({ source, at: `${line}:${column}`, path })),
    [
      { source: file, at: "2:3", path: "server.lisen" },
      { source: file, at: "4:3", path: "upstreams.ghcr.io.url" },
      { source: file, at: "5:5", path: "upstreams.ghcr.io.tagTtl" },
      { source: file, at: "6:48", path: "upstreams.quay.io.aliases[1]" },
      { source: file, at: "7:11", path: "storage.minFree" },
    ],
  );
  const { message } = new ConfigError(faults);
  assert.match(message, /^the configuration has 5 faults:\n/);
  assert.ok(message.includes(`${file}:2:3: server.lisen is not a key; did you mean listen?`));
});

test("a text that is no YAML is a fault with its line", async () => {
  for (const [text, line] of [
    ["server: {listen: :1\n", 2],
    ["log: {}\nserver: {}\nlog: {}\n", 3],
    ["log:\n  level: info\n  level: warn\n", 3],
    ["log:\n\tlevel: info\n", 2],
    ["log: {}\n---\nlog: {}\n", 2],
    ["log: {level: !secret info}\n", 1],
    ["log: *nothing\n", 1],
  ] as const) {
    const [fault] = await faultsOf(loadText(text));
    assert.equal(fault?.line, line, text);
    assert.match(fault?.cause ?? "", /^is not YAML: /);
  }
});

test("a syntax fault never repeats what stands there", async () => {
  for (const text of [
    "password: *hunter2\n",
    "password: !hunter2 x\n",
    'password: "a" hunter2\n',
    "password: [a] hunter2\n",
    "password: @hunter2\n",
  ]) {
    for (const fault of await faultsOf(loadText(text))) assert.ok(!JSON.stringify(fault).includes("hunter2"), text);
  }
});

test("anchors and aliases share values, with their places", async () => {
  const text = [
    "upstreams:",
    "  ghcr.io: {url: https://ghcr.io, timeouts: &slow {connect: 30s}}",
    "  quay.io: {url: https://quay.io, timeouts: *slow}",
  ].join("\n");
  const { config, origins } = await loadText(text, { ENTREPOT_UPSTREAMS__QUAY_IO__TIMEOUTS__CONNECT: "1s" });
  assert.equal(config.upstreams["ghcr.io"]?.timeouts.connect, 30_000);
  assert.equal(config.upstreams["quay.io"]?.timeouts.connect, 1000);
  assert.match(origins.get("upstreams.ghcr.io.timeouts.connect") ?? "", /:2$/);
});

test("aliases that lead round in a circle or multiply are faults, not a hang", async () => {
  await faultsOf(loadText("hosted: &a {namespaces: [*a]}\n"));
  const bomb = [
    "a: &a [x,x,x,x,x,x,x,x,x]",
    ..."bcdefgh".split("").map((name, index) => {
      const inner = "abcdefg"[index];
      return `${name}: &${name} [${Array.from({ length: 9 }, () => `*${inner}`).join(",")}]`;
    }),
  ];
  await faultsOf(loadText(bomb.join("\n")));
});

test("a public address without TLS before a server with it is a warning", async () => {
  const env = { ENTREPOT_SERVER__TLS: "{certificate: /crt, key: /key}" };
  assert.deepEqual((await loadConfig({ env })).warnings, []);
  const { warnings } = await loadConfig({ env: { ...env, ENTREPOT_SERVER__PUBLICURL: "http://registry.example.com" } });
  assert.equal(warnings.length, 1);
  assert.match(warnings[0] ?? "", /publicUrl is http:.*make it https/);
});
