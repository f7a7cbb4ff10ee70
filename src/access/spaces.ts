/**
 * Hosted namespaces and upstreams as what is governed: whose they are, who sees them, and what teams were granted.
 *
 * All of it is in memory, so that a request is decided at once; the database has it, too, and comes first: a change is one durable
 * transaction with its event, after which its row is read again. A namespace without a row, as the configuration may name one, is global and
 * private. The visibility of upstreams is in the configuration.
 */
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Config } from "../config/schema.ts";
import type { Database, Reader, Writer } from "../db/database.ts";
import type { Requester, SystemActor } from "../events/event.ts";
import type { Accounts } from "./accounts.ts";
import { isHidden } from "../oci/hidden-place.ts";
import { namespaceOf, type RepositoryName } from "../oci/reference.ts";
import { NamespaceTaken, refuseRival, type Claims } from "../store/hosted-catalog.ts";
import type { Principal, Role, Space, SpaceOwner, Visibility } from "./principal.ts";
import { conflict, missing } from "./refusals.ts";
import { maySee } from "./rights.ts";
import { SpaceIndex } from "./space-index.ts";
import {
  columnsOf,
  NOBODY,
  ownerText,
  spaceOf,
  withoutRow,
  type NamespaceRow,
  type NamespaceSpace,
} from "./space-rows.ts";
import { anyOf, Starts, type Ahead } from "./starts.ts";

export type UpstreamSpace = Extract<Space, { kind: "upstream" }>;

/** What is in the database of a namespace beside its rights. */
export interface NamespaceFacts {
  description: string;
  createdAtMs: Milliseconds;
  /** The name of the team or user that it belongs to; undefined: it is global. */
  owner: string | undefined;
}

export interface NamespaceChange {
  visibility?: Visibility | undefined;
  description?: string | undefined;
  owner?: SpaceOwner | undefined;
}

/** What teams are granted roles in. */
export interface Granting {
  kind: "namespace" | "upstream";
  name: string;
}

export interface Grant {
  team: string;
  /** At most: a member with a lower role in the team has that one here, too. */
  role: Role;
  grantedAtMs: Milliseconds;
}

export interface SpacesDeps {
  db: Database;
  clock: Clock;
  accounts: Pick<Accounts, "change" | "changed" | "record">;
  /** Read whenever it is needed: it can be reloaded. */
  upstreams: () => Config["upstreams"];
  /** Those that the configuration names. */
  namespaces: readonly string[];
}

type By = Requester | SystemActor;

interface GrantRow {
  kind: Granting["kind"];
  name: string;
  team_id: number;
  role: Role;
}

const NAMESPACES = "SELECT name, visibility, team_id, user_id FROM namespaces";
const GRANTS = "SELECT kind, name, team_id, role FROM grants";
const FACTS = `
  SELECT n.name, n.description, n.created_at AS "createdAtMs", COALESCE(t.name, u.name) AS owner
  FROM json_each(:names) w JOIN namespaces n ON n.name = w.value
  LEFT JOIN teams t ON t.id = n.team_id LEFT JOIN users u ON u.id = n.user_id`;
const LIST_GRANTS = `
  SELECT t.name AS team, g.role, g.granted_at AS "grantedAtMs" FROM grants g JOIN teams t ON t.id = g.team_id
  WHERE g.kind = :kind AND g.name = :name AND t.name > :after ORDER BY t.name LIMIT :limit`;

export class Spaces {
  readonly #deps: SpacesDeps;
  readonly #configured: ReadonlySet<string>;
  #index = new SpaceIndex([]);
  /** By the upstream's name. */
  readonly #upstreamGrants = new Map<string, ReadonlyMap<number, Role>>();

  private constructor(deps: SpacesDeps) {
    this.#deps = deps;
    this.#configured = new Set(deps.namespaces);
  }

  static async open(deps: SpacesDeps): Promise<Spaces> {
    const spaces = new Spaces(deps);
    await spaces.#load();
    return spaces;
  }

