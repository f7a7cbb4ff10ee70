import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { parseConfig } from "../../src/config/load.ts";
import type { ReplicationRule } from "../../src/config/schema.ts";
import { digestOf } from "../../src/oci/digest.ts";
import type { Told } from "../../src/oci/origin.ts";
import { readRepositories } from "../../src/oci/repository-glob.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { copyName, endpointOf, judgePushes, judgeTag, sourcesOf } from "../../src/replication/rules.ts";

const REGISTRIES = { hub: { url: "https://hub.example", concurrency: 3, quota: { keep: 7 } } };

function ruleOf({ repositories = ["x"], to = "{{path}}", write = {} }): ReplicationRule {
  const { replication } = parseConfig({
    replication: {
      registries: REGISTRIES,
      rules: [
        { name: "r", from: { registry: "hub", repositories }, to: [{ registry: "self", repository: to }], write },
      ],
    },
  });
  const [rule] = replication.rules;
  assert.ok(rule);
  return rule;
}

function nameOf(to: string, repository: string): string | undefined {
  const rule = ruleOf({ to });
  const [target] = rule.to;
  assert.ok(target);
  return copyName(rule, target, repository as RepositoryName);
}

test("placeholders stand for the parts of the source's name", () => {
  assert.equal(nameOf("mirror/{{path}}", "team/web/app"), "mirror/team/web/app");
  assert.equal(nameOf("{{ registry }}/{{namespace}}/{{name}}", "team/web/app"), "hub/team/web/app");
  assert.equal(nameOf("m/{{name}}-copy", "team/app"), "m/app-copy");
  assert.equal(nameOf("m/{{namespace}}/{{name}}", "app"), "m/app", "without a namespace nothing is left of it");
  assert.equal(nameOf("m/{{path}}", "a".repeat(254)), undefined, "longer than a name may be");
});

test("braces are names that need no list; a star is a glob over the list", () => {
  const { names, globs, has } = sourcesOf(
    ruleOf({ repositories: ["library/{node,redis}", "team/{a,b}-*", "**/tool"] }),
  );
  assert.deepEqual(names, ["library/node", "library/redis"]);
  assert.deepEqual(globs, ["team/a-*", "team/b-*", "**/tool"]);
  for (const name of ["library/node", "team/b-1", "tool", "any/where/tool"]) assert.ok(has(name), name);
  for (const name of ["library/nodes", "team/c-1", "team/a-1/x"]) assert.ok(!has(name), name);
});

test("no glob keeps the reader busy, and what it reads it can match", () => {
  fc.assert(
    fc.property(fc.stringMatching(/^[a-b/{},*.-]{0,40}$/), (glob) => {
      const found = readRepositories([glob]);
      for (const name of found?.names ?? []) assert.ok(found?.has(name), name);
      assert.ok(found === undefined || found.names.length + found.globs.length > 0);
    }),
  );
  assert.equal(readRepositories(["{a,b}".repeat(30)]), undefined, "more than a thousand names");
});

test("a tag is copied where it is not there, left where it is the same, and else what the rule says", () => {
  const [digest, was] = [digestOf(Buffer.from("new")), digestOf(Buffer.from("old"))];
  const judge = (tag: string, write: object, at: typeof was | undefined) =>
    judgeTag(tag as Tag, digest, at, ruleOf({ write }).write);
  assert.deepEqual(judge("1", { existing: "fail" }, undefined), { action: "copy" });
  assert.deepEqual(judge("1", { existing: "fail", immutable: ["*"] }, digest), { action: "same" });
  assert.deepEqual(judge("1", {}, was), { action: "replace", was, backup: undefined });
  assert.deepEqual(judge("1", { backup: "{{tag}}-prev" }, was), { action: "replace", was, backup: "1-prev" });
  assert.deepEqual(judge("1", { existing: "fail" }, was), { action: "fail", was, because: "write.existing is fail" });
  assert.deepEqual(judge("v1", { immutable: ["v*"] }, was), { action: "keep", was, because: "immutable by v*" });
});

test("what was pushed later at the target stays, unless the rule says so anyway; the same of an earlier push is marked anew", () => {
  const [digest, was] = [digestOf(Buffer.from("new")), digestOf(Buffer.from("old"))];
  const at = (atMs: number) => ({ atMs, by: "site" });
  const judge = (source: Told, there: Told | undefined, write: object = {}) =>
    judgePushes(judgeTag("1" as Tag, source.digest, there?.digest, ruleOf({ write }).write), source, there, 1000);
  const replace = { action: "replace", was, backup: undefined };
  assert.deepEqual(judge({ digest, origin: at(1) }, undefined), { action: "copy" });
  assert.deepEqual(judge({ digest, origin: at(2) }, { digest: was, origin: at(1) }), replace);
  const later = { action: "keep", was, because: "it was pushed later there" };
  assert.deepEqual(judge({ digest, origin: at(1) }, { digest: was, origin: at(2) }), later);
  const fails = { action: "fail", was, because: "write.existing is fail" };
  assert.deepEqual(judge({ digest, origin: at(1) }, { digest: was, origin: at(2) }, { existing: "fail" }), fails);
  assert.deepEqual(judge({ digest }, { digest: was, origin: at(2) }), replace, "the source tells nothing");
  assert.deepEqual(judge({ digest, origin: at(1) }, { digest: was }), replace, "the target tells nothing");
  assert.deepEqual(judge({ digest, origin: at(2) }, { digest, origin: at(1) }), { action: "mark" });
  assert.deepEqual(judge({ digest, origin: at(1) }, { digest, origin: at(2) }), { action: "same" });
});

test("a registry's concurrency is its number of connections", () => {
  const registry = parseConfig({ replication: { registries: REGISTRIES } }).replication.registries["hub"];
  assert.ok(registry);
  const { connections, url } = endpointOf(registry);
  assert.deepEqual([connections, url], [3, "https://hub.example"]);
});
