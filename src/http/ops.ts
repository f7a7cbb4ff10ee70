import { Router } from "@koa/router";
import type Koa from "koa";
import type { Metrics } from "../base/metrics.ts";
import { homePage } from "./home.ts";

/** One thing that has to be in order for the daemon to serve. */
export interface Check {
  name: string;
  ok: boolean;
  /** What is wrong and what helps; for what is in order, its state. */
  reason: string;
  /** A check that is not needed to serve (an upstream: the cache goes on without it). */
  informative?: boolean;
}

export interface OpsDeps {
  metrics: Metrics;
  checks(): Promise<Check[]>;
  home: { publicUrl: string | undefined; upstreams: readonly string[]; version: string };
}

const ADDRESS = /^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?$/;

/** Health, metrics, and the page that says what this is. */
export function opsRoutes(deps: OpsDeps): Koa.Middleware {
  const router = new Router();
  const handler = (ctx: Koa.Context, name: string): void =>
    (ctx.state["note"] as (facts: { handler: string }) => void)({ handler: name });

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
    const { contentType, body } = await deps.metrics.render();
    ctx.set("content-type", contentType);
    ctx.body = body;
  });

  router.get("/", (ctx) => {
    handler(ctx, "home");
    // Only what can be an address is repeated: the page is to be copied from.
    const host = ADDRESS.test(ctx.host) ? ctx.host : "this-host:5000";
    const origin = deps.home.publicUrl ?? `http://${host}`;
    const { type, body } = homePage(ctx.accepts("text", "html", "text/plain") === "html", { ...deps.home, origin });
    ctx.set("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'");
    ctx.set("x-content-type-options", "nosniff");
    ctx.type = type;
    ctx.body = body;
  });

  return router.routes() as Koa.Middleware;
}
