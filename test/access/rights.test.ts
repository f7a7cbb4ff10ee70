import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import {
  ANONYMOUS,
  EVERYBODY,
  OPERATOR,
  ROLES,
  VERBS,
  VISIBILITIES,
  type Limit,
  type Principal,
  type Role,
  type Space,
  type SpaceOwner,
  type Verb,
  type Visibility,
} from "../../src/access/principal.ts";
import { may, isAdmin, maySee, ownsNamespace, ownsTeam, rightsOf, rightsOn } from "../../src/access/rights.ts";
import type { RepositoryName } from "../../src/oci/reference.ts";
import "../kit/seed.ts";

const TEAM = 1;
const OTHER = 2;
const APP = "team/app" as RepositoryName;

type User = Extract<Principal, { kind: "user" }>;
type Namespace = Extract<Space, { kind: "namespace" }>;

function user(id: number, teams: [number, Role][] = [], more: Partial<User> = {}): User {
  return { kind: "user", id, name: `user-${id}`, admin: false, teams: new Map(teams), limits: undefined, ...more };
}

function robot(team: number | undefined, limits: Limit[] = ALL_OF_IT): Principal {
  return { kind: "robot", id: 1, name: "ci", team, limits };
}

const ALL_OF_IT: Limit[] = [{ repositories: ["**"], verbs: [...VERBS] }];
const OWNERS: Record<"team" | "personal" | "global", SpaceOwner> = {
  team: { kind: "team", team: TEAM },
  personal: { kind: "personal", user: 7 },
  global: { kind: "global" },
};

function namespace(owner: SpaceOwner, visibility: Visibility, granted: [number, Role][] = []): Namespace {
  return { kind: "namespace", name: "team", visibility, owner, granted: new Map(granted) };
}

function upstream(visibility: Visibility, granted: [number, Role][] = []): Space {
  return { kind: "upstream", name: "docker.io", visibility, granted: new Map(granted) };
}

const WHO = {
  anonymous: ANONYMOUS.principal,
  outsider: user(9),
  "viewer of another team": user(3, [[OTHER, "viewer"]]),
  "contributor of another team": user(4, [[OTHER, "contributor"]]),
  "owner of another team": user(5, [[OTHER, "owner"]]),
  viewer: user(10, [[TEAM, "viewer"]]),
  contributor: user(11, [[TEAM, "contributor"]]),
  owner: user(12, [[TEAM, "owner"]]),
  "user of the namespace": user(7),
  administrator: user(1, [], { admin: true }),
  "viewer of a file": { kind: "file", name: "f", role: "viewer" },
  "contributor of a file": { kind: "file", name: "f", role: "contributor" },
  "owner of a file": { kind: "file", name: "f", role: "owner" },
  "admin of a file": { kind: "file", name: "f", role: "admin" },
  "robot of the team": robot(TEAM),
  "robot of another team": robot(OTHER),
  "robot of no team": robot(undefined),
  operator: OPERATOR.principal,
  everybody: EVERYBODY.principal,
} as const satisfies Record<string, Principal>;

/** Letters of the verbs: pull, create, push, delete. In the order private, protected, public. */
type Row = readonly [string, string, string];

function told(verbs: ReadonlySet<Verb>): string {
  return VERBS.filter((verb) => verbs.has(verb))
    .map((verb) => ({ pull: "r", create: "c", push: "w", delete: "d" })[verb])
    .join("");
}

function checkTable(table: Record<keyof typeof WHO, Row>, space: (visibility: Visibility) => Space): void {
  for (const [who, row] of Object.entries(table) as [keyof typeof WHO, Row][]) {
    const got = VISIBILITIES.map((visibility) => told(rightsOn(WHO[who], space(visibility), APP)));
    assert.deepEqual(got, row, who);
  }
}

const EVERYTHING: Row = ["rcwd", "rcwd", "rcwd"];
const WRITES: Row = ["rcw", "rcw", "rcw"];
const READS: Row = ["r", "r", "r"];
const LOGGED_IN: Row = ["", "r", "r"];
const NOBODY: Row = ["", "", "r"];
const CACHE: Row = ["rd", "rd", "rd"];

