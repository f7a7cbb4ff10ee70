/** Namespaces as rows have them. */
import type { Reader } from "../db/database.ts";
import type { Role, Space, SpaceOwner, Visibility } from "./principal.ts";
import { missing } from "./refusals.ts";

export type NamespaceSpace = Extract<Space, { kind: "namespace" }>;

export interface NamespaceRow {
  name: string;
  visibility: Visibility;
  team_id: number | null;
  user_id: number | null;
}

/** Granted to no team. */
export const NOBODY: ReadonlyMap<number, Role> = new Map();
const GLOBAL: SpaceOwner = { kind: "global" };

/** As one is of which nothing was ever set. */
export function withoutRow(name: string): NamespaceSpace {
  return { kind: "namespace", name, visibility: "private", owner: GLOBAL, granted: NOBODY };
}

export function spaceOf(
  { name, visibility, team_id, user_id }: NamespaceRow,
  granted: ReadonlyMap<number, Role>,
): NamespaceSpace {
  const owner: SpaceOwner =
    team_id !== null
      ? { kind: "team", team: team_id }
      : user_id !== null
        ? { kind: "personal", user: user_id }
        : GLOBAL;
  return { kind: "namespace", name, visibility, owner, granted };
}

export function columnsOf(owner: SpaceOwner): { team: number | null; user: number | null } {
  return { team: owner.kind === "team" ? owner.team : null, user: owner.kind === "personal" ? owner.user : null };
}

/** For events. @throws RegistryError with status 404: it is gone meanwhile */
export async function ownerText(tx: Reader, owner: SpaceOwner): Promise<string> {
  if (owner.kind === "global") return "of nobody in particular";
  const row =
    owner.kind === "team"
      ? await tx.get<{ name: string }>("SELECT name FROM teams WHERE id = :id", { id: owner.team })
      : await tx.get<{ name: string }>("SELECT name FROM users WHERE id = :id", { id: owner.user });
  if (!row) throw missing(`the ${owner.kind === "team" ? "team" : "user"} is gone`);
  return `${owner.kind === "team" ? "of team" : "of user"} ${row.name}`;
}
