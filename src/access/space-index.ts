import type { Principal, Space } from "./principal.ts";
import { Starts } from "./starts.ts";

type Namespace = Extract<Space, { kind: "namespace" }>;

/** The list of all of them. */
const ALL = "all";

/**
 * Every namespace, in memory, and lists of those that are seen for the same reason: that they are public or protected, or somebody's. What
 * somebody sees are a few of these lists, so that nobody's page costs more for the namespaces of others.
 */
export class SpaceIndex {
  readonly #spaces = new Map<string, Namespace>();
  readonly #lists = new Map<string, Starts>();

  constructor(spaces: readonly Namespace[]) {
    const lists = new Map<string, string[]>();
    for (const space of spaces) {
      this.#spaces.set(space.name, space);
      for (const key of listsOf(space)) {
        const names = lists.get(key);
        if (names) names.push(space.name);
        else lists.set(key, [space.name]);
      }
    }
    for (const [key, names] of lists) this.#lists.set(key, new Starts(names));
  }

  get(name: string): Namespace | undefined {
    return this.#spaces.get(name);
  }

  set(space: Namespace): void {
    this.delete(space.name);
    this.#spaces.set(space.name, space);
    for (const key of listsOf(space)) {
      const list = this.#lists.get(key);
      if (list) list.add(space.name);
      else this.#lists.set(key, new Starts([space.name]));
    }
  }

  delete(name: string): void {
    const space = this.#spaces.get(name);
    if (!space) return;
    this.#spaces.delete(name);
    for (const key of listsOf(space)) {
      const list = this.#lists.get(key);
      list?.delete(name);
      if (list?.isEmpty) this.#lists.delete(key);
    }
  }

  /** The lists of what somebody sees; a namespace may be in several. */
  seenBy(principal: Principal): Starts[] {
    return keysOf(principal).flatMap((key) => this.#lists.get(key) ?? []);
  }

  /** Namespaces that are a team's, or are granted to it. */
  ofTeam(team: number): string[] {
    return this.#lists.get(`team ${team}`)?.after("", Infinity) ?? [];
  }

  /** Namespaces that are a user's own. */
  ofUser(user: number): string[] {
    return this.#lists.get(`user ${user}`)?.after("", Infinity) ?? [];
  }
}

/** Whether it may pull from every space, as far as its limits leave it that. */
export function seesAll(principal: Principal): boolean {
  if (principal.kind === "user") return principal.admin;
  if (principal.kind === "robot") return principal.team === undefined;
  return principal.kind !== "anonymous";
}

function listsOf({ visibility, owner, granted }: Namespace): Set<string> {
  const keys = new Set([ALL, ...[...granted.keys()].map((team) => `team ${team}`)]);
  if (visibility !== "private") keys.add(visibility);
  if (owner.kind === "team") keys.add(`team ${owner.team}`);
  if (owner.kind === "personal") keys.add(`user ${owner.user}`);
  return keys;
}

function keysOf(principal: Principal): string[] {
  if (seesAll(principal)) return [ALL];
  switch (principal.kind) {
    case "user":
      return [
        "public",
        "protected",
        `user ${principal.id}`,
        ...[...principal.teams.keys()].map((team) => `team ${team}`),
      ];
    case "robot":
      return ["public", "protected", ...(principal.team === undefined ? [] : [`team ${principal.team}`])];
    default:
      return ["public"];
  }
}
