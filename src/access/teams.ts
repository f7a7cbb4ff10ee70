import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database, Reader, Writer } from "../db/database.ts";
import type { Requester, SystemActor } from "../events/event.ts";
import { isLoginName } from "./names.ts";
import type { Accounts } from "./accounts.ts";
import type { Role } from "./principal.ts";
import { conflict, invalid, missing } from "./refusals.ts";
import type { Spaces } from "./spaces.ts";

export interface Team {
  id: number;
  name: string;
  description: string;
  createdAtMs: Milliseconds;
  /** How many users are in it. */
  members: number;
  /** How many namespaces are its own. */
  namespaces: number;
}

export interface TeamMember {
  user: string;
  role: Role;
  addedAtMs: Milliseconds;
}

export interface TeamsDeps {
  db: Database;
  clock: Clock;
  accounts: Pick<Accounts, "change" | "record">;
  spaces: Pick<Spaces, "teamGone">;
}

type By = Requester | SystemActor;

const TEAM = `
  SELECT t.id, t.name, t.description, t.created_at AS "createdAtMs",
    (SELECT count(*) FROM team_members m WHERE m.team_id = t.id) AS members,
    (SELECT count(*) FROM namespaces n WHERE n.team_id = t.id) AS namespaces
  FROM teams t`;
const LIST_TEAMS = `${TEAM} WHERE t.name > :after ORDER BY t.name LIMIT :limit`;
const TEAMS_OF = `
  ${TEAM} WHERE t.id IN (SELECT team_id FROM team_members WHERE user_id = :user) AND t.name > :after
  ORDER BY t.name LIMIT :limit`;
const LIST_MEMBERS = `
  SELECT u.name AS user, m.role, m.added_at AS "addedAtMs" FROM team_members m JOIN users u ON u.id = m.user_id
  WHERE m.team_id = :team AND u.name > :after ORDER BY u.name LIMIT :limit`;

/**
 * Who works together, and as what. Every change is one durable transaction with its event.
 * A team has an owner, unless an administrator wants it otherwise: without one, nobody else could look after it.
 */
export class Teams {
  readonly #deps: TeamsDeps;

  constructor(deps: TeamsDeps) {
    this.#deps = deps;
  }

  // ---- reading ----

  find(name: string): Promise<Team | undefined> {
    return this.#deps.db.get<Team>(`${TEAM} WHERE t.name = :name`, { name });
  }

  /**
   * Teams in order of their names, after `after` (exclusive).
   * @param user only those that this user is in
   */
  list(after: string, limit: number, user?: number): Promise<Team[]> {
    const { db } = this.#deps;
    return user === undefined ? db.all(LIST_TEAMS, { after, limit }) : db.all(TEAMS_OF, { after, limit, user });
  }

  /** Members in order of their names, after `after` (exclusive). @param team its id */
  members(team: number, after: string, limit: number): Promise<TeamMember[]> {
    return this.#deps.db.all(LIST_MEMBERS, { team, after, limit });
  }

  // ---- changes ----