  async #load(): Promise<void> {
    const { db } = this.#deps;
    const rows = await db.all<NamespaceRow>(`${NAMESPACES} ORDER BY name`);
    const granted = new Map<string, Map<number, Role>>();
    for (const { kind, name, team_id, role } of await db.all<GrantRow>(GRANTS)) {
      const key = `${kind}:${name}`;
      granted.set(key, (granted.get(key) ?? new Map<number, Role>()).set(team_id, role));
      if (kind === "upstream") this.#upstreamGrants.set(name, granted.get(key) ?? NOBODY);
    }
    const known = new Map([...this.#configured].map((name) => [name, withoutRow(name)]));
    for (const row of rows) known.set(row.name, spaceOf(row, granted.get(`namespace:${row.name}`) ?? NOBODY));
    this.#index = new SpaceIndex([...known.values()]);
  }

  // ---- what rights are decided by ----

  /** One without a row is global and private. */
  namespace(name: string): NamespaceSpace {
    return this.#index.get(name) ?? withoutRow(name);
  }

  /** @param name the upstream's key in the configuration; one that is not there is private */
  upstream(name: string): UpstreamSpace {
    const config = this.#deps.upstreams()[name];
    const visibility = config?.visibility ?? (config && !config.auth ? "public" : "private");
    return { kind: "upstream", name, visibility, granted: this.#upstreamGrants.get(name) ?? NOBODY };
  }

  /**
   * @param repository the full name
   * @param upstream that it is cached from; undefined: it is hosted
   */
  of(repository: RepositoryName, upstream: string | undefined): Space {
    if (upstream !== undefined) return this.upstream(upstream);
    const namespace = namespaceOf(repository);
    // By its name alone it could be a namespace.
    return isHidden(namespace) ? this.upstream(namespace) : this.namespace(namespace);
  }

  // ---- lists ----

  /** Whether somebody has made the namespace, or the configuration names it. */
  has(namespace: string): boolean {
    return this.#index.get(namespace) !== undefined;
  }

  /** Whether the configuration names it: then it can't be removed. */
  isConfigured(namespace: string): boolean {
    return this.#configured.has(namespace);
  }

  /** Namespaces that somebody sees, in order of their names, after `last` (exclusive). */
  visibleNamespaces(principal: Principal, last: string, limit: number): string[] {
    const found = new Set(this.#index.seenBy(principal).flatMap((list) => list.after(last, limit)));
    return [...found].sort().slice(0, limit);
  }

  /** Namespaces that are a user's own. */
  ownNamespaces(user: number): string[] {
    return this.#index.ofUser(user);
  }

  /** Where repositories that somebody sees, whatever its limits, begin. Not of somebody who may pull from every space. */
  ahead(principal: Principal): Ahead {
    const upstreams = Object.keys(this.#deps.upstreams()).filter((name) => maySee(principal, this.upstream(name)));
    const lists = [...this.#index.seenBy(principal), new Starts(upstreams)];
    return anyOf(lists.map((list) => (from: string) => list.ahead(from)));
  }

  /** What else is known of these, by their names. Nothing of what only the configuration names. */
  async facts(namespaces: readonly string[]): Promise<Map<string, NamespaceFacts>> {
    const rows = await this.#deps.db.all<{
      name: string;
      description: string;
      createdAtMs: Milliseconds;
      owner: string | null;
    }>(FACTS, { names: JSON.stringify(namespaces) });
    return new Map(rows.map(({ name, owner, ...row }) => [name, { ...row, owner: owner ?? undefined }]));
  }

  /** Grants in order of the teams' names, after `after` (exclusive). */
  grants({ kind, name }: Granting, after: string, limit: number): Promise<Grant[]> {
    return this.#deps.db.all(LIST_GRANTS, { kind, name, after, limit });
  }

  // ---- changes ----

  /**
   * Makes a hosted namespace. The caller sees to it that it is hosted from then on.
   * @param claims of a push that would make it
   * @throws RegistryError with status 400 or 409
   */
  async addNamespace(
    claims: Claims,
    { owner, visibility, description }: { owner: SpaceOwner; visibility: Visibility; description: string },
    by: By,
  ): Promise<void> {
    const { namespace: name } = claims;
    await this.#change(
      name,
      async (tx) => {
        if (this.#configured.has(name) || (await tx.get(`${NAMESPACES} WHERE name = :name`, { name })))
          throw conflict(`there is a namespace ${name} already`);
        await refuseRival(tx, claims).catch((error: unknown) => {
          if (!(error instanceof NamespaceTaken)) throw error;
          throw conflict(
            `${name} can't be a hosted namespace: the mirror holds ${error.rival}, which clients know under that name. Take another one`,
          );
        });
        await tx.run(
          `INSERT INTO namespaces (name, visibility, team_id, user_id, description, created_at)
         VALUES (:name, :visibility, :team, :user, :description, :now)`,
          { name, visibility, ...columnsOf(owner), description, now: this.#deps.clock.now() },
        );
        return [`added, ${await ownerText(tx, owner)}, ${visibility}`];
      },
      by,
    );
  }

  /** What is as asked for already is no change. @throws RegistryError with status 404 */
  async setNamespace(name: string, change: NamespaceChange, by: By): Promise<void> {
    await this.#change(
      name,
      async (tx) => {
        const row = await tx.get<NamespaceRow & { description: string }>(
          "SELECT name, visibility, team_id, user_id, description FROM namespaces WHERE name = :name",
          { name },
        );
        if (!row && !this.#configured.has(name)) throw missing(`there is no namespace ${name}`);
        const before = row ? spaceOf(row, NOBODY) : withoutRow(name);
        const { visibility = before.visibility, description = row?.description ?? "", owner = before.owner } = change;
        await tx.run(
          `INSERT INTO namespaces (name, visibility, team_id, user_id, description, created_at)
         VALUES (:name, :visibility, :team, :user, :description, :now)
         ON CONFLICT (name) DO UPDATE SET visibility = excluded.visibility, team_id = excluded.team_id,
           user_id = excluded.user_id, description = excluded.description`,
          { name, visibility, ...columnsOf(owner), description, now: this.#deps.clock.now() },
        );
        return [
          ...(visibility === before.visibility ? [] : [`made ${visibility}`]),
          ...(JSON.stringify(owner) === JSON.stringify(before.owner)
            ? []
            : [`given away: ${await ownerText(tx, owner)}`]),
          ...(description === (row?.description ?? "") ? [] : ["description changed"]),
        ];
      },
      by,
    );
  }

  /** Removes a namespace that holds nothing. @throws RegistryError with status 404 or 409 */
  async removeNamespace(name: string, by: By): Promise<void> {
    if (this.#configured.has(name))
      throw conflict(`the configuration names ${name} under hosted.namespaces: take it out there`);
    await this.#change(
      name,
      async (tx) => {
        if (await tx.get("SELECT 1 FROM namespace_content WHERE namespace = :name LIMIT 1", { name }))
          throw conflict(`the namespace ${name} holds content: delete its repositories first`);
        await tx.run("DELETE FROM grants WHERE kind = 'namespace' AND name = :name", { name });
        if ((await tx.run("DELETE FROM namespaces WHERE name = :name", { name })) === 0)
          throw missing(`there is no namespace ${name}`);
        return ["removed"];
      },
      by,
    );
  }

  /**
   * Lets a team have a role at most; of an upstream, its members pull whatever the role.
   * @throws RegistryError with status 404; 409 where the namespace is the team's own
   */
  async grant(granting: Granting, team: string, role: Role, by: By): Promise<void> {
    const { kind, name } = granting;
    await this.#changeGrants(
      granting,
      async (tx) => {
        const teamId = await this.#team(tx, team);
        if (kind === "namespace") {
          const { owner } = this.namespace(name);
          if (owner.kind === "team" && owner.team === teamId)
            throw conflict(
              `the namespace ${name} is the team ${team}'s own: its members have their roles there already`,
            );
        }
        const before = await tx.get<{ role: Role }>(
          "SELECT role FROM grants WHERE kind = :kind AND name = :name AND team_id = :teamId",
          { kind, name, teamId },
        );
        if (before?.role === role) return [];
        await tx.run(
          `INSERT INTO grants (kind, name, team_id, role, granted_at) VALUES (:kind, :name, :teamId, :role, :now)
         ON CONFLICT (kind, name, team_id) DO UPDATE SET role = excluded.role, granted_at = excluded.granted_at`,
          { kind, name, teamId, role, now: this.#deps.clock.now() },
        );
        return [`granted to team ${team} as ${role}`];
      },
      by,
    );
  }

  /** @throws RegistryError with status 404 */
  async revoke(granting: Granting, team: string, by: By): Promise<void> {
    const { kind, name } = granting;
    await this.#changeGrants(
      granting,
      async (tx) => {
        const removed = await tx.run(
          `DELETE FROM grants WHERE kind = :kind AND name = :name AND team_id = (SELECT id FROM teams WHERE name = :team)`,
          { kind, name, team },
        );
        if (removed === 0) throw missing(`${kind} ${name} is not granted to a team ${team}`);
        return [`grant to team ${team} revoked`];
      },
      by,
    );
  }

  // ---- what others have changed ----

  /** A namespace's row was made, changed or removed by others: a push, or the removal of its user. Reads it again. */
  async hosted(namespace: string): Promise<void> {
    const before = JSON.stringify(this.namespace(namespace).owner);
    await this.#read(namespace);
    if (JSON.stringify(this.namespace(namespace).owner) !== before) this.#deps.accounts.changed();
  }

  /** A team is gone, and what it was granted. */
  async teamGone(team: number): Promise<void> {
    for (const name of this.#index.ofTeam(team)) await this.#read(name);
    for (const name of this.#upstreamGrants.keys()) await this.#readUpstream(name);
  }

  // ---- within a change ----

  #change(name: string, work: (tx: Writer) => Promise<string[]>, by: By): Promise<void> {
    const { accounts } = this.#deps;
    return accounts.change(
      async (tx) => accounts.record(tx, `namespace:${name}`, await work(tx), by),
      () => this.#read(name),
    );
  }

  async #changeGrants({ kind, name }: Granting, work: (tx: Writer) => Promise<string[]>, by: By): Promise<void> {
    if (kind === "namespace") {
      if (!this.has(name)) throw missing(`there is no namespace ${name}`);
      return this.#change(name, work, by);
    }
    const { accounts } = this.#deps;
    return accounts.change(
      async (tx) => accounts.record(tx, `upstream:${name}`, await work(tx), by),
      () => this.#readUpstream(name),
    );
  }

  async #team(tx: Reader, name: string): Promise<number> {
    const row = await tx.get<{ id: number }>("SELECT id FROM teams WHERE name = :name", { name });
    if (!row) throw missing(`there is no team ${name}`);
    return row.id;
  }

  /** Both in one statement: nothing is committed between them. */
  async #read(name: string): Promise<void> {
    const row = await this.#deps.db.get<NamespaceRow & { granted: string }>(
      `SELECT name, visibility, team_id, user_id,
         (SELECT json_group_array(json_array(team_id, role)) FROM grants WHERE kind = 'namespace' AND name = :name) AS granted
       FROM namespaces WHERE name = :name`,
      { name },
    );
    if (row) this.#index.set(spaceOf(row, new Map(JSON.parse(row.granted) as [number, Role][])));
    else if (this.#configured.has(name)) this.#index.set(withoutRow(name));
    else this.#index.delete(name);
  }

  async #readUpstream(name: string): Promise<void> {
    const rows = await this.#deps.db.all<GrantRow>(`${GRANTS} WHERE kind = 'upstream' AND name = :name`, { name });
    this.#upstreamGrants.set(name, new Map(rows.map(({ team_id, role }) => [team_id, role])));
  }
}
