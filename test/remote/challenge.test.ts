import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { parseChallenges } from "../../src/remote/challenge.ts";

function read(header: string): [string, Record<string, string>][] {
  return parseChallenges(header).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)]);
}

test("a bearer challenge as registries send it", () => {
  const header =
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"';
  assert.deepEqual(read(header), [
    [
      "bearer",
      { realm: "https://auth.docker.io/token", service: "registry.docker.io", scope: "repository:a/b:pull,push" },
    ],
  ]);
});

test("several challenges, tokens beside quoted strings, escapes, odd spaces and case", () => {
  assert.deepEqual(read('Negotiate, BASIC Realm = "a \\"b\\", c" , charset=UTF-8,bearer realm=x'), [
    ["negotiate", {}],
    ["basic", { realm: 'a "b", c', charset: "UTF-8" }],
    ["bearer", { realm: "x" }],
  ]);
});

test("what is broken ends the reading, not the program", () => {
  assert.deepEqual(read('Basic realm="open'), [["basic", {}]]);
  assert.deepEqual(read("=x"), []);
  assert.deepEqual(read(""), []);
  assert.deepEqual(read('realm="x"'), []);
  fc.assert(fc.property(fc.string({ maxLength: 200 }), (text) => void read(text)));
  const long = `Bearer ${"a=".repeat(100_000)}"${"\\".repeat(100_000)}`;
  const startedMs = performance.now();
  read(long);
  assert.ok(performance.now() - startedMs < 200);
});

test("whatever is quoted comes out as it went in", () => {
  fc.assert(
    fc.property(fc.string(), fc.string(), (realm, scope) => {
      const quote = (text: string): string => `"${text.replaceAll(/["\\]/g, "\\$&")}"`;
      const header = `Bearer realm=${quote(realm)}, scope=${quote(scope)}`;
      assert.deepEqual(read(header), [["bearer", { realm, scope }]]);
    }),
  );
});