test("in a team's namespace members have their role, others what its visibility leaves", () => {
  checkTable(
    {
      anonymous: NOBODY,
      outsider: LOGGED_IN,
      "viewer of another team": LOGGED_IN,
      "contributor of another team": LOGGED_IN,
      "owner of another team": LOGGED_IN,
      viewer: READS,
      contributor: WRITES,
      owner: EVERYTHING,
      "user of the namespace": LOGGED_IN,
      administrator: EVERYTHING,
      "viewer of a file": READS,
      "contributor of a file": WRITES,
      "owner of a file": EVERYTHING,
      "admin of a file": EVERYTHING,
      "robot of the team": EVERYTHING,
      "robot of another team": LOGGED_IN,
      "robot of no team": EVERYTHING,
      operator: EVERYTHING,
      everybody: EVERYTHING,
    },
    (visibility) => namespace(OWNERS.team, visibility),
  );
});

test("in a personal namespace its user may do everything, and no team anything", () => {
  checkTable(
    {
      anonymous: NOBODY,
      outsider: LOGGED_IN,
      "viewer of another team": LOGGED_IN,
      "contributor of another team": LOGGED_IN,
      "owner of another team": LOGGED_IN,
      viewer: LOGGED_IN,
      contributor: LOGGED_IN,
      owner: LOGGED_IN,
      "user of the namespace": EVERYTHING,
      administrator: EVERYTHING,
      "viewer of a file": READS,
      "contributor of a file": WRITES,
      "owner of a file": EVERYTHING,
      "admin of a file": EVERYTHING,
      "robot of the team": LOGGED_IN,
      "robot of another team": LOGGED_IN,
      "robot of no team": EVERYTHING,
      operator: EVERYTHING,
      everybody: EVERYTHING,
    },
    (visibility) => namespace(OWNERS.personal, visibility),
  );
});

test("in a global namespace only administrators write", () => {
  checkTable(
    {
      anonymous: NOBODY,
      outsider: LOGGED_IN,
      "viewer of another team": LOGGED_IN,
      "contributor of another team": LOGGED_IN,
      "owner of another team": LOGGED_IN,
      viewer: LOGGED_IN,
      contributor: LOGGED_IN,
      owner: LOGGED_IN,
      "user of the namespace": LOGGED_IN,
      administrator: EVERYTHING,
      "viewer of a file": READS,
      "contributor of a file": WRITES,
      "owner of a file": EVERYTHING,
      "admin of a file": EVERYTHING,
      "robot of the team": LOGGED_IN,
      "robot of another team": LOGGED_IN,
      "robot of no team": EVERYTHING,
      operator: EVERYTHING,
      everybody: EVERYTHING,
    },
    (visibility) => namespace(OWNERS.global, visibility),
  );
});

test("of an upstream nobody pushes, and administrators take content out of the cache", () => {
  checkTable(
    {
      anonymous: NOBODY,
      outsider: LOGGED_IN,
      "viewer of another team": LOGGED_IN,
      "contributor of another team": LOGGED_IN,
      "owner of another team": LOGGED_IN,
      viewer: READS,
      contributor: READS,
      owner: READS,
      "user of the namespace": LOGGED_IN,
      administrator: CACHE,
      "viewer of a file": READS,
      "contributor of a file": READS,
      "owner of a file": READS,
      "admin of a file": CACHE,
      "robot of the team": READS,
      "robot of another team": LOGGED_IN,
      "robot of no team": CACHE,
      operator: CACHE,
      everybody: CACHE,
    },
    (visibility) => upstream(visibility, [[TEAM, "owner"]]),
  );
});

test("a team that a namespace is granted to has there the lower one of its members' roles and the grant", () => {
  const byGrant: Record<Role, Record<Role, string>> = {
    viewer: { viewer: "r", contributor: "r", owner: "r" },
    contributor: { viewer: "r", contributor: "rcw", owner: "rcw" },
    owner: { viewer: "r", contributor: "rcw", owner: "rcwd" },
  };
  for (const owner of Object.values(OWNERS)) {
    for (const most of ROLES) {
      const space = namespace(owner, "private", [[OTHER, most]]);
      for (const role of ROLES) {
        const got = told(rightsOn(user(20, [[OTHER, role]]), space, APP));
        assert.equal(got, byGrant[most][role], `${owner.kind}: ${role}, granted ${most}`);
      }
      assert.equal(told(rightsOn(user(21, [[3, "owner"]]), space, APP)), "", "a third team has nothing of it");
    }
  }
});

