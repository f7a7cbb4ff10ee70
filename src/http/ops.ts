import { Router } from "@koa/router";
import type Koa from "koa";
import type { Metrics } from "../base/metrics.ts";
import { isLoggedIn } from "../access/rights.ts";
import type { Config } from "../config/schema.ts";
import { RegistryError } from "../oci/errors.ts";
import type { Check } from "./check.ts";
import { stateOf } from "./exchange.ts";
import { originOf } from "./challenge.ts";
import { homePage } from "./home.ts";
import { CONTENT_SECURITY } from "./secure-headers.ts";

export interface OpsDeps {
  metrics: Metrics;
  /** Who may read the metrics; read whenever it is needed: it can be reloaded. */
  metricsFor: () => Config["access"]["metrics"];
  checks(): Promise<Check[]>;
  home: { publicUrl: string | undefined; upstreams: readonly string[]; version: string };
}

/** Health, metrics, and the page that says what this is. */
export function opsRoutes(deps: OpsDeps): Koa.Middleware {
  const router = new Router();
  const handler = (ctx: Koa.Context, name: string): void => stateOf(ctx).note({ handler: name });

  router.get("/livez", (ctx) => {
    handler(ctx, "health");
    ctx.body = { status: "alive" };
  });

  router.get("/readyz", async (ctx) => {
    handler(ctx, "health");
    const checks = await deps.checks();
    const ready = checks.every(({ ok, informative }) => ok || informative);
    ctx.status = ready ? 200 : 503;
    ctx.body = { status: ready ? "ready" : "not ready", checks };
  });

  router.get("/metrics", async (ctx) => {
    handler(ctx, "metrics");
    if (deps.metricsFor() === "login") {
      const { principal } = await stateOf(ctx).authenticate();
      if (!isLoggedIn(principal))
        throw new RegistryError("UNAUTHORIZED", "access.metrics is login: log in to read metrics");
    }
    const { contentType, body } = await deps.metrics.render();
    ctx.set("content-type", contentType);
    ctx.body = body;
  });

  router.get("/", (ctx) => {
    handler(ctx, "home");
    const origin = deps.home.publicUrl ?? originOf(ctx.req, "this-host:5000");
    const { type, body } = homePage(ctx.accepts("text", "html", "text/plain") === "html", { ...deps.home, origin });
    ctx.set("content-security-policy", `${CONTENT_SECURITY}; style-src 'unsafe-inline'`);
    ctx.type = type;
    ctx.body = body;
  });

  return router.routes() as Koa.Middleware;
}
