/**
 * Who may do what: pure decisions, default deny. What no line names is not allowed.
 *
 * | who                          | namespace of a team | personal | global | upstream |
 * |------------------------------|---------------------|----------|--------|----------|
 * | administrator, operator      | all                 | all      | all    | pull, delete |
 * | owner (of the team, its own) | all                 | all      | –      | pull where the team is granted it |
 * | contributor                  | pull, create, push  | –        | –      | likewise |
 * | viewer                       | pull                | –        | –      | likewise |
 *
 * Beside that everybody pulls what is public, and whoever has logged in what is protected. A team that a namespace or an upstream is granted to
 * has the granted role there at most. Names of the htpasswd file have their one role on every namespace, and pull from every upstream.
 * What copies between registries have brought into the cache (`oci/hidden-place.ts`) is for administrators alone.
 * A robot, or a token, has of all this what its limits leave. `delete` of an upstream's content means to take it out of the cache.
 */
import { isHidden } from "../oci/hidden-place.ts";
import type { RepositoryName } from "../oci/reference.ts";
import { globMatcher } from "./globs.ts";
import type { Caller, Limit, Principal, Role, Space, Verb } from "./principal.ts";

const NOTHING: ReadonlySet<Verb> = new Set();
const PULL: ReadonlySet<Verb> = new Set(["pull"]);
const ALL: ReadonlySet<Verb> = new Set(["pull", "create", "push", "delete"]);
const OF_CACHE: ReadonlySet<Verb> = new Set(["pull", "delete"]);
const OF_ROLE: Readonly<Record<Role, ReadonlySet<Verb>>> = {
  viewer: PULL,
  contributor: new Set(["pull", "create", "push"]),
  owner: ALL,
};
const RANK: Readonly<Record<Role, number>> = { viewer: 0, contributor: 1, owner: 2 };

/** What a caller may do to a repository of a space. */
export function rightsOf(caller: Caller, space: Space, repository: RepositoryName): ReadonlySet<Verb> {
  const rights = rightsOn(caller.principal, space, repository);
  if (!caller.granted || rights.size === 0) return rights;
  return intersection(rights, caller.granted.get(repository) ?? NOTHING);
}

/** Whether a caller may do that to a repository of a space: as {@link rightsOf}, and makes no set, since every pull asks. */
export function may({ principal, granted }: Caller, space: Space, repository: RepositoryName, verb: Verb): boolean {
  if (!unlimited(principal, space).has(verb)) return false;
  if (granted && granted.get(repository)?.has(verb) !== true) return false;
  const limits = "limits" in principal ? principal.limits : undefined;
  return limits === undefined || leftBy(limits, repository).has(verb);
}

/** What somebody may do to a repository of a space, whatever token brought it. */
export function rightsOn(principal: Principal, space: Space, repository: RepositoryName): ReadonlySet<Verb> {
  const rights = unlimited(principal, space);
  const limits = "limits" in principal ? principal.limits : undefined;
  return limits && rights.size > 0 ? intersection(rights, leftBy(limits, repository)) : rights;
}

/** Whether anything in a space may be pulled: the repositories that are not, by a token's limits, are left out one by one. */
export function maySee(principal: Principal, space: Space): boolean {
  return unlimited(principal, space).has("pull");
}

/** Whether it may look after the registry as a whole. */
export function isAdmin(principal: Principal): boolean {
  if (principal.kind === "everybody" || principal.kind === "operator") return true;
  if (principal.kind === "file") return principal.role === "admin";
  return principal.kind === "user" && principal.admin && principal.limits === undefined;
}

/** Whether it is a person or program that has said who it is. */
export function isLoggedIn(principal: Principal): boolean {
  return principal.kind !== "anonymous";
}

/** Whether it may look after a team: its people, namespaces and robots. */
export function ownsTeam(principal: Principal, team: number): boolean {
  if (isAdmin(principal)) return true;
  return principal.kind === "user" && principal.limits === undefined && principal.teams.get(team) === "owner";
}

/** Whether it may change who sees a namespace, and delete it. */
export function ownsNamespace(principal: Principal, { owner }: Extract<Space, { kind: "namespace" }>): boolean {
  if (isAdmin(principal)) return true;
  if (principal.kind !== "user" || principal.limits !== undefined) return false;
  if (owner.kind === "team") return principal.teams.get(owner.team) === "owner";
  return owner.kind === "personal" && owner.user === principal.id;
}

function unlimited(principal: Principal, space: Space): ReadonlySet<Verb> {
  if (space.kind === "upstream" && isHidden(space.name) && !isAdmin(principal)) return NOTHING;
  const all = space.kind === "namespace" ? ALL : OF_CACHE;
  switch (principal.kind) {
    case "everybody":
    case "operator":
      return all;
    case "file": {
      if (principal.role === "admin") return all;
      return space.kind === "namespace" ? OF_ROLE[principal.role] : PULL;
    }
    case "user":
      return principal.admin ? all : ofMember(principal.teams, principal.id, space);
    case "robot":
      if (principal.team === undefined) return all;
      // Of its team it is an owner: its limits say what is left of that.
      return ofMember(new Map([[principal.team, "owner"]]), undefined, space);
    case "anonymous":
  }
  return space.visibility === "public" ? PULL : NOTHING;
}

function ofMember(teams: ReadonlyMap<number, Role>, user: number | undefined, space: Space): ReadonlySet<Verb> {
  if (space.kind === "namespace") {
    const { owner } = space;
    if (owner.kind === "personal" && owner.user === user) return ALL;
    const own = owner.kind === "team" ? teams.get(owner.team) : undefined;
    const role = highest([own, ...grantedRoles(teams, space.granted)]);
    if (role !== undefined) return OF_ROLE[role];
  } else if (grantedRoles(teams, space.granted).length > 0) return PULL;
  return space.visibility === "private" ? NOTHING : PULL;
}

/** The lower one of a member's role and what its team is granted. */
function grantedRoles(teams: ReadonlyMap<number, Role>, granted: ReadonlyMap<number, Role>): Role[] {
  if (granted.size === 0) return [];
  return [...teams].flatMap(([team, role]) => {
    const most = granted.get(team);
    return most === undefined ? [] : [RANK[most] < RANK[role] ? most : role];
  });
}

function highest(roles: readonly (Role | undefined)[]): Role | undefined {
  return roles.reduce((best, role) => {
    if (role === undefined) return best;
    return best === undefined || RANK[role] > RANK[best] ? role : best;
  }, undefined);
}

/** Globs are compiled once for the limits of a principal, not for every request. */
const compiled = new WeakMap<Limit, readonly ((repository: string) => boolean)[]>();

function leftBy(limits: readonly Limit[], repository: RepositoryName): ReadonlySet<Verb> {
  const left = new Set<Verb>();
  for (const limit of limits) {
    let matchers = compiled.get(limit);
    if (!matchers) compiled.set(limit, (matchers = limit.repositories.map(globMatcher)));
    if (matchers.some((matches) => matches(repository))) for (const verb of limit.verbs) left.add(verb);
  }
  // Whoever may move a tag may make one.
  if (left.has("push")) left.add("create");
  return left;
}

function intersection(a: ReadonlySet<Verb>, b: ReadonlySet<Verb>): ReadonlySet<Verb> {
  return new Set([...a].filter((verb) => b.has(verb)));
}
