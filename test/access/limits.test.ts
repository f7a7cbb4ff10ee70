import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { globMatcher, isGlob } from "../../src/access/globs.ts";
import { limitsSchema, limitsText, parseExpiry, parseLimits, WITHOUT_LIMITS } from "../../src/access/limits.ts";
import { VERBS } from "../../src/access/principal.ts";
import "../kit/seed.ts";

test("globs of limits name repositories, their components, and what lies below", () => {
  const cases: [glob: string, hits: string[], misses: string[]][] = [
    ["**", ["a", "a/b", "docker.io/library/alpine"], []],
    ["*", ["a"], ["a/b"]],
    ["team/app", ["team/app"], ["team/app2", "team/app/x", "team", "xteam/app"]],
    ["team/*", ["team/app"], ["team", "team/app/x", "teams/app"]],
    ["team/**", ["team", "team/app", "team/app/x"], ["teams/app", "x/team/app"]],
    ["**/app", ["app", "team/app", "a/b/app"], ["team/myapp", "app/x"]],
    ["*/app-*-test", ["team/app-x-test", "team/app--test"], ["team/app-test", "app-x-test"]],
    ["a/**/b/**/c", ["a/b/c", "a/x/b/b/c", "a/b/c/b/y/c"], ["a/c", "a/b", "a/b/c/d"]],
    ["localhost:5000/*", ["localhost:5000/app"], ["localhost/app"]],
    ["ab*ba", ["abba", "abxba", "ababba"], ["aba"]],
  ];
  for (const [glob, hits, misses] of cases) {
    assert.ok(isGlob(glob), glob);
    for (const name of hits) assert.ok(globMatcher(glob)(name), `${glob} is ${name}`);
    for (const name of misses) assert.ok(!globMatcher(glob)(name), `${glob} is not ${name}`);
  }
});

test("what is no glob of repositories is told from one", () => {
  const wrong = [
    "",
    "/",
    "team/",
    "/team",
    "a//b",
    "Team/*",
    "team/***",
    "a**",
    "**b/c",
    "{a,b}",
    "a b",
    "a\nb",
    "[ab]",
  ];
  for (const text of [...wrong, "!a", "+(a)", "a?", "a\u001b[31m", "a".repeat(256)]) assert.ok(!isGlob(text), text);
});

const letter = fc.constantFrom("a", "b", "-");
const component = fc.array(letter, { minLength: 1, maxLength: 4 }).map((letters) => letters.join(""));
const wild = fc.array(fc.oneof(letter, fc.constant("*")), { minLength: 1, maxLength: 4 });
const globComponent = fc.oneof(component, fc.constant("**"), wild.map((parts) => parts.join("").replaceAll(/\*+/g, "*"))); // prettier-ignore

/** The definition, as plainly as it can be said. */
function isNamedBy([part, ...parts]: string[], components: string[]): boolean {
  const [component, ...others] = components;
  if (part === undefined) return component === undefined;
  if (part === "**")
    return isNamedBy(parts, components) || (component !== undefined && isNamedBy([part, ...parts], others));
  if (component === undefined) return false;
  return new RegExp(`^${part.replaceAll("*", ".*")}$`).test(component) && isNamedBy(parts, others);
}

test("in a glob, ** is any components, and * any text within one", () => {
  const globs = fc.array(globComponent, { minLength: 1, maxLength: 5 });
  const names = fc.array(component, { minLength: 1, maxLength: 5 });
  fc.assert(
    fc.property(globs, names, (glob, name) => {
      assert.equal(globMatcher(glob.join("/"))(name.join("/")), isNamedBy(glob, name));
    }),
    { numRuns: 2000 },
  );
});

test("no glob that is let in keeps a request waiting, however many stars it has", () => {
  const evil = [`${"a*".repeat(127)}b`, "*a".repeat(127), `${"**/a/".repeat(7)}b`, `${"a*/**/".repeat(7)}b`];
  const names = ["a".repeat(255), `${"a".repeat(254)}b`, "a/".repeat(127) + "a", "aaaa/".repeat(50) + "a"];
  // A regular expression takes longer than the age of the universe.
  for (const glob of evil) {
    assert.ok(isGlob(glob), glob);
    const matches = globMatcher(glob);
    for (const name of names) matches(name);
  }
});

