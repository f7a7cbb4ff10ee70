import assert from "node:assert/strict";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as fc from "fast-check";
import { parseConfig } from "../../src/config/load.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import type { Digest } from "../../src/oci/digest.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { Catalog } from "../../src/store/catalog.ts";
import { TagCatalog, type HostedTag } from "../../src/store/tag-catalog.ts";
import {
  compileRules,
  keeperOf,
  LatestSoFar,
  reasonText,
  ruleFor,
  type RetentionRule,
} from "../../src/upkeep/retention-plan.ts";
import { decisions, type Decision } from "../../src/upkeep/retention-walk.ts";

const DAY = 86_400_000;
const NOW = 1_000 * DAY;

interface Keep {
  tags?: string[];
  semver?: string;
  latestPushed?: number;
  latestPulled?: number;
  pushedWithin?: string;
  pulledWithin?: string;
}

function ruleOf(keep: Keep): RetentionRule {
  return rulesOf([{ repositories: ["**"], keep }])[0] ?? assert.fail();
}

function rulesOf(rules: object[]): RetentionRule[] {
  return compileRules(parseConfig({ retention: { rules } }).retention.rules);
}

function digestOf(number: number): Digest {
  return `sha256:${String(number).padStart(64, "0")}` as Digest;
}

function tagOf(name: string, pushedDaysAgo = 0, pulledDaysAgo?: number): HostedTag {
  return {
    name: name as Tag,
    digest: digestOf(1),
    pushedAtMs: NOW - pushedDaysAgo * DAY,
    pulledAtMs: pulledDaysAgo === undefined ? null : NOW - pulledDaysAgo * DAY,
  };
}

/** Of each tag, in words. */
function decide(keep: Keep, tags: HostedTag[], immutable: (tag: string) => boolean = () => false): string[] {
  const rule = ruleOf(keep);
  const latest = new LatestSoFar(rule);
  for (const tag of tags) latest.add(tag);
  return tags.map((tag) => reasonText(tag, keeperOf(rule, latest.latest, tag, immutable(tag.name), NOW), NOW));
}

test("each way to keep a tag names what it keeps, and says so", () => {
  const tags = [tagOf("release-1", 90), tagOf("v2.1", 80, 50), tagOf("a", 70), tagOf("b", 2, 1), tagOf("c", 60, 0)];
  const kept = (keep: Keep): string[] =>
    decide(keep, tags).flatMap((reason, index) =>
      reason.startsWith("kept: ") ? [`${tags[index]?.name} ${reason}`] : [],
    );
  assert.deepEqual(kept({ tags: ["x", "release-*"] }), ["release-1 kept: it matches release-*"]);
  assert.deepEqual(kept({ semver: ">=2 <4" }), ["v2.1 kept: a version in >=2 <4"]);
  assert.deepEqual(kept({ latestPushed: 2 }), ["b kept: 1st of the 2 pushed last", "c kept: 2nd of the 2 pushed last"]);
  assert.deepEqual(kept({ latestPulled: 2 }), ["b kept: 2nd of the 2 pulled last", "c kept: 1st of the 2 pulled last"]);
  assert.deepEqual(kept({ pushedWithin: "60d" }), [
    "b kept: pushed 2 days ago, within 60d",
    "c kept: pushed 60 days ago, within 60d",
  ]);
  assert.deepEqual(kept({ pulledWithin: "36h" }), [
    "b kept: pulled 1 day ago, within 36h",
    "c kept: pulled just now, within 36h",
  ]);
  assert.deepEqual(
    decide({ tags: ["b"] }, tags, (tag) => tag === "a"),
    [
      "goes: no rule keeps it; pushed 90 days ago, never pulled",
      "goes: no rule keeps it; pushed 80 days ago, pulled 50 days ago",
      "kept: hosted.immutableTags names it",
      "kept: it matches b",
      "goes: no rule keeps it; pushed 60 days ago, pulled just now",
    ],
  );
});

test("of the latest ten thousand nothing that was never pulled is one, however few were", () => {
  const [never, once] = decide({ latestPulled: 10_000 }, [tagOf("never", 1), tagOf("once", 500, 400)]);
  assert.match(never ?? "", /^goes: /);
  assert.equal(once, "kept: 1st of the 10000 pulled last");
});

test("ordinals are English", () => {
  const tags = Array.from({ length: 112 }, (_, day) => tagOf(`t${day}`, day));
  const ranks = decide({ latestPushed: 112 }, tags).map((reason) => /^kept: (\S+) /.exec(reason)?.[1]);
  assert.deepEqual(
    [1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 101, 111, 112].map((rank) => ranks[rank - 1]),
    ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd", "101st", "111th", "112th"],
  );
});

