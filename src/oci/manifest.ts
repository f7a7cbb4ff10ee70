import type { Digest } from "./digest.ts";
import { isDigest } from "./digest.ts";
import { RegistryError } from "./errors.ts";

export const MEDIA_TYPES = {
  ociImage: "application/vnd.oci.image.manifest.v1+json",
  ociIndex: "application/vnd.oci.image.index.v1+json",
  dockerImage: "application/vnd.docker.distribution.manifest.v2+json",
  dockerList: "application/vnd.docker.distribution.manifest.list.v2+json",
} as const;

/** What a pull asks an upstream for: every type that can be stored byte for byte. */
export const MANIFEST_ACCEPT: string = [
  MEDIA_TYPES.ociIndex,
  MEDIA_TYPES.dockerList,
  MEDIA_TYPES.ociImage,
  MEDIA_TYPES.dockerImage,
  "application/vnd.oci.artifact.manifest.v1+json",
].join(", ");

/** 4 MiB, the least that the distribution-spec wants accepted, and the most that is. */
export const MAX_MANIFEST_BYTES: number = 4 * 1024 * 1024;
const MAX_CHILDREN = 10_000;

export interface Platform {
  os: string;
  architecture: string;
  variant?: string;
}

/** A pointer from a manifest to content. Source: OCI image-spec, "Descriptors" */
export interface Descriptor {
  mediaType: string;
  digest: Digest;
  sizeBytes: number;
  platform?: Platform;
  artifactType?: string;
  annotations?: Record<string, string>;
  /** A foreign layer: fetched by clients from elsewhere, never by Entrepot. */
  foreign: boolean;
}

/** The parts of a manifest that decide what else is needed. The bytes themselves are never written anew. */
export interface Manifest {
  mediaType: string;
  /** An index points to manifests, an image (or artifact) to blobs. */
  kind: "index" | "image";
  config: Descriptor | undefined;
  /** Layers of an image, or the blobs of an artifact. */
  layers: Descriptor[];
  manifests: Descriptor[];
  subject: Descriptor | undefined;
  /** The manifest's own artifactType, else an image's config media type. Source: distribution-spec, "Listing Referrers" */
  artifactType: string | undefined;
  annotations: Record<string, string> | undefined;
}

const KNOWN_IMAGE: ReadonlySet<string> = new Set([
  MEDIA_TYPES.ociImage,
  MEDIA_TYPES.dockerImage,
  "application/vnd.oci.artifact.manifest.v1+json",
]);
const KNOWN_INDEX: ReadonlySet<string> = new Set([MEDIA_TYPES.ociIndex, MEDIA_TYPES.dockerList]);

const MANIFEST_TYPE = /^application\/[A-Za-z0-9.+_-]{1,127}$/;
const MEANINGFUL_KEYS: ReadonlySet<string> = new Set(["manifests", "layers", "config", "blobs", "subject"]);

/** Whether the type is one of a manifest or index that Entrepot understands. */
export function isManifestType(mediaType: string): boolean {
  return KNOWN_IMAGE.has(mediaType) || KNOWN_INDEX.has(mediaType);
}

export function isIndexType(mediaType: string): boolean {
  return KNOWN_INDEX.has(mediaType);
}

/** The media type without parameters, in lower case. Source: RFC 9110 §8.3.1 */
export function bareMediaType(contentType: string | undefined): string | undefined {
  const bare = contentType?.split(";", 1)[0]?.trim().toLowerCase();
  return bare === "" ? undefined : bare;
}

/**
 * Reads a manifest of any kind.
 * @param contentType as sent with the bytes; it has to agree with the body's own `mediaType`. A type that names no manifest
 * (`text/plain`, `application/json`: some upstreams) gives way to the body's.
 * @throws RegistryError MANIFEST_INVALID: no JSON object, schema 1, a type that does not fit its content (CVE-2021-41190), a broken descriptor
 */
