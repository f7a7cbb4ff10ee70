import assert from "node:assert/strict";
import { Writable } from "node:stream";
import { test } from "node:test";
import { parse } from "yaml";
import { runConfig } from "../../src/cli/config.ts";
import { defaultConfig, parseConfig } from "../../src/config/load.ts";
import { folderWith } from "./files.ts";

async function run(args: string[], env: NodeJS.ProcessEnv = {}) {
  const written = { stdout: "", stderr: "" };
  const into = (name: keyof typeof written) =>
    new Writable({
      decodeStrings: false,
      write: (text: string, _, done) => {
        written[name] += text;
        done();
      },
    });
  const status = await runConfig(args, { stdout: into("stdout"), stderr: into("stderr"), env });
  return { status, ...written };
}

test("verify finds a good file good", async () => {
  await using folder = await folderWith({ "entrepot.yaml": "log: {level: debug}\n" });
  const file = folder.path("entrepot.yaml");
  const { status, stdout } = await run(["verify", file], { REGISTRY_HTTP_SECRET: "x" });
  assert.equal(status, 0);
  assert.equal(stdout, `${file} is valid\nwarning: REGISTRY_HTTP_SECRET is ignored: it has no counterpart here\n`);
  assert.equal((await run(["verify"], { ENTREPOT_CONFIG: file })).stdout, `${file} is valid\n`);
  assert.equal((await run(["verify"])).stdout, "the configuration is valid\n");
});

test("verify lists every fault with its line, as text and as JSON", async () => {
  await using folder = await folderWith({ "entrepot.yaml": "log: {levle: debug}\nstorage: {minFree: x}\n" });
  const file = folder.path("entrepot.yaml");
  const text = await run(["verify", file]);
  assert.equal(text.status, 2);
  assert.equal(text.stdout, "");
  assert.ok(text.stderr.includes(`${file}:1:7: log.levle is not a key; did you mean level?`));
  assert.ok(text.stderr.includes(`${file}:2:11: storage.minFree is not a size`));

  const json = await run(["verify", "--json", file]);
  assert.equal(json.status, 2);
  const { valid, faults } = JSON.parse(json.stdout) as { valid: boolean; faults: object[] };
  assert.equal(valid, false);
  assert.deepEqual(faults[0], {
    source: file,
    line: 1,
    column: 7,
    path: "log.levle",
    cause: "is not a key",
    remedy: "did you mean level?",
  });
  assert.equal((JSON.parse((await run(["verify", "--json"])).stdout) as { valid: boolean }).valid, true);
});

test("what print shows is a configuration that means the same", async () => {
  const { status, stdout } = await run(["print"]);
  assert.equal(status, 0);
  assert.match(stdout, /^ {2}listen: 127\.0\.0\.1:5000 # default$/m);
  assert.match(stdout, /^ {4}maxStale: 30d # default$/m);
  assert.deepEqual(parseConfig(parse(stdout)), defaultConfig());
});

test("print shows each value's origin and no secret", async () => {
  await using folder = await folderWith({
    secret: "hunter2",
    "entrepot.yaml": `upstreams:
  docker.io:
    auth: {username: me, passwordFile: SECRET}
    proxy: http://me:hunter%402@proxy:3128
    bandwidth: 5MiB
    fallbacks:
      - url: https://mirror.example.com
        auth: {username: "123", password: hunter2}
`,
  });
  const file = folder.path("entrepot.yaml");
  const env = { ENTREPOT_UPSTREAMS__DOCKER_IO__AUTH: `{username: me, passwordFile: ${folder.path("secret")}}` };
  const { stdout } = await run(["print", "--config", file], { ...env, ENTREPOT_LOG__LEVEL: "warn" });
  assert.ok(!stdout.includes("hunter"));
  for (const line of [
    "  level: warn # ENTREPOT_LOG__LEVEL",
    '      password: "[redacted]" # ENTREPOT_UPSTREAMS__DOCKER_IO__AUTH',
    `    proxy: "http://[redacted]@proxy:3128/" # ${file}:4`,
    `    bandwidth: 5MiB # ${file}:5`,
    `      - url: https://mirror.example.com # ${file}:7`,
    `          username: "123" # ${file}:8`,
    '          password: "[redacted]"',
  ]) {
    assert.ok(stdout.includes(line), line);
  }
  assert.doesNotThrow(() => parse(stdout) as unknown);

  const json = await run(["print", "--json", "--config", file], env);
  assert.ok(!json.stdout.includes("hunter"));
  const { config, origins } = JSON.parse(json.stdout) as {
    config: { upstreams: Record<string, { tagTtl: string }> };
    origins: Record<string, string>;
  };
  assert.equal(config.upstreams["docker.io"]?.tagTtl, "5m");
  assert.equal(origins["upstreams.docker.io.fallbacks[0].url"], `${file}:7`);
  assert.equal(origins["storage.root"], "default");
});

test("print of a faulty configuration shows the faults and nothing else", async () => {
  const { status, stdout, stderr } = await run(["print"], { ENTREPOT_LOG__LEVEL: "loud" });
  assert.equal(status, 2);
  assert.equal(stdout, "");
  assert.match(stderr, /ENTREPOT_LOG__LEVEL: log\.level must be one of/);
});

test("schema prints the JSON Schema", async () => {
  const { status, stdout } = await run(["schema"]);
  assert.equal(status, 0);
  const schema = JSON.parse(stdout) as { $schema: string; additionalProperties: boolean };
  assert.equal(schema.$schema, "https://json-schema.org/draft/2020-12/schema");
  assert.equal(schema.additionalProperties, false);
});

test("wrong usage says how it is right", async () => {
  for (const args of [
    [],
    ["verfy"],
    ["verify", "a", "b"],
    ["print", "a"],
    ["print", "--foo"],
    ["schema", "x"],
    ["print", "--config"],
  ]) {
    const { status, stderr } = await run(args);
    assert.equal(status, 2, args.join(" "));
    assert.match(stderr, /Usage:\n/);
  }
  assert.equal((await run(["--help"])).status, 0);
});

test("print redacts the secrets of webhooks, wherever they come from", async () => {
  await using folder = await folderWith({ secret: "hunter2\n" });
  const webhooks = [
    { name: "ci", url: "https://ci.example.com/", secretFile: folder.path("secret") },
    { name: "audit", url: "https://audit.example.com/", secret: "hunter3" },
    { name: "open", url: "https://open.example.com/hook?token=hunter4" },
  ];
  const env = { ENTREPOT_WEBHOOKS: JSON.stringify(webhooks) };
  assert.equal(parseConfig({ webhooks }).webhooks[0]?.secret, "hunter2");
  for (const args of [["print"], ["print", "--json"]]) {
    const { status, stdout } = await run(args, env);
    assert.equal(status, 0);
    assert.ok(!stdout.includes("hunter"), stdout);
    assert.equal(stdout.split("[redacted]").length - 1, 3);
  }
});