  /**
   * @param owner id of the user that becomes its owner; undefined: it has none yet
   * @throws RegistryError with status 400 or 409 for its name
   */
  async add(
    { name, description, owner }: { name: string; description: string; owner?: number | undefined },
    by: By,
  ): Promise<Team> {
    if (!isLoginName(name)) {
      throw invalid(
        `"${name.slice(0, 100)}" is no name of a team: groups of a-z and 0-9 with single . _ - between them, at most 64 characters`,
      );
    }
    await this.#change(
      name,
      async (tx) => {
        if (await tx.get("SELECT 1 FROM teams WHERE name = :name", { name })) {
          throw conflict(`there is a team ${name} already: take another name`);
        }
        const nowMs = this.#deps.clock.now();
        await tx.run("INSERT INTO teams (name, description, created_at) VALUES (:name, :description, :nowMs)", {
          name,
          description,
          nowMs,
        });
        if (owner === undefined) return ["added"];
        const user = await tx.get<{ name: string }>("SELECT name FROM users WHERE id = :owner", { owner });
        if (!user) throw missing("the user who was to own it is gone");
        await this.#put(tx, await this.#id(tx, name), owner, "owner");
        return [`added, ${user.name} is owner`];
      },
      by,
    );
    const team = await this.find(name);
    if (!team) throw missing(`the team ${name} has been removed again`);
    return team;
  }

  /** @throws RegistryError with status 404 */
  async describe(name: string, description: string, by: By): Promise<void> {
    await this.#change(
      name,
      async (tx) => {
        const changed = await tx.run(
          "UPDATE teams SET description = :description WHERE id = :id AND description <> :description",
          { id: await this.#id(tx, name), description },
        );
        return changed === 0 ? [] : ["description changed"];
      },
      by,
    );
  }

  /**
   * Removes a team with its members, its robots and what it was granted.
   * @throws RegistryError with status 404; 409 while namespaces are its own
   */
  async remove(name: string, by: By): Promise<void> {
    let id: number | undefined;
    await this.#change(
      name,
      async (tx) => {
        id = await this.#id(tx, name);
        const own = await tx.get<{ name: string }>("SELECT name FROM namespaces WHERE team_id = :id LIMIT 1", { id });
        if (own) {
          throw conflict(
            `the namespace ${own.name} is the team ${name}'s own: remove it, or give it to another team, first`,
          );
        }
        await tx.run("DELETE FROM teams WHERE id = :id", { id });
        return ["removed"];
      },
      by,
    );
    if (id !== undefined) await this.#deps.spaces.teamGone(id);
  }

  /**
   * Takes a user into a team, or changes its role there.
   * @param mayBeOwnerless an administrator asks
   * @throws RegistryError with status 404; 409 where the team would lose its last owner
   */
  async setMember(name: string, user: string, role: Role, mayBeOwnerless: boolean, by: By): Promise<void> {
    await this.#change(
      name,
      async (tx) => {
        const [team, member] = [await this.#id(tx, name), await this.#user(tx, user)];
        const before = await this.#role(tx, team, member);
        if (before === role) return [];
        if (before === "owner" && !mayBeOwnerless) await this.#keepOwner(tx, name, team, member);
        await this.#put(tx, team, member, role);
        return [before === undefined ? `${user} joined as ${role}` : `${user} is ${role}, was ${before}`];
      },
      by,
    );
  }

  /** As {@link setMember}. @throws RegistryError with status 404, also where the user is not in the team; 409 */
  async removeMember(name: string, user: string, mayBeOwnerless: boolean, by: By): Promise<void> {
    await this.#change(
      name,
      async (tx) => {
        const [team, member] = [await this.#id(tx, name), await this.#user(tx, user)];
        const before = await this.#role(tx, team, member);
        if (before === undefined) throw missing(`${user} is not in the team ${name}`);
        if (before === "owner" && !mayBeOwnerless) await this.#keepOwner(tx, name, team, member);
        await tx.run("DELETE FROM team_members WHERE team_id = :team AND user_id = :member", { team, member });
        return [`${user} left, was ${before}`];
      },
      by,
    );
  }

  // ---- within a change ----

  #change(name: string, work: (tx: Writer) => Promise<string[]>, by: By): Promise<void> {
    const { accounts } = this.#deps;
    return accounts.change(async (tx) => accounts.record(tx, `team:${name}`, await work(tx), by));
  }

  async #id(tx: Reader, name: string): Promise<number> {
    const row = await tx.get<{ id: number }>("SELECT id FROM teams WHERE name = :name", { name });
    if (!row) throw missing(`there is no team ${name}`);
    return row.id;
  }

  async #user(tx: Reader, name: string): Promise<number> {
    const row = await tx.get<{ id: number }>("SELECT id FROM users WHERE name = :name", { name });
    if (!row) throw missing(`there is no user ${name}`);
    return row.id;
  }

  async #role(tx: Reader, team: number, user: number): Promise<Role | undefined> {
    const row = await tx.get<{ role: Role }>(
      "SELECT role FROM team_members WHERE team_id = :team AND user_id = :user",
      { team, user },
    );
    return row?.role;
  }

  async #put(tx: Writer, team: number, user: number, role: Role): Promise<void> {
    await tx.run(
      `INSERT INTO team_members (team_id, user_id, role, added_at) VALUES (:team, :user, :role, :now)
       ON CONFLICT (team_id, user_id) DO UPDATE SET role = excluded.role`,
      { team, user, role, now: this.#deps.clock.now() },
    );
  }

  async #keepOwner(tx: Reader, name: string, team: number, user: number): Promise<void> {
    const another = await tx.get(
      "SELECT 1 FROM team_members WHERE team_id = :team AND role = 'owner' AND user_id <> :user LIMIT 1",
      { team, user },
    );
    if (!another) throw conflict(`the team ${name} has no other owner: make somebody else an owner first`);
  }
}