test("versions are what docker's tags write as such; prereleases are in a range that names one", () => {
  const inRange = (semver: string, ...names: string[]): string[] =>
    names.filter((name) => decide({ semver }, [tagOf(name)])[0]?.startsWith("kept"));
  const names = [
    "1.9.9",
    "2",
    "v2",
    "2.0",
    "v2.0.0",
    "3.20",
    "4",
    "4.0.0",
    "latest",
    "release-2",
    "02.1",
    "v2.x",
    "2.1.0.1",
  ];
  assert.deepEqual(inRange(">=2 <4", ...names), ["2", "v2", "2.0", "v2.0.0", "3.20"]);
  assert.deepEqual(inRange("^1.4 || 3.x", "1.3", "1.4.2", "1.9", "2.0", "3", "3.7.1"), ["1.4.2", "1.9", "3", "3.7.1"]);
  const before = ["2.1.0-rc.1", "2.1-alpine", "3-beta", "2.1.0-01", "2.1.0"];
  assert.deepEqual(inRange(">=2", ...before), ["2.1.0"]);
  assert.deepEqual(inRange(">=2.0.0-0", ...before), ["2.1.0-rc.1", "2.1-alpine", "3-beta", "2.1.0"]);
  assert.deepEqual(inRange("1.2.0 - 2.1.0", "1.2.0-rc.1", "2.1.0"), ["2.1.0"]);
  assert.deepEqual(inRange(">=1", "1.2.0_build.5", "1.2.0_"), ["1.2.0_build.5"]);
});

test("of several rules about a repository the first one counts; a repository without one keeps all", () => {
  const rules = rulesOf([{ repositories: ["team/a*", "team/b"] }, { repositories: ["team/**"] }]);
  const names = ["team/app", "team/b", "team/app/sub", "other/app"].map(
    (name) => ruleFor(rules, name as RepositoryName)?.name,
  );
  const [first, second] = ["retention.rules[0] (team/a*, team/b)", "retention.rules[1] (team/**)"];
  assert.deepEqual(names, [first, first, second, undefined]);
});

test("a range that is none is a fault of the configuration, with a remedy", () => {
  const parse = (): unknown => rulesOf([{ repositories: ["**"], keep: { semver: "newest" } }]);
  assert.throws(parse, /semver.* is not a range of versions/);
});

// ---- beside a model ----

const IMAGES = 5;
const tagNames = fc.oneof(
  fc.constantFrom("latest", "v1.0.0", "1.2", "2.0.0-rc.1", "v3", "release-1", "release-2", "zz"),
  fc.stringMatching(/^[a-c]{1,3}$/),
  fc.tuple(fc.nat(IMAGES - 1), fc.constantFrom("", ".sig", ".att")).map(([n, suffix]) => companionName(n) + suffix),
);
const times = fc.integer({ min: 0, max: 12 }).map((days) => NOW - days * DAY);
const tagRows = fc.uniqueArray(
  fc.record({
    name: tagNames.map((name) => name as Tag),
    digest: fc.nat(IMAGES - 1).map(digestOf),
    pushedAtMs: times,
    pulledAtMs: fc.option(times),
  }),
  { selector: ({ name }) => name, maxLength: 40 },
);
const keeps: fc.Arbitrary<Keep> = fc.record(
  {
    tags: fc.subarray(["release-*", "latest", "a*", "*.att"]),
    semver: fc.constantFrom(">=1", "^1.0", ">=2.0.0-0"),
    latestPushed: fc.nat(6),
    latestPulled: fc.nat(6),
    pushedWithin: fc.constantFrom("0s", "3d", "6d"),
    pulledWithin: fc.constantFrom("0s", "3d", "6d"),
  },
  { requiredKeys: [] },
);

function companionName(image: number): string {
  return digestOf(image).replace(":", "-");
}

/** Names of what stays, from the words of the documentation, with all tags at hand. */
function modelKeeps(keep: Keep, tags: HostedTag[], immutable: ReadonlySet<string>): Set<string> {
  const days = (text = "0s"): number => Number.parseInt(text, 10) * DAY;
  const image = (name: string): string | undefined => /^sha256-(\d{64})/.exec(name)?.[1];
  const newest = (when: (tag: HostedTag) => number | null, most = 0): HostedTag[] =>
    tags
      .filter((tag) => image(tag.name) === undefined && when(tag) !== null)
      .sort((a, b) => Number(when(b)) - Number(when(a)) || (a.name < b.name ? 1 : -1))
      .slice(0, most);
  const globbed: Record<string, RegExp> = {
    "release-*": /^release-/,
    latest: /^latest$/,
    "a*": /^a/,
    "*.att": /\.att$/,
  };
  const versions: Record<string, string[]> = {
    ">=1": ["v1.0.0", "1.2", "v3"],
    "^1.0": ["v1.0.0", "1.2"],
    ">=2.0.0-0": ["2.0.0-rc.1", "v3"],
  };
  const lists = [
    tags.filter(({ name }) => immutable.has(name)),
    tags.filter(({ name }) => keep.tags?.some((glob) => globbed[glob]?.test(name))),
    tags.filter(({ name }) => keep.semver !== undefined && versions[keep.semver]?.includes(name)),
    newest((tag) => tag.pushedAtMs, keep.latestPushed),
    newest((tag) => tag.pulledAtMs, keep.latestPulled),
    tags.filter((tag) => days(keep.pushedWithin) > 0 && NOW - tag.pushedAtMs <= days(keep.pushedWithin)),
    tags.filter(
      (tag) =>
        days(keep.pulledWithin) > 0 && tag.pulledAtMs !== null && NOW - tag.pulledAtMs <= days(keep.pulledWithin),
    ),
  ];
  const kept = new Set<string>(lists.flat().map(({ name }) => name));
  // A companion of what has a tag that stays, until there are no more of them.
  for (let before = -1; before < kept.size;) {
    before = kept.size;
    for (const { name } of tags) {
      const own = image(name);
      const leads = (tag: HostedTag): boolean =>
        kept.has(tag.name) && image(tag.name) !== own && tag.digest === `sha256:${own}`;
      if (own !== undefined && tags.some(leads)) kept.add(name);
    }
  }
  return kept;
}

