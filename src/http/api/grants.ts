import { z } from "zod";
import type { Grant, Granting, Spaces } from "../../access/spaces.ts";
import type { Config } from "../../config/schema.ts";
import { ownedNamespace, namespaceName } from "./namespaces.ts";
import { isoTime, operation, pageBody, pageOf, paging, readCursor, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { time } from "./schemas.ts";
import { role, teamName } from "./teams.ts";

export interface GrantDeps {
  spaces: Spaces;
  /** Read whenever it is needed: it can be reloaded. */
  upstreams: () => Config["upstreams"];
}

const grant = z
  .object({
    team: z.string(),
    role: role.describe("What its members may there at most: who has a lower role in the team has that one."),
    grantedAt: time,
  })
  .meta({
    id: "Grant",
    description: "What a team may in a namespace of others, or that it may pull from an upstream.",
  });

const upstreamName = z.string().max(255);

/** What teams may beyond what is their own. Owners of a namespace look after its grants, administrators after those of upstreams. */
export function grantOperations({ spaces, upstreams }: GrantDeps): Operation[] {
  const list = async (granting: Granting, { limit, cursor }: { limit: number; cursor?: string | undefined }) => {
    const found = await spaces.grants(granting, readCursor(z.string(), cursor) ?? "", limit);
    return { status: 200, body: pageBody(found.map(answerOf), limit, () => found.at(-1)?.team) };
  };
  const upstream = (name: string): Granting => {
    if (!Object.hasOwn(upstreams(), name)) throw new Problem("not-found", `there is no upstream ${name}`);
    return { kind: "upstream", name };
  };
  return [
    operation({
      id: "listNamespaceGrants",
      method: "GET",
      path: "/namespaces/{namespace}/grants",
      tag: "namespaces",
      summary: "Lists the teams that a namespace is granted to, in order of their names",
      allows: "user",
      params: { namespace: namespaceName },
      query: paging,
      answers: { 200: { description: "A page of grants", schema: pageOf(grant) } },
      problems: ["not-found"],
      handle: ({ params: { namespace: name }, query, caller: { principal } }) => {
        ownedNamespace(spaces, principal, name);
        return list({ kind: "namespace", name }, query);
      },
    }),
    operation({
      id: "grantNamespace",
      method: "PUT",
      path: "/namespaces/{namespace}/grants/{team}",
      tag: "namespaces",
      summary: "Lets members of another team have their roles in a namespace, up to one",
      allows: "user",
      params: { namespace: namespaceName, team: teamName },
      body: z.strictObject({ role }),
      answers: { 204: { description: "It is granted" } },
      problems: ["not-found", "conflict"],
      handle: async ({ params: { namespace: name, team }, body, caller: { principal }, by }) => {
        ownedNamespace(spaces, principal, name);
        await spaces.grant({ kind: "namespace", name }, team, body.role, by);
        return { status: 204 };
      },
    }),
    operation({
      id: "revokeNamespace",
      method: "DELETE",
      path: "/namespaces/{namespace}/grants/{team}",
      tag: "namespaces",
      summary: "Takes back what a team was granted in a namespace",
      allows: "user",
      params: { namespace: namespaceName, team: teamName },
      answers: { 204: { description: "It is granted no more" } },
      problems: ["not-found"],
      handle: async ({ params: { namespace: name, team }, caller: { principal }, by }) => {
        ownedNamespace(spaces, principal, name);
        await spaces.revoke({ kind: "namespace", name }, team, by);
        return { status: 204 };
      },
    }),
    operation({
      id: "listUpstreamGrants",
      method: "GET",
      path: "/upstreams/{upstream}/grants",
      tag: "cache",
      summary: "Lists the teams that an upstream is granted to, in order of their names",
      params: { upstream: upstreamName },
      query: paging,
      answers: { 200: { description: "A page of grants", schema: pageOf(grant) } },
      problems: ["not-found"],
      handle: ({ params, query }) => list(upstream(params.upstream), query),
    }),
    operation({
      id: "grantUpstream",
      method: "PUT",
      path: "/upstreams/{upstream}/grants/{team}",
      tag: "cache",
      summary: "Lets members of a team pull from a private upstream",
      params: { upstream: upstreamName, team: teamName },
      answers: { 204: { description: "It is granted" } },
      problems: ["not-found"],
      handle: async ({ params, by }) => {
        // Whatever the role in the team: nothing but pulling can be granted.
        await spaces.grant(upstream(params.upstream), params.team, "viewer", by);
        return { status: 204 };
      },
    }),
    operation({
      id: "revokeUpstream",
      method: "DELETE",
      path: "/upstreams/{upstream}/grants/{team}",
      tag: "cache",
      summary: "Takes back that a team may pull from a private upstream",
      params: { upstream: upstreamName, team: teamName },
      answers: { 204: { description: "It is granted no more" } },
      problems: ["not-found"],
      handle: async ({ params, by }) => {
        await spaces.revoke(upstream(params.upstream), params.team, by);
        return { status: 204 };
      },
    }),
  ];
}

function answerOf({ grantedAtMs, ...found }: Grant): object {
  return { ...found, grantedAt: isoTime(grantedAtMs) };
}
