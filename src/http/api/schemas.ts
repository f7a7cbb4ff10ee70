/** What the API answers, and the parameters that several operations take. */
import { z } from "zod";
import { isDigest, type Digest } from "../../oci/digest.ts";
import { isRepositoryName, isTag, type RepositoryName, type Tag } from "../../oci/reference.ts";

const DIGEST_PATTERN = "^(?:sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$";

/** A parameter that is checked by the domain's own grammar. */
function checked<T extends string>(
  is: (text: string) => text is T,
  expected: string,
  meta: Record<string, unknown>,
): z.ZodType<T, string> {
  return z
    .string()
    .refine((text) => is(text), expected)
    .meta(meta);
}

export const repositoryName: z.ZodType<RepositoryName, string> = checked(isRepositoryName, "is not a repository name", {
  description: "The full name; in a path its slashes are written %2F.",
  maxLength: 255,
  examples: ["docker.io/library/alpine"],
});
export const tagName: z.ZodType<Tag, string> = checked(isTag, "is not a tag", {
  pattern: "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$",
  examples: ["3.20"],
});
export const digest: z.ZodType<Digest, string> = checked(isDigest, "is not a sha256 or sha512 digest", {
  pattern: DIGEST_PATTERN,
});

/** A time in an answer: see `isoTime`. */
export const time = z.iso.datetime().meta({ description: "ISO 8601, UTC." });
/** Bytes, or a count. */
export const amount = z.int().min(0);

export const problem = z
  .object({
    type: z.string().regex(/^\/problems\/[a-z-]+$/),
    title: z.string(),
    status: z.int().min(400).max(599),
    detail: z.string(),
    instance: z.string().describe("The request's id, as the log names it."),
    errors: z
      .array(z.object({ in: z.enum(["path", "query", "body", "header"]), at: z.string(), message: z.string() }))
      .optional()
      .describe("Each fault of the input."),
  })
  .meta({ id: "Problem", description: "What went wrong. Source: RFC 9457." });

export const flight = z
  .object({
    digest,
    sizeBytes: amount.optional().describe("Absent until upstream has told it."),
    receivedBytes: amount,
    readers: amount.describe("How many wait for it."),
  })
  .meta({ id: "Flight", description: "A download that is under way." });

export const warmEvent = z
  .discriminatedUnion("type", [
    z.object({ type: z.literal("image"), image: z.string(), repository: z.string() }),
    z.object({ type: z.literal("blob"), image: z.string(), digest, sizeBytes: amount, here: z.boolean() }),
    z.object({ type: z.literal("progress"), flights: z.array(flight) }),
    z.object({ type: z.literal("done"), image: z.string() }),
    z.object({ type: z.literal("failed"), image: z.string(), message: z.string() }),
  ])
  .meta({ id: "WarmEvent" });

/** How every job says that it did not come to its end. */
export const jobFailed = z.object({ type: z.literal("failed"), message: z.string() });

export const gcEvent = z
  .discriminatedUnion("type", [
    z.object({
      type: z.literal("progress"),
      phase: z.enum(["untagged", "manifests", "blobs", "links", "repositories"]),
      scanned: amount,
      total: amount.describe("An estimate."),
      removed: amount,
      bytes: amount,
    }),
    z.object({
      type: z.literal("garbage"),
      kind: z.enum(["manifest", "blob"]),
      digest,
      sizeBytes: amount,
      reason: z.string(),
    }),
    z.object({
      type: z.literal("done"),
      manifests: amount,
      blobs: amount,
      links: amount,
      repositories: amount,
      bytes: amount,
      ms: z.number(),
      dryRun: z.boolean(),
      clockGainedMs: z.number(),
    }),
    jobFailed,
  ])
  .meta({ id: "GcEvent" });

export const scrubEvent = z
  .discriminatedUnion("type", [
    z.object({
      type: z.literal("progress"),
      phase: z.enum(["blobs", "manifests", "tags", "files", "usage"]),
      scanned: amount,
      total: amount.describe("An estimate."),
      bytes: amount,
      findings: amount,
    }),
    z.object({
      type: z.literal("finding"),
      kind: z.enum(["missing", "damaged", "unreadable", "dangling", "miscounted"]),
      digest: digest.optional().describe("Absent of what is miscounted."),
      namespace: z.string().optional().describe("Whose quota was counted wrongly."),
      repositories: z.array(z.string()).describe("Those that reach it, or cannot. Of many, twenty."),
      manifests: z.array(digest).describe("Those that point to it. Of many, twenty."),
      repaired: z.boolean(),
      message: z.string(),
    }),
    z.object({
      type: z.literal("done"),
      blobs: amount,
      manifests: amount,
      tags: amount,
      bytes: amount,
      orphans: amount.describe("Files that no row knows."),
      findings: amount,
      repaired: amount,
      ms: z.number(),
    }),
    jobFailed,
  ])
  .meta({ id: "ScrubEvent" });
