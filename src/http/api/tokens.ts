import { z } from "zod";
import type { Credentials, PersonalToken } from "../../access/credentials.ts";
import { limitsSchema } from "../../access/limits.ts";
import type { Principal } from "../../access/principal.ts";
import { isAdmin } from "../../access/rights.ts";
import type { Clock } from "../../base/clock.ts";
import { expires, expiryOf } from "./expiry.ts";
import { isoTime, operation, pageBody, pageOf, paging, readCursor, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { time } from "./schemas.ts";
import { loginName } from "./users.ts";

const tokenFields = {
  user: z.string().describe("Who logs in with it."),
  name: z.string().describe("One of this name is the user's."),
  limits: limitsSchema.describe("What is left of the user's rights. Nobody administrates with a token."),
  createdAt: time,
  expiresAt: time.optional().describe("Absent: never."),
  lastUsedAt: time.optional().describe("As exact as five minutes. Absent: it was never used."),
};

const token = z
  .object(tokenFields)
  .meta({ id: "PersonalToken", description: "What a user logs in with in place of the password." });

const tokenWithSecret = z
  .object({ ...tokenFields, secret: z.string().describe("In place of the password, told this once.") })
  .meta({ id: "PersonalTokenWithSecret" });

const newToken = z.strictObject({
  name: loginName,
  user: loginName.optional().describe("Whose: for the command line, which is no user itself."),
  limits: limitsSchema.optional().describe("Without them: all that the user may do to repositories."),
  expires,
});

/** What users log in with in place of their password. */
export function tokenOperations({ credentials, clock }: { credentials: Credentials; clock: Clock }): Operation[] {
  return [
    operation({
      id: "listTokens",
      method: "GET",
      path: "/tokens",
      tag: "tokens",
      summary: "Lists personal tokens, oldest first",
      allows: "user",
      query: {
        ...paging,
        user: loginName.optional().describe("Of another user: for administrators. Without it: your own."),
      },
      answers: { 200: { description: "A page of tokens", schema: pageOf(token) } },
      handle: async ({ query: { limit, cursor, user }, caller: { principal } }) => {
        const whose = user ?? ownName(principal);
        if (!isAdmin(principal)) checkOwn(principal, whose);
        const items = await credentials.listTokens(whose, readCursor(z.int(), cursor) ?? 0, limit);
        return { status: 200, body: pageBody(items.map(answerOf), limit, () => items.at(-1)?.id) };
      },
    }),
    operation({
      id: "createToken",
      method: "POST",
      path: "/tokens",
      tag: "tokens",
      summary: "Adds a personal token, and tells its secret, this once",
      allows: "user",
      body: newToken,
      answers: { 201: { description: "The token, with its secret", schema: tokenWithSecret } },
      problems: ["not-found", "conflict"],
      handle: async ({ body: { user, expires: ends, ...rest }, caller: { principal }, by }) => {
        const whose = user ?? ownName(principal);
        // Not even administrators log in as somebody else; the operator can do everything anyway.
        if (principal.kind !== "operator" && principal.kind !== "everybody") checkOwn(principal, whose);
        if (whose === undefined) throw missingUser("body");
        const added = { ...rest, user: whose, limits: rest.limits, expiresAtMs: expiryOf(ends, clock.now()) };
        const made = await credentials.addToken(added, by);
        return { status: 201, body: { ...answerOf(made.token), secret: made.secret } };
      },
    }),
    operation({
      id: "deleteToken",
      method: "DELETE",
      path: "/tokens/{name}",
      tag: "tokens",
      summary: "Removes a personal token: its secret ends at once",
      allows: "user",
      params: { name: loginName },
      query: { user: loginName.optional().describe("Of another user: for administrators. Without it: your own.") },
      answers: { 204: { description: "It is gone" } },
      problems: ["not-found"],
      handle: async ({ params, query: { user }, caller: { principal }, by }) => {
        const whose = user ?? ownName(principal);
        if (!isAdmin(principal)) checkOwn(principal, whose);
        if (whose === undefined) throw missingUser("query");
        await credentials.removeToken(whose, params.name, by);
        return { status: 204 };
      },
    }),
  ];
}

function ownName(principal: Principal): string | undefined {
  return principal.kind === "user" ? principal.name : undefined;
}

/** @throws Problem forbidden but for the user itself, logged in with its password */
function checkOwn(principal: Principal, user: string | undefined): void {
  if (principal.kind !== "user")
    throw new Problem("forbidden", "only users in the database have personal tokens: robots have their own secret");
  if (principal.limits !== undefined)
    throw new Problem("forbidden", "with a personal token nobody looks after tokens: log in with the password");
  if (principal.name !== user)
    throw new Problem(
      "forbidden",
      "personal tokens are their user's own; administrators list and remove those of others",
    );
}

function missingUser(where: "body" | "query"): Problem {
  const message = "say whose: you are no user yourself";
  return new Problem("invalid-input", `user: ${message}`, { errors: [{ in: where, at: "user", message }] });
}

function answerOf({ user, name: called, limits, createdAtMs, expiresAtMs, usedAtMs }: PersonalToken): object {
  return {
    user: user.name,
    name: called,
    limits,
    createdAt: isoTime(createdAtMs),
    ...(expiresAtMs === undefined ? {} : { expiresAt: isoTime(expiresAtMs) }),
    ...(usedAtMs === undefined ? {} : { lastUsedAt: isoTime(usedAtMs) }),
  };
}
