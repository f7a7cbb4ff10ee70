import { z } from "zod";
import { BlobFault, type BlobStore } from "../../store/blobs.ts";
import type { Descriptor } from "../../oci/manifest.ts";
import type { manifest } from "./browse-schemas.ts";

type Image = NonNullable<z.input<typeof manifest>["image"]>;

const MOST_STEPS = 500;
const MOST_TEXT = 4096;

const text = z
  .string()
  .transform((given) => given.slice(0, MOST_TEXT))
  .optional()
  .catch(undefined);

/** What is read of a config; it is the client's own document, so what is wrong in it counts as absent. Source: OCI image-spec, "Image Configuration" */
const imageConfig = z.object({
  created: text,
  os: text,
  architecture: text,
  variant: text,
  history: z
    .array(
      z.object({
        created: text,
        created_by: text,
        comment: text,
        empty_layer: z.boolean().optional().catch(undefined),
      }),
    )
    .catch([]),
});

/** @returns undefined where the config's file can't be had, or is no config of an image */
export async function imageOf(blobs: BlobStore, { digest, sizeBytes }: Descriptor): Promise<Image | undefined> {
  const bytes = await read(blobs, digest, sizeBytes);
  const parsed = imageConfig.safeParse(bytes && parseJson(bytes));
  if (!parsed.success) return undefined;
  const { created, os, architecture, variant, history } = parsed.data;
  return {
    ...(created ? { createdAt: created } : {}),
    ...(os && architecture ? { platform: { os, architecture, ...(variant ? { variant } : {}) } } : {}),
    history: history.slice(-MOST_STEPS).map((step) => ({
      ...(step.created ? { createdAt: step.created } : {}),
      ...(step.created_by ? { createdBy: step.created_by } : {}),
      ...(step.comment ? { comment: step.comment } : {}),
      emptyLayer: step.empty_layer ?? false,
    })),
  };
}

async function read(blobs: BlobStore, digest: Descriptor["digest"], sizeBytes: number): Promise<Buffer | undefined> {
  let reader;
  try {
    reader = await blobs.open(digest, sizeBytes);
  } catch (error) {
    if (error instanceof BlobFault) return undefined;
    throw error;
  }
  try {
    const bytes = Buffer.alloc(sizeBytes);
    for (let at = 0; at < sizeBytes;) {
      const taken = await reader.read(bytes.subarray(at), at);
      if (taken === 0) return undefined;
      at += taken;
    }
    return bytes;
  } finally {
    reader.close();
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch {
    return undefined;
  }
}
