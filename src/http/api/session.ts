import { z } from "zod";
import type { Accounts } from "../../access/accounts.ts";
import { hashNewPassword, type NewPasswordDeps } from "../../access/password-rules.ts";
import { ROLES, VERBS, type Principal } from "../../access/principal.ts";
import { isAdmin } from "../../access/rights.ts";
import type { Setup } from "../../access/setup.ts";
import { operation, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { loginName, password, user, userAnswer } from "./users.ts";

export interface SessionDeps extends NewPasswordDeps {
  accounts: Accounts;
  passwords: NewPasswordDeps["passwords"] & {
    matches(password: string, hash: string | undefined): Promise<boolean>;
  };
  setup: Setup;
}

const whoami = z
  .object({
    kind: z
      .enum(["anonymous", "everybody", "operator", "file", "user", "robot"])
      .describe("everybody: access is open. operator: it reads the storage folder. file: a name of the htpasswd file."),
    name: z.string().optional(),
    admin: z.boolean().describe("Whether it may look after the registry as a whole."),
    role: z
      .enum([...ROLES, "admin"])
      .optional()
      .describe("Of a name of the htpasswd file."),
    teams: z
      .array(z.object({ name: z.string(), role: z.enum(ROLES) }))
      .optional()
      .describe("Of a user."),
    limits: z
      .array(z.object({ repositories: z.array(z.string()), verbs: z.array(z.enum(VERBS)) }))
      .optional()
      .describe("What the robot, or the personal token, is limited to: the union of these."),
  })
  .meta({ id: "Whoami", description: "Who asks." });

/** Who asks, its own password, and the way in where nobody has one yet. */
export function sessionOperations(deps: SessionDeps): Operation[] {
  const { accounts, passwords, setup } = deps;
  return [
    operation({
      id: "whoami",
      method: "GET",
      path: "/whoami",
      tag: "session",
      summary: "Tells who asks",
      allows: "anyone",
      answers: { 200: { description: "Who asks", schema: whoami } },
      handle: async ({ caller: { principal } }) => ({
        status: 200,
        body: {
          ...told(principal),
          ...(principal.kind === "user" ? { teams: await accounts.teamsOf(principal.id) } : {}),
        },
      }),
    }),
    operation({
      id: "changeOwnPassword",
      method: "POST",
      path: "/whoami/password",
      tag: "session",
      summary: "Changes the password of the user that asks",
      body: z.strictObject({ present: password.describe("The one that is to go."), password }),
      allows: "user",
      answers: { 204: { description: "From now on the new one is good, and no other" } },
      problems: ["conflict"],
      handle: async ({ body, by, caller: { principal } }) => {
        if (principal.kind !== "user")
          throw new Problem("forbidden", "only users in the database have a password that can be changed here");
        if (principal.limits)
          throw new Problem("forbidden", "log in with the password: a personal token can't change it");
        const { name } = principal;
        const found = await accounts.findUser(name);
        if (!(await passwords.matches(body.present, found?.passwordHash)))
          throw new Problem("forbidden", "that is not the present password");
        const passwordHash = await hashNewPassword(deps, name, body.password);
        await accounts.changeUser(name, { passwordHash }, by, ({ id }) => {
          if (id !== principal.id) throw new Problem("conflict", `the user ${name} has become another one meanwhile`);
        });
        return { status: 204 };
      },
    }),
    operation({
      id: "setUp",
      method: "POST",
      path: "/setup",
      tag: "session",
      summary: "Makes the first administrator, by the one-time link of the log",
      description: "Once it is used, five wrong tokens were tried, or anybody can log in, there is nothing here.",
      allows: "anyone",
      body: z.strictObject({ token: z.string().max(200), name: loginName, password }),
      answers: { 201: { description: "The administrator", schema: user } },
      problems: ["not-found", "conflict"],
      handle: async ({ body: { token, ...login }, by }) => ({
        status: 201,
        body: userAnswer(await setup.complete(token, login, by)),
      }),
    }),
  ];
}

function told(principal: Principal): object {
  const limits = "limits" in principal ? principal.limits : undefined;
  return {
    kind: principal.kind,
    admin: isAdmin(principal),
    ...("name" in principal ? { name: principal.name } : {}),
    ...(principal.kind === "file" ? { role: principal.role } : {}),
    ...(limits ? { limits } : {}),
  };
}
