import { algorithmOf, digestOf, isDigest, type Digest } from "../oci/digest.ts";
import { isManifestType, MEDIA_TYPES, parseManifest, type Descriptor, type Manifest } from "../oci/manifest.ts";
import type { RemoteManifest } from "../remote/remote.ts";
import { wanted } from "../registry/warm.ts";
import { CopyError } from "./copy-error.ts";

/** What points to a manifest; of a bare digest neither size nor type are known. */
export interface Pointer {
  digest: Digest;
  sizeBytes?: number;
  mediaType?: string;
}

/** A manifest whose bytes are proven. They go on as they came. */
export interface ProvenManifest {
  digest: Digest;
  bytes: Buffer;
  manifest: Manifest;
}

/** An attestation of BuildKit stands in the index beside the image that it is about. */
const ATTESTED = "vnd.docker.reference.digest";
/** The tags under which an index of referrers is kept. Source: distribution-spec, "Referrers Tag Schema" */
const FALLBACK_TAG = /^(?:sha256|sha512)-[a-f0-9]{64}$/;

/**
 * Proves a manifest against what points to it.
 * @param where as a person names the repository
 * @throws CopyError wrong; RegistryError MANIFEST_INVALID
 */
export function proveManifest(
  where: string,
  { digest, sizeBytes, mediaType }: Pointer,
  got: RemoteManifest,
): ProvenManifest {
  const { bytes, contentType } = got;
  const name = `${where}@${digest}`;
  if (digestOf(bytes, algorithmOf(digest)) !== digest) {
    throw new CopyError("wrong", `${name} came with other bytes than its digest says`);
  }
  if (sizeBytes !== undefined && sizeBytes !== bytes.byteLength) {
    throw new CopyError("wrong", `${name} has ${bytes.byteLength} bytes, and ${sizeBytes} by its index`);
  }
  const manifest = parseManifest(bytes, contentType);
  if (mediaType !== undefined && isManifestType(mediaType) && mediaType !== manifest.mediaType) {
    throw new CopyError("wrong", `${name} is of type ${manifest.mediaType}, and ${mediaType} by its index`);
  }
  return { digest, bytes, manifest };
}

/**
 * The children of an index that are copied, with their attestations.
 * @param platforms `os/architecture[/variant]`; none: all
 * @throws CopyError platform where none is left
 */
export function chooseChildren(
  where: string,
  manifests: readonly Descriptor[],
  platforms: readonly string[],
): { chosen: Descriptor[]; left: Descriptor[] } {
  if (platforms.length === 0) return { chosen: [...manifests], left: [] };
  const matching = manifests.filter(({ platform }) => platform === undefined || wanted(platforms, platform));
  const digests = new Set<string>(matching.map(({ digest }) => digest));
  const isChosen = ({ digest, annotations }: Descriptor): boolean =>
    digests.has(digest) || digests.has(annotations?.[ATTESTED] ?? "");
  const chosen = manifests.filter(isChosen);
  if (chosen.length === 0) throw new CopyError("platform", `${where} has nothing for ${platforms.join(", ")}`);
  return { chosen, left: manifests.filter((one) => !isChosen(one)) };
}

/** The readable ones among descriptors as a registry lists them. */
export function readPointers(descriptors: readonly Record<string, unknown>[]): Pointer[] {
  return descriptors.flatMap(({ digest, size, mediaType }) => {
    if (typeof digest !== "string" || !isDigest(digest)) return [];
    return [
      {
        digest,
        ...(typeof size === "number" ? { sizeBytes: size } : {}),
        ...(typeof mediaType === "string" ? { mediaType } : {}),
      },
    ];
  });
}

/** Whether one PUT under a tag does for the manifest, too. A tag names a sha256, and a referrer is listed when its digest is put. */
export function isStoredByTag({ digest, manifest }: ProvenManifest): boolean {
  return algorithmOf(digest) === "sha256" && manifest.subject === undefined;
}

/** Whether the tag is kept by clients, for what refers to a digest: it is merged, never copied. */
export function isFallbackTag(tag: string): boolean {
  return FALLBACK_TAG.test(tag);
}

/**
 * Adds a referrer to the index under a fallback tag; what is there stays as it is.
 * @param present undefined: there is none
 * @returns undefined where it is listed already
 * @throws RegistryError MANIFEST_INVALID where what is there is no index
 */
export function addReferrer(
  present: Buffer | undefined,
  { digest, bytes, manifest }: ProvenManifest,
): { bytes: Buffer; mediaType: string } | undefined {
  const mediaType = MEDIA_TYPES.ociIndex;
  if (present) parseManifest(present, mediaType);
  const index = present ? (JSON.parse(present.toString()) as Record<string, unknown>) : { schemaVersion: 2, mediaType };
  const listed = Array.isArray(index["manifests"]) ? (index["manifests"] as Record<string, unknown>[]) : [];
  if (listed.some((one) => one["digest"] === digest)) return undefined;
  const { artifactType, annotations } = manifest;
  const descriptor = {
    mediaType: manifest.mediaType,
    digest,
    size: bytes.byteLength,
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(annotations === undefined ? {} : { annotations }),
  };
  return { bytes: Buffer.from(JSON.stringify({ ...index, manifests: [...listed, descriptor] })), mediaType };
}