test("what streams through a database stays by exactly what the rules say, with all tags at hand", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-retention-"));
  await using db = await openSqlite(join(folder.path, "entrepot.db"));
  const tags = new TagCatalog(db, new Catalog(db));
  let id = 0;
  const streamed = async (keep: Keep, rows: HostedTag[], immutable: ReadonlySet<string>): Promise<Decision[]> => {
    const repository = { id: ++id, name: `team/app-${id}` as RepositoryName, tags: rows.length };
    await db.transaction("lazy", async (tx) => {
      await tx.run("INSERT INTO repositories (id, name, created_at) VALUES (:id, :name, 0)", {
        id,
        name: repository.name,
      });
      for (let image = 0; image < IMAGES; image++)
        await tx.run("INSERT INTO repository_content (repository_id, digest, linked_at) VALUES (:id, :digest, 0)", {
          id,
          digest: digestOf(image),
        });
      for (const row of rows)
        await tx.run(
          `INSERT INTO tags (repository_id, name, digest, updated_at, checked_at, pulled_at)
           VALUES (:id, :name, :digest, :pushedAtMs, 0, :pulledAtMs)`,
          { ...row, id },
        );
    });
    const walk = {
      tags,
      repository,
      rule: ruleOf(keep),
      isImmutable: (tag: Tag) => immutable.has(tag),
      nowMs: NOW,
      signal: new AbortController().signal,
    };
    return (await Array.fromAsync(decisions(walk))).flat();
  };
  const property = fc.asyncProperty(keeps, tagRows, fc.array(tagNames), async (keep, rows, names) => {
    const immutable = new Set<string>(names);
    const decided = await streamed(keep, rows, immutable);
    const kept = decided.filter(({ keeper }) => keeper).map(({ tag }) => tag.name);
    assert.deepEqual(kept.toSorted(), [...modelKeeps(keep, rows, immutable)].sort());
    assert.deepEqual(decided.map(({ tag }) => tag.name).sort(), rows.map(({ name }) => name).sort());
  });
  // Found by chance once: a companion that a rule keeps, on a way that leads back to its own image.
  const circle = [
    { name: companionName(1), digest: digestOf(2), pulledAtMs: null },
    { name: companionName(2), digest: digestOf(0), pulledAtMs: null },
    { name: `${companionName(2)}.sig`, digest: digestOf(1), pulledAtMs: NOW },
  ].map((row) => ({ ...row, name: row.name as Tag, pushedAtMs: NOW - 12 * DAY }));
  await fc.assert(property, { numRuns: 300, examples: [[{ pulledWithin: "3d" }, circle, []]] });
});

test("the latest of many are found in any order, and hold no more than asked for", () => {
  const rows = fc.uniqueArray(fc.record({ name: fc.stringMatching(/^[a-z]{1,3}$/), days: fc.nat(20) }), {
    selector: ({ name }) => name,
    maxLength: 200,
  });
  fc.assert(
    fc.property(rows, fc.integer({ min: 1, max: 30 }), (given, most) => {
      const tags = given.map(({ name, days }) => tagOf(name, days));
      const kept = decide({ latestPushed: most }, tags).flatMap((reason, index) => {
        const rank = /^kept: (\d+)/.exec(reason)?.[1];
        return rank === undefined ? [] : [{ rank: Number(rank), name: tags[index]?.name }];
      });
      const sorted = tags.toSorted((a, b) => b.pushedAtMs - a.pushedAtMs || (a.name < b.name ? 1 : -1)).slice(0, most);
      assert.deepEqual(
        kept.toSorted((a, b) => a.rank - b.rank),
        sorted.map(({ name }, index) => ({ rank: index + 1, name })),
      );
    }),
  );
});
