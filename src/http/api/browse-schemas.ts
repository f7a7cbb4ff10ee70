/** What the API answers about repositories and their content. */
import { z } from "zod";
import { amount, digest, time } from "./schemas.ts";

export const repository = z
  .object({
    name: z.string(),
    kind: z.enum(["hosted", "cached"]),
    upstream: z.string().optional().describe("Where it is cached from."),
    createdAt: time,
    tags: amount.describe("Of a list: at most 100 are counted."),
  })
  .meta({ id: "Repository" });

export const repositoryDetails = repository
  .extend({ manifests: amount, blobs: amount, bytes: amount.describe("Of manifests and blobs, each once.") })
  .meta({ id: "RepositoryDetails" });

export const tag = z
  .object({
    name: z.string(),
    digest,
    mediaType: z.string(),
    sizeBytes: amount.describe("Of the manifest itself."),
    contentBytes: amount.describe("Of all that it points to, as far as it is known here."),
    pushedAt: time.describe("When it came to point there."),
    pulledAt: time.optional().describe("Absent where it was never pulled, or that is not noted."),
  })
  .meta({ id: "Tag" });

const platform = z.object({ os: z.string(), architecture: z.string(), variant: z.string().optional() });
const annotations = z.record(z.string(), z.string());

const content = z
  .object({
    digest,
    mediaType: z.string(),
    sizeBytes: amount,
    present: z.boolean().describe("Whether it is stored here."),
    annotations: annotations.optional(),
  })
  .meta({ id: "Content" });

const image = z
  .object({
    createdAt: z.string().optional().describe("As the image says."),
    platform: platform.optional(),
    history: z
      .array(
        z.object({
          createdAt: z.string().optional(),
          createdBy: z.string().optional(),
          comment: z.string().optional(),
          emptyLayer: z.boolean(),
        }),
      )
      .describe("Of a long history the last steps; texts are cut."),
  })
  .meta({ id: "Image", description: "What the config says, where it is stored here." });

export const manifest = z
  .object({
    digest,
    mediaType: z.string(),
    kind: z.enum(["image", "index"]),
    sizeBytes: amount,
    contentBytes: amount.describe("Of all that it points to, as far as it is known here."),
    upstream: z.string().optional().describe("Where it was cached from; absent where it was pushed."),
    linkedAt: time.describe("When the repository last got it."),
    tags: z.array(z.string()).describe("The first hundred that point to it."),
    artifactType: z.string().optional(),
    subject: digest.optional().describe("What it refers to."),
    annotations: annotations.optional(),
    config: content.optional(),
    layers: z.array(content),
    platforms: z
      .array(content.extend({ platform: platform.optional(), artifactType: z.string().optional() }))
      .describe("Of an index: what it points to."),
    image: image.optional(),
  })
  .meta({ id: "Manifest" });

export const referrer = z
  .object({
    digest,
    mediaType: z.string(),
    sizeBytes: amount,
    artifactType: z.string().optional(),
    annotations: annotations.optional(),
  })
  .meta({ id: "Referrer" });

const removalCounts = { tags: amount, manifests: amount, blobs: amount, bytes: amount };
export const removalEvent = z
  .discriminatedUnion("type", [
    z.object({ type: z.literal("progress"), ...removalCounts }),
    z.object({ type: z.literal("done"), ...removalCounts }),
    z.object({ type: z.literal("failed"), message: z.string() }),
  ])
  .meta({ id: "RemovalEvent" });

const purgeCounts = {
  repositories: amount,
  contents: amount,
  bytes: amount,
  inUse: amount.describe("What stays because it is being read or on its way."),
};
export const purgeEvent = z
  .discriminatedUnion("type", [
    z.object({ type: z.literal("progress"), ...purgeCounts }),
    z.object({ type: z.literal("done"), ...purgeCounts }),
    z.object({ type: z.literal("failed"), message: z.string() }),
  ])
  .meta({ id: "PurgeEvent" });

export const cachedContent = z
  .object({ digest, sizeBytes: amount, upstream: z.string(), cachedAt: time, usedAt: time })
  .meta({ id: "CachedContent" });
