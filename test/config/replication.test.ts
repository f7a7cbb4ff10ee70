import assert from "node:assert/strict";
import { test } from "node:test";
import { stringify } from "yaml";
import { ConfigError } from "../../src/config/faults.ts";
import { loadConfig, parseConfig } from "../../src/config/load.ts";
import { folderWith } from "./files.ts";

const REGISTRIES = {
  hub: { url: "https://registry-1.docker.io" },
  dr: { url: "https://dr.example:5000" },
};

interface RuleText {
  name?: string;
  from?: string;
  repositories?: string[];
  to?: { registry: string; repository?: string }[];
  tags?: object;
  write?: object;
}

function configOf(rules: RuleText[], registries: object = REGISTRIES) {
  return {
    replication: {
      registries,
      rules: rules.map(({ name, from = "hub", repositories = ["library/node"], to, ...rest }, index) => ({
        name: name ?? `rule-${index}`,
        from: { registry: from, repositories },
        to: to ?? [{ registry: "dr" }],
        ...rest,
      })),
    },
  };
}

/** The faults as `path cause`; every one has a remedy. */
function faultsOf(rules: RuleText[], registries?: object): string[] {
  try {
    parseConfig(configOf(rules, registries));
  } catch (error) {
    assert.ok(error instanceof ConfigError);
    for (const { path, remedy } of error.faults) assert.ok(remedy.length > 0, `${path} has a remedy`);
    return error.faults.map(({ path, cause }) => `${path.replace("replication.", "")} ${cause}`);
  }
  return [];
}

const dr = (repository: string) => [{ registry: "dr", repository }];

test("a rule as the documents have it is read, units included", () => {
  const { replication } = parseConfig({
    replication: {
      registries: {
        hub: { url: "https://registry-1.docker.io", auth: { username: "me", password: "secret" }, quota: { keep: 40 } },
        dr: { url: "https://dr.example:5000", concurrency: 12, bandwidth: "50MiB/s" },
      },
      rules: [
        {
          name: "base",
          from: { registry: "hub", repositories: ["library/{node,redis}"] },
          to: [{ registry: "dr", repository: "mirror/{{path}}" }],
          tags: { match: ["*"], semver: ">=18", exclude: ["*-rc*"], newest: 5, maxAge: "90d", always: ["latest"] },
          platforms: { only: ["linux/amd64", "linux/arm64"] },
          attached: { referrers: true, digestTags: true, require: ["signature"] },
          write: { existing: "replace", backup: "{{tag}}-prev", immutable: ["v*"] },
        },
      ],
    },
  });
  assert.equal(replication.registries["dr"]?.concurrency, 12);
  assert.equal(replication.registries["dr"]?.bandwidth, 50 * 2 ** 20);
  assert.equal(replication.registries["hub"]?.quota.keep, 40);
  const [rule] = replication.rules;
  assert.equal(rule?.tags.maxAge, 90 * 86_400_000);
  assert.deepEqual(rule?.write.immutable, ["v*"]);
});

test("a registry that is not there is named with those that are, and self is taken", () => {
  assert.deepEqual(faultsOf([{ from: "hubb" }, { to: [{ registry: "dd" }], repositories: ["other"] }]), [
    "rules[0].from.registry is not under replication.registries",
    "rules[1].to[0].registry is not under replication.registries",
  ]);
  assert.deepEqual(faultsOf([], { self: { url: "https://here.example" } }), [
    "registries.self is the name of this registry",
  ]);
  assert.deepEqual(faultsOf([], { "Two Words": { url: "https://here.example" } }), [
    "registries.Two Words is not a registry's name",
  ]);
  assert.deepEqual(faultsOf([{ from: "self", repositories: ["team/**"] }]), []);
});

