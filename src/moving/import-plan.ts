import { algorithmOf, digestOf, isDigest, type Digest } from "../oci/digest.ts";
import {
  MAX_MANIFEST_BYTES,
  MEDIA_TYPES,
  ownBlobs,
  parseManifest,
  type Descriptor,
  type Manifest,
} from "../oci/manifest.ts";
import { isRepositoryName, isTag, parseImageReference, type RepositoryName, type Tag } from "../oci/reference.ts";
import { IMAGE_NAME, REF_NAME } from "./export-plan.ts";
import { shown, TarFault, type TarEntry } from "./tar-reader.ts";
import { entryName } from "./tar-export.ts";

/** What an archive holds, of which the manifests are in memory. */
export interface Archive {
  /** What `index.json` names. */
  roots: readonly Descriptor[];
  manifests: ReadonlyMap<Digest, Buffer>;
  /** Size of every piece of content, by its digest. */
  sizes: ReadonlyMap<Digest, number>;
}

/** What goes into one repository. */
export interface Target {
  repository: RepositoryName;
  /** In an order in which each comes after what it points to, with the types under which they go. */
  manifests: Map<Digest, { bytes: Buffer; mediaType: string }>;
  blobs: Map<Digest, number>;
  tags: Map<Tag, Digest>;
  /** Manifests that indexes name and the archive lacks, as a sparse copy does: the repository must have them. */
  lacking: Set<Digest>;
  /** Images that only their digests name. */
  untagged: Set<Digest>;
}

/** Where an image is to go: `--as [NAME=]REPOSITORY[:TAG]`. */
export interface Renaming {
  /** As the archive has it; undefined: whatever it is. */
  name: string | undefined;
  repository: RepositoryName;
  tag: Tag | undefined;
}

/** More than this of manifests are not the images of one archive. */
const MAX_MANIFESTS_BYTES = 64 * 1024 * 1024;
const MAX_NAMED = 10;
const MAX_DEPTH = 32;
const BLOB = /^blobs\/(sha256|sha512)\/([a-f0-9]+)$/;
/** Tags under which clients keep what is about a digest: the fallback of the referrers API, signatures of cosign. */
const ABOUT = /^(sha256|sha512)-([a-f0-9]{64})(?:\.|$)/;

/** Reads an archive through. @throws TarFault naming the entry and the remedy */
export async function readArchive(entries: AsyncIterable<TarEntry>): Promise<Archive> {
  const manifests = new Map<Digest, Buffer>();
  const sizes = new Map<Digest, number>();
  let manifestsBytes = 0;
  let index: Buffer | undefined;
  let layout: Buffer | undefined;
  let ofDocker = false;
  for await (const entry of entries) {
    const [, algorithm, hex] = BLOB.exec(entry.name) ?? [];
    const digest = `${algorithm}:${hex}`;
    if (isDigest(digest)) {
      sizes.set(digest, entry.sizeBytes);
      const bytes = await readIfManifest(entry);
      if (!bytes) continue;
      if (digestOf(bytes, algorithmOf(digest)) !== digest) throw damaged(entry.name);
      manifestsBytes += bytes.length;
      if (manifestsBytes > MAX_MANIFESTS_BYTES) {
        throw new TarFault(`the archive has more than ${MAX_MANIFESTS_BYTES} bytes of manifests: split it`);
      }
      manifests.set(digest, bytes);
    } else if (entry.name === "index.json") index = await readWhole(entry, MAX_MANIFEST_BYTES);
    else if (entry.name === "oci-layout") layout = await readWhole(entry, MAX_MANIFEST_BYTES);
    else if (entry.name === "manifest.json") ofDocker = true;
  }
  if (!index || !layout) throw new TarFault(noLayout(ofDocker, index ? "oci-layout" : "index.json"));
  checkLayout(layout);
  return { roots: readIndex(index), manifests, sizes };
}

export function damaged(name: string): TarFault {
  return new TarFault(`${name} is damaged: its bytes are not what its name says; copy or export the archive again`);
}

function noLayout(ofDocker: boolean, missing: string): string {
  return ofDocker
    ? `the archive has no ${missing}: it is of the older kind that docker saves. Turn each image of it into a layout by skopeo copy docker-archive:FILE:NAME:TAG oci-archive:NEW:TAG`
    : `the archive has no ${missing}, so it is no OCI image layout: is this the right file?`;
}

/** @returns undefined for content that can't be a manifest; of a large one, one piece is read */
async function readIfManifest(entry: TarEntry): Promise<Buffer | undefined> {
  if (entry.sizeBytes > MAX_MANIFEST_BYTES) return undefined;
  const pieces: Buffer[] = [];
  for await (const piece of entry.body()) {
    if (pieces.length === 0 && piece[0] !== 0x7b) return undefined;
    pieces.push(piece);
  }
  const bytes = Buffer.concat(pieces);
  return bytes.includes('"schemaVersion"') ? bytes : undefined;
}

