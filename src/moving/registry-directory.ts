import { realpathSync, type Dirent } from "node:fs";
import { join } from "node:path";
import { algorithmOf, hexOf, isDigest, type Digest } from "../oci/digest.ts";
import { ownBlobs } from "../oci/manifest.ts";
import { isRepositoryName, isTag, type RepositoryName } from "../oci/reference.ts";
import { Damage, entriesOf, holds, namesIn, readHere, readManifest, sizeOfFile, Tree } from "./folders.ts";
import {
  emptyPortion,
  PORTION_FILES,
  PORTION_MANIFESTS,
  PORTION_TAGS,
  quoted,
  type Absent,
  type Found,
  type FoundManifest,
  type Portion,
} from "./source.ts";

/*
 * What registry:2 and registry:3 write (distribution/distribution, registry/storage/paths.go), under docker/registry/v2:
 *
 *   blobs/sha256/ab/ab12…/data                                   content
 *   repositories/NAME/_layers/sha256/ab12…/link                  the repository may reach the blob; the file holds the digest
 *   repositories/NAME/_manifests/revisions/sha256/ab12…/link     the repository has the manifest; without `link`: deleted
 *   repositories/NAME/_manifests/tags/TAG/current/link           what the tag points to; without it: deleted
 *   repositories/NAME/_manifests/tags/TAG/index/…                what it has pointed to
 *   repositories/NAME/_uploads/UUID/data                         being pushed
 *
 * What that registry would serve is taken over: a repository reaches what it has a link to, and nothing else.
 */

const DATA = ["docker", "registry", "v2"];
const ALGORITHMS = ["sha256", "sha512"];
const OWN_FOLDERS: ReadonlySet<string> = new Set(["_layers", "_manifests", "_uploads"]);
const NOT_LINKED = "the repository has no link to it";
/** `sha512:` and 128 digits. */
const MOST_LINK_BYTES = 135;

/** @returns the folder of blobs and repositories, for a storage root or that folder itself; undefined for anything else */
export async function findRegistryDirectory(folder: string): Promise<string | undefined> {
  for (const root of [join(folder, ...DATA), folder]) {
    if ((await holds(root, "repositories", "blobs")) && !(await holds(root, "oci-layout"))) return root;
  }
  return undefined;
}

/** Reads all of it, a repository after the other. @param root as {@link findRegistryDirectory} found it */
export function* readRegistryDirectory(root: string): Generator<Found> {
  const here = realpathSync(root);
  const content = new Tree(here);
  let contents = 0;
  for (const algorithm of ALGORITHMS) {
    for (const shard of namesIn(content, "blobs", algorithm))
      contents += namesIn(content, "blobs", algorithm, shard).length;
  }
  yield { type: "total", contents };
  yield* readRepositories(here, content, "");
}

function* readRepositories(root: string, content: Tree, name: string): Generator<Found> {
  let entries;
  try {
    entries = entriesOf(join(root, "repositories", name));
  } catch (error) {
    yield damage(quoted(`repositories/${name}`), error);
    return;
  }
  if (isRepositoryName(name) && entries.some((entry) => OWN_FOLDERS.has(entry.name))) {
    yield* new Repository(root, name, content).read();
  }
  for (const entry of entries) {
    if (name !== "" && OWN_FOLDERS.has(entry.name)) continue;
    const below = name === "" ? entry.name : `${name}/${entry.name}`;
    const reason = entry.isSymbolicLink()
      ? "it is a symbolic link, which is not followed"
      : !entry.isDirectory()
        ? "it is no folder"
        : !isRepositoryName(below)
          ? "that is no name of a repository, or one of more than 255 characters"
          : undefined;
    if (reason === undefined) yield* readRepositories(root, content, below);
    else yield { type: "damage", where: quoted(`repositories/${below}`), reason };
  }
}

/** One repository while it is read. */
class Repository {
  readonly #name: RepositoryName;
  readonly #content: Tree;
  readonly #tree: Tree;
  /** Blobs that have been given out or told as absent. */
  readonly #seen = new Set<Digest>();
  /** Manifests that have been found or told as absent. */
  readonly #known = new Set<Digest>();
  #portion: Portion;

  constructor(root: string, name: RepositoryName, content: Tree) {
    this.#name = name;
    this.#content = content;
    this.#tree = new Tree(join(root, "repositories", name));
    this.#portion = emptyPortion(name);
  }

  *read(): Generator<Found> {
    /** What each points to: the manifests themselves may be too many for memory. */
    const indexes = new Map<Digest, Digest[]>();
    for (const found of this.#revisions()) {
      if ("type" in found) yield found;
      else if (found.manifest.kind === "index") {
        indexes.set(
          found.digest,
          found.manifest.manifests.map(({ digest }) => digest),
        );
      } else yield* this.#image(found);
    }
    yield* this.#indexes(indexes);
    yield* this.#tags();
    yield* this.#uploads();
    yield* this.#give(1, 1);
  }

