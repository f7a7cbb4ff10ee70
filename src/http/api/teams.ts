import { z } from "zod";
import type { Accounts } from "../../access/accounts.ts";
import { ROLES, type Principal } from "../../access/principal.ts";
import { isAdmin, ownsTeam } from "../../access/rights.ts";
import type { Team, TeamMember, Teams } from "../../access/teams.ts";
import type { Config } from "../../config/schema.ts";
import { isoTime, operation, pageBody, pageOf, paging, readCursor, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { amount, time } from "./schemas.ts";
import { loginName } from "./users.ts";

export interface TeamDeps {
  teams: Teams;
  accounts: Pick<Accounts, "findUser">;
  /** Read whenever it is needed: it can be reloaded. */
  create: () => Config["access"]["create"];
}

export const role = z
  .enum(ROLES)
  .describe("Viewers pull, contributors push, too, owners also delete and look after the team and its namespaces.");
export const description = z.string().max(500);
export const teamName = z
  .string()
  .max(64)
  .regex(/^[a-z0-9]+(?:[._-][a-z0-9]+)*$/, "is no name of a team: a-z and 0-9, with single . _ - between them");

const team = z
  .object({
    name: z.string(),
    description: z.string(),
    createdAt: time,
    members: amount,
    namespaces: amount.describe("How many are its own."),
    role: role.optional().describe("Of whoever asks."),
  })
  .meta({ id: "Team", description: "Users who work together." });

const member = z.object({ user: z.string(), role, addedAt: time }).meta({ id: "TeamMember" });

const newTeam = z.strictObject({
  name: teamName,
  description: description.default(""),
  owner: loginName
    .optional()
    .describe("The user who looks after it. Without it: whoever asks; where an administrator asks, nobody yet."),
});

/** Whether somebody is in a team. A personal token with limits is for repositories alone. */
function isIn(principal: Principal, teamId: number): boolean {
  return principal.kind === "user" && principal.limits === undefined && principal.teams.has(teamId);
}

/** A team that somebody sees: its own, or, for administrators, any. @throws Problem not-found, also where there is one */
export async function seenTeam(teams: Teams, principal: Principal, name: string): Promise<Team> {
  const found = await teams.find(name);
  if (!found || !(isAdmin(principal) || isIn(principal, found.id)))
    throw new Problem("not-found", `there is no team ${name}`);
  return found;
}

/** Teams and who is in them. */
export function teamOperations({ teams, accounts, create }: TeamDeps): Operation[] {
  const owned = async (principal: Principal, name: string): Promise<Team> => {
    const found = await seenTeam(teams, principal, name);
    if (!ownsTeam(principal, found.id)) throw new Problem("forbidden", `only owners of the team ${name} may do this`);
    return found;
  };
  return [
    operation({
      id: "listTeams",
      method: "GET",
      path: "/teams",
      tag: "teams",
      summary: "Lists the teams that one is in, or, for administrators, all, in order of their names",
      allows: "user",
      query: paging,
      answers: { 200: { description: "A page of teams", schema: pageOf(team) } },
      handle: async ({ query: { limit, cursor }, caller: { principal } }) => {
        const after = readCursor(z.string(), cursor) ?? "";
        const found = isAdmin(principal)
          ? await teams.list(after, limit)
          : principal.kind === "user" && principal.limits === undefined
            ? await teams.list(after, limit, principal.id)
            : [];
        const items = found.map((one) => answerOf(one, principal));
        return { status: 200, body: pageBody(items, limit, () => found.at(-1)?.name) };
      },
    }),
    operation({
      id: "createTeam",
      method: "POST",
      path: "/teams",
      tag: "teams",
      summary: "Makes a team",
      description: "access.create.teams says who may.",
      allows: "user",
      body: newTeam,
      answers: { 201: { description: "The team", schema: team } },
      problems: ["conflict", "not-found"],
      handle: async ({ body: { name, description: text, owner: wanted }, caller: { principal }, by }) => {
        let owner: number | undefined;
        if (isAdmin(principal)) {
          if (wanted !== undefined) owner = (await accounts.findUser(wanted))?.id;
          if (wanted !== undefined && owner === undefined)
            throw new Problem("not-found", `there is no user ${wanted} that could own the team`);
        } else {
          if (create().teams !== "users" || principal.kind !== "user" || principal.limits !== undefined)
            throw new Problem("forbidden", "only administrators may make teams (access.create.teams)");
          if (wanted !== undefined && wanted !== principal.name)
            throw new Problem("forbidden", "whoever makes a team is its owner: others can be made so afterwards");
          owner = principal.id;
        }
        const made = await teams.add({ name, description: text, owner }, by);
        const body = {
          ...answerOf(made, principal),
          ...(owner === undefined || isAdmin(principal) ? {} : { role: "owner" }),
        };
        return { status: 201, body, location: `/api/v1/teams/${name}` };
      },
    }),
    operation({
      id: "getTeam",
      method: "GET",
      path: "/teams/{team}",
      tag: "teams",
      summary: "Tells of a team",
      allows: "user",
      params: { team: teamName },
      answers: { 200: { description: "The team", schema: team } },
      problems: ["not-found"],
      handle: async ({ params, caller: { principal } }) => ({
        status: 200,
        body: answerOf(await seenTeam(teams, principal, params.team), principal),
      }),
    }),
    operation({
      id: "changeTeam",
      method: "PATCH",
      path: "/teams/{team}",
      tag: "teams",
      summary: "Describes a team anew",
      allows: "user",
      params: { team: teamName },
      body: z.strictObject({ description }),
      answers: { 200: { description: "The team as it is now", schema: team } },
      problems: ["not-found"],
      handle: async ({ params, body, caller: { principal }, by }) => {
        await owned(principal, params.team);
        await teams.describe(params.team, body.description, by);
        return { status: 200, body: answerOf(await seenTeam(teams, principal, params.team), principal) };
      },
    }),
    operation({
      id: "deleteTeam",
      method: "DELETE",
      path: "/teams/{team}",
      tag: "teams",
      summary: "Removes a team that has no namespaces, with its robots and what it was granted",
      description: "Its owners may where access.create.teams is users; administrators may.",
      allows: "user",
      params: { team: teamName },
      answers: { 204: { description: "It is gone" } },
      problems: ["not-found", "conflict"],
      handle: async ({ params, caller: { principal }, by }) => {
        await owned(principal, params.team);
        if (!isAdmin(principal) && create().teams !== "users")
          throw new Problem("forbidden", "only administrators may remove teams (access.create.teams)");
        await teams.remove(params.team, by);
        return { status: 204 };
      },
    }),
    operation({
      id: "listTeamMembers",
      method: "GET",
      path: "/teams/{team}/members",
      tag: "teams",
      summary: "Lists who is in a team, in order of their names",
      allows: "user",
      params: { team: teamName },
      query: paging,
      answers: { 200: { description: "A page of members", schema: pageOf(member) } },
      problems: ["not-found"],
      handle: async ({ params, query: { limit, cursor }, caller: { principal } }) => {
        const { id } = await seenTeam(teams, principal, params.team);
        const found = await teams.members(id, readCursor(z.string(), cursor) ?? "", limit);
        return { status: 200, body: pageBody(found.map(memberAnswer), limit, () => found.at(-1)?.user) };
      },
    }),
    operation({
      id: "setTeamMember",
      method: "PUT",
      path: "/teams/{team}/members/{user}",
      tag: "teams",
      summary: "Takes a user into a team, or changes its role there",
      allows: "user",
      params: { team: teamName, user: loginName },
      body: z.strictObject({ role }),
      answers: { 204: { description: "The user has that role" } },
      problems: ["not-found", "conflict"],
      handle: async ({ params, body, caller: { principal }, by }) => {
        await owned(principal, params.team);
        await teams.setMember(params.team, params.user, body.role, isAdmin(principal), by);
        return { status: 204 };
      },
    }),
    operation({
      id: "removeTeamMember",
      method: "DELETE",
      path: "/teams/{team}/members/{user}",
      tag: "teams",
      summary: "Takes a user out of a team",
      description: "Owners of the team may; everybody may leave.",
      allows: "user",
      params: { team: teamName, user: loginName },
      answers: { 204: { description: "The user is in the team no more" } },
      problems: ["not-found", "conflict"],
      handle: async ({ params, caller: { principal }, by }) => {
        const leaves = principal.kind === "user" && principal.name === params.user;
        await (leaves ? seenTeam(teams, principal, params.team) : owned(principal, params.team));
        await teams.removeMember(params.team, params.user, isAdmin(principal), by);
        return { status: 204 };
      },
    }),
  ];
}

function answerOf({ id, createdAtMs, ...found }: Team, principal: Principal): object {
  const own = isIn(principal, id) && principal.kind === "user" ? principal.teams.get(id) : undefined;
  return { ...found, createdAt: isoTime(createdAtMs), ...(own === undefined ? {} : { role: own }) };
}

function memberAnswer({ addedAtMs, ...found }: TeamMember): object {
  return { ...found, addedAt: isoTime(addedAtMs) };
}
