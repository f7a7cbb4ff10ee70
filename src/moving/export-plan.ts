import { hexOf, algorithmOf, type Digest } from "../oci/digest.ts";
import {
  MEDIA_TYPES,
  ownBlobs,
  parseManifest,
  type Descriptor,
  type Manifest,
  type Platform,
} from "../oci/manifest.ts";
import { isTag, type ImageReference, type Reference } from "../oci/reference.ts";
import { Refused, type FetchedManifest, type RegistryClient } from "./registry-client.ts";

/** An image of an archive, as its index names it. */
export interface PlannedImage {
  /** `team/app:1`, `docker.io/library/alpine:3.20`, `team/app@sha256:…`. */
  name: string;
  digest: Digest;
}

/** All that an archive will hold, in the order in which it will. */
export interface ExportPlan {
  images: PlannedImage[];
  /** Bytes of `index.json`. */
  index: Buffer;
  manifests: { digest: Digest; bytes: Buffer }[];
  blobs: PlannedBlob[];
  /** What the archive lacks, and why. */
  notes: string[];
}

/** Which platforms of an index are wanted. */
export interface WantedPlatforms {
  /** As they were named; none: all. */
  platforms: readonly string[];
  isWanted: (platform: Platform) => boolean;
}

export interface PlannedBlob {
  digest: Digest;
  sizeBytes: number;
  /** One that reaches it. */
  repository: string;
}

/** Annotations by which tools find an image in a layout. Source: OCI image-spec, "Pre-Defined Annotation Keys"; containerd's importer */
export const REF_NAME = "org.opencontainers.image.ref.name";
export const IMAGE_NAME = "io.containerd.image.name";
/** An attestation of BuildKit stands in the index beside the image that it is about. */
const ATTESTED = "vnd.docker.reference.digest";

interface Root {
  mediaType: string;
  digest: Digest;
  size: number;
  artifactType?: string;
  annotations?: Record<string, string>;
}

/**
 * Finds out what images are made of: every platform, what refers to them by subject, and tags that are named by their digests (the
 * fallback of the referrers API, signatures of cosign), of these too.
 * @param wanted others are left out, so the copy of an index is sparse: the plan's notes say so
 * @throws Error: an image is not there, has nothing for the platforms; as {@link RegistryClient}
 */
export async function planExport(
  client: RegistryClient,
  images: readonly ImageReference[],
  wanted: WantedPlatforms,
  signal: AbortSignal,
): Promise<ExportPlan> {
  const walk = new Walk(client, wanted, signal);
  for (const image of images) await walk.image(image);
  return walk.plan();
}

class Walk {
  readonly #client: RegistryClient;
  readonly #wanted: WantedPlatforms;
  readonly #signal: AbortSignal;
  readonly #manifests = new Map<Digest, { digest: Digest; bytes: Buffer }>();
  readonly #blobs = new Map<Digest, PlannedBlob>();
  readonly #images = new Map<string, PlannedImage>();
  readonly #roots = new Map<string, Root>();
  /** What has been walked, per repository: each has its own signatures. */
  readonly #walked = new Set<string>();
  readonly #notes = new Set<string>();

  constructor(client: RegistryClient, wanted: WantedPlatforms, signal: AbortSignal) {
    this.#client = client;
    this.#wanted = wanted;
    this.#signal = signal;
  }

