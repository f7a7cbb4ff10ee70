import { z } from "zod";
import type { Config } from "../../config/schema.ts";
import type { Upkeep } from "../../upkeep/upkeep.ts";
import { operation, pageBody, pageOf, paging, readCursor, type Operation } from "./operation.ts";
import { amount, digest, jobFailed } from "./schemas.ts";

const retentionBody = z.strictObject({
  dryRun: z.boolean().default(false).describe("Only tell what would go, and why."),
  removeAll: z.boolean().default(false).describe("Rules that keep none of their tags are applied, too."),
  repository: z.string().min(1).max(512).optional().describe("A glob: only these repositories."),
});

const retentionEvent = z
  .discriminatedUnion("type", [
    z.object({ type: z.literal("progress"), scanned: amount, total: amount, removed: amount }),
    z
      .object({ type: z.literal("refused"), rule: z.string(), message: z.string() })
      .describe("A rule would remove every tag that it is about: nothing of it goes."),
    z
      .object({
        type: z.literal("tags"),
        repository: z.string(),
        tags: z.array(z.object({ tag: z.string(), digest, stays: z.boolean(), reason: z.string() })),
      })
      .describe("What has gone; of a dry run what would, and what stays."),
    z.object({
      type: z.literal("done"),
      repositories: amount.describe("That a rule is about which was not refused."),
      kept: amount,
      removed: amount,
      changed: amount.describe("Were to go, and were moved, pushed or pulled meanwhile: they stay."),
      refused: amount.describe("Rules."),
      ms: z.number(),
      dryRun: z.boolean(),
      clockGainedMs: z.number(),
    }),
    jobFailed,
  ])
  .meta({ id: "RetentionEvent" });

const rule = z
  .object({
    repositories: z.array(z.string()).describe("Globs."),
    keep: z.object({
      tags: z.array(z.string()).describe("Globs."),
      semver: z.string().optional(),
      latestPushed: amount,
      latestPulled: amount,
      pushedWithin: amount.describe("Milliseconds; 0: not asked."),
      pulledWithin: amount.describe("Milliseconds; 0: not asked."),
    }),
    removeAll: z.boolean(),
  })
  .meta({ id: "RetentionRule", description: "Of several rules about a repository the first one counts." });

export interface RetentionOperationsDeps {
  upkeep: Upkeep;
  config: () => Config["retention"];
}

/** Which tags stay, and the removal of the others. */
export function retentionOperations({ upkeep, config }: RetentionOperationsDeps): Operation[] {
  return [
    operation({
      id: "retention",
      method: "POST",
      path: "/retention",
      tag: "upkeep",
      summary: "Removes tags that no retention rule keeps, and tells why",
      body: retentionBody,
      answers: { 200: { description: "What happens; the last event is `done` or `failed`", schema: retentionEvent } },
      problems: ["conflict"],
      streams: true,
      handle: ({ body }) => ({
        status: 200,
        events: (tell, signal) => upkeep.retention.start(body, tell, signal),
      }),
    }),
    operation({
      id: "listRetentionRules",
      method: "GET",
      path: "/retention/rules",
      tag: "upkeep",
      summary: "Lists the retention rules, in their order",
      query: paging,
      answers: { 200: { description: "A page of rules", schema: pageOf(rule) } },
      handle: ({ query: { limit, cursor } }) => {
        const first = readCursor(z.int().min(0), cursor) ?? 0;
        const items = config().rules.slice(first, first + limit);
        return { status: 200, body: pageBody(items, limit, () => first + limit) };
      },
    }),
  ];
}