export function parseManifest(bytes: Uint8Array, contentType: string | undefined): Manifest {
  if (bytes.byteLength > MAX_MANIFEST_BYTES) {
    throw new RegistryError("MANIFEST_INVALID", `the manifest is larger than ${MAX_MANIFEST_BYTES} bytes`, {
      status: 413,
    });
  }
  const body = parseObject(bytes);
  if (body["schemaVersion"] !== 2) {
    throw invalid(
      body["schemaVersion"] === 1
        ? "schema 1 manifests are not supported: push or pull the image with a current client"
        : "schemaVersion is not 2",
    );
  }
  const sent = bareMediaType(contentType);
  const own = body["mediaType"];
  if (own !== undefined && typeof own !== "string") throw invalid("mediaType is not a string");
  // It becomes the Content-Type of our answer: never one that a browser would run.
  if (own !== undefined && !MANIFEST_TYPE.test(own)) throw invalid("mediaType is not that of a manifest");
  const sentIsManifest = sent !== undefined && isManifestType(sent);
  if (own !== undefined && sentIsManifest && own !== sent) {
    throw invalid(`it says it is ${own.slice(0, 140)} but was sent as ${sent}`);
  }
  const hasManifests = body["manifests"] !== undefined;
  const hasContent = body["layers"] !== undefined || body["config"] !== undefined || body["blobs"] !== undefined;
  if (hasManifests && hasContent) throw invalid("it has both layers and manifests");
  const mediaType =
    own ?? (sentIsManifest ? sent : undefined) ?? (hasManifests ? MEDIA_TYPES.ociIndex : MEDIA_TYPES.ociImage);
  const kind = hasManifests ? "index" : "image";
  if (KNOWN_INDEX.has(mediaType) && kind !== "index") throw invalid(`a ${mediaType} has no list of manifests`);
  if (KNOWN_IMAGE.has(mediaType) && kind !== "image") throw invalid(`a ${mediaType} has a list of manifests`);

  const config = body["config"] === undefined ? undefined : readDescriptor(body["config"], "config");
  const artifactType = optionalString(body["artifactType"], "artifactType");
  return {
    mediaType,
    kind,
    config,
    layers: [...readDescriptors(body["layers"], "layers"), ...readDescriptors(body["blobs"], "blobs")],
    manifests: readDescriptors(body["manifests"], "manifests"),
    // null is what some artifact tools write for "no subject".
    subject:
      body["subject"] === undefined || body["subject"] === null
        ? undefined
        : readDescriptor(body["subject"], "subject"),
    artifactType: artifactType || (kind === "image" ? config?.mediaType : undefined),
    annotations: readAnnotations(body["annotations"]),
  };
}

/** The blobs that an image is made of, but for foreign layers: those are the clients' own affair. */
export function ownBlobs({ config, layers }: Manifest): Descriptor[] {
  return [...(config ? [config] : []), ...layers].filter(({ foreign }) => !foreign);
}

/** What a repository has to hold before the manifest, each once. */
export function requiredBy(manifest: Manifest): { blobs: Digest[]; manifests: Digest[] } {
  const unique = (descriptors: readonly Descriptor[]): Digest[] => [
    ...new Set(descriptors.map(({ digest }) => digest)),
  ];
  return { blobs: unique(ownBlobs(manifest)), manifests: unique(manifest.manifests) };
}

function invalid(reason: string, cause?: unknown): RegistryError {
  return new RegistryError("MANIFEST_INVALID", `the manifest is not valid: ${reason}`, { cause });
}

function parseObject(bytes: Uint8Array): Record<string, unknown> {
  let body: unknown;
  try {
    body = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw invalid("it is not JSON", cause);
  }
  if (!isObject(body)) throw invalid("it is not a JSON object");
  // Go's decoder, and so most clients, ignores the case of keys: `Manifests` would be a second meaning of the same bytes.
  for (const key of Object.keys(body)) {
    const lower = key.toLowerCase();
    if (lower !== key && MEANINGFUL_KEYS.has(lower)) throw invalid(`it has a key ${key.slice(0, 40)}, spelt otherwise`);
  }
  return body;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function optionalString(value: unknown, where: string): string | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "string") throw invalid(`${where} is not a string`);
  return value;
}

function readAnnotations(value: unknown): Record<string, string> | undefined {
  if (!isObject(value)) return undefined;
  return Object.fromEntries(
    Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
  );
}

function readDescriptors(value: unknown, where: string): Descriptor[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw invalid(`${where} is not a list`);
  if (value.length > MAX_CHILDREN) throw invalid(`${where} has ${value.length} entries, more than ${MAX_CHILDREN}`);
  return value.map((entry, index) => readDescriptor(entry, `${where}[${index}]`));
}

function readDescriptor(value: unknown, where: string): Descriptor {
  if (!isObject(value)) throw invalid(`${where} is not a descriptor`);
  const { digest, size, mediaType, platform, urls } = value;
  if (typeof digest !== "string" || !isDigest(digest))
    throw invalid(`${where}.digest is not a sha256 or sha512 digest`);
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0) throw invalid(`${where}.size is not a size`);
  if (mediaType !== undefined && typeof mediaType !== "string") throw invalid(`${where}.mediaType is not a string`);
  const artifactType = optionalString(value["artifactType"], `${where}.artifactType`);
  const annotations = readAnnotations(value["annotations"]);
  const readable = readPlatform(platform);
  return {
    mediaType: mediaType ?? "application/octet-stream",
    digest,
    sizeBytes: size,
    ...(readable ? { platform: readable } : {}),
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(annotations === undefined ? {} : { annotations }),
    foreign:
      (Array.isArray(urls) && urls.length > 0) ||
      (mediaType ?? "").includes("foreign") ||
      (mediaType ?? "").includes("nondistributable"),
  };
}

function readPlatform(value: unknown): Platform | undefined {
  if (!isObject(value) || typeof value["os"] !== "string" || typeof value["architecture"] !== "string")
    return undefined;
  const { os, architecture, variant } = value;
  return { os, architecture, ...(typeof variant === "string" && variant !== "" ? { variant } : {}) };
}