  async image({ host, repository, reference }: ImageReference): Promise<void> {
    const asked = host === undefined ? repository : `${host}/${repository}`;
    const found = await this.#client.manifest(asked, reference, this.#signal).catch((error: unknown) => {
      if (!(error instanceof Refused)) throw error;
      throw new Refused(error.status, `${nameOf(asked, reference)} can't be exported: ${error.message}`);
    });
    const named = this.#name(found, reference);
    this.#images.set(named, { name: named, digest: found.digest });
    await this.#manifest(asked, found, true);
  }

  plan(): ExportPlan {
    const roots = [...this.#roots.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, root]) => root);
    return {
      images: [...this.#images.values()],
      index: Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: roots })),
      manifests: [...this.#manifests.values()],
      // Small ones first: who reads the archive in one go knows the images before their layers come.
      blobs: [...this.#blobs.values()].sort((a, b) => a.sizeBytes - b.sizeBytes || (a.digest < b.digest ? -1 : 1)),
      notes: [...this.#notes],
    };
  }

  /** Lists a manifest under its name. @returns the name */
  #name(found: FetchedManifest, reference: Reference): string {
    const name = nameOf(found.repository, reference);
    // Named ones in front of the others, by their names.
    this.#roots.set(`0 ${name}`, {
      ...descriptorOf(found),
      annotations: { [IMAGE_NAME]: name, ...(isTag(reference) ? { [REF_NAME]: reference } : {}) },
    });
    return name;
  }

  /** Takes in a manifest, all below it and all that is about it. @param narrowed whether platforms are chosen among its children */
  async #manifest(repository: string, found: FetchedManifest, narrowed: boolean): Promise<void> {
    const key = `${repository} ${found.digest}`;
    if (this.#walked.has(key)) return;
    this.#walked.add(key);
    const { digest, bytes } = found;
    const manifest = parseManifest(bytes, found.mediaType);
    this.#manifests.set(digest, { digest, bytes });
    for (const { digest: blob, sizeBytes } of ownBlobs(manifest)) {
      if (!this.#blobs.has(blob)) this.#blobs.set(blob, { digest: blob, sizeBytes, repository });
    }
    const children = narrowed ? this.#choose(found, manifest) : manifest.manifests;
    for (const child of children) {
      const below = await this.#client.manifest(repository, child.digest, this.#signal);
      await this.#manifest(repository, below, narrowed);
    }
    await this.#about(repository, digest);
  }

  /** @returns the children for the platforms that are wanted, with their attestations */
  #choose({ repository, digest }: FetchedManifest, { kind, manifests }: Manifest): Descriptor[] {
    if (kind !== "index" || this.#wanted.platforms.length === 0) return manifests;
    const chosen = manifests.filter(({ platform }) => platform === undefined || this.#wanted.isWanted(platform));
    const digests = new Set<string>(chosen.map((one) => one.digest));
    const kept = manifests.filter((one) => digests.has(one.digest) || digests.has(one.annotations?.[ATTESTED] ?? ""));
    const names = (of: readonly Descriptor[]): string =>
      [...new Set(of.flatMap(({ platform }) => (platform ? [platformText(platform)] : [])))]
        .filter((name) => name !== "unknown/unknown")
        .join(", ");
    if (kept.length === 0) {
      throw new Error(`${repository} has nothing for ${this.#wanted.platforms.join(", ")}: it has ${names(manifests)}`);
    }
    const left = manifests.filter((one) => !kept.includes(one));
    if (left.length > 0) {
      this.#notes.add(
        `the copy of ${repository}@${digest} is sparse, without ${names(left) || "other parts of it"}: its index can be imported only where these are already. An image of one platform, by its own digest, can be imported anywhere`,
      );
    }
    return kept;
  }

  /** What is about a manifest: it lies in the index without a name, or under the tag that names its subject. */
  async #about(repository: string, subject: Digest): Promise<void> {
    const client = this.#client;
    const referrers = await this.#ask(repository, subject, () => client.referrers(repository, subject, this.#signal));
    for (const digest of referrers) {
      const found = await this.#find(repository, digest);
      if (!found) {
        this.#notes.add(`${repository}@${digest}, which refers to ${subject}, is listed but is not there`);
        continue;
      }
      const { artifactType } = parseManifest(found.bytes, found.mediaType);
      this.#roots.set(`1 ${digest}`, {
        ...descriptorOf(found),
        ...(artifactType === undefined ? {} : { artifactType }),
      });
      await this.#manifest(repository, found, false);
    }
    const prefix = `${algorithmOf(subject)}-${hexOf(subject).slice(0, 64)}`;
    const tags = await this.#ask(repository, subject, () => client.tagsWith(repository, prefix, this.#signal));
    for (const tag of tags) {
      const found = await this.#find(repository, tag);
      if (!found) continue;
      this.#name(found, tag);
      await this.#manifest(repository, found, false);
    }
  }

  /** @returns undefined where it is not there */
  async #find(repository: string, reference: Reference): Promise<FetchedManifest | undefined> {
    try {
      return await this.#client.manifest(repository, reference, this.#signal);
    } catch (error) {
      if (error instanceof Refused && error.status === 404) return undefined;
      throw error;
    }
  }

  /** An image that is all here can be exported while its upstream is away; what is not known of it then is told. */
  async #ask<T>(repository: string, subject: Digest, work: () => Promise<T[]>): Promise<T[]> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.#notes.add(
        `signatures of ${repository}@${subject} could not be asked for (${error.message}): those that there may be are not in the archive`,
      );
      return [];
    }
  }
}

function nameOf(repository: string, reference: Reference): string {
  return `${repository}${isTag(reference) ? ":" : "@"}${reference}`;
}

function platformText({ os, architecture, variant }: Platform): string {
  return variant === undefined ? `${os}/${architecture}` : `${os}/${architecture}/${variant}`;
}

function descriptorOf({ mediaType, digest, bytes }: FetchedManifest): Root {
  return { mediaType, digest, size: bytes.length };
}
