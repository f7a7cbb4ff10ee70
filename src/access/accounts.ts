/**
 * The users in the database, and the one place that tells when anything changed of who may log in or do what.
 *
 * The first user of all becomes administrator, and from then on there is one that is enabled: it can't be removed, disabled or demoted.
 * Every change is one transaction with its event. What is remembered of users and their teams is forgotten with every change.
 */
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database, Reader, SqlValue, Writer } from "../db/database.ts";
import type { Requester, SystemActor } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import { LastUse } from "./last-use.ts";
import { takeLoginName } from "./names.ts";
import type { Principal, Role } from "./principal.ts";
import { conflict, missing } from "./refusals.ts";

export type UserPrincipal = Extract<Principal, { kind: "user" }>;

/** A user as it is shown. */
export interface User {
  id: number;
  name: string;
  admin: boolean;
  disabled: boolean;
  /** Without one it logs in by personal tokens alone. */
  hasPassword: boolean;
  createdAtMs: Milliseconds;
  passwordAtMs: Milliseconds | undefined;
  /** Of the last login, as exact as a minute. */
  usedAtMs: Milliseconds | undefined;
}

/** A user as its password is checked. */
export interface UserLogin {
  id: number;
  name: string;
  passwordHash: string | undefined;
  admin: boolean;
  disabled: boolean;
}

/** What changes of a user; undefined: that stays. */
export interface UserChange {
  admin?: boolean | undefined;
  disabled?: boolean | undefined;
  /** The hash of the new one. */
  passwordHash?: string | undefined;
}

type By = Requester | SystemActor;
/** Is told, within the transaction, what is there; throws where it may not be changed. */
type Guard = (user: User) => void;

interface UserRow {
  id: number;
  name: string;
  password: string | null;
  admin: number;
  disabled: number;
  created_at: number;
  password_at: number | null;
  used_at: number | null;
}

const USER = "SELECT id, name, password, admin, disabled, created_at, password_at, used_at FROM users";
const USED = `
  UPDATE users SET used_at = use.value ->> 1 FROM json_each(:uses) AS use WHERE users.id = use.value ->> 0`;

export interface AccountsDeps {
  db: Database;
  clock: Clock;
  journal: Journal;
}

export class Accounts implements AsyncDisposable {
  readonly #db: Database;
  readonly #clock: Clock;
  readonly #journal: Journal;
  readonly #listeners = new Set<() => void>();
  readonly #principals = new Map<number, UserPrincipal | undefined>();
  readonly #lastUse: LastUse;
  #generation = 0;
  #hasUsers = false;
  #hasRobots = false;

  /** Use {@link open}: what is here knows of no logins yet. */
  constructor({ db, clock, journal }: AccountsDeps) {
    this.#db = db;
    this.#clock = clock;
    this.#journal = journal;
    this.#lastUse = new LastUse(db, clock, USED);
  }

  static async open(deps: AccountsDeps): Promise<Accounts> {
    const accounts = new Accounts(deps);
    await accounts.#loadLogins();
    return accounts;
  }

  // ---- what others rely on ----

  /** Grows with every change of who may log in or do what: what was decided before is to be decided anew. */
  get generation(): number {
    return this.#generation;
  }

  /** Whether there is a user or a robot, enabled or not. */
  get hasLogins(): boolean {
    return this.#hasUsers || this.#hasRobots;
  }

  get hasUsers(): boolean {
    return this.#hasUsers;
  }

