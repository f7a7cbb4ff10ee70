import { Router } from "@koa/router";
import type Koa from "koa";
import type { Caller } from "../access/principal.ts";
import { RegistryError } from "../oci/errors.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { Registry } from "../registry/registry.ts";
import { stateOf } from "./exchange.ts";

const DEFAULT_RESULTS = 25;
const MAX_RESULTS = 100;
const MAX_QUERY = 255;
/** podman, and what else is made of its libraries. */
const OF_PODMAN = /^(?:containers|libpod)\//;

export interface SearchDeps {
  registry: Registry;
  /** A page of the repositories that a caller sees, in order of their names. */
  visible: (caller: Caller, last: string, limit: number) => Promise<{ items: RepositoryName[]; more: boolean }>;
}

/**
 * What `docker search HOST/TERM` and `podman search` ask: the search of Docker's first registry API, which is all that they know.
 * Source: docker's registry client, `GET /v1/_ping` and `GET /v1/search?q=&n=`
 */
export function searchRoutes({ registry, visible }: SearchDeps): Koa.Middleware {
  const router = new Router({ prefix: "/v1" });
  const handler = (ctx: Koa.Context): void => stateOf(ctx).note({ handler: "search" });

  router.get("/_ping", (ctx) => {
    handler(ctx);
    ctx.set("x-docker-registry-standalone", "true");
    ctx.body = true;
    ctx.type = "application/json";
  });

  router.get("/search", async (ctx) => {
    handler(ctx);
    const query = String(ctx.query["q"] ?? "").slice(0, MAX_QUERY);
    const asked = Number(ctx.query["n"] ?? DEFAULT_RESULTS);
    const limit = Number.isSafeInteger(asked) && asked > 0 ? Math.min(asked, MAX_RESULTS) : DEFAULT_RESULTS;
    const caller = await stateOf(ctx).authenticate();
    const found = await registry.search(query, limit, (last, rows) => visible(caller, last, rows));
    // podman asks without its credentials, and is content with whatever is answered. Refused, it lists the catalog with those that it has.
    const isContent = found.length > 0 && !OF_PODMAN.test(ctx.get("user-agent"));
    if (caller.principal.kind === "anonymous" && !isContent) {
      throw new RegistryError("UNAUTHORIZED", "log in to search what is not public");
    }
    ctx.body = {
      num_pages: 1,
      num_results: found.length,
      page: 1,
      page_size: limit,
      query,
      results: found.map(({ name, description }) => ({
        name,
        description,
        star_count: 0,
        is_official: false,
        is_automated: false,
      })),
    };
  });

  return router.routes() as Koa.Middleware;
}
