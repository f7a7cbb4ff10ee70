import { z } from "zod";
import type { Bytes, Milliseconds } from "../../base/clock.ts";
import type { Upstream } from "../../registry/upstream.ts";
import type { Browse } from "../../store/browse.ts";
import type { Purge, PurgeTarget } from "../../upkeep/purge.ts";
import { cachedContent, purgeEvent } from "./browse-schemas.ts";
import {
  isoTime,
  operation,
  pageOf,
  paging,
  readCursor,
  toldToTheEnd,
  writeCursor,
  type Operation,
} from "./operation.ts";
import { Problem } from "./problem.ts";
import { amount, digest, repositoryName, time } from "./schemas.ts";

export interface CacheDeps {
  upstreams: ReadonlyMap<string, Upstream>;
  browse: Browse;
  purge: Purge;
  /** Bytes of cached content per upstream; also of those that are configured no more. */
  used: () => ReadonlyMap<string, Bytes>;
  maxBytes: () => Bytes;
  nowMs: () => Milliseconds;
}

const upstream = z
  .object({
    name: z.string(),
    default: z.boolean().describe("Whether names without an upstream mean it."),
    aliases: z.array(z.string()),
    allow: z.array(z.string()),
    deny: z.array(z.string()),
    cacheBytes: amount,
    up: z.boolean().describe("Whether some address of it is asked."),
    addresses: z
      .array(
        z.object({
          name: z.string(),
          up: z.boolean().describe("false: it failed repeatedly, and is left alone for a while."),
          pausedUntil: time.optional().describe("It has answered 429: until then some requests are not sent."),
          rateLimit: z
            .object({ limit: z.number(), remaining: z.number(), windowSeconds: z.number().optional(), toldAt: time })
            .optional()
            .describe("As it last told."),
        }),
      )
      .describe("Its own address first, then its fallbacks."),
  })
  .meta({ id: "Upstream" });

const cache = z
  .object({
    bytes: amount,
    maxBytes: amount,
    upstreams: z.array(z.object({ name: z.string(), bytes: amount, configured: z.boolean() })),
  })
  .meta({ id: "Cache" });

const purgeBody = z
  .union([
    z.strictObject({ repository: repositoryName.describe("The full name of a cached repository.") }),
    z.strictObject({ upstream: z.string().min(1).max(255) }),
    z.strictObject({ digest }),
  ])
  .describe("What is to go: one of the three.");

const contentCursor = z.tuple([z.enum(["leastUsed", "largest"]), z.int(), z.int()]);

/** Upstreams, and what is cached of them. */
export function cacheOperations({ upstreams, browse, purge, used, maxBytes, nowMs }: CacheDeps): Operation[] {
  return [
    operation({
      id: "listUpstreams",
      method: "GET",
      path: "/upstreams",
      tag: "cache",
      summary: "Lists the upstreams, and how each is",
      answers: { 200: { description: "All of them", schema: z.object({ items: z.array(upstream) }) } },
      handle: () => ({
        status: 200,
        body: { items: [...upstreams.values()].map((each) => upstreamAnswer(each, used(), nowMs())) },
      }),
    }),
    operation({
      id: "getCache",
      method: "GET",
      path: "/cache",
      tag: "cache",
      summary: "Tells how much is cached of each upstream",
      answers: { 200: { description: "The sums", schema: cache } },
      handle: () => {
        const sums = [...used()].map(([name, bytes]) => ({ name, bytes, configured: upstreams.has(name) }));
        const bytes = sums.reduce((sum, each) => sum + each.bytes, 0);
        return { status: 200, body: { bytes, maxBytes: maxBytes(), upstreams: sums } };
      },
    }),
    operation({
      id: "listCacheContents",
      method: "GET",
      path: "/cache/contents",
      tag: "cache",
      summary: "Lists cached blobs: those that go next, or the largest",
      description: "What was used in the last half minute may still have its former place.",
      query: { ...paging, order: z.enum(["leastUsed", "largest"]).default("leastUsed") },
      answers: { 200: { description: "A page of blobs", schema: pageOf(cachedContent) } },
      handle: async ({ query: { limit, cursor, order } }) => {
        const from = readCursor(contentCursor, cursor);
        if (from && from[0] !== order)
          throw new Problem("invalid-input", `cursor: belongs to order=${from[0]}, not to order=${order}`);
        const { items, last } = await browse.cached(order, from && { by: from[1], row: from[2] }, limit);
        const body = {
          items: items.map(({ cachedAtMs, usedAtMs, ...rest }) => ({
            ...rest,
            cachedAt: isoTime(cachedAtMs),
            usedAt: isoTime(usedAtMs),
          })),
        };
        const next = items.length < limit || !last ? {} : { next: writeCursor([order, last.by, last.row]) };
        return { status: 200, body: { ...body, ...next } };
      },
    }),
    operation({
      id: "purgeCache",
      method: "POST",
      path: "/cache/purge",
      tag: "cache",
      summary: "Takes a repository, a digest or all of an upstream out of the cache",
      description:
        "The next pull brings it again. What other repositories hold, too, stays for them, unless it was named by its digest. What was pushed is refused.",
      body: purgeBody,
      answers: { 200: { description: "What goes; the last event is `done` or `failed`", schema: purgeEvent } },
      problems: ["not-found", "conflict"],
      streams: true,
      handle: async ({ body }) => {
        const target: PurgeTarget = body;
        if ("upstream" in target && !upstreams.has(target.upstream) && !used().has(target.upstream))
          throw new Problem("not-found", `there is no upstream ${target.upstream}, and nothing cached of it`);
        await purge.check(target);
        return { status: 200, events: toldToTheEnd((tell, signal) => purge.run(target, tell, signal)) };
      },
    }),
  ];
}

function upstreamAnswer(
  { name, config, remotes }: Upstream,
  used: ReadonlyMap<string, Bytes>,
  nowMs: Milliseconds,
): z.input<typeof upstream> {
  return {
    name,
    default: config.default,
    aliases: [...config.aliases],
    allow: [...config.allow],
    deny: [...config.deny],
    cacheBytes: used.get(name) ?? 0,
    up: remotes.some(({ state }) => state.up),
    addresses: remotes.map(({ name: address, state: { up, pausedUntilMs, rateLimit } }) => ({
      name: address,
      up,
      ...(pausedUntilMs !== undefined && pausedUntilMs > nowMs ? { pausedUntil: isoTime(pausedUntilMs) } : {}),
      ...(rateLimit
        ? {
            rateLimit: {
              limit: rateLimit.limit,
              remaining: rateLimit.remaining,
              ...(rateLimit.windowSeconds === undefined ? {} : { windowSeconds: rateLimit.windowSeconds }),
              toldAt: isoTime(rateLimit.at),
            },
          }
        : {}),
    })),
  };
}