  /** To be called after every commit that changes who may log in or do what. */
  changed(): void {
    this.#generation += 1;
    this.#principals.clear();
    // Reads of what was committed answer before the next input is looked at. Where that fails, what is known stays.
    this.#loadLogins().catch(() => undefined);
    for (const listener of this.#listeners) listener();
  }

  /** @param listener is called after every change @returns ends that */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  async #loadLogins(): Promise<void> {
    const row = await this.#db.get<{ users: number; robots: number }>(
      "SELECT EXISTS (SELECT 1 FROM users) AS users, EXISTS (SELECT 1 FROM robots) AS robots",
    );
    this.#hasUsers = row?.users === 1;
    this.#hasRobots = row?.robots === 1;
  }

  // ---- reading ----

  /** A user by its name, with the hash of its password. */
  async findUser(name: string): Promise<UserLogin | undefined> {
    const row = await this.#row(this.#db, name);
    if (!row) return undefined;
    const { id, admin, disabled } = row;
    return { id, name, passwordHash: row.password ?? undefined, admin: admin === 1, disabled: disabled === 1 };
  }

  /** @returns undefined where it is gone or disabled; with the teams of the moment, and no limits */
  async userPrincipal(id: number): Promise<UserPrincipal | undefined> {
    if (this.#principals.has(id)) return this.#principals.get(id);
    const generation = this.#generation;
    const principal = await this.#loadPrincipal(id);
    if (principal && generation === this.#generation) this.#principals.set(id, principal);
    return principal;
  }

  async #loadPrincipal(id: number): Promise<UserPrincipal | undefined> {
    const row = await this.#db.get<UserRow>(`${USER} WHERE id = :id AND disabled = 0`, { id });
    if (!row) return undefined;
    const members = await this.#db.all<{ team_id: number; role: Role }>(
      "SELECT team_id, role FROM team_members WHERE user_id = :id",
      { id },
    );
    const teams = new Map(members.map(({ team_id, role }) => [team_id, role]));
    return { kind: "user", id, name: row.name, admin: row.admin === 1, teams, limits: undefined };
  }

  /** The teams of a user, in order of their names. */
  teamsOf(id: number): Promise<{ name: string; role: Role }[]> {
    return this.#db.all(
      "SELECT t.name, m.role FROM team_members m JOIN teams t ON t.id = m.team_id WHERE m.user_id = :id ORDER BY t.name",
      { id },
    );
  }

  async user(name: string): Promise<User | undefined> {
    const row = await this.#row(this.#db, name);
    return row && userOf(row);
  }

  /** Users in order of their names, after `after` (exclusive). */
  async listUsers(after: string, limit: number): Promise<User[]> {
    const rows = await this.#db.all<UserRow>(`${USER} WHERE name > :after ORDER BY name LIMIT :limit`, {
      after,
      limit,
    });
    return rows.map(userOf);
  }

  // ---- changing ----

  /**
   * Adds a user; the first of all is an administrator whatever is asked for.
   * @throws RegistryError with status 400 or 409 for its name
   */
  async addUser(
    { name, passwordHash, admin }: { name: string; passwordHash?: string | undefined; admin: boolean },
    by: By,
  ): Promise<User> {
    return this.change(async (tx) => {
      await takeLoginName(tx, name);
      const isAdmin = admin || !(await tx.get("SELECT 1 FROM users LIMIT 1"));
      const nowMs = this.#clock.now();
      await tx.run(
        `INSERT INTO users (name, password, admin, created_at, password_at)
         VALUES (:name, :password, :admin, :nowMs, :passwordAtMs)`,
        {
          name,
          password: passwordHash ?? null,
          admin: Number(isAdmin),
          nowMs,
          passwordAtMs: passwordHash === undefined ? null : nowMs,
        },
      );
      await this.record(tx, `user:${name}`, [isAdmin ? "added as an administrator" : "added"], by);
      return this.#existing(tx, name);
    });
  }

  /**
   * Changes a user. What is as asked for already is no change.
   * @throws RegistryError with status 404; 409 where it would leave no administrator that is enabled; what the guard throws
   */
  async changeUser(name: string, change: UserChange, by: By, guard?: Guard): Promise<User> {
    return this.change(async (tx) => {
      const user = await this.#existing(tx, name);
      guard?.(user);
      const { admin = user.admin, disabled = user.disabled, passwordHash } = change;
      if (!admin || disabled) await this.#keepAdmin(tx, user);
      const nowMs = this.#clock.now();
      const params: Record<string, SqlValue> = { id: user.id, admin: Number(admin), disabled: Number(disabled) };
      await tx.run("UPDATE users SET admin = :admin, disabled = :disabled WHERE id = :id", params);
      if (passwordHash !== undefined) {
        const password = { id: user.id, password: passwordHash, nowMs };
        await tx.run("UPDATE users SET password = :password, password_at = :nowMs WHERE id = :id", password);
      }
      const details = [
        ...(admin === user.admin ? [] : [admin ? "made an administrator" : "no administrator any more"]),
        ...(disabled === user.disabled ? [] : [disabled ? "disabled" : "enabled"]),
        ...(passwordHash === undefined ? [] : ["password changed"]),
      ];
      await this.record(tx, `user:${name}`, details, by);
      return this.#existing(tx, name);
    });
  }

  /**
   * Removes a user with its tokens, its place in teams, and its own namespace, which has to be empty.
   * @throws RegistryError with status 404; 409 for the last administrator that is enabled, and while its namespace holds anything; what
   * the guard throws
   */
  async removeUser(name: string, by: By, guard?: Guard): Promise<void> {
    await this.change(async (tx) => {
      const user = await this.#existing(tx, name);
      guard?.(user);
      await this.#keepAdmin(tx, user);
      const { id } = user;
      const full = await tx.get<{ name: string }>(
        `SELECT n.name FROM namespaces n
         WHERE n.user_id = :id AND EXISTS (SELECT 1 FROM namespace_content c WHERE c.namespace = n.name)`,
        { id },
      );
      if (full) {
        throw conflict(
          `the namespace ${full.name} of the user ${name} holds content: delete its repositories, or give it to a team, first; until then the user can be disabled`,
        );
      }
      await tx.run(
        "DELETE FROM grants WHERE kind = 'namespace' AND name IN (SELECT name FROM namespaces WHERE user_id = :id)",
        { id },
      );
      await tx.run("DELETE FROM namespaces WHERE user_id = :id", { id });
      await tx.run("DELETE FROM users WHERE id = :id", { id });
      await this.record(tx, `user:${name}`, ["removed"], by);
    });
  }

  // ---- last use ----

  /** Notes that the user has logged in. */
  touchUser(id: number): void {
    this.#lastUse.touch(id);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#lastUse[Symbol.asyncDispose]();
  }

  // ---- the way of every change ----

  /**
   * A durable transaction that changes who may log in or do what; everybody who remembers any of that is told.
   * @param told is awaited first: for what is remembered of the change itself
   * @throws what `work` throws, of which nobody is told; Error where the commit fails
   */
  async change<T>(work: (tx: Writer) => Promise<T>, told: () => Promise<void> = () => Promise.resolve()): Promise<T> {
    let worked = false;
    try {
      return await this.#db.transaction("durable", async (tx) => {
        const result = await work(tx);
        worked = true;
        return result;
      });
    } finally {
      // Also where the commit failed: it may not have reached the disk. What was refused makes nobody forget what they know.
      if (worked) {
        await told();
        this.changed();
        this.#journal.recorded();
      }
    }
  }

  /** Puts into the record what a change was, one event for each detail. @param subject `user:alice`, `team:backend`, … */
  async record(tx: Writer, subject: string, details: readonly string[], by: By): Promise<void> {
    await this.#journal.recordWithin(
      tx,
      details.map((detail) => ({ action: "access", outcome: "done", subject, detail, by })),
    );
  }

  #row(reader: Reader, name: string): Promise<UserRow | undefined> {
    return reader.get<UserRow>(`${USER} WHERE name = :name`, { name });
  }

  async #existing(tx: Reader, name: string): Promise<User> {
    const row = await this.#row(tx, name);
    if (!row) throw missing(`there is no user ${name}`);
    return userOf(row);
  }

  /** Sees to it that somebody else can still look after the registry. */
  async #keepAdmin(tx: Reader, { id, name, admin, disabled }: User): Promise<void> {
    if (!admin || disabled) return;
    if (await tx.get("SELECT 1 FROM users WHERE admin = 1 AND disabled = 0 AND id <> :id LIMIT 1", { id })) return;
    throw conflict(`${name} is the last administrator that is enabled: make another user an administrator first`);
  }
}

function userOf({ id, name, password, admin, disabled, created_at, password_at, used_at }: UserRow): User {
  return {
    id,
    name,
    admin: admin === 1,
    disabled: disabled === 1,
    hasPassword: password !== null,
    createdAtMs: created_at,
    passwordAtMs: password_at ?? undefined,
    usedAtMs: used_at ?? undefined,
  };
}
