import { z } from "zod";
import type { Warming } from "../../registry/warm.ts";
import type { Upkeep } from "../../upkeep/upkeep.ts";
import { operation, type Operation } from "./operation.ts";
import { gcEvent, scrubEvent, warmEvent } from "./schemas.ts";

const warmBody = z.strictObject({
  images: z.array(z.string().min(1).max(512)).min(1).max(1000).describe("As after `docker pull`."),
  platforms: z
    .array(z.string().regex(/^[a-z0-9]+\/[a-z0-9_]+(?:\/[a-z0-9.]+)?$/))
    .max(50)
    .default([])
    .describe("`os/architecture` or `os/architecture/variant`; none: all."),
});
const gcBody = z.strictObject({ dryRun: z.boolean().default(false).describe("Only tell what would go.") });
const scrubBody = z.strictObject({
  bandwidth: z.int().positive().optional().describe("Bytes a second; the configuration's where it is left out."),
});

/** The work that looks after what is stored, and tells its events while it goes on. */
export function upkeepOperations({ warming, upkeep }: { warming: Warming; upkeep: Upkeep }): Operation[] {
  return [
    operation({
      id: "warm",
      method: "POST",
      path: "/warm",
      tag: "upkeep",
      summary: "Brings images into the cache, and tells how far it is",
      body: warmBody,
      answers: { 200: { description: "What happens, until every image is done or failed", schema: warmEvent } },
      streams: true,
      handle: ({ body: { images, platforms } }) => ({
        status: 200,
        events: (tell, signal) => warming.run(images, platforms, tell, signal),
      }),
    }),
    operation({
      id: "gc",
      method: "POST",
      path: "/gc",
      tag: "upkeep",
      summary: "Collects garbage, and tells what goes",
      body: gcBody,
      answers: { 200: { description: "What happens; the last event is `done` or `failed`", schema: gcEvent } },
      problems: ["conflict"],
      streams: true,
      handle: ({ body: { dryRun } }) => ({
        status: 200,
        events: (tell, signal) => upkeep.gc.start({ dryRun }, tell, signal),
      }),
    }),
    operation({
      id: "scrub",
      method: "POST",
      path: "/scrub",
      tag: "upkeep",
      summary: "Reads all that is stored, and tells what is damaged and what was repaired",
      body: scrubBody,
      answers: { 200: { description: "What happens; the last event is `done` or `failed`", schema: scrubEvent } },
      problems: ["conflict"],
      streams: true,
      handle: ({ body: { bandwidth } }) => ({
        status: 200,
        events: (tell, signal) => upkeep.scrub.start({ bandwidth }, tell, signal),
      }),
    }),
  ];
}