test("whoever is in several teams has the highest of its roles", () => {
  const space = namespace(OWNERS.team, "private", [[OTHER, "contributor"]]);
  const both = (own: Role, other: Role): string =>
    told(rightsOn(user(20, [[TEAM, own], [OTHER, other]]), space, APP)); // prettier-ignore
  assert.equal(both("viewer", "owner"), "rcw");
  assert.equal(both("viewer", "viewer"), "r");
  assert.equal(both("owner", "viewer"), "rcwd");
});

test("a robot or a token has what its limits leave of it, each for its repositories", () => {
  const space = namespace(OWNERS.team, "private");
  const limits: Limit[] = [
    { repositories: ["team/app", "team/lib-*"], verbs: ["pull", "create"] },
    { repositories: ["team/lib-*"], verbs: ["push"] },
    { repositories: ["other/**"], verbs: ["delete"] },
  ];
  const byRepository = { "team/app": "rc", "team/lib-a": "rcw", "team/else": "", "team/app/sub": "" };
  for (const principal of [robot(TEAM, limits), user(12, [[TEAM, "owner"]], { limits })]) {
    for (const [repository, expected] of Object.entries(byRepository))
      assert.equal(told(rightsOn(principal, space, repository as RepositoryName)), expected, repository);
  }
  const viewer = user(10, [[TEAM, "viewer"]], { limits });
  assert.equal(told(rightsOn(viewer, space, "team/lib-a" as RepositoryName)), "r", "never more than its user");
  const elsewhere = namespace(OWNERS.team, "public");
  assert.equal(told(rightsOn(viewer, elsewhere, "team/else" as RepositoryName)), "", "nor what is public");
});

test("to push includes to create, and to create does not include to push", () => {
  const only = (verb: Verb): string =>
    told(rightsOn(robot(TEAM, [{ repositories: ["**"], verbs: [verb] }]), namespace(OWNERS.team, "private"), APP));
  assert.deepEqual(VERBS.map(only), ["r", "c", "cw", "d"]);
});

test("a token of the token service is for the repositories that it names, and no others", () => {
  const space = namespace(OWNERS.team, "public");
  const granted = new Map([[APP, new Set<Verb>(["pull", "push"])]]);
  const caller = { principal: WHO.contributor, granted };
  assert.equal(told(rightsOf(caller, space, APP)), "rw");
  assert.equal(told(rightsOf(caller, space, "team/else" as RepositoryName)), "", "not even what is public");
  assert.equal(told(rightsOf({ principal: WHO.viewer, granted }, space, APP)), "r", "rights are looked up anew");
  assert.equal(told(rightsOf({ principal: WHO.viewer, granted: undefined }, space, APP)), "r");
});

test("whoever came with a personal token administrates nothing", () => {
  const team = namespace(OWNERS.team, "private");
  const personal = namespace(OWNERS.personal, "private");
  const [admin, owner, own] = [WHO.administrator, WHO.owner, WHO["user of the namespace"]];
  assert.ok(isAdmin(admin) && ownsTeam(admin, TEAM) && ownsNamespace(admin, team) && ownsNamespace(admin, personal));
  assert.ok(!isAdmin(owner) && ownsTeam(owner, TEAM) && ownsNamespace(owner, team) && !ownsNamespace(owner, personal));
  assert.ok(!ownsTeam(own, TEAM) && !ownsNamespace(own, team) && ownsNamespace(own, personal));
  for (const each of [admin, owner, own]) {
    const limited = { ...each, limits: ALL_OF_IT };
    assert.ok(!isAdmin(limited) && !ownsTeam(limited, TEAM));
    assert.ok(!ownsNamespace(limited, team) && !ownsNamespace(limited, personal));
  }
});

