import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import { Router } from "@koa/router";
import type Koa from "koa";
import { z } from "zod";
import { RegistryError } from "../oci/errors.ts";
import type { Warming } from "../registry/warm.ts";
import type { Tell } from "../upkeep/job.ts";
import type { Upkeep } from "../upkeep/upkeep.ts";
import { readBody } from "./body.ts";
import type { ProgressRule } from "./send.ts";

const MAX_BODY_BYTES = 1024 * 1024;

const warmBody = z.strictObject({
  images: z.array(z.string().min(1).max(512)).min(1).max(1000),
  platforms: z
    .array(z.string().regex(/^[a-z0-9]+\/[a-z0-9_]+(?:\/[a-z0-9.]+)?$/))
    .max(50)
    .default([]),
});

const gcBody = z.strictObject({ dryRun: z.boolean().default(false) });
const scrubBody = z.strictObject({ bandwidth: z.int().positive().optional() });

export interface ApiDeps {
  warming: Warming;
  upkeep: Upkeep;
  progress: ProgressRule;
}

/** The JSON API under /api/v1. What takes long answers one JSON object a line while it works. */
export function apiRoutes({ warming, upkeep, progress }: ApiDeps): Koa.Middleware {
  const router = new Router({ prefix: "/api/v1" });

  router.post("/warm", async (ctx) => {
    const { images, platforms } = parseBody(warmBody, await readJson(ctx.req, progress));
    await tellEvents(ctx, (tell, signal) => warming.run(images, platforms, tell, signal));
  });

  router.post("/gc", async (ctx) => {
    const { dryRun } = parseBody(gcBody, await readJson(ctx.req, progress));
    await tellEvents(ctx, (tell, signal) => upkeep.gc.start({ dryRun }, tell, signal));
  });

  router.post("/scrub", async (ctx) => {
    const { bandwidth } = parseBody(scrubBody, await readJson(ctx.req, progress));
    await tellEvents(ctx, (tell, signal) => upkeep.scrub.start({ bandwidth }, tell, signal));
  });

  const routes = router.routes() as Koa.Middleware;
  return (ctx, next) => {
    if (ctx.path.startsWith("/api/")) (ctx.state["note"] as (facts: { handler: string }) => void)({ handler: "api" });
    return routes(ctx, next);
  };
}

/**
 * Answers with what the work tells, one JSON object a line.
 * @param work is told by the signal that the client has left; what it throws before its first event is answered as an error
 */
async function tellEvents<Event>(
  ctx: Koa.Context,
  work: (tell: Tell<Event>, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const { res } = ctx;
  const gone = new AbortController();
  res.once("close", () => gone.abort());
  const begin = (): void => {
    ctx.respond = false;
    res.writeHead(200, { "content-type": "application/x-ndjson" });
  };
  const working = work(async (event) => {
    if (res.destroyed) return;
    if (!res.headersSent) begin();
    if (!res.write(`${JSON.stringify(event)}\n`))
      await once(res, "drain", { signal: gone.signal }).catch(() => undefined);
  }, gone.signal);
  if (!res.headersSent) begin();
  await working;
  res.end();
}

function parseBody<T>(schema: z.ZodType<T>, body: unknown): T {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const faults = parsed.error.issues.map((issue) => `${issue.path.join(".") || "body"}: ${issue.message}`);
  throw new RegistryError("UNSUPPORTED", faults.join("; "), { status: 400 });
}

async function readJson(request: IncomingMessage, progress: ProgressRule): Promise<unknown> {
  // A page of another origin can send a form's types without asking; it can't send this one.
  if (!/^application\/json\b/.test(request.headers["content-type"] ?? "")) {
    throw new RegistryError("UNSUPPORTED", "send application/json", { status: 415 });
  }
  const bytes = await readBody(
    request,
    MAX_BODY_BYTES,
    progress,
    () => new RegistryError("SIZE_INVALID", `the body is larger than ${MAX_BODY_BYTES} bytes`, { status: 413 }),
  );
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw new RegistryError("UNSUPPORTED", "the body is not JSON", { status: 400, cause });
  }
}
