/** Robots and personal tokens as they are shown, and as their rows are read. */
import { hash } from "node:crypto";
import type { Milliseconds } from "../base/clock.ts";
import type { Reader } from "../db/database.ts";
import { parseLimits } from "./limits.ts";
import type { Limit } from "./principal.ts";
import { missing } from "./refusals.ts";

/** A robot as it is shown. */
export interface Robot {
  id: number;
  name: string;
  description: string;
  /** Undefined: it is the registry's own. */
  team: { id: number; name: string } | undefined;
  limits: readonly Limit[];
  disabled: boolean;
  createdAtMs: Milliseconds;
  /** Undefined: never. */
  expiresAtMs: Milliseconds | undefined;
  /** As exact as five minutes: whom the daemon remembers, it does not check again. */
  usedAtMs: Milliseconds | undefined;
  /** Of all that can be changed, the secret included; not of its use. */
  etag: string;
}

/** A personal token as it is shown. */
export interface PersonalToken {
  id: number;
  user: { id: number; name: string };
  /** One of this name is the user's. */
  name: string;
  limits: readonly Limit[];
  createdAtMs: Milliseconds;
  /** Undefined: never. */
  expiresAtMs: Milliseconds | undefined;
  /** As exact as five minutes: whom the daemon remembers, it does not check again. */
  usedAtMs: Milliseconds | undefined;
}

export interface RobotRow {
  id: number;
  name: string;
  description: string;
  team_id: number | null;
  team: string | null;
  secret: string | null;
  limits: string;
  disabled: number;
  created_at: number;
  expires_at: number | null;
  used_at: number | null;
}

export interface TokenRow {
  id: number;
  user_id: number;
  user: string;
  name: string;
  limits: string;
  created_at: number;
  expires_at: number | null;
  used_at: number | null;
}

const ROBOT = `
  SELECT r.id, r.name, r.description, r.team_id, t.name AS team, r.secret, r.limits, r.disabled, r.created_at, r.expires_at, r.used_at
  FROM robots r LEFT JOIN teams t ON t.id = r.team_id`;
export const ROBOT_BY_ID = `${ROBOT} WHERE r.id = :id`;
export const ROBOT_BY_NAME = `${ROBOT} WHERE r.name = :name`;
export const ROBOT_BY_SECRET = `${ROBOT} WHERE r.secret = :secret`;
export const ROBOTS = `
  ${ROBOT} WHERE r.name > :after AND (:all = 1 OR r.team_id IN (SELECT value FROM json_each(:teams)))
    AND (:team IS NULL OR t.name = :team) ORDER BY r.name LIMIT :limit`;
const TOKEN = `
  SELECT k.id, k.user_id, u.name AS user, k.name, k.limits, k.created_at, k.expires_at, k.used_at
  FROM tokens k JOIN users u ON u.id = k.user_id`;
export const TOKEN_BY_SECRET = `${TOKEN} WHERE k.secret = :secret`;
export const TOKEN_BY_NAME = `${TOKEN} WHERE u.name = :user AND k.name = :name`;
export const TOKENS = `${TOKEN} WHERE k.id > :after AND (:user IS NULL OR u.name = :user) ORDER BY k.id LIMIT :limit`;
/** @throws RegistryError with status 404 */
export async function teamNamed(tx: Reader, name: string): Promise<{ id: number; name: string }> {
  const team = await tx.get<{ id: number; name: string }>("SELECT id, name FROM teams WHERE name = :name", { name });
  if (!team) throw missing(`there is no team ${name}`);
  return team;
}

/** @throws RegistryError with status 404 */
export async function existingRobot(tx: Reader, name: string): Promise<Robot> {
  const row = await tx.get<RobotRow>(ROBOT_BY_NAME, { name });
  if (!row) throw missing(`there is no robot ${name}`);
  return robotOf(row);
}

/** @throws RegistryError with status 404 */
export async function existingToken(tx: Reader, user: string, name: string): Promise<PersonalToken> {
  const row = await tx.get<TokenRow>(TOKEN_BY_NAME, { user, name });
  if (!row) throw missing(`${user} has no token ${name}`);
  return tokenOf(row);
}

export function robotOf(row: RobotRow): Robot {
  const { id, name, description, team_id, team, secret, limits, disabled, created_at, expires_at, used_at } = row;
  return {
    id,
    name,
    description,
    team: team_id === null || team === null ? undefined : { id: team_id, name: team },
    limits: parseLimits(limits),
    disabled: disabled === 1,
    createdAtMs: created_at,
    expiresAtMs: expires_at ?? undefined,
    usedAtMs: used_at ?? undefined,
    etag: hash("sha256", JSON.stringify([id, description, secret, limits, disabled, expires_at])).slice(0, 32),
  };
}

export function tokenOf({ id, user_id, user, name, limits, created_at, expires_at, used_at }: TokenRow): PersonalToken {
  return {
    id,
    user: { id: user_id, name: user },
    name,
    limits: parseLimits(limits),
    createdAtMs: created_at,
    expiresAtMs: expires_at ?? undefined,
    usedAtMs: used_at ?? undefined,
  };
}
