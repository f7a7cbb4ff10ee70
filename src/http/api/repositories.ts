import { z } from "zod";
import { sightOf } from "../../access/sight.ts";
import type { Spaces } from "../../access/spaces.ts";
import type { Browse, RepositoryEntry, TagEntry } from "../../store/browse.ts";
import type { Purge } from "../../upkeep/purge.ts";
import type { Catalog } from "../../store/catalog.ts";
import type { RepositoryName, Tag } from "../../oci/reference.ts";
import type { HostedRepositories } from "../../registry/hosted.ts";
import type { Removal } from "../../registry/removal.ts";
import { purgeEvent, removalEvent, repository, repositoryDetails, tag } from "./browse-schemas.ts";
import {
  isoTime,
  operation,
  pageBody,
  pageOf,
  paging,
  readCursor,
  toldToTheEnd,
  writeCursor,
  type Operation,
} from "./operation.ts";
import { Problem } from "./problem.ts";
import { repositoryName, tagName } from "./schemas.ts";

export interface RepositoriesDeps {
  spaces: Spaces;
  browse: Browse;
  catalog: Catalog;
  hosted: HostedRepositories;
  removal: Removal;
  purge: Purge;
}

const namePart = z.string().max(255);

/** Repositories and their tags. */
export function repositoryOperations(deps: RepositoriesDeps): Operation[] {
  const { spaces, browse, catalog, hosted, removal, purge } = deps;
  const find = async (name: RepositoryName): Promise<{ upstream: string | undefined }> => {
    const found = await browse.find(name);
    if (!found)
      throw new Problem(
        "not-found",
        `there is no repository ${name}: its full name is needed, as the list of repositories has it`,
      );
    return found;
  };
  const findTag = async (name: RepositoryName, wanted: Tag): Promise<TagEntry> => {
    const found = await browse.tag(name, wanted);
    if (!found) throw new Problem("not-found", `there is no tag ${name}:${wanted}`);
    return found;
  };
  return [
    operation({
      id: "listRepositories",
      method: "GET",
      path: "/repositories",
      tag: "repositories",
      summary: "Lists repositories that hold anything and that the client may pull from, in order of their names",
      allows: "anyone",
      description: "With a filter that few fit, a page may hold fewer than `limit`, even none, while it has a `next`.",
      query: {
        ...paging,
        prefix: namePart.default("").describe("What the full name begins with: `docker.io/`, `team/`."),
        q: namePart.default("").describe("What the full name holds."),
        kind: z.enum(["hosted", "cached"]).optional(),
      },
      answers: { 200: { description: "A page of repositories", schema: pageOf(repository) } },
      handle: async ({ query: { limit, cursor, prefix, q, kind }, caller }) => {
        const last = readCursor(z.string(), cursor) ?? "";
        const filter = { prefix, text: q.toLowerCase(), kind };
        const { items, next } = await browse.repositories(filter, last, limit, sightOf(caller, spaces));
        const body = { items: items.map(repositoryAnswer) };
        return { status: 200, body: next === undefined ? body : { ...body, next: writeCursor(next) } };
      },
    }),
    operation({
      id: "getRepository",
      method: "GET",
      path: "/repositories/{repository}",
      tag: "repositories",
      summary: "Counts what a repository holds",
      allows: { repository: "pull" },
      params: { repository: repositoryName },
      answers: { 200: { description: "The repository", schema: repositoryDetails } },
      problems: ["not-found"],
      handle: async ({ params }) => {
        await find(params.repository);
        const found = await browse.repository(params.repository);
        if (!found) throw new Problem("not-found", `there is no repository ${params.repository}`);
        const { manifests, blobs, bytes } = found;
        return { status: 200, body: { ...repositoryAnswer(found), manifests, blobs, bytes } };
      },
    }),
    operation({
      id: "deleteRepository",
      method: "DELETE",
      path: "/repositories/{repository}",
      tag: "repositories",
      summary: "Removes a hosted repository with all its tags, or a cached one from the cache",
      description:
        "In small steps: pushes and pulls go on meanwhile, and what has gone is gone where the client leaves. A hosted repository with an immutable tag stays as it is. Garbage collection gives the room of a hosted one back.",
      allows: { repository: "delete" },
      params: { repository: repositoryName },
      answers: {
        200: {
          description: "What goes; the last event is `done` or `failed`",
          schema: z.union([removalEvent, purgeEvent]),
        },
      },
      problems: ["not-found", "conflict"],
      streams: true,
      handle: async ({ params, by }) => {
        const name = params.repository;
        if ((await find(name)).upstream === undefined) {
          await removal.check(name);
          return { status: 200, events: toldToTheEnd((tell, signal) => removal.run(name, by, tell, signal)) };
        }
        const target = { repository: name };
        return { status: 200, events: toldToTheEnd((tell, signal) => purge.run(target, tell, signal)) };
      },
    }),
    operation({
      id: "listTags",
      method: "GET",
      path: "/repositories/{repository}/tags",
      tag: "repositories",
      summary: "Lists the tags of a repository that are stored here, in order of their names",
      allows: { repository: "pull" },
      params: { repository: repositoryName },
      query: { ...paging, prefix: z.string().max(128).default("").describe("What the tag begins with.") },
      answers: { 200: { description: "A page of tags", schema: pageOf(tag) } },
      problems: ["not-found"],
      handle: async ({ params, query: { limit, cursor, prefix } }) => {
        const last = readCursor(z.string(), cursor) ?? "";
        await find(params.repository);
        const tags = await browse.tags(params.repository, prefix, last, limit);
        return { status: 200, body: pageBody(tags.map(tagAnswer), limit, () => tags.at(-1)?.name) };
      },
    }),
    operation({
      id: "getTag",
      method: "GET",
      path: "/repositories/{repository}/tags/{tag}",
      tag: "repositories",
      summary: "Tells what a tag points to",
      allows: { repository: "pull" },
      params: { repository: repositoryName, tag: tagName },
      answers: { 200: { description: "The tag", schema: tag } },
      problems: ["not-found"],
      etag: true,
      handle: async ({ params }) => {
        const found = await findTag(params.repository, params.tag);
        return { status: 200, body: tagAnswer(found), etag: found.digest };
      },
    }),
    operation({
      id: "deleteTag",
      method: "DELETE",
      path: "/repositories/{repository}/tags/{tag}",
      tag: "repositories",
      summary: "Removes a tag; what it points to stays until garbage collection finds it needed no more",
      description: "Of a cached repository the tag is forgotten: the next pull asks the upstream.",
      allows: { repository: "delete" },
      params: { repository: repositoryName, tag: tagName },
      answers: { 204: { description: "It is gone" } },
      problems: ["not-found", "conflict"],
      matches: true,
      handle: async ({ params, by, checkMatch, ifMatch }) => {
        const name = params.repository;
        const { upstream } = await find(name);
        checkMatch((await findTag(name, params.tag)).digest);
        if (upstream === undefined) {
          const condition = ifMatch === undefined ? {} : { ifMatch };
          await hosted.deletion.manifest({ kind: "hosted", repository: name }, params.tag, condition, by);
        } else await catalog.removeTag(name, params.tag);
        return { status: 204 };
      },
    }),
  ];
}

function repositoryAnswer({ name, upstream, createdAtMs, tags }: RepositoryEntry): z.input<typeof repository> {
  const at = { createdAt: isoTime(createdAtMs), tags };
  return upstream === undefined ? { name, kind: "hosted", ...at } : { name, kind: "cached", upstream, ...at };
}

function tagAnswer({ pushedAtMs, pulledAtMs, ...entry }: TagEntry): z.input<typeof tag> {
  return {
    ...entry,
    pushedAt: isoTime(pushedAtMs),
    ...(pulledAtMs === undefined ? {} : { pulledAt: isoTime(pulledAtMs) }),
  };
}
