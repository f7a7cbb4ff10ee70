/**
 * What programs log in with: robots, which are of a team or of the registry, and personal tokens, which stand for their user.
 *
 * A secret is 256 random bits. It is told once, and only its SHA-256 is kept: a slow hash protects what people make up, and would cost every
 * request a tenth of a second; nobody finds 256 bits by trying. It is found by that hash, so how long the search takes tells nothing of it.
 * What is expired, disabled, rotated or removed is refused from the commit on. Every change is one transaction with its event.
 */
import { hash, randomBytes } from "node:crypto";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database, SqlValue } from "../db/database.ts";
import type { Requester, SystemActor } from "../events/event.ts";
import type { Accounts } from "./accounts.ts";
import {
  existingRobot,
  existingToken,
  ROBOT_BY_ID,
  ROBOT_BY_NAME,
  ROBOT_BY_SECRET,
  robotOf,
  ROBOTS,
  teamNamed,
  TOKEN_BY_NAME,
  TOKEN_BY_SECRET,
  tokenOf,
  TOKENS,
  type PersonalToken,
  type Robot,
  type RobotRow,
  type TokenRow,
} from "./credential-rows.ts";
import { LastUse } from "./last-use.ts";
import { limitsText, WITHOUT_LIMITS } from "./limits.ts";
import { isLoginName, takeLoginName } from "./names.ts";
import type { Limit, Principal } from "./principal.ts";
import { conflict, invalid, missing } from "./refusals.ts";

export type { PersonalToken, Robot } from "./credential-rows.ts";

export type RobotPrincipal = Extract<Principal, { kind: "robot" }>;

export interface NewRobot {
  name: string;
  /** A team's name; undefined: the registry's own. */
  team: string | undefined;
  description: string;
  limits: readonly Limit[];
  /** Infinity: never. */
  expiresAtMs: Milliseconds;
}

/** What changes of a robot; undefined: that stays. */
export interface RobotChange {
  description?: string | undefined;
  limits?: readonly Limit[] | undefined;
  /** Infinity: never. */
  expiresAtMs?: Milliseconds | undefined;
  disabled?: boolean | undefined;
}

export interface NewToken {
  /** The user's name. */
  user: string;
  name: string;
  /** Undefined: all that the user may do to repositories. */
  limits: readonly Limit[] | undefined;
  /** Infinity: never. */
  expiresAtMs: Milliseconds;
}

/** Whom a secret belongs to. */
export interface Presented {
  principal: Principal;
  /** The robot's or the user's: as the user name beside the secret has to be. */
  name: string;
  expiresAtMs: Milliseconds | undefined;
  /** For {@link Credentials.touch}. */
  kind: "robot" | "token";
  id: number;
}

type By = Requester | SystemActor;

const SECRET = /^entrepot_[A-Za-z0-9_-]{43}$/;
const MAX_TOKENS = 100;

const ROBOTS_USED =
  "UPDATE robots SET used_at = use.value ->> 1 FROM json_each(:uses) AS use WHERE robots.id = use.value ->> 0";
const TOKENS_USED =
  "UPDATE tokens SET used_at = use.value ->> 1 FROM json_each(:uses) AS use WHERE tokens.id = use.value ->> 0";

export interface CredentialsDeps {
  db: Database;
  clock: Clock;
  accounts: Accounts;
}

export class Credentials implements AsyncDisposable {
  readonly #deps: CredentialsDeps;
  readonly #robotsUsed: LastUse;
  readonly #tokensUsed: LastUse;
  /** Robots by id, of the generation. */
  readonly #robots = new Map<number, Robot>();
  #generation = -1;

  constructor(deps: CredentialsDeps) {
    this.#deps = deps;
    this.#robotsUsed = new LastUse(deps.db, deps.clock, ROBOTS_USED);
    this.#tokensUsed = new LastUse(deps.db, deps.clock, TOKENS_USED);
  }

