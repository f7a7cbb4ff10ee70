import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { parseConfig } from "../../src/config/load.ts";
import type { ReplicationRule } from "../../src/config/schema.ts";
import { digestOf } from "../../src/oci/digest.ts";
import type { Tag } from "../../src/oci/reference.ts";
import { DigestTags, selectingTags, selectTags, tooOld } from "../../src/replication/tag-filter.ts";

type Tags = ReplicationRule["tags"];

/** As a configuration gives it, with the defaults. */
function tagsOf(tags: object): Tags {
  const { replication } = parseConfig({
    replication: {
      registries: { a: { url: "https://a.example" } },
      rules: [{ name: "r", from: { registry: "a", repositories: ["x"] }, to: [{ registry: "self" }], tags }],
    },
  });
  const [rule] = replication.rules;
  assert.ok(rule);
  return rule.tags;
}

function names(listed: string[], tags: object): string[] {
  return selectTags(listed, tagsOf(tags)).selected.map(({ tag }) => tag);
}

const LISTED = ["16.1.0", "18.0.0", "18.2.0", "20.0.0", "20.1.0-rc1", "20.1.0", "latest", "nightly", "22-alpine"];

test("without any condition every tag is selected, versions before names, the newest first", () => {
  assert.deepEqual(names(LISTED, {}), [
    "22-alpine",
    "20.1.0",
    "20.1.0-rc1",
    "20.0.0",
    "18.2.0",
    "18.0.0",
    "16.1.0",
    "nightly",
    "latest",
  ]);
});

test("the stages take away in their order, and tell why; always brings back", () => {
  const { selected, dropped } = selectTags(
    LISTED,
    tagsOf({ match: ["*", "!nothing"], semver: ">=18", exclude: ["*.2.0"], newest: 2, always: ["latest"] }),
  );
  assert.deepEqual(selected, [
    { tag: "20.1.0", why: "matches *, a version in >=18, number 1 of the 2 newest", always: false },
    { tag: "20.0.0", why: "matches *, a version in >=18, number 2 of the 2 newest", always: false },
    { tag: "latest", why: "always matches latest", always: true },
  ]);
  const why = Object.fromEntries(dropped.map(({ tag, stage, why }) => [tag, `${stage}: ${why}`]));
  assert.deepEqual(why, {
    "22-alpine": "semver: is no version in >=18",
    "20.1.0-rc1": "semver: is no version in >=18",
    "18.2.0": "exclude: matches *.2.0",
    "18.0.0": "newest: 2 are newer",
    "16.1.0": "semver: is no version in >=18",
    nightly: "semver: is no version in >=18",
  });
});

test("what an exclusion takes away is not counted among the newest", () => {
  assert.deepEqual(names(["1.0", "2.0", "3.0"], { exclude: ["3*"], newest: 2 }), ["2.0", "1.0"]);
});

test("a tag that is named after a digest goes with its image, whatever matches", () => {
  const digest = digestOf(Buffer.from("image"));
  const name = digest.replace(":", "-");
  const { selected, dropped } = selectTags(["1", `${name}.sig`, name], tagsOf({}));
  assert.deepEqual(
    selected.map(({ tag }) => tag),
    ["1"],
  );
  assert.deepEqual(new Set(dropped.map(({ stage }) => stage)), new Set(["attached"]));
  assert.deepEqual(new DigestTags(["1", `${name}.sig`, name, `${name}x`]).of(digest), [`${name}.sig`]);
});

test("maxAge drops what is known to be older, and neither always nor what does not tell", () => {
  const rule = tagsOf({ maxAge: "10d", always: ["old"] });
  const nowMs = Date.UTC(2026, 5, 20);
  const [tag, old] = ["1", "old"] as Tag[] as [Tag, Tag];
  assert.deepEqual(tooOld({ tag, always: false }, rule, Date.UTC(2026, 5, 1), nowMs), {
    tag: "1",
    stage: "maxAge",
    why: "made on 2026-06-01, more than 10d ago",
  });
  assert.equal(tooOld({ tag, always: false }, rule, Date.UTC(2026, 5, 11), nowMs), undefined);
  assert.equal(tooOld({ tag, always: false }, rule, undefined, nowMs), undefined);
  assert.equal(tooOld({ tag: old, always: true }, rule, 0, nowMs), undefined);
});

