import { z } from "zod";
import type { Credentials, Robot } from "../../access/credentials.ts";
import { limitsSchema } from "../../access/limits.ts";
import type { Principal } from "../../access/principal.ts";
import { isAdmin, ownsTeam } from "../../access/rights.ts";
import type { Clock } from "../../base/clock.ts";
import { expires, expiryOf } from "./expiry.ts";
import { isoTime, operation, pageBody, pageOf, paging, readCursor, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { time } from "./schemas.ts";
import { loginName } from "./users.ts";

const robotFields = {
  name: z.string().describe("What it logs in as."),
  description: z.string(),
  team: z.string().optional().describe("Whose repositories it may touch at most; absent: it may touch all."),
  limits: limitsSchema,
  disabled: z.boolean(),
  createdAt: time,
  expiresAt: time.optional().describe("Absent: never."),
  lastUsedAt: time.optional().describe("As exact as five minutes. Absent: it never logged in."),
};

const robot = z
  .object(robotFields)
  .meta({ id: "Robot", description: "A program that logs in. The ETag changes with all of it but lastUsedAt." });

const robotWithSecret = z
  .object({ ...robotFields, secret: z.string().describe("What it logs in with, told this once.") })
  .meta({ id: "RobotWithSecret" });

const description = z.string().max(1000);

const newRobot = z.strictObject({
  name: loginName,
  team: loginName.optional().describe("A team that you own. Only administrators make robots without one."),
  description: description.default(""),
  limits: limitsSchema,
  expires,
});

const robotChange = z.strictObject({
  description: description.optional(),
  limits: limitsSchema.optional().describe("In place of those that it has."),
  expires: expires.optional(),
  disabled: z.boolean().optional(),
});

export interface RobotOperationsDeps {
  credentials: Credentials;
  clock: Clock;
  /** Whether somebody outside of the database logs in by that name. */
  isForeign: (name: string) => boolean;
}

/** Programs that log in: those of teams, looked after by the teams' owners, and those of the registry. */
export function robotOperations({ credentials, clock, isForeign }: RobotOperationsDeps): Operation[] {
  const expiryIn = (text: string | undefined): number | undefined =>
    text === undefined ? undefined : expiryOf(text, clock.now());
  return [
    operation({
      id: "listRobots",
      method: "GET",
      path: "/robots",
      tag: "robots",
      summary: "Lists the robots that you look after, in order of their names",
      allows: "user",
      query: { ...paging, team: loginName.optional().describe("Of this team alone.") },
      answers: { 200: { description: "A page of robots", schema: pageOf(robot) } },
      handle: async ({ query: { limit, cursor, team }, caller: { principal } }) => {
        const after = readCursor(z.string(), cursor) ?? "";
        const items = await credentials.listRobots(teamsOf(principal), { team, after, limit });
        return { status: 200, body: pageBody(items.map(answerOf), limit, () => items.at(-1)?.name) };
      },
    }),
    operation({
      id: "createRobot",
      method: "POST",
      path: "/robots",
      tag: "robots",
      summary: "Adds a robot, and tells its secret, this once",
      allows: "user",
      body: newRobot,
      answers: { 201: { description: "The robot, with its secret", schema: robotWithSecret } },
      etag: true,
      problems: ["not-found", "conflict"],
      handle: async ({ body: { expires: ends, team, ...rest }, caller, by }) => {
        // Else what the one does would look in the record as if the other had done it.
        if (isForeign(rest.name)) throw new Problem("conflict", `the name ${rest.name} is taken: take another one`);
        const added = { ...rest, team, expiresAtMs: expiryOf(ends, clock.now()) };
        const made = await credentials.addRobot(added, by, (of) => checkMayAdd(caller.principal, of));
        return { status: 201, ...secretAnswer(made), location: `/api/v1/robots/${made.robot.name}` };
      },
    }),
    operation({
      id: "getRobot",
      method: "GET",
      path: "/robots/{name}",
      tag: "robots",
      summary: "Tells what a robot may, until when, and when it logged in last",
      allows: "user",
      params: { name: loginName },
      answers: { 200: { description: "The robot", schema: robot } },
      etag: true,
      problems: ["not-found"],
      handle: async ({ params, caller }) => {
        const found = await credentials.robot(params.name);
        if (!found || !looksAfter(caller.principal, found.team)) throw noRobot(params.name);
        return { status: 200, body: answerOf(found), etag: found.etag };
      },
    }),
    operation({
      id: "changeRobot",
      method: "PATCH",
      path: "/robots/{name}",
      tag: "robots",
      summary: "Disables or enables a robot, or changes its limits, expiry or description",
      allows: "user",
      params: { name: loginName },
      body: robotChange,
      answers: { 200: { description: "The robot as it is now", schema: robot } },
      etag: true,
      matches: true,
      problems: ["not-found"],
      handle: async ({ params, body: { expires: ends, ...rest }, caller, by, checkMatch }) => {
        const change = { ...rest, expiresAtMs: expiryIn(ends) };
        const guard = guardOf(caller.principal, checkMatch);
        const changed = await credentials.updateRobot(params.name, change, by, guard);
        return { status: 200, body: answerOf(changed), etag: changed.etag };
      },
    }),
    operation({
      id: "rotateRobot",
      method: "POST",
      path: "/robots/{name}/rotate",
      tag: "robots",
      summary: "Gives a robot another secret, told this once; the one before ends at once",
      allows: "user",
      params: { name: loginName },
      body: z.strictObject({ expires: expires.optional().describe("Without it, that stays as it was.") }),
      answers: { 200: { description: "The robot, with its secret", schema: robotWithSecret } },
      etag: true,
      matches: true,
      problems: ["not-found", "conflict"],
      handle: async ({ params, body, caller, by, checkMatch }) => {
        const guard = guardOf(caller.principal, checkMatch);
        const made = await credentials.rotateRobot(params.name, expiryIn(body.expires), by, guard);
        return { status: 200, ...secretAnswer(made) };
      },
    }),
    operation({
      id: "deleteRobot",
      method: "DELETE",
      path: "/robots/{name}",
      tag: "robots",
      summary: "Removes a robot: its secret ends at once",
      allows: "user",
      params: { name: loginName },
      answers: { 204: { description: "It is gone" } },
      matches: true,
      problems: ["not-found"],
      handle: async ({ params, caller, by, checkMatch }) => {
        await credentials.removeRobot(params.name, by, guardOf(caller.principal, checkMatch));
        return { status: 204 };
      },
    }),
  ];
}

/** The teams whose robots somebody looks after. */
function teamsOf(principal: Principal): readonly number[] | "all" {
  if (isAdmin(principal)) return "all";
  if (principal.kind !== "user") return [];
  return [...principal.teams.keys()].filter((team) => ownsTeam(principal, team));
}

function looksAfter(principal: Principal, team: Robot["team"]): boolean {
  return team ? ownsTeam(principal, team.id) : isAdmin(principal);
}

function checkMayAdd(principal: Principal, team: Robot["team"]): void {
  if (looksAfter(principal, team)) return;
  if (!team) throw new Problem("forbidden", "only administrators make robots without a team: name a team that you own");
  // What others' teams are called is not for everybody.
  if (principal.kind !== "user" || !principal.teams.has(team.id))
    throw new Problem("not-found", `there is no team ${team.name}`);
  throw new Problem(
    "forbidden",
    `only owners of the team ${team.name} make robots for it, logged in with their password`,
  );
}

function guardOf(principal: Principal, checkMatch: (etag: string) => void): (robot: Robot) => void {
  return (there) => {
    if (!looksAfter(principal, there.team)) throw noRobot(there.name);
    checkMatch(there.etag);
  };
}

/** The same where there is one of others: as it is told by what finds none. */
function noRobot(called: string): Problem {
  return new Problem("not-found", `there is no robot ${called}`);
}

function answerOf({ name: called, description: text, team, limits, disabled, ...times }: Robot): object {
  const { createdAtMs, expiresAtMs, usedAtMs } = times;
  return {
    name: called,
    description: text,
    ...(team ? { team: team.name } : {}),
    limits,
    disabled,
    createdAt: isoTime(createdAtMs),
    ...(expiresAtMs === undefined ? {} : { expiresAt: isoTime(expiresAtMs) }),
    ...(usedAtMs === undefined ? {} : { lastUsedAt: isoTime(usedAtMs) }),
  };
}

function secretAnswer({ robot: made, secret }: { robot: Robot; secret: string }): { body: object; etag: string } {
  return { body: { ...answerOf(made), secret }, etag: made.etag };
}