  // ---- logging in ----

  /** @returns undefined for what is unknown, expired or disabled, and where the token's user is */
  async bySecret(secret: string): Promise<Presented | undefined> {
    if (!SECRET.test(secret)) return undefined;
    const { db, accounts } = this.#deps;
    const key = { secret: hash("sha256", secret) };
    const robot = await db.get<RobotRow>(ROBOT_BY_SECRET, key);
    if (robot) return this.#presented(robotOf(robot));
    const row = await db.get<TokenRow>(TOKEN_BY_SECRET, key);
    if (!row || this.#isOver(row.expires_at)) return undefined;
    const user = await accounts.userPrincipal(row.user_id);
    if (!user) return undefined;
    const { id, limits, expiresAtMs } = tokenOf(row);
    return { principal: { ...user, limits }, name: user.name, expiresAtMs, kind: "token", id };
  }

  /** @returns undefined where it is gone, expired or disabled. It is remembered until somebody's rights change. */
  async robotPrincipal(id: number): Promise<RobotPrincipal | undefined> {
    const { db, accounts } = this.#deps;
    const { generation } = accounts;
    if (generation !== this.#generation) {
      this.#generation = generation;
      this.#robots.clear();
    }
    let robot = this.#robots.get(id);
    if (!robot) {
      const row = await db.get<RobotRow>(ROBOT_BY_ID, { id });
      if (!row) return undefined;
      robot = robotOf(row);
      // What has changed meanwhile is read anew the next time.
      if (generation === accounts.generation && generation === this.#generation) this.#robots.set(id, robot);
    }
    return this.#presented(robot)?.principal;
  }

  /** For who has proven by other means that it is that robot. @returns undefined where there is none, or it is expired or disabled */
  async robotByName(name: string): Promise<(Presented & { principal: RobotPrincipal }) | undefined> {
    const row = await this.#deps.db.get<RobotRow>(ROBOT_BY_NAME, { name });
    return row && this.#presented(robotOf(row));
  }

  /** Notes that one was used: written down soon, and once a minute at most. */
  touch(kind: Presented["kind"], id: number): void {
    (kind === "robot" ? this.#robotsUsed : this.#tokensUsed).touch(id);
  }

  #presented(robot: Robot): (Presented & { principal: RobotPrincipal }) | undefined {
    const { id, name, team, limits, disabled, expiresAtMs } = robot;
    if (disabled || this.#isOver(expiresAtMs)) return undefined;
    return { principal: { kind: "robot", id, name, team: team?.id, limits }, name, expiresAtMs, kind: "robot", id };
  }

  #isOver(expiresAtMs: Milliseconds | null | undefined): boolean {
    return (expiresAtMs ?? Infinity) <= this.#deps.clock.now();
  }

  // ---- robots ----

  /**
   * Robots in order of their names.
   * @param of of teams with these ids; "all": every one
   * @param team of the team of that name alone
   * @param after a name, exclusive
   */
  async listRobots(
    of: readonly number[] | "all",
    { team, after, limit }: { team?: string | undefined; after: string; limit: number },
  ): Promise<Robot[]> {
    const teams = of === "all" ? [] : of;
    const params = { all: Number(of === "all"), teams: JSON.stringify(teams), team: team ?? null, after, limit };
    return (await this.#deps.db.all<RobotRow>(ROBOTS, params)).map(robotOf);
  }

  async robot(name: string): Promise<Robot | undefined> {
    const row = await this.#deps.db.get<RobotRow>(ROBOT_BY_NAME, { name });
    return row && robotOf(row);
  }

  /**
   * @param guard is told, within the transaction, whose it is to be; throws where it may not be added
   * @returns it, and its secret, which is told nowhere else
   * @throws RegistryError with status 400 or 409 for its name, 404 where there is no such team; what the guard throws
   */
  addRobot(added: NewRobot, by: By, guard: (team: Robot["team"]) => void): Promise<{ robot: Robot; secret: string }> {
    const { name, description, limits, expiresAtMs } = added;
    const secret = newSecret();
    return this.#deps.accounts.change(async (tx) => {
      const team = added.team === undefined ? undefined : await teamNamed(tx, added.team);
      guard(team);
      await takeLoginName(tx, name);
      await tx.run(
        `INSERT INTO robots (name, description, team_id, secret, limits, created_at, expires_at)
         VALUES (:name, :description, :team, :secret, :limits, :nowMs, :expiresAtMs)`,
        {
          name,
          description,
          team: team?.id ?? null,
          secret: hash("sha256", secret),
          limits: JSON.stringify(limits),
          nowMs: this.#deps.clock.now(),
          expiresAtMs: orNull(expiresAtMs),
        },
      );
      const whose = team ? ` for the team ${team.name}` : "";
      await this.#deps.accounts.record(
        tx,
        `robot:${name}`,
        [`added${whose}: ${limitsText(limits)}; ${expiryText(expiresAtMs)}`],
        by,
      );
      return { robot: await existingRobot(tx, name), secret };
    });
  }