test("what can match nothing is found before it is asked for", () => {
  const cause = "matches no name that a repository can have";
  for (const glob of ["Library/node", "library/{node", "node}", "/node", "a//b", "a**", "no?de", "a/{b,C}", ""]) {
    assert.deepEqual(faultsOf([{ repositories: [glob] }]), [`rules[0].from.repositories[0] ${cause}`], glob);
  }
  for (const glob of ["library/*", "**", "a/**/b", "a/{b,c{d,e}}-*", "{a,b}/{c,d}"]) {
    assert.deepEqual(faultsOf([{ repositories: [glob] }]), [], glob);
  }
  const tag = "matches no name that a tag can have";
  assert.deepEqual(faultsOf([{ tags: { match: ["a/b"], exclude: ["{a"], always: ["a b"] } }]), [
    `rules[0].tags.match[0] ${tag}`,
    `rules[0].tags.exclude[0] ${tag}`,
    `rules[0].tags.always[0] ${tag}`,
  ]);
  assert.deepEqual(faultsOf([{ tags: { semver: "new", maxAge: "90" }, write: { backup: "{{name}}" } }]), [
    "rules[0].tags.semver is not a range of versions",
    "rules[0].tags.maxAge is not a duration from 0s",
    "rules[0].write.backup is not the name of a second tag",
  ]);
});

test("a selection of tags that leaves none of any repository's is refused", () => {
  assert.deepEqual(faultsOf([{ tags: { match: [] } }]), [
    "rules[0].tags.match is an empty list, so that no tag is selected",
  ]);
  assert.deepEqual(faultsOf([{ tags: { exclude: ["*-rc", "*"] } }]), ["rules[0].tags.exclude takes away every tag"]);
  for (const semver of [">2 <1", ">2 <1 || >4 <3"]) {
    assert.deepEqual(faultsOf([{ tags: { semver, always: ["latest"] } }]), [
      "rules[0].tags.semver is a range that no version is in",
    ]);
  }
  for (const tags of [
    { match: [], always: ["latest"] },
    { exclude: ["*"], always: ["v*"] },
    { semver: ">2 <1 || 5" },
  ]) {
    assert.deepEqual(faultsOf([{ tags }]), [], JSON.stringify(tags));
  }
});

test("empty lists are told as such", () => {
  assert.deepEqual(faultsOf([{ repositories: [] }]), ["rules[0].from.repositories is an empty list"]);
  assert.deepEqual(faultsOf([{ to: [] }]), ["rules[0].to is an empty list"]);
});

test("this registry as a target has to be reachable over HTTP", () => {
  const toSelf = { replication: configOf([{ to: [{ registry: "self" }] }]).replication };
  const causes = (server: object): string[] => {
    try {
      parseConfig({ ...toSelf, server });
    } catch (error) {
      assert.ok(error instanceof ConfigError);
      return error.faults.map(({ path, cause }) => `${path} ${cause}`);
    }
    return [];
  };
  const tls = { certificate: "a.pem", key: "b.pem" };
  const path = "replication.rules[0].to[0].registry";
  assert.deepEqual(causes({ listen: "unix:/run/entrepot.sock" }), [
    `${path} is this registry, which is written to over HTTP, and server.listen is a Unix socket`,
  ]);
  assert.deepEqual(causes({ tls }), [
    `${path} is this registry, which is written to by the name in its certificate, which is not told`,
  ]);
  assert.deepEqual(causes({ tls, publicUrl: "https://mirror.lan" }), []);
});

test("a copy's name has known placeholders, and is one that a repository can have", () => {
  assert.deepEqual(faultsOf([{ to: dr("mirror/{{repo}}") }]), [
    "rules[0].to[0].repository has a placeholder that stands for nothing",
  ]);
  for (const template of ["Mirror/{{path}}", "mirror/{{path", "{{path}}:{{name}}"]) {
    assert.deepEqual(
      faultsOf([{ to: dr(template) }]),
      ["rules[0].to[0].repository makes no name that a repository can have"],
      template,
    );
  }
  assert.deepEqual(faultsOf([{ to: dr("{{registry}}/{{namespace}}/{{name}}") }]), []);
});