  *#revisions(): Generator<Found | FoundManifest> {
    for (const algorithm of ALGORITHMS) {
      const folder = ["_manifests", "revisions", algorithm];
      for (const { name } of yield* this.#entries(...folder)) {
        const where = this.#where(...folder, name);
        const digest = `${algorithm}:${name}`;
        if (!isDigest(digest)) {
          yield damage(where, new Damage("that is no digest"));
          continue;
        }
        try {
          const link = this.#link(...folder, name);
          if (link === undefined) {
            yield { type: "unserved", where, reason: "the manifest was deleted" };
            continue;
          }
          if (link !== digest) throw new Damage(`its link leads to ${link}`);
          const found = this.#manifest(digest);
          this.#known.add(digest);
          yield found;
        } catch (error) {
          yield* this.#lack("manifest", digest, error);
        }
      }
    }
  }

  *#image(found: FoundManifest): Generator<Found> {
    for (const { digest } of ownBlobs(found.manifest)) {
      if (this.#seen.has(digest)) continue;
      this.#seen.add(digest);
      try {
        const link = this.#link("_layers", algorithmOf(digest), hexOf(digest));
        if (link === undefined) throw new Damage(NOT_LINKED);
        if (link !== digest) throw new Damage(`its link leads to ${link}`);
        const path = this.#data(digest);
        this.#portion.files.push({ digest, path, sizeBytes: sizeOfFile(path) });
      } catch (error) {
        yield* this.#lack("blob", digest, error);
      }
    }
    this.#portion.manifests.push(found);
    yield* this.#give(PORTION_MANIFESTS, PORTION_TAGS);
  }

  /** Those that others point to come first. None can lead to itself: it would have to know its own digest. */
  *#indexes(indexes: Map<Digest, Digest[]>): Generator<Found> {
    for (const first of indexes.keys()) {
      // Not by recursion: a chain may be as long as there are indexes.
      const path = [first];
      for (let top = path.at(-1); top; top = path.at(-1)) {
        const next = indexes.get(top)?.find((child) => indexes.has(child));
        if (next) {
          path.push(next);
          continue;
        }
        path.pop();
        const children = indexes.get(top);
        if (!children) continue;
        indexes.delete(top);
        for (const child of children)
          if (!this.#known.has(child)) yield* this.#lack("manifest", child, new Damage(NOT_LINKED));
        try {
          this.#portion.manifests.push(this.#manifest(top));
        } catch (error) {
          yield* this.#lack("manifest", top, error);
        }
        yield* this.#give(PORTION_MANIFESTS, PORTION_TAGS);
      }
    }
  }

  *#tags(): Generator<Found> {
    const folder = ["_manifests", "tags"];
    for (const { name: tag } of yield* this.#entries(...folder)) {
      const where = this.#where(...folder, tag);
      try {
        if (!isTag(tag)) throw new Damage("that is no tag");
        const digest = this.#link(...folder, tag, "current");
        if (digest === undefined) {
          yield { type: "unserved", where, reason: "the tag was deleted" };
          continue;
        }
        if (!this.#known.has(digest)) yield* this.#lack("manifest", digest, new Damage(NOT_LINKED));
        this.#portion.tags.push({ tag, digest });
        yield* this.#give(PORTION_MANIFESTS, PORTION_TAGS);
      } catch (error) {
        yield damage(where, error);
      }
    }
  }

  *#uploads(): Generator<Found> {
    for (const { name } of yield* this.#entries("_uploads")) {
      yield { type: "unserved", where: this.#where("_uploads", name), reason: "the upload was not finished" };
    }
  }

  *#lack(kind: Absent["kind"], digest: Digest, error: unknown): Generator<Found> {
    if (!(error instanceof Damage)) throw error;
    if (kind === "manifest") this.#known.add(digest);
    this.#portion.absent.push({ kind, digest, reason: error.message });
    yield* this.#give(PORTION_MANIFESTS, PORTION_TAGS);
  }

  *#give(manifests: number, tags: number): Generator<Found> {
    const portion = this.#portion;
    // An image may have thousands of layers: only after it, and all of them with it.
    const few = portion.files.length < PORTION_FILES && portion.manifests.length + portion.absent.length < manifests;
    if (few && portion.tags.length < tags) return;
    this.#portion = emptyPortion(this.#name);
    yield { type: "portion", portion };
  }

  *#entries(...folder: readonly string[]): Generator<Found, Dirent[]> {
    try {
      return entriesOf(this.#tree.path(...folder));
    } catch (error) {
      yield damage(this.#where(...folder), error);
      return [];
    }
  }

  /** @throws Damage */
  #manifest(digest: Digest): FoundManifest {
    const found = readManifest(this.#data(digest), digest, undefined);
    if (!found) throw new Damage("its file is missing");
    return found;
  }

  /** What the link file in a folder leads to; undefined where there is none. @throws Damage */
  #link(...folder: readonly string[]): Digest | undefined {
    const text = readHere(this.#tree.path(...folder, "link"), MOST_LINK_BYTES)?.toString("utf8");
    if (text === undefined || isDigest(text)) return text;
    throw new Damage(text === "" ? "its link file is empty" : "its link file holds no digest");
  }

  /** @throws Damage */
  #data(digest: Digest): string {
    const hex = hexOf(digest);
    return this.#content.path("blobs", algorithmOf(digest), hex.slice(0, 2), hex, "data");
  }

  #where(...path: readonly string[]): string {
    return quoted(["repositories", this.#name, ...path].join("/"));
  }
}

function damage(where: string, error: unknown): Found {
  if (!(error instanceof Damage)) throw error;
  return { type: "damage", where, reason: error.message };
}
