import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import type { Caller, Limit, Principal, Role, Verb } from "../../src/access/principal.ts";
import { rightsOf } from "../../src/access/rights.ts";
import { sightOf } from "../../src/access/sight.ts";
import type { RepositoryName } from "../../src/oci/reference.ts";
import { visibleRepositories, type Sight } from "../../src/store/visible.ts";
import { makeWorld, type World } from "../access/world.ts";

const UPSTREAMS = {
  "docker.io": { url: "http://127.0.0.1:1" },
  "ghcr.io": { url: "http://127.0.0.1:1", visibility: "private" },
  "quay.io": { url: "http://127.0.0.1:1", visibility: "protected" },
};
/** Neighbours in every way: `-` and `.` stand before `/`, `0` and letters after it. */
const NAMESPACES = ["a", "a-b", "a.b", "a0", "aa", "b", "b-c", "base", "d"];
const TEAMS = [1, 2, 3];
const USER = 1;

interface Repository {
  name: RepositoryName;
  upstream: string | undefined;
}

const rest = fc.constantFrom("", "/x", "/y", "/x/y", "/a-b");
const hosted = fc.tuple(fc.constantFrom(...NAMESPACES, "none"), rest).map(([first, end]): Repository => {
  return { name: `${first}${end}` as RepositoryName, upstream: undefined };
});
const cached = fc
  .tuple(fc.constantFrom("docker.io", "ghcr.io", "quay.io", "gone.io"), fc.constantFrom("/library/a", "/a/x", "/z"))
  .map(([upstream, end]): Repository => ({ name: `${upstream}${end}` as RepositoryName, upstream }));
const repositories = fc.uniqueArray(fc.oneof({ weight: 3, arbitrary: hosted }, cached), {
  selector: ({ name }) => name,
  maxLength: 40,
});

const role = fc.constantFrom<Role>("viewer", "contributor", "owner");
const namespaces = fc.uniqueArray(
  fc.record({
    name: fc.constantFrom(...NAMESPACES),
    visibility: fc.constantFrom("private", "private", "protected", "public"),
    owner: fc.constantFrom({ team: null, user: null }, ...TEAMS.map((team) => ({ team, user: null })), {
      team: null,
      user: USER,
    }),
    granted: fc.dictionary(fc.constantFrom(...TEAMS.map(String)), role),
  }),
  { selector: ({ name }) => name },
);

const glob = fc.constantFrom(
  "**",
  "*",
  "a",
  "a/*",
  "a/**",
  "a*/**",
  "*/x",
  "docker.io/**",
  "b-c/x",
  "ghcr.io/*/x",
  "nothing/**",
);
const limits = fc.array(
  fc.record({
    repositories: fc.array(glob, { minLength: 1, maxLength: 3 }),
    verbs: fc.constantFrom<Verb[]>(["pull"], ["pull", "push"], ["push"]),
  }),
  { minLength: 1, maxLength: 3 },
) satisfies fc.Arbitrary<Limit[]>;
const teams = fc
  .uniqueArray(fc.tuple(fc.constantFrom(...TEAMS), role), { selector: ([id]) => id })
  .map((all) => new Map(all));
const principal = fc.oneof(
  fc.constantFrom<Principal>({ kind: "anonymous" }, { kind: "everybody" }, { kind: "operator" }),
  role.map((one): Principal => ({ kind: "file", name: "file", role: one })),
  {
    weight: 5,
    arbitrary: fc
      .record({
        admin: fc.constantFrom(true, false, false, false),
        teams,
        limits: fc.option(limits, { nil: undefined }),
      })
      .map((given): Principal => ({ kind: "user", id: USER, name: "user", ...given })),
  },
  fc
    .record({ team: fc.constantFrom(undefined, ...TEAMS), limits })
    .map((given): Principal => ({ kind: "robot", id: 1, name: "robot", ...given })),
);
const granted = fc.option(
  fc
    .array(fc.oneof(hosted, cached), { maxLength: 5 })
    .map((all) => new Map(all.map(({ name }, at) => [name, new Set<Verb>(at % 4 === 3 ? ["push"] : ["pull"])]))),
  { nil: undefined, freq: 3 },
);
const caller: fc.Arbitrary<Caller> = fc.record({ principal, granted });

