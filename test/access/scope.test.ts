import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { parseScopes, renderScope } from "../../src/access/scope.ts";
import "../kit/seed.ts";

const one = (text: string): string[] => parseScopes([text]).map(renderScope);

test("a scope has a type, a name and actions", () => {
  assert.deepEqual(parseScopes(["repository:team/app:pull,push"]), [
    { type: "repository", class: undefined, name: "team/app", actions: ["pull", "push"] },
  ]);
  assert.deepEqual(parseScopes(["repository(plugin):team/plug:pull registry:catalog:*"]), [
    { type: "repository", class: "plugin", name: "team/plug", actions: ["pull"] },
    { type: "registry", class: undefined, name: "catalog", actions: ["*"] },
  ]);
});

test("a name may hold a host with its port", () => {
  assert.deepEqual(parseScopes(["repository:localhost:5000/team/app:pull"]), [
    { type: "repository", class: undefined, name: "localhost:5000/team/app", actions: ["pull"] },
  ]);
});

test("several come by spaces and by repeated parameters, those of one name are joined", () => {
  assert.deepEqual(parseScopes(["repository:a:pull repository:b:pull", "repository:a:push,pull"]).map(renderScope), [
    "repository:a:pull,push",
    "repository:b:pull",
  ]);
});

for (const text of [
  "",
  " ",
  "repository",
  "repository:a",
  "repository::pull",
  "repository:a:",
  "repository:a:,",
  "repository:a:PULL",
  "repository:a:pull\u0000",
  ":a:pull",
  "Repository:a:pull",
  "repository(:a:pull",
  "repository():a:pull",
  "repository:ä:pull",
  "repository:a\tb:pull",
  `repository:${"a".repeat(521)}:pull`,
]) {
  test(`${JSON.stringify(text.slice(0, 40))} is left out`, () => {
    assert.deepEqual(one(text), []);
  });
}

test("actions that are none are left out, the others stay", () => {
  assert.deepEqual(one("repository:a:pull,,PUSH,pull,delete"), ["repository:a:pull,delete"]);
});

test("of a million scopes a hundred are read", () => {
  const text = Array.from({ length: 100_000 }, (_, index) => `repository:a${index}:pull`).join(" ");
  assert.equal(parseScopes([text]).length, 100);
});

const piece = fc.oneof(
  fc.constantFrom(
    "repository",
    "registry",
    ":",
    ",",
    " ",
    "(",
    ")",
    "pull",
    "push",
    "*",
    "/",
    "localhost:5000",
    "a",
    "__proto__",
    "\n",
  ),
  fc.string({ unit: "binary", maxLength: 5 }),
);
const text = fc.array(piece, { maxLength: 30 }).map((pieces) => pieces.join(""));

test("any text is parsed or left out, and what is parsed reads back the same", () => {
  fc.assert(
    fc.property(fc.array(text, { maxLength: 5 }), (texts) => {
      const scopes = parseScopes(texts);
      assert.deepEqual(parseScopes(scopes.map(renderScope)), scopes);
      assert.deepEqual(parseScopes([scopes.map(renderScope).join(" ")]), scopes);
    }),
  );
});

test("a scope of any type, name and actions survives", () => {
  const word = fc.stringMatching(/^[a-z]{1,10}$/);
  const scope = fc.record(
    {
      type: word,
      class: fc.option(word, { nil: undefined }),
      name: fc.stringMatching(/^[a-z0-9.:/_-]{1,60}$/),
      actions: fc.uniqueArray(fc.oneof(word, fc.constant("*")), { minLength: 1, maxLength: 16 }),
    },
    { noNullPrototype: true },
  );
  fc.assert(fc.property(scope, (scope) => assert.deepEqual(parseScopes([renderScope(scope)]), [scope])));
});
