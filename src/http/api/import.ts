import { isAbsolute } from "node:path";
import { z } from "zod";
import type { ImportJob } from "../../moving/import-job.ts";
import { findSource, NoSource } from "../../moving/read-source.ts";
import { isRepositoryName, type RepositoryName } from "../../oci/reference.ts";
import { isOnThisMachine } from "../client-address.ts";
import { operation, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { amount, digest, jobFailed } from "./schemas.ts";

const importBody = z.strictObject({
  path: z
    .string()
    .max(4096)
    .refine((path) => isAbsolute(path) && !path.includes("\0"), "is not an absolute path")
    .describe("The data directory of a registry:2 or an OCI layout, on the daemon's machine."),
  into: z
    .string()
    .max(255)
    .refine((text): text is RepositoryName => isRepositoryName(text), "is no name of a repository")
    .optional()
    .describe("Put every repository below this name; of a layout that tells only tags: the repository itself."),
  overwrite: z.boolean().default(false).describe("Move tags that point elsewhere here."),
  deferVerification: z
    .boolean()
    .default(false)
    .describe("Look at the sizes of files only, and leave the rest to a scrub."),
  dryRun: z.boolean().default(false).describe("Only tell what would come over."),
});

const importEvent = z
  .discriminatedUnion("type", [
    z.object({
      type: z.literal("progress"),
      scanned: amount,
      total: amount.describe("An estimate."),
      bytes: amount,
      leftOut: amount,
    }),
    z.object({
      type: z.literal("leftOut"),
      kind: z.enum(["repository", "blob", "manifest", "tag", "other"]),
      name: z.string().describe("The repository, as the source calls it; of `other`, where in the source it is."),
      tag: z.string().optional(),
      digest: digest.optional(),
      reason: z.string(),
    }),
    z.object({ type: z.literal("unserved"), where: z.string(), reason: z.string() }),
    z.object({
      type: z.literal("done"),
      source: z.enum(["registry", "layout"]),
      blobs: amount,
      manifests: amount,
      tags: amount,
      bytes: amount,
      copied: amount.describe("Blobs that could not be linked to."),
      here: amount.describe("Contents and tags that were here already."),
      leftOut: amount,
      unserved: amount.describe("What the source itself did not serve: deleted, or never finished."),
      overQuota: z.array(z.string()).describe("Namespaces that hold more than their quota now."),
      verified: z.boolean(),
      dryRun: z.boolean(),
      ms: z.number(),
    }),
    jobFailed,
  ])
  .meta({ id: "ImportEvent" });

/** Taking over what lies on the daemon's disk. */
export function importOperations({ imports }: { imports: ImportJob }): Operation[] {
  return [
    operation({
      id: "import",
      method: "POST",
      path: "/import",
      tag: "upkeep",
      summary: "Takes over a registry:2 directory or an OCI layout on the daemon's machine, and tells what is left out",
      description: "Only for administrators on the daemon's machine: it reads the daemon's disk.",
      body: importBody,
      answers: { 200: { description: "What happens; the last event is `done` or `failed`", schema: importEvent } },
      problems: ["conflict"],
      streams: true,
      handle: async ({ body: { into, ...options }, by: { address } }) => {
        if (!isOnThisMachine(address)) {
          throw new Problem(
            "forbidden",
            `an import reads the daemon's disk: ask for it on that machine, not from ${address}`,
          );
        }
        // The asker's mistake, not a job that failed.
        await findSource(options.path).catch((cause: unknown) => {
          if (!(cause instanceof NoSource)) throw cause;
          throw new Problem("invalid-input", cause.message, {
            cause,
            errors: [{ in: "body", at: "path", message: "is nothing that can be taken over" }],
          });
        });
        return { status: 200, events: (tell, signal) => imports.start({ ...options, into }, tell, signal) };
      },
    }),
  ];
}