async function fill(
  { db }: World,
  stored: readonly Repository[],
  spaces: readonly {
    name: string;
    visibility: string;
    owner: { team: number | null; user: number | null };
    granted: Record<string, Role>;
  }[],
  upstreamTeams: readonly number[],
): Promise<void> {
  await db.transaction("lazy", async (tx) => {
    for (const table of ["repository_content", "repositories", "grants", "namespaces", "teams", "users"])
      await tx.run(`DELETE FROM ${table}`);
    await tx.run("INSERT INTO users (id, name, created_at) VALUES (:id, 'user', 0)", { id: USER });
    for (const id of TEAMS) await tx.run("INSERT INTO teams (id, name, created_at) VALUES (:id, :id, 0)", { id });
    for (const [id, { name, upstream }] of stored.entries()) {
      await tx.run("INSERT INTO repositories (id, name, upstream, created_at) VALUES (:id, :name, :upstream, 0)", {
        id,
        name,
        upstream: upstream ?? null,
      });
      // Every sixth holds nothing any more.
      if (id % 6 === 5) continue;
      await tx.run("INSERT INTO repository_content (repository_id, digest, linked_at) VALUES (:id, 'x', 0)", { id });
    }
    for (const { name, visibility, owner, granted: roles } of spaces) {
      await tx.run(
        "INSERT INTO namespaces (name, visibility, team_id, user_id, created_at) VALUES (:name, :visibility, :team, :user, 0)",
        { name, visibility, ...owner },
      );
      for (const [team, most] of Object.entries(roles)) await grant("namespace", name, Number(team), most);
    }
    for (const team of upstreamTeams) await grant("upstream", "ghcr.io", team, "viewer");
    async function grant(kind: string, name: string, team: number, most: Role): Promise<void> {
      await tx.run(
        "INSERT INTO grants (kind, name, team_id, role, granted_at) VALUES (:kind, :name, :team, :most, 0)",
        { kind, name, team, most },
      );
    }
  });
}

async function pages(world: World, sight: Sight, limit: number): Promise<string[]> {
  const found: string[] = [];
  for (let last = ""; ;) {
    const { items, more } = await visibleRepositories(world.db, last, limit, sight);
    assert.ok(items.length === limit || !more, "only the last page is shorter");
    found.push(...items);
    if (!more) return found;
    last = items.at(-1) ?? assert.fail("a page without an end");
  }
}

test("the pages of whoever asks are those of all that hold anything and that it may pull, in order of their names", async () => {
  await using world = await makeWorld(UPSTREAMS);
  await fc.assert(
    fc.asyncProperty(
      repositories,
      namespaces,
      fc.subarray(TEAMS),
      fc.array(caller, { minLength: 1, maxLength: 8 }),
      fc.integer({ min: 1, max: 7 }),
      async (stored, given, upstreamTeams, callers, limit) => {
        await fill(world, stored, given, upstreamTeams);
        const spaces = await world.reopened();
        for (const one of callers) {
          const expected = stored
            .filter(
              ({ name, upstream }, id) => id % 6 !== 5 && rightsOf(one, spaces.of(name, upstream), name).has("pull"),
            )
            .map(({ name }) => name)
            .sort();
          assert.deepEqual(await pages(world, sightOf(one, spaces), limit), expected);
          const last = stored[0]?.name ?? "a";
          const { items } = await visibleRepositories(world.db, last, 100, sightOf(one, spaces));
          assert.deepEqual(
            items,
            expected.filter((name) => name > last),
          );
        }
      },
    ),
    { numRuns: 60, interruptAfterTimeLimit: 20_000 },
  );
});

test("what somebody does not see is not read", async () => {
  await using world = await makeWorld();
  const names = Array.from({ length: 3000 }, (_, i) => `hidden-${String(i).padStart(4, "0")}/app`);
  const own = ["hidden-1000x", "hidden-2000x"];
  await world.db.transaction("lazy", async (tx) => {
    await tx.run("INSERT INTO teams (id, name, created_at) VALUES (1, 'team', 0)");
    for (const name of own)
      await tx.run("INSERT INTO namespaces (name, team_id, created_at) VALUES (:name, 1, 0)", { name });
    for (const [id, name] of [...names, ...own.map((one) => `${one}/app`)].entries()) {
      await tx.run("INSERT INTO repositories (id, name, created_at) VALUES (:id, :name, 0)", { id, name });
      await tx.run("INSERT INTO repository_content (repository_id, digest, linked_at) VALUES (:id, 'x', 0)", { id });
    }
  });
  let read = 0;
  const counting: typeof world.db.all = async (sql, params) => {
    const rows = await world.db.all(sql, params);
    read += rows.length;
    return rows as never;
  };
  const member: Principal = {
    kind: "user",
    id: 1,
    name: "m",
    admin: false,
    teams: new Map([[1, "viewer"]]),
    limits: undefined,
  };
  const sight = sightOf({ principal: member, granted: undefined }, await world.reopened());
  const { items, more } = await visibleRepositories(
    { get: world.db.get.bind(world.db), all: counting },
    "",
    100,
    sight,
  );
  assert.deepEqual({ items, more }, { items: own.map((one) => `${one}/app`), more: false });
  assert.ok(read < 100, `${read} rows were read`);
});