async function readWhole(entry: TarEntry, mostBytes: number): Promise<Buffer> {
  if (entry.sizeBytes > mostBytes) {
    throw new TarFault(`${entry.name} has ${entry.sizeBytes} bytes, more than ${mostBytes}: split the archive`);
  }
  const pieces: Buffer[] = [];
  for await (const piece of entry.body()) pieces.push(piece);
  return Buffer.concat(pieces);
}

function checkLayout(bytes: Buffer): void {
  let version: unknown;
  try {
    ({ imageLayoutVersion: version } = JSON.parse(bytes.toString("utf8")) as { imageLayoutVersion?: unknown });
  } catch (cause) {
    throw new TarFault("oci-layout is not JSON: is this the right file?", { cause });
  }
  if (typeof version !== "string" || !version.startsWith("1.")) {
    throw new TarFault(`oci-layout is of version ${shown(JSON.stringify(version) ?? "")}: versions 1.x are known here`);
  }
}

function readIndex(bytes: Buffer): Descriptor[] {
  try {
    return parseManifest(bytes, MEDIA_TYPES.ociIndex).manifests;
  } catch (cause) {
    throw new TarFault(`index.json: ${(cause as Error).message}`, { cause });
  }
}

/**
 * Decides what goes where. What is about an image (its subject, or the digest in its tag) goes where that goes.
 * @throws TarFault: images without a name, contents that are missing or have another size than announced, names that meet
 */
export function planImport(archive: Archive, renamings: readonly Renaming[]): Target[] {
  const { images, about } = sortOut(archive);
  if (images.length === 0) throw new TarFault("the archive has no image: its index.json names none");
  const targets = new Map<RepositoryName, Target>();
  const unnamed: string[] = [];
  const used = new Set<Renaming>();
  for (const image of images) {
    const name = nameOf(image);
    const renaming = renamings.find((one) => one.name === undefined || one.name === name);
    if (renaming) used.add(renaming);
    const place = renaming ? { repository: renaming.repository, tag: renaming.tag ?? tagOf(image) } : placeOf(image);
    if (!place) {
      unnamed.push(name ?? image.digest);
      continue;
    }
    if (renaming?.tag !== undefined && renaming.name === undefined && images.length > 1) {
      throw new TarFault(
        `the archive has ${images.length} images (${listed(images.map((one) => nameOf(one) ?? one.digest))}): give each its own with --as NAME=REPOSITORY:TAG`,
      );
    }
    const target = targets.get(place.repository) ?? emptyTarget(place.repository);
    targets.set(place.repository, target);
    take(archive, target, image);
    if (place.tag === undefined) target.untagged.add(image.digest);
    else addTag(target, place.tag, image.digest);
  }
  if (unnamed.length > 0) {
    const remedy = images.length === 1 ? "--as REPOSITORY:TAG" : "--as NAME=REPOSITORY:TAG for each";
    throw new TarFault(`the archive does not say in which repository to put ${listed(unnamed)}: say it with ${remedy}`);
  }
  for (const renaming of renamings) {
    if (used.has(renaming)) continue;
    throw new TarFault(
      `the archive has no image ${renaming.name ?? renaming.repository}: it has ${listed(images.map((one) => nameOf(one) ?? one.digest))}`,
    );
  }
  for (const target of targets.values()) takeWhatIsAbout(archive, about, target);
  return [...targets.values()];
}

/** Takes what is about the target's manifests; that may itself be signed. */
function takeWhatIsAbout(archive: Archive, about: ReadonlyMap<string, readonly Descriptor[]>, target: Target): void {
  // What is taken meanwhile comes up, too.
  for (const digest of target.manifests.keys()) {
    for (const root of about.get(shortened(digest)) ?? []) {
      take(archive, target, root);
      const own = tagOf(root);
      if (own !== undefined) addTag(target, own, root.digest);
    }
  }
}

/** Tells images from what is about them: that has no name of its own, or only the tag of its subject. */
function sortOut(archive: Archive): { images: Descriptor[]; about: Map<string, Descriptor[]> } {
  const here = new Set([...archive.manifests.keys()].map(shortened));
  const images: Descriptor[] = [];
  const about = new Map<string, Descriptor[]>();
  for (const root of archive.roots) {
    const own = tagOf(root);
    const isNamed = own === undefined ? nameOf(root) !== undefined : !ABOUT.test(own);
    const subjects = isNamed ? [] : subjectsOf(archive, root).filter((subject) => here.has(subject));
    if (subjects.length === 0) images.push(root);
    for (const subject of subjects) about.set(subject, [...(about.get(subject) ?? []), root]);
  }
  return { images, about };
}