test("limits name repositories and verbs; what else they name, or that they name nothing, is a fault", () => {
  const good = [{ repositories: ["team/**"], verbs: ["pull", "create"] }];
  assert.deepEqual(limitsSchema.parse(good), good);
  assert.deepEqual(parseLimits(JSON.stringify(good)), good);
  assert.deepEqual(limitsSchema.parse(WITHOUT_LIMITS), [{ repositories: ["**"], verbs: [...VERBS] }]);
  const bad: unknown[] = [
    [],
    {},
    [{ repositories: [], verbs: ["pull"] }],
    [{ repositories: ["a"], verbs: [] }],
    [{ repositories: ["a"], verbs: ["admin"] }],
    [{ repositories: ["{a}"], verbs: ["pull"] }],
    [{ repositories: ["a"], verbs: ["pull"], more: 1 }],
    Array.from({ length: 21 }, () => good[0]),
    [{ repositories: Array.from({ length: 51 }, () => "a"), verbs: ["pull"] }],
  ];
  for (const each of bad) assert.ok(!limitsSchema.safeParse(each).success, JSON.stringify(each));
  assert.equal(
    limitsText([...limitsSchema.parse(good), { repositories: ["a", "b"], verbs: ["delete"] }]),
    "pull, create of team/**; delete of a, b",
  );
});

const NOW = Date.UTC(2026, 0, 31, 12);

test("an expiry is a duration, a day, a time, or never, and lies ahead", () => {
  const cases: [text: string, expected: number | undefined][] = [
    ["never", Infinity],
    ["90d", NOW + 90 * 86_400_000],
    ["1s", NOW + 1000],
    ["2026-02-01", Date.UTC(2026, 1, 1)],
    ["2026-01-31T12:00:01Z", NOW + 1000],
    ["2026-01-31T14:00:01+01:00", NOW + 3_601_000],
    ["2026-01-31T12:00:00Z", undefined],
    ["2026-01-31", undefined],
    ["2025-12-31", undefined],
    ["2026-02-30", undefined],
    ["0s", undefined],
    ["-1d", undefined],
    ["90", undefined],
    ["", undefined],
    ["Never", undefined],
    ["tomorrow", undefined],
    ["Feb 1 2026", undefined],
    ["10000-01-01", undefined],
    ["99999999d", undefined],
    ["9".repeat(30) + "d", undefined],
  ];
  for (const [text, expected] of cases) assert.equal(parseExpiry(text, NOW), expected, text);
});

test("whatever is taken for an expiry lies ahead, and can be written as a time", () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.date({ noInvalidDate: true }).map((date) => date.toISOString()),
        fc.stringMatching(/^[0-9]{1,8}[smhd]$/),
      ),
      (text) => {
        // prettier-ignore
        const atMs = parseExpiry(text, NOW);
        if (atMs === undefined || atMs === Infinity) return;
        assert.ok(atMs > NOW);
        assert.match(new Date(atMs).toISOString(), /^[0-9]{4}-/);
      },
    ),
  );
});

test("as many globs as are let in keep no request waiting", () => {
  const limits = (count: number, glob: string): unknown =>
    Array.from({ length: 20 }, () => ({ repositories: Array.from({ length: count }, () => glob), verbs: ["pull"] }));
  const [long, deep] = [`*${"a".repeat(120)}b*`, `**/${"a/".repeat(14)}b`];
  for (const [glob, name] of [
    [long, "a".repeat(250)],
    [deep, `${"a/".repeat(126)}a`],
  ] as const) {
    assert.ok(!limitsSchema.safeParse(limits(6, glob)).success);
    const matchers = limitsSchema.parse(limits(5, glob)).flatMap(({ repositories }) => repositories.map(globMatcher));
    const began = performance.now();
    for (let i = 0; i < 10; i++) for (const matches of matchers) assert.ok(!matches(name));
    assert.ok((performance.now() - began) / 10 < 50, `${performance.now() - began} ms`);
  }
  assert.ok(!isGlob("a/".repeat(16) + "a"));
});
