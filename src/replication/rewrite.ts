/**
 * Indexes without the platforms that a rule leaves out: made of the source's own bytes, so that the same source and platforms give the same
 * digest wherever and whenever they are made.
 */
import { algorithmOf, digestOf, type Digest } from "../oci/digest.ts";
import { parseManifest, type Descriptor } from "../oci/manifest.ts";
import type { ProvenManifest } from "./copy-manifests.ts";

/** What was once rewritten, so that an index which has not changed need not be read. What it says stays true for good. */
export interface RewriteMemory {
  rewritten(source: Digest, platforms: readonly string[]): Promise<Digest | undefined>;
  remember(source: Digest, platforms: readonly string[], rewritten: Digest): Promise<void>;
}

/**
 * An index that lists only some of what it did, in its order; all else in it stays as it is.
 * @param chosen of its own descriptors
 * @param nested chosen ones that were rewritten themselves, by the digest that it lists
 * @returns the index itself where nothing changes
 */
export function rewriteIndex(
  index: ProvenManifest,
  chosen: readonly Descriptor[],
  nested: ReadonlyMap<Digest, Pick<ProvenManifest, "digest" | "bytes">>,
): ProvenManifest {
  const listed = index.manifest.manifests;
  const kept = new Set(chosen);
  if (listed.every((one) => kept.has(one) && !nested.has(one.digest))) return index;
  const source = JSON.parse(index.bytes.toString()) as { manifests: Record<string, unknown>[] };
  const manifests = source.manifests.flatMap((entry, position) => {
    const descriptor = listed[position];
    if (!descriptor || !kept.has(descriptor)) return [];
    const made = nested.get(descriptor.digest);
    if (!made) return [entry];
    // Embedded content would be that of the manifest before.
    const { data: _, ...rest } = entry;
    return [{ ...rest, digest: made.digest, size: made.bytes.byteLength }];
  });
  const bytes = Buffer.from(JSON.stringify({ ...source, manifests }));
  return {
    digest: digestOf(bytes, algorithmOf(index.digest)),
    bytes,
    manifest: parseManifest(bytes, index.manifest.mediaType),
  };
}
