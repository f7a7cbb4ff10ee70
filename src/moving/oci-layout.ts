import { realpathSync } from "node:fs";
import { join } from "node:path";
import { algorithmOf, hexOf, isDigest, type Digest } from "../oci/digest.ts";
import { ownBlobs, type Descriptor } from "../oci/manifest.ts";
import { isTag, parseImageReference, type RepositoryName, type Tag } from "../oci/reference.ts";
import { Damage, holds, namesIn, readHere, readManifest, sizeOfFile, Tree } from "./folders.ts";
import { emptyPortion, PORTION_FILES, PORTION_MANIFESTS, quoted, type Found, type Portion } from "./source.ts";

/*
 * Source: OCI image-spec, "Image Layout":
 *
 *   oci-layout               {"imageLayoutVersion": "1.0.0"}
 *   index.json               descriptors of what there is; the annotation org.opencontainers.image.ref.name of one is its tag, or its whole name
 *   blobs/sha256/ab12…       content, manifests included
 */

const MOST_INDEX_BYTES = 64 * 1024 * 1024;
/** Indexes that indexes point to. */
const MOST_DEPTH = 32;
const REF_NAME = "org.opencontainers.image.ref.name";
/** containerd and docker write the whole name there, and only the tag as the other. */
const IMAGE_NAME = "io.containerd.image.name";

/** @returns the folder, where it is a layout; else undefined */
export async function findLayout(folder: string): Promise<string | undefined> {
  return (await holds(folder, "oci-layout", "index.json")) ? folder : undefined;
}

/** What an entry of index.json is called. */
export interface Named {
  /** Empty where only a tag is told. */
  repository: RepositoryName | "";
  tag: Tag | undefined;
}

/**
 * Reads the name of an entry of a layout's index.json. A host in it is left out: it is that of another registry.
 * @throws Damage for what is no name
 */
export function nameOf(annotations: Readonly<Record<string, string>>): Named {
  const whole = annotations[IMAGE_NAME];
  const name = whole ?? annotations[REF_NAME];
  if (name === undefined || name === "") return { repository: "", tag: undefined };
  if (whole === undefined && isTag(name)) return { repository: "", tag: name };
  try {
    const { repository, reference } = parseImageReference(name);
    return { repository, tag: isDigest(reference) ? undefined : reference };
  } catch (cause) {
    throw new Damage(`${quoted(name)} is no name of an image`, { cause });
  }
}

/** Reads all that index.json leads to. @param root a layout */
export function* readLayout(root: string): Generator<Found> {
  const here = realpathSync(root);
  const tree = new Tree(here);
  const contents = ["sha256", "sha512"].reduce((sum, algorithm) => sum + namesIn(tree, "blobs", algorithm).length, 0);
  yield { type: "total", contents };
  let entries: Entry[];
  try {
    entries = readIndex(here);
  } catch (error) {
    yield damage("index.json", error);
    return;
  }
  const portions = new Map<RepositoryName | "", Reading>();
  for (const entry of entries) {
    try {
      const { repository, tag } = nameOf(entry.annotations);
      let reading = portions.get(repository);
      if (!reading) portions.set(repository, (reading = new Reading(tree, repository)));
      reading.add(entry, tag);
    } catch (error) {
      yield damage(`index.json, ${entry.digest}`, error);
    }
  }
  for (const reading of portions.values()) yield* reading.read();
}

interface Entry {
  digest: Digest;
  mediaType: string | undefined;
  annotations: Record<string, string>;
}

/** @throws Damage */
function readIndex(root: string): Entry[] {
  const bytes = readHere(join(root, "index.json"), MOST_INDEX_BYTES);
  if (!bytes) throw new Damage("it is missing");
  let body: unknown;
  try {
    body = JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw new Damage("it is not JSON", { cause });
  }
  const { manifests } = (body ?? {}) as { manifests?: unknown };
  if (!Array.isArray(manifests)) throw new Damage("it has no list of manifests");
  return manifests.map((value: unknown, index): Entry => {
    const { digest, mediaType, annotations } = (value ?? {}) as Record<string, unknown>;
    if (typeof digest !== "string" || !isDigest(digest)) throw new Damage(`manifests[${index}].digest is no digest`);
    const texts = Object.entries(annotations ?? {}).filter(
      (entry): entry is [string, string] => typeof entry[1] === "string",
    );
    return {
      digest,
      mediaType: typeof mediaType === "string" ? mediaType : undefined,
      annotations: Object.fromEntries(texts),
    };
  });
}

/** What a layout holds under one name, while it is read. */
class Reading {
  readonly #tree: Tree;
  readonly #repository: RepositoryName | "";
  readonly #entries: { entry: Entry; tag: Tag | undefined }[] = [];
  readonly #seen = new Set<Digest>();
  #portion: Portion;

  constructor(tree: Tree, repository: RepositoryName | "") {
    this.#tree = tree;
    this.#repository = repository;
    this.#portion = emptyPortion(repository);
  }

  add(entry: Entry, tag: Tag | undefined): void {
    this.#entries.push({ entry, tag });
  }

  *read(): Generator<Found> {
    for (const { entry } of this.#entries) yield* this.#manifest(entry, 0);
    for (const { entry, tag } of this.#entries)
      if (tag !== undefined) this.#portion.tags.push({ tag, digest: entry.digest });
    yield* this.#give(1, 1);
  }

  *#manifest({ digest, mediaType }: Pick<Entry, "digest" | "mediaType">, depth: number): Generator<Found> {
    if (this.#seen.has(digest)) return;
    this.#seen.add(digest);
    let found;
    try {
      if (depth > MOST_DEPTH) throw new Damage(`${MOST_DEPTH} indexes lead to it, one to the other`);
      found = readManifest(this.#path(digest), digest, mediaType);
      if (!found) throw new Damage("its file is missing");
    } catch (error) {
      this.#lack("manifest", digest, error);
      return;
    }
    for (const child of found.manifest.manifests) yield* this.#manifest(child, depth + 1);
    for (const blob of ownBlobs(found.manifest)) this.#blob(blob);
    this.#portion.manifests.push(found);
    yield* this.#give(PORTION_FILES, PORTION_MANIFESTS);
  }

  #blob({ digest }: Descriptor): void {
    if (this.#seen.has(digest)) return;
    this.#seen.add(digest);
    try {
      const path = this.#path(digest);
      this.#portion.files.push({ digest, path, sizeBytes: sizeOfFile(path) });
    } catch (error) {
      this.#lack("blob", digest, error);
    }
  }

  /** @throws Damage */
  #path(digest: Digest): string {
    return this.#tree.path("blobs", algorithmOf(digest), hexOf(digest));
  }

  #lack(kind: "blob" | "manifest", digest: Digest, error: unknown): void {
    if (!(error instanceof Damage)) throw error;
    this.#portion.absent.push({ kind, digest, reason: error.message });
  }

  *#give(files: number, manifests: number): Generator<Found> {
    const portion = this.#portion;
    const isFull =
      portion.files.length >= files ||
      portion.manifests.length + portion.absent.length >= manifests ||
      (portion.tags.length > 0 && manifests === 1);
    if (!isFull) return;
    this.#portion = emptyPortion(this.#repository);
    yield { type: "portion", portion };
  }
}

function damage(where: string, error: unknown): Found {
  if (!(error instanceof Damage)) throw error;
  return { type: "damage", where, reason: error.message };
}
