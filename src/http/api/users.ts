import { createHash } from "node:crypto";
import { z } from "zod";
import type { Accounts, User } from "../../access/accounts.ts";
import { Brakes } from "../../access/brakes.ts";
import { hashNewPassword, type NewPasswordDeps } from "../../access/password-rules.ts";
import type { Principal } from "../../access/principal.ts";
import { isAdmin } from "../../access/rights.ts";
import type { Spaces } from "../../access/spaces.ts";
import type { Clock } from "../../base/clock.ts";
import type { Config } from "../../config/schema.ts";
import type { Names } from "../../registry/names.ts";
import { isoTime, operation, pageBody, pageOf, paging, readCursor, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { time } from "./schemas.ts";

export interface UserDeps extends NewPasswordDeps {
  accounts: Accounts;
  /** A user's own namespaces go with it. */
  spaces: Spaces;
  names: Names;
  /** Read whenever it is needed: it can be reloaded. */
  access: () => Pick<Config["access"], "passwordMinLength" | "signUp" | "brakes">;
  /** Whether another source of logins, as the htpasswd file, has the name. */
  isForeign: (name: string) => boolean;
  clock: Clock;
}

export const user = z
  .object({
    name: z.string(),
    admin: z.boolean(),
    disabled: z.boolean().describe("Whether it can't log in, by its personal tokens either."),
    hasPassword: z.boolean(),
    createdAt: time,
    passwordAt: time.optional().describe("When the password was set."),
    lastUsedAt: time.optional().describe("When it logged in last, as exact as a minute."),
  })
  .meta({ id: "User" });

export const loginName = z
  .string()
  .max(64)
  .regex(/^[a-z0-9]+(?:[._-][a-z0-9]+)*$/, "is no name to log in by: a-z and 0-9, with single . _ - between them");
/** The rules are told by whoever sets it; more is no password either. */
export const password = z.string().min(1).max(1024).meta({ format: "password", writeOnly: true });

const newUser = z.strictObject({ name: loginName, password, admin: z.boolean().default(false) });
const change = z.strictObject({
  admin: z.boolean().optional(),
  disabled: z.boolean().optional(),
  password: password.optional().describe("One's own is changed by /whoami/password."),
});

/** The users in the database. */
export function userOperations(deps: UserDeps): Operation[] {
  const { accounts, spaces, names, access, isForeign, clock } = deps;
  // A sign-up costs a hash and a row: what is a wrong password elsewhere is one of them here.
  const signUps = new Brakes(() => access().brakes);
  return [
    operation({
      id: "listUsers",
      method: "GET",
      path: "/users",
      tag: "users",
      summary: "Lists the users in the database, in order of their names",
      query: paging,
      answers: { 200: { description: "A page of users", schema: pageOf(user) } },
      handle: async ({ query: { limit, cursor } }) => {
        const users = await accounts.listUsers(readCursor(z.string(), cursor) ?? "", limit);
        return { status: 200, body: pageBody(users.map(userAnswer), limit, () => users.at(-1)?.name) };
      },
    }),
    operation({
      id: "getUser",
      method: "GET",
      path: "/users/{name}",
      tag: "users",
      summary: "Tells of a user",
      description: "Users may ask for themselves; administrators for everybody.",
      params: { name: loginName },
      allows: "user",
      etag: true,
      answers: { 200: { description: "The user", schema: user } },
      problems: ["not-found"],
      handle: async ({ params, caller: { principal } }) => {
        if (!isAdmin(principal) && !isSelf(principal, params.name))
          throw new Problem("forbidden", "only administrators may ask for other users");
        const found = await accounts.user(params.name);
        if (!found) throw new Problem("not-found", `there is no user ${params.name}`);
        return { status: 200, body: userAnswer(found), etag: etagOf(found) };
      },
    }),
    operation({
      id: "createUser",
      method: "POST",
      path: "/users",
      tag: "users",
      summary: "Adds a user",
      description: "The first of all is an administrator, whatever is asked for.",
      body: newUser,
      answers: { 201: { description: "The user", schema: user } },
      etag: true,
      problems: ["conflict"],
      handle: async ({ body: { name, password: text, admin }, by }) => {
        const passwordHash = await hashNewPassword(deps, name, text);
        return made(await accounts.addUser({ name, passwordHash, admin }, by));
      },
    }),
    operation({
      id: "changeUser",
      method: "PATCH",
      path: "/users/{name}",
      tag: "users",
      summary: "Changes what is given of a user",
      description:
        "The last administrator that is enabled can't be disabled, and stays one. Whose password was set anew logs in by it from then on.",
      params: { name: loginName },
      body: change,
      answers: { 200: { description: "The user as it is now", schema: user } },
      etag: true,
      matches: true,
      problems: ["not-found", "conflict"],
      handle: async ({ params: { name }, body, by, caller: { principal }, checkMatch }) => {
        const { admin, disabled, password: text } = body;
        if (text !== undefined && isSelf(principal, name))
          throw new Problem(
            "forbidden",
            "to change one's own password, send it and the present one to /whoami/password",
          );
        const passwordHash = text === undefined ? undefined : await hashNewPassword(deps, name, text);
        const changed = await accounts.changeUser(name, { admin, disabled, passwordHash }, by, (found) =>
          checkMatch(etagOf(found)),
        );
        return { status: 200, body: userAnswer(changed), etag: etagOf(changed) };
      },
    }),
    operation({
      id: "deleteUser",
      method: "DELETE",
      path: "/users/{name}",
      tag: "users",
      summary: "Removes a user, its personal tokens and its place in teams",
      description:
        "Its own namespace goes with it where it is empty; while that holds anything, and for the last administrator that is enabled, it is refused. What events say of the user stays.",
      params: { name: loginName },
      answers: { 204: { description: "The user is removed" } },
      matches: true,
      problems: ["not-found", "conflict"],
      handle: async ({ params: { name }, by, checkMatch }) => {
        let own: string[] = [];
        await accounts.removeUser(name, by, (found) => {
          checkMatch(etagOf(found));
          own = spaces.ownNamespaces(found.id);
        });
        for (const namespace of own) {
          await spaces.hosted(namespace);
          names.unhost(namespace);
        }
        return { status: 204 };
      },
    }),
    operation({
      id: "signUp",
      method: "POST",
      path: "/sign-up",
      tag: "users",
      summary: "Makes a user for whoever asks, where access.signUp is on",
      allows: "anyone",
      body: z.strictObject({ name: loginName, password }),
      answers: { 201: { description: "The user", schema: user } },
      problems: ["conflict"],
      etag: true,
      handle: async ({ body: { name, password: text }, by }) => {
        if (!access().signUp) throw new Problem("forbidden", "access.signUp is off: ask an administrator for a user");
        // The first user is the administrator: not whoever comes first.
        if (!accounts.hasUsers)
          throw new Problem("conflict", "nobody looks after this registry yet: sign up once it has its administrator");
        const verdict = signUps.wrongSecret(by.address, clock.now());
        if (verdict.kind === "spent") {
          const retryAfterSeconds = verdict.retryAfterMs / 1000;
          throw new Problem("too-many-requests", "this address has signed up often enough", { retryAfterSeconds });
        }
        if (isForeign(name)) throw new Problem("conflict", `the name ${name} is taken: take another one`);
        const passwordHash = await hashNewPassword(deps, name, text);
        return made(await accounts.addUser({ name, passwordHash, admin: false }, { ...by, actor: name }));
      },
    }),
  ];
}

function made(added: User): { status: 201; body: object; etag: string; location: string } {
  return { status: 201, body: userAnswer(added), etag: etagOf(added), location: `/api/v1/users/${added.name}` };
}

/** A user with all its rights: not one of its tokens. */
function isSelf(principal: Principal, name: string): boolean {
  return principal.kind === "user" && principal.name === name && principal.limits === undefined;
}

/** Of what can be changed: a login in between is no change. */
function etagOf({ id, admin, disabled, passwordAtMs }: User): string {
  const state = JSON.stringify([id, admin, disabled, passwordAtMs]);
  return createHash("sha256").update(state).digest("base64url").slice(0, 22);
}

export function userAnswer({ name, admin, disabled, hasPassword, createdAtMs, passwordAtMs, usedAtMs }: User): object {
  return {
    name,
    admin,
    disabled,
    hasPassword,
    createdAt: isoTime(createdAtMs),
    ...(passwordAtMs === undefined ? {} : { passwordAt: isoTime(passwordAtMs) }),
    ...(usedAtMs === undefined ? {} : { lastUsedAt: isoTime(usedAtMs) }),
  };
}