test("administrators are users made so, admins of a file, the operator, and everybody where access is open", () => {
  const admins = Object.entries(WHO).filter(([, principal]) => isAdmin(principal));
  assert.deepEqual(
    admins.map(([who]) => who),
    ["administrator", "admin of a file", "operator", "everybody"],
  );
  for (const who of ["viewer", "contributor", "robot of the team", "owner of a file", "owner of another team"] as const)
    assert.ok(!ownsTeam(WHO[who], TEAM) && !ownsNamespace(WHO[who], namespace(OWNERS.team, "public")), who);
});

// ---- properties ----

const team = fc.integer({ min: 1, max: 3 });
const role = fc.constantFrom(...ROLES);
const verbs = fc.subarray([...VERBS], { minLength: 1 });
const repository = fc.constantFrom("team/app", "team/app/sub", "team/lib", "docker.io/library/alpine");
const teams = fc.array(fc.tuple(team, role), { maxLength: 3 }).map((pairs) => new Map(pairs));
const limits = fc.array(
  fc.record({
    repositories: fc.array(fc.constantFrom("**", "team/*", "team/app", "docker.io/**", "*/lib"), { minLength: 1 }),
    verbs,
  }),
  { minLength: 1, maxLength: 3 },
);
const person = fc.record({ admin: fc.boolean(), id: fc.integer({ min: 1, max: 4 }), teams });
const space: fc.Arbitrary<Space> = fc.oneof(
  fc.record({
    kind: fc.constant("namespace" as const),
    name: fc.constant("team"),
    visibility: fc.constantFrom(...VISIBILITIES),
    owner: fc.oneof<fc.Arbitrary<SpaceOwner>[]>(
      fc.constant({ kind: "global" }),
      team.map((id) => ({ kind: "team" as const, team: id })),
      team.map((id) => ({ kind: "personal" as const, user: id })),
    ),
    granted: teams,
  }),
  fc.record({
    kind: fc.constant("upstream" as const),
    name: fc.constant("docker.io"),
    visibility: fc.constantFrom(...VISIBILITIES),
    granted: teams,
  }),
);

test("limits and tokens only ever take away", () => {
  fc.assert(
    fc.property(person, limits, verbs, space, repository, (who, left, granted, where, name) => {
      const [all, named] = [user(who.id, [], who), name as RepositoryName];
      const rights = rightsOn(all, where, named);
      const limited = { ...all, limits: left };
      assert.ok(rightsOn(limited, where, named).isSubsetOf(rights));
      const caller = { principal: limited, granted: new Map([[named, new Set(granted)]]) };
      assert.ok(rightsOf(caller, where, named).isSubsetOf(rightsOn(limited, where, named)));
      assert.ok(rightsOf(caller, where, named).isSubsetOf(new Set(granted)));
      for (const verb of VERBS) assert.equal(may(caller, where, named, verb), rightsOf(caller, where, named).has(verb));
      assert.ok(maySee(limited, where) || rightsOn(limited, where, named).size === 0);
    }),
  );
});

test("who has no role anywhere only pulls, and only what is not private", () => {
  fc.assert(
    fc.property(space, repository, (where, name) => {
      const stranger = user(99);
      const expected = where.visibility === "private" ? "" : "r";
      assert.equal(told(rightsOn(stranger, where, name as RepositoryName)), expected);
      const anonymous = where.visibility === "public" ? "r" : "";
      assert.equal(told(rightsOn(ANONYMOUS.principal, where, name as RepositoryName)), anonymous);
    }),
  );
});

test("a higher role, or one more grant, never means less", () => {
  fc.assert(
    fc.property(person, team, role, space, (who, id, more, where) => {
      const before = rightsOn(user(who.id, [], who), where, APP);
      const rank = (each: Role): number => ROLES.indexOf(each);
      const now = who.teams.get(id);
      const raised = new Map(who.teams).set(id, now !== undefined && rank(now) > rank(more) ? now : more);
      assert.ok(before.isSubsetOf(rightsOn(user(who.id, [], { ...who, teams: raised }), where, APP)));
    }),
  );
});
