import { z } from "zod";
import type { Accounts } from "../../access/accounts.ts";
import { VISIBILITIES, type Principal, type SpaceOwner } from "../../access/principal.ts";
import { isAdmin, maySee, ownsNamespace, ownsTeam } from "../../access/rights.ts";
import type { NamespaceSpace } from "../../access/space-rows.ts";
import type { NamespaceFacts, Spaces } from "../../access/spaces.ts";
import type { Teams } from "../../access/teams.ts";
import type { Config } from "../../config/schema.ts";
import { isComponent, isRepositoryName } from "../../oci/reference.ts";
import type { Names } from "../../registry/names.ts";
import type { Quotas } from "../../registry/quota.ts";
import type { Claims } from "../../store/hosted-catalog.ts";
import type { Namespaces, NamespaceUsage } from "../../store/namespaces.ts";
import { isoTime, operation, pageBody, pageOf, paging, readCursor, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { amount, time } from "./schemas.ts";
import { description, seenTeam } from "./teams.ts";

export interface NamespaceDeps {
  spaces: Spaces;
  teams: Teams;
  accounts: Pick<Accounts, "findUser">;
  names: Names;
  namespaces: Namespaces;
  quotas: Quotas;
  /** Read whenever it is needed: it can be reloaded. */
  create: () => Config["access"]["create"];
}

const visibility = z
  .enum(VISIBILITIES)
  .describe(
    "Who may pull beside those who have a role: nobody (private), whoever has logged in (protected), everybody (public).",
  );

const owner = z
  .discriminatedUnion("kind", [
    z.strictObject({ kind: z.literal("global") }),
    z.strictObject({ kind: z.literal("team"), name: z.string().max(64) }),
    z.strictObject({ kind: z.literal("personal"), name: z.string().max(64) }),
  ])
  .describe(
    "A team's: its members have their roles there. Personal: the user of that name may do everything. Global: administrators may.",
  );
type Owner = z.output<typeof owner>;

const namespace = z
  .object({
    name: z.string().describe("The first component of the names of its repositories."),
    owner,
    visibility,
    description: z.string(),
    createdAt: time.optional().describe("Absent where the configuration names it, and nothing was set yet."),
    bytes: amount.describe("What its hosted repositories hold, each content once."),
    quota: amount.optional().describe("Bytes that it may hold by hosted.quotas; absent where nothing limits it."),
    share: z.number().min(0).optional().describe("bytes / quota: above 1 where the quota was lowered since."),
    repositories: amount.describe("How many of them hold anything."),
  })
  .meta({ id: "Namespace", description: "A hosted namespace." });

export const namespaceName = z
  .string()
  .max(255)
  .regex(/^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/, "is not the first component of a repository's name");

/** A namespace that somebody sees. @throws Problem not-found, also where there is one */
function seenNamespace(spaces: Spaces, principal: Principal, name: string): NamespaceSpace {
  const space = spaces.namespace(name);
  if (spaces.has(name) && (maySee(principal, space) || ownsNamespace(principal, space))) return space;
  throw new Problem("not-found", `there is no namespace ${name}`);
}

/** A namespace that somebody looks after. @throws Problem not-found, forbidden */
export function ownedNamespace(spaces: Spaces, principal: Principal, name: string): NamespaceSpace {
  const space = seenNamespace(spaces, principal, name);
  if (ownsNamespace(principal, space)) return space;
  throw new Problem("forbidden", `only owners of the namespace ${name} may do this`);
}

/** Hosted namespaces: whose they are, who sees them, how much is stored under their names, and how much may be. */
export function namespaceOperations(deps: NamespaceDeps): Operation[] {
  const { spaces, names, namespaces, quotas } = deps;
  const answers = async (found: readonly string[]): Promise<object[]> => {
    const [facts, usage] = await Promise.all([spaces.facts(found), namespaces.usage(found)]);
    return found.map((name) => answerOf(spaces.namespace(name), facts.get(name), usage.get(name), quotas));
  };
  const answer = async (name: string): Promise<object> => (await answers([name]))[0] as object;
  return [
    operation({
      id: "listNamespaces",
      method: "GET",
      path: "/namespaces",
      tag: "namespaces",
      summary: "Lists the hosted namespaces that one sees, with what they hold and may hold, in order of their names",
      allows: "user",
      query: paging,
      answers: { 200: { description: "A page of namespaces", schema: pageOf(namespace) } },
      handle: async ({ query: { limit, cursor }, caller: { principal } }) => {
        const found = spaces.visibleNamespaces(principal, readCursor(z.string(), cursor) ?? "", limit);
        return { status: 200, body: pageBody(await answers(found), limit, () => found.at(-1)) };
      },
    }),
    operation({
      id: "getNamespace",
      method: "GET",
      path: "/namespaces/{namespace}",
      tag: "namespaces",
      summary: "Tells whose a hosted namespace is, who sees it, what it holds and may hold",
      allows: "user",
      params: { namespace: namespaceName },
      answers: { 200: { description: "The namespace", schema: namespace } },
      problems: ["not-found"],
      handle: async ({ params, caller: { principal } }) => {
        seenNamespace(spaces, principal, params.namespace);
        return { status: 200, body: await answer(params.namespace) };
      },
    }),
    operation({
      id: "createNamespace",
      method: "POST",
      path: "/namespaces",
      tag: "namespaces",
      summary: "Makes a hosted namespace",
      description:
        "Administrators may; owners of a team for their team (access.create.namespaces); users the one of their own name (access.create.personal). Names of upstreams, names with a dot, library, and what the mirror holds repositories of the default upstream under can't be hosted.",
      allows: "user",
      body: z.strictObject({
        name: namespaceName,
        owner: owner.default({ kind: "global" }),
        visibility: visibility.default("private"),
        description: description.default(""),
      }),
      answers: { 201: { description: "The namespace", schema: namespace } },
      problems: ["conflict", "not-found"],
      handle: async ({ body: { name, owner: wanted, ...given }, caller: { principal }, by }) => {
        await checkMaker(deps, principal, name, wanted);
        const claims = claimsOf(names, name);
        await spaces.addNamespace(claims, { ...given, owner: await ownerOf(deps, principal, wanted) }, by);
        names.host(name);
        return { status: 201, body: await answer(name), location: `/api/v1/namespaces/${name}` };
      },
    }),
    operation({
      id: "changeNamespace",
      method: "PATCH",
      path: "/namespaces/{namespace}",
      tag: "namespaces",
      summary: "Changes who sees a namespace, how it is described, or whose it is",
      description: "Its owners may; they give it away only to a team that they own, too.",
      allows: "user",
      params: { namespace: namespaceName },
      body: z.strictObject({
        visibility: visibility.optional(),
        description: description.optional(),
        owner: owner.optional(),
      }),
      answers: { 200: { description: "The namespace as it is now", schema: namespace } },
      problems: ["not-found"],
      handle: async ({ params, body: { owner: wanted, ...given }, caller: { principal }, by }) => {
        ownedNamespace(spaces, principal, params.namespace);
        const change = wanted && (await ownerOf(deps, principal, wanted));
        if (change && !isAdmin(principal) && !(change.kind === "team" && ownsTeam(principal, change.team)))
          throw new Problem("forbidden", "only administrators give a namespace to others than teams of their own");
        await spaces.setNamespace(params.namespace, { ...given, owner: change }, by);
        return { status: 200, body: await answer(params.namespace) };
      },
    }),
    operation({
      id: "deleteNamespace",
      method: "DELETE",
      path: "/namespaces/{namespace}",
      tag: "namespaces",
      summary: "Removes a namespace that holds nothing",
      allows: "user",
      params: { namespace: namespaceName },
      answers: { 204: { description: "It is gone" } },
      problems: ["not-found", "conflict"],
      handle: async ({ params, caller: { principal }, by }) => {
        ownedNamespace(spaces, principal, params.namespace);
        await spaces.removeNamespace(params.namespace, by);
        names.unhost(params.namespace);
        return { status: 204 };
      },
    }),
  ];
}

/** @throws Problem forbidden, conflict, not-found */
async function checkMaker(
  { accounts, teams, create }: NamespaceDeps,
  principal: Principal,
  name: string,
  wanted: Owner,
): Promise<void> {
  if (isAdmin(principal)) return;
  if (wanted.kind === "personal") {
    const isOwn = principal.kind === "user" && principal.limits === undefined && principal.name === wanted.name;
    if (create().personal && isOwn && name === wanted.name) return;
    throw new Problem("forbidden", "only administrators make personal namespaces other than that of one's own name");
  }
  if (wanted.kind === "global") throw new Problem("forbidden", "only administrators may make global namespaces");
  const { id } = await seenTeam(teams, principal, wanted.name);
  if (create().namespaces !== "owners" || !ownsTeam(principal, id))
    throw new Problem(
      "forbidden",
      `only ${create().namespaces === "owners" ? "its owners and " : ""}administrators may make namespaces of the team ${wanted.name}`,
    );
  // Else a team could take the namespace that a user's first push would make.
  if (await accounts.findUser(name))
    throw new Problem("conflict", `${name} is a user's name: only administrators make a namespace of a team under it`);
}

/** @throws Problem not-found */
async function ownerOf({ accounts, teams }: NamespaceDeps, principal: Principal, wanted: Owner): Promise<SpaceOwner> {
  if (wanted.kind === "global") return { kind: "global" };
  if (wanted.kind === "team") return { kind: "team", team: (await seenTeam(teams, principal, wanted.name)).id };
  const found = await accounts.findUser(wanted.name);
  if (!found) throw new Problem("not-found", `there is no user ${wanted.name}`);
  return { kind: "personal", user: found.id };
}

/** As a push would make it. @throws Problem conflict where a push would lead elsewhere; RegistryError as `Names.locate` */
function claimsOf(names: Names, name: string): Claims {
  if (isComponent(name) && isRepositoryName(name)) {
    const located = names.locateForPush(name, undefined);
    if (located.kind === "hosted") return located.claims ?? { namespace: name, rivals: undefined };
  }
  throw new Problem(
    "conflict",
    `${name} can't be a hosted namespace: library, names with a dot and the names of upstreams lead to upstreams. Take another one`,
  );
}

function answerOf(
  { name, owner: { kind }, visibility: seenBy }: NamespaceSpace,
  facts: NamespaceFacts | undefined,
  usage: NamespaceUsage | undefined,
  quotas: Quotas,
): object {
  const { bytes, repositories } = usage ?? { bytes: 0, repositories: 0 };
  const quota = quotas.ofNamespace(name)?.maxBytes;
  return {
    name,
    owner: facts?.owner === undefined ? { kind: "global" } : { kind, name: facts.owner },
    visibility: seenBy,
    description: facts?.description ?? "",
    ...(facts ? { createdAt: isoTime(facts.createdAtMs) } : {}),
    bytes,
    ...(quota === undefined ? {} : { quota, share: bytes / quota }),
    repositories,
  };
}