const anyTag = fc.oneof(
  fc.tuple(fc.nat(25), fc.nat(5), fc.nat(5)).map((parts) => parts.join(".")),
  fc.constantFrom(
    "latest",
    "stable",
    "v1",
    "1",
    "1.0",
    "v1.0.0",
    "1.2.3-rc1",
    "1.2.3_b",
    "2024-10-01",
    "build-9",
    "build-10",
  ),
  fc.stringMatching(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,6}$/),
);
const anyTags: fc.Arbitrary<Tags> = fc
  .record({
    match: fc.subarray(["*", "1*", "v*", "build-*"], { minLength: 1 }),
    semver: fc.constantFrom(undefined, ">=2", "1.x", ">=1.0.0-0"),
    exclude: fc.subarray(["*-rc*", "*.0", "latest"]),
    newest: fc.nat(6),
    always: fc.subarray(["latest", "1.*", "stable"]),
  })
  .map(({ semver, ...rest }) => tagsOf(semver === undefined ? rest : { ...rest, semver }));

test("stages only take away, always stays, each tag is selected or dropped for a reason, newest is a bound", () => {
  fc.assert(
    fc.property(fc.array(anyTag, { maxLength: 40 }), anyTags, (listed, rule) => {
      const { selected, dropped } = selectTags(listed, rule);
      const out = [...selected, ...dropped].map(({ tag }) => tag);
      assert.deepEqual(out.toSorted(), [...new Set(listed)].toSorted());
      for (const { why } of [...selected, ...dropped]) assert.notEqual(why, "");
      const always = selectTags(listed, tagsOf({ match: rule.always.length > 0 ? [...rule.always] : ["nothing"] }));
      for (const { tag } of always.selected)
        assert.ok(
          selected.some((one) => one.tag === tag),
          tag,
        );
      if (rule.newest > 0) assert.ok(selected.filter((one) => !one.always).length <= rule.newest);
    }),
  );
});

test("neither the order of the list nor a second pass changes what is selected", () => {
  fc.assert(
    fc.property(
      fc
        .array(anyTag, { maxLength: 40 })
        .chain((listed) =>
          fc.tuple(
            fc.constant(listed),
            fc.shuffledSubarray(listed, { minLength: listed.length, maxLength: listed.length }),
          ),
        ),
      anyTags,
      ([listed, shuffled], rule) => {
        const once = selectTags(listed, rule);
        assert.deepEqual(selectTags(shuffled, rule), once);
        const again = selectTags(
          once.selected.map(({ tag }) => tag),
          rule,
        );
        assert.deepEqual(
          again.selected.map(({ tag }) => tag),
          once.selected.map(({ tag }) => tag),
        );
      },
    ),
  );
});

test("a condition more never selects a tag more, but for the places that newest makes free", () => {
  fc.assert(
    fc.property(fc.array(anyTag, { maxLength: 40 }), anyTags, (listed, rule) => {
      const all = new Set(selectTags(listed, { ...rule, newest: 0 }).selected.map(({ tag }) => tag));
      for (const { tag } of selectTags(listed, rule).selected) assert.ok(all.has(tag), tag);
      const wider = new Set(selectTags(listed, { ...rule, exclude: [], newest: 0 }).selected.map(({ tag }) => tag));
      for (const tag of all) assert.ok(wider.has(tag), tag);
    }),
  );
});

test("twenty thousand tags are sorted and selected in small steps", () => {
  const tags = Array.from({ length: 20_000 }, (_, index) => `v1.${(index * 7919) % 20_000}`);
  const rule = tagsOf({ exclude: ["*-rc*"] });
  const steps = selectingTags(tags, rule);
  let count = 0;
  let step = steps.next();
  for (; !step.done; step = steps.next()) count++;
  // Each level of the sort and both passes: no step is about more than 256 tags.
  assert.ok(count >= (20_000 / 256) * 9, String(count));
  assert.deepEqual(
    step.value.selected.map(({ tag }) => tag),
    Array.from({ length: 20_000 }, (_, index) => `v1.${19_999 - index}`),
  );
});

test("tags that are named after images are found by the image, however many there are", () => {
  const digests = Array.from({ length: 20_000 }, (_, index) => digestOf(Buffer.from(String(index))));
  const named = new DigestTags(digests.flatMap((digest) => [`${digest.replace(":", "-")}.sig`, "latest"]));
  const startedMs = process.threadCpuUsage().user;
  for (const digest of digests) assert.deepEqual(named.of(digest), [`${digest.replace(":", "-")}.sig`]);
  // To go through all of them for each took 30 s.
  assert.ok(process.threadCpuUsage().user - startedMs < 3_000_000);
});