  /**
   * Changes a robot. What is as asked for already is no change.
   * @param guard is told, within the transaction, what is there; throws where it may not be changed
   * @throws RegistryError with status 404; what the guard throws
   */
  updateRobot(name: string, change: RobotChange, by: By, guard: (robot: Robot) => void): Promise<Robot> {
    return this.#deps.accounts.change(async (tx) => {
      const robot = await existingRobot(tx, name);
      guard(robot);
      const was = { ...robot, expiresAtMs: robot.expiresAtMs ?? Infinity };
      const { description = was.description, limits = was.limits } = change;
      const { expiresAtMs = was.expiresAtMs, disabled = was.disabled } = change;
      const [limitsBefore, limitsAfter] = [was.limits, limits].map((each) => JSON.stringify(each));
      const details = [
        ...(disabled === was.disabled ? [] : [disabled ? "disabled" : "enabled"]),
        ...(limitsAfter === limitsBefore ? [] : [limitsText(limits)]),
        ...(expiresAtMs === was.expiresAtMs ? [] : [expiryText(expiresAtMs)]),
        ...(description === was.description ? [] : ["description changed"]),
      ];
      if (details.length === 0) return robot;
      await tx.run(
        `UPDATE robots SET description = :description, limits = :limits, disabled = :disabled, expires_at = :expiresAtMs
         WHERE id = :id`,
        {
          id: robot.id,
          description,
          limits: JSON.stringify(limits),
          disabled: Number(disabled),
          expiresAtMs: orNull(expiresAtMs),
        },
      );
      await this.#deps.accounts.record(tx, `robot:${name}`, [details.join("; ")], by);
      return existingRobot(tx, name);
    });
  }

  /**
   * Gives a robot a new secret. The old one ends at once.
   * @param expiresAtMs Infinity: never; undefined: as it was
   * @throws RegistryError with status 404; 409 where it is expired, and stays so; what the guard throws
   */
  rotateRobot(
    name: string,
    expiresAtMs: Milliseconds | undefined,
    by: By,
    guard: (robot: Robot) => void,
  ): Promise<{ robot: Robot; secret: string }> {
    const secret = newSecret();
    return this.#deps.accounts.change(async (tx) => {
      const robot = await existingRobot(tx, name);
      guard(robot);
      const ends = expiresAtMs ?? robot.expiresAtMs ?? Infinity;
      if (this.#isOver(ends))
        throw conflict(`the robot ${name} is expired: say with it until when the new secret is good`);
      await tx.run("UPDATE robots SET secret = :secret, expires_at = :expiresAtMs WHERE id = :id", {
        id: robot.id,
        secret: hash("sha256", secret),
        expiresAtMs: orNull(ends),
      });
      await this.#deps.accounts.record(tx, `robot:${name}`, [`rotated; ${expiryText(ends)}`], by);
      return { robot: await existingRobot(tx, name), secret };
    });
  }

  /** @throws RegistryError with status 404; what the guard throws */
  async removeRobot(name: string, by: By, guard: (robot: Robot) => void): Promise<void> {
    await this.#deps.accounts.change(async (tx) => {
      const robot = await existingRobot(tx, name);
      guard(robot);
      await tx.run("DELETE FROM robots WHERE id = :id", { id: robot.id });
      await this.#deps.accounts.record(tx, `robot:${name}`, ["removed"], by);
    });
  }

  // ---- personal tokens ----

  /**
   * Tokens, oldest first.
   * @param user a user's name; undefined: of all users
   * @param after an id, exclusive
   */
  async listTokens(user: string | undefined, after: number, limit: number): Promise<PersonalToken[]> {
    return (await this.#deps.db.all<TokenRow>(TOKENS, { user: user ?? null, after, limit })).map(tokenOf);
  }

  /**
   * @returns it, and its secret, which is told nowhere else
   * @throws RegistryError with status 404 where there is no such user; 400 or 409 for its name; 409 where the user has too many
   */
  addToken(added: NewToken, by: By): Promise<{ token: PersonalToken; secret: string }> {
    const { user, name, limits = WITHOUT_LIMITS, expiresAtMs } = added;
    const secret = newSecret();
    return this.#deps.accounts.change(async (tx) => {
      const owner = await tx.get<{ id: number }>("SELECT id FROM users WHERE name = :user", { user });
      if (!owner) throw missing(`there is no user ${user}`);
      if (!isLoginName(name))
        throw invalid(
          `"${name.slice(0, 100)}" is no name of a token: groups of a-z and 0-9 with single . _ - between them, at most 64 characters`,
        );
      if (await tx.get(TOKEN_BY_NAME, { user, name }))
        throw conflict(`${user} has a token ${name} already: take another name, or remove that one first`);
      const has = await tx.get<{ n: number }>("SELECT count(*) AS n FROM tokens WHERE user_id = :id", owner);
      if ((has?.n ?? 0) >= MAX_TOKENS) throw conflict(`${user} has ${MAX_TOKENS} tokens: remove one first`);
      await tx.run(
        `INSERT INTO tokens (user_id, name, secret, limits, created_at, expires_at)
         VALUES (:id, :name, :secret, :limits, :nowMs, :expiresAtMs)`,
        {
          id: owner.id,
          name,
          secret: hash("sha256", secret),
          limits: JSON.stringify(limits),
          nowMs: this.#deps.clock.now(),
          expiresAtMs: orNull(expiresAtMs),
        },
      );
      const detail = `added: ${limitsText(limits)}; ${expiryText(expiresAtMs)}`;
      await this.#deps.accounts.record(tx, `token:${user}/${name}`, [detail], by);
      return { token: await existingToken(tx, user, name), secret };
    });
  }

  /** @throws RegistryError with status 404 */
  async removeToken(user: string, name: string, by: By): Promise<void> {
    await this.#deps.accounts.change(async (tx) => {
      const { id } = await existingToken(tx, user, name);
      await tx.run("DELETE FROM tokens WHERE id = :id", { id });
      await this.#deps.accounts.record(tx, `token:${user}/${name}`, ["removed"], by);
    });
  }

  /** Writes down what is still to be written of last use. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#robotsUsed[Symbol.asyncDispose](), this.#tokensUsed[Symbol.asyncDispose]()]);
  }
}

function newSecret(): string {
  return `entrepot_${randomBytes(32).toString("base64url")}`;
}

function orNull(expiresAtMs: Milliseconds): SqlValue {
  return expiresAtMs === Infinity ? null : expiresAtMs;
}

function expiryText(expiresAtMs: Milliseconds): string {
  return expiresAtMs === Infinity ? "never expires" : `expires ${new Date(expiresAtMs).toISOString()}`;
}
