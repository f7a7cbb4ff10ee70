import { z } from "zod";
import type { Quotas } from "../../registry/quota.ts";
import type { Namespaces, NamespaceUsage } from "../../store/namespaces.ts";
import { operation, pageBody, pageOf, paging, readCursor, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { amount } from "./schemas.ts";

const namespace = z
  .object({
    name: z.string().describe("The first component of the names of its repositories."),
    bytes: amount.describe("What its hosted repositories hold, each content once."),
    quota: amount.optional().describe("Bytes that it may hold by hosted.quotas; absent where nothing limits it."),
    share: z.number().min(0).optional().describe("bytes / quota: above 1 where the quota was lowered since."),
    repositories: amount.describe("How many of them hold anything."),
  })
  .meta({ id: "Namespace", description: "A hosted namespace to which something was pushed." });

const name = z
  .string()
  .max(255)
  .regex(/^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/, "is not the first component of a repository's name");

/** How much is stored under the names of hosted repositories, and how much may be. */
export function namespaceOperations({ namespaces, quotas }: { namespaces: Namespaces; quotas: Quotas }): Operation[] {
  const answerOf = ({ namespace, bytes, repositories }: NamespaceUsage): object => {
    const quota = quotas.ofNamespace(namespace)?.maxBytes;
    return { name: namespace, bytes, ...(quota === undefined ? {} : { quota, share: bytes / quota }), repositories };
  };
  return [
    operation({
      id: "listNamespaces",
      method: "GET",
      path: "/namespaces",
      tag: "namespaces",
      summary: "Lists hosted namespaces with what they hold and may hold, in order of their names",
      query: paging,
      answers: { 200: { description: "A page of namespaces", schema: pageOf(namespace) } },
      handle: async ({ query: { limit, cursor } }) => {
        const found = await namespaces.list(readCursor(z.string(), cursor) ?? "", limit);
        return { status: 200, body: pageBody(found.map(answerOf), limit, () => found.at(-1)?.namespace) };
      },
    }),
    operation({
      id: "getNamespace",
      method: "GET",
      path: "/namespaces/{name}",
      tag: "namespaces",
      summary: "Tells what a hosted namespace holds and may hold",
      params: { name },
      answers: { 200: { description: "The namespace", schema: namespace } },
      problems: ["not-found"],
      handle: async ({ params }) => {
        const found = await namespaces.find(params.name);
        if (!found) throw new Problem("not-found", `nothing was ever pushed to a namespace ${params.name}`);
        return { status: 200, body: answerOf(found) };
      },
    }),
  ];
}