/** What a root is about, as its tag would say it. */
function subjectsOf(archive: Archive, root: Descriptor): string[] {
  const [, algorithm, hex] = ABOUT.exec(tagOf(root) ?? "") ?? [];
  const subject = archive.manifests.has(root.digest) ? parse(archive, root).subject?.digest : undefined;
  return [...(algorithm === undefined ? [] : [`${algorithm}-${hex}`]), ...(subject ? [shortened(subject)] : [])];
}

function shortened(digest: Digest): string {
  return digest.replace(":", "-").slice(0, 7 + 64);
}

function emptyTarget(repository: RepositoryName): Target {
  return {
    repository,
    manifests: new Map(),
    blobs: new Map(),
    tags: new Map(),
    untagged: new Set(),
    lacking: new Set(),
  };
}

function addTag({ repository, tags }: Target, name: Tag, digest: Digest): void {
  const other = tags.get(name);
  if (other !== undefined && other !== digest) {
    throw new TarFault(
      `${repository}:${name} would be ${digest} and ${other}: give one of them another name with --as NAME=REPOSITORY:TAG`,
    );
  }
  tags.set(name, digest);
}

/** Takes a manifest and all below it into the target. */
function take(archive: Archive, target: Target, root: Descriptor): void {
  const missing: string[] = [];
  const visit = (descriptor: Descriptor, depth: number): void => {
    if (target.manifests.has(descriptor.digest)) return;
    if (depth > MAX_DEPTH)
      throw new TarFault(`${entryName(root.digest)}: more than ${MAX_DEPTH} indexes lie in each other`);
    const bytes = archive.manifests.get(descriptor.digest);
    if (!bytes && depth > 0 && !archive.sizes.has(descriptor.digest)) {
      target.lacking.add(descriptor.digest);
      return;
    }
    if (!bytes) {
      missing.push(entryName(descriptor.digest));
      return;
    }
    checkSize(archive, descriptor);
    const manifest = parse(archive, descriptor);
    for (const child of manifest.manifests) visit(child, depth + 1);
    for (const blob of ownBlobs(manifest)) {
      if (archive.sizes.has(blob.digest)) checkSize(archive, blob);
      else missing.push(entryName(blob.digest));
      target.blobs.set(blob.digest, blob.sizeBytes);
    }
    target.manifests.set(descriptor.digest, { bytes, mediaType: manifest.mediaType });
  };
  visit(root, 0);
  if (missing.length > 0) throw notWhole(nameOf(root) ?? root.digest, [...new Set(missing)]);
}

/** @param missing names of entries */
export function notWhole(name: string, missing: readonly string[]): TarFault {
  return new TarFault(
    `${name} is not whole in the archive: ${listed(missing)} ${missing.length === 1 ? "is" : "are"} missing. Export it again with all platforms, or the image of one by its own digest`,
  );
}

function checkSize(archive: Archive, { digest, sizeBytes }: Descriptor): void {
  const actual = archive.sizes.get(digest);
  if (actual !== sizeBytes) {
    throw new TarFault(
      `${entryName(digest)} has ${actual} bytes, but ${sizeBytes} are announced: export the image again`,
    );
  }
}

function parse({ manifests }: Archive, { digest, mediaType }: Descriptor): Manifest {
  try {
    return parseManifest(manifests.get(digest) ?? Buffer.alloc(0), mediaType);
  } catch (cause) {
    throw new TarFault(`${entryName(digest)}: ${(cause as Error).message}`, { cause });
  }
}

/** The full name of an image, as far as the archive tells it. */
function nameOf({ annotations = {} }: Descriptor): string | undefined {
  return annotations[IMAGE_NAME] ?? annotations[REF_NAME];
}

function tagOf(root: Descriptor): Tag | undefined {
  const name = nameOf(root);
  const own = root.annotations?.[REF_NAME] ?? "";
  if (isTag(own)) return own;
  const last = /:([^:/@]+)$/.exec(name ?? "")?.[1] ?? "";
  return !(name ?? "").includes("@") && isTag(last) ? last : undefined;
}

/** @returns undefined where the name says no repository: a bare tag, a host with a port */
function placeOf(image: Descriptor): { repository: RepositoryName; tag: Tag | undefined } | undefined {
  const name = nameOf(image);
  // A bare word is a tag, not a repository: that is how layouts are written.
  if (name === undefined || !/[/:@]/.test(name)) return undefined;
  try {
    const { host, repository } = parseImageReference(name);
    const full = host === undefined ? repository : `${host}/${repository}`;
    return isRepositoryName(full) ? { repository: full, tag: tagOf(image) } : undefined;
  } catch {
    return undefined;
  }
}

function listed(names: readonly string[]): string {
  const more = names.length - MAX_NAMED;
  return `${names
    .slice(0, MAX_NAMED)
    .map((name) => name.slice(0, 300))
    .join(", ")}${more > 0 ? ` and ${more} more` : ""}`;
}