test("two rules that write the same tags of one repository are refused", () => {
  const both = (first: RuleText, second: RuleText) => faultsOf([first, second]);
  assert.deepEqual(both({}, {}), ["rules[1].to[0].repository writes library/node, and so does rule rule-0"]);
  assert.equal(both({ to: dr("a") }, { repositories: ["b"], to: dr("a") }).length, 1);
  assert.equal(both({ repositories: ["library/*"] }, {}).length, 1);
  assert.deepEqual(both({ to: dr("a/{{path}}") }, { to: dr("b/{{path}}") }), []);
  assert.deepEqual(both({}, { to: [{ registry: "self" }] }), []);
  // Disjoint for certain.
  assert.deepEqual(both({ tags: { match: ["v1*"] } }, { tags: { match: ["v2*", "latest"] } }), []);
  assert.deepEqual(both({ tags: { semver: "<2" } }, { tags: { semver: ">=2" } }), []);
  assert.equal(both({ tags: { semver: "<2", always: ["latest"] } }, { tags: { match: ["latest"] } }).length, 1);
  // Two names of one place.
  const twins = { ...REGISTRIES, dr2: { url: "https://dr.example:5000/" } };
  assert.equal(faultsOf([{}, { to: [{ registry: "dr2" }] }], twins).length, 1);
});

test("one rule that gives several repositories one name is refused", () => {
  assert.deepEqual(faultsOf([{ repositories: ["a/{x,y}"], to: dr("all") }]), [
    "rules[0].to[0].repository is all for both a/x and a/y",
  ]);
  assert.deepEqual(faultsOf([{ repositories: ["a/*"], to: dr("all/{{registry}}") }]), [
    "rules[0].to[0].repository is one repository for many sources",
  ]);
  assert.deepEqual(faultsOf([{ to: [...dr("x"), ...dr("x")] }]), [
    "rules[0].to[1].repository writes x, and so does another target of this rule",
  ]);
});

test("a rule that copies its own copies is a loop", () => {
  const within = (repositories: string[], repository: string) =>
    faultsOf([{ from: "dr", repositories, to: dr(repository) }]);
  assert.deepEqual(within(["a"], "{{path}}"), ["rules[0].to[0].repository is its own source"]);
  assert.deepEqual(within(["**"], "mirror/{{path}}"), [
    "rules[0].to[0].repository is among its own sources, so that mirror/a would be copied again by every run",
  ]);
  assert.deepEqual(within(["team/**"], "mirror/{{path}}"), []);
  assert.deepEqual(
    faultsOf([
      { repositories: ["**"], to: dr("x/{{path}}") },
      { from: "dr", repositories: ["**"], to: [{ registry: "hub", repository: "y/{{path}}" }] },
    ]),
    ["rules[1].to[0].repository makes a loop with rule rule-0: a comes back as x/y/a"],
  );
});

test("two rules that copy the same names both ways are allowed, with a warning that says who wins", async () => {
  const rules = configOf([
    { name: "there", repositories: ["team/*"] },
    { name: "back", from: "dr", repositories: ["team/*"], to: [{ registry: "hub" }] },
  ]);
  await using folder = await folderWith({ "entrepot.yaml": stringify(rules) });
  const { warnings } = await loadConfig({ file: folder.path("entrepot.yaml"), env: {} });
  assert.equal(warnings.length, 1);
  assert.match(warnings[0] ?? "", /^replication rules there and back copy the same repositories both ways/);
});

test("a registry's password comes from the environment, and a key that nothing obeys is refused", async () => {
  const rules = configOf([], { hub: { url: "https://registry-1.docker.io", auth: { username: "me" } } });
  await using folder = await folderWith({ "entrepot.yaml": stringify(rules) });
  const env = { ENTREPOT_REPLICATION__REGISTRIES__HUB__AUTH__PASSWORD: "s3cret" };
  const { config } = await loadConfig({ file: folder.path("entrepot.yaml"), env });
  assert.deepEqual(config.replication.registries["hub"]?.auth, { username: "me", password: "s3cret" });
  assert.deepEqual(faultsOf([{ when: { push: true } } as RuleText]), ["rules[0].when is not a key"]);
});
