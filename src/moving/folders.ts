import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readSync,
  type Dirent,
  type Stats,
} from "node:fs";
import { lstat } from "node:fs/promises";
import { join } from "node:path";
import { algorithmOf, digestOf, type Digest } from "../oci/digest.ts";
import { isManifestType, MAX_MANIFEST_BYTES, parseManifest } from "../oci/manifest.ts";
import type { FoundManifest } from "./source.ts";

/*
 * How a foreign folder is read: never through a symbolic link, never waiting for a pipe, never more bytes than asked for. For a thread of
 * its own: it waits for the disk.
 */

const SYMBOLIC_LINK = "it is a symbolic link, which is not followed";

/** Why something in a source can't be taken. */
export class Damage extends Error {
  override readonly name = "Damage";
}

/** A folder below which nothing is reached through a symbolic link, not even to elsewhere in it. */
export class Tree {
  readonly #root: string;
  /** Known to be folders: but for the last of each path, of which there may be millions. */
  readonly #folders = new Set<string>();

  constructor(root: string) {
    this.#root = root;
  }

  /** The path of what may or may not be there. @throws Damage where a symbolic link is on the way to it */
  path(...components: readonly string[]): string {
    let path = this.#root;
    for (const [index, component] of components.slice(0, -1).entries()) {
      path = join(path, component);
      if (this.#folders.has(path)) continue;
      if (statHere(path)?.isSymbolicLink()) throw new Damage(`${component} is a symbolic link, which is not followed`);
      if (index < components.length - 2) this.#folders.add(path);
    }
    return join(path, components.at(-1) ?? "");
  }
}

/** @returns undefined where it is not there. @throws Damage */
export function statHere(path: string): Stats | undefined {
  try {
    return lstatSync(path);
  } catch (error) {
    if (isAbsence(error)) return undefined;
    throw unreadable(error);
  }
}

/** Entries in order of their names; none where the folder is not there. @throws Damage for what is no folder */
export function entriesOf(folder: string): Dirent[] {
  const stats = statHere(folder);
  if (!stats) return [];
  if (!stats.isDirectory()) throw new Damage(stats.isSymbolicLink() ? SYMBOLIC_LINK : "it is no folder");
  try {
    return readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1));
  } catch (error) {
    throw unreadable(error);
  }
}

/**
 * @returns undefined where it is not there
 * @throws Damage for what is no file, or longer than `mostBytes`
 */
export function readHere(path: string, mostBytes: number): Buffer | undefined {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (isAbsence(error)) return undefined;
    throw (error as NodeJS.ErrnoException).code === "ELOOP" ? new Damage(SYMBOLIC_LINK) : unreadable(error);
  }
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile()) throw new Damage("it is no file");
    if (stats.size > mostBytes) throw new Damage(`it has ${stats.size} bytes, more than ${mostBytes}`);
    const bytes = Buffer.allocUnsafeSlow(stats.size);
    let length = 0;
    while (length < bytes.length) {
      const read = readSync(fd, bytes, length, bytes.length - length, length);
      if (read === 0) break;
      length += read;
    }
    return bytes.subarray(0, length);
  } catch (error) {
    throw error instanceof Damage ? error : unreadable(error);
  } finally {
    closeSync(fd);
  }
}

/** @returns undefined where its file is not there @throws Damage that says what is wrong with it */
export function readManifest(path: string, digest: Digest, mediaType: string | undefined): FoundManifest | undefined {
  const bytes = readHere(path, MAX_MANIFEST_BYTES);
  if (!bytes) return undefined;
  if (digestOf(bytes, algorithmOf(digest)) !== digest)
    throw new Damage("its file is damaged: it is not what the digest says");
  let manifest;
  try {
    manifest = parseManifest(bytes, mediaType);
  } catch (cause) {
    throw new Damage((cause as Error).message, { cause });
  }
  if (!isManifestType(manifest.mediaType))
    throw new Damage(`${manifest.mediaType} is no media type of a manifest that is known here`);
  return { digest, bytes, manifest };
}

/** The size of a content's file. @throws Damage where there is none */
export function sizeOfFile(path: string): number {
  const stats = statHere(path);
  if (!stats) throw new Damage("its file is missing");
  if (stats.isSymbolicLink()) throw new Damage("its file is a symbolic link, which is not followed");
  if (!stats.isFile()) throw new Damage("what should be its file is none");
  return stats.size;
}

/** What a folder holds, for an estimate: what is wrong with it is told where it is needed. */
export function namesIn(tree: Tree, ...folder: readonly string[]): string[] {
  try {
    return entriesOf(tree.path(...folder)).map(({ name }) => name);
  } catch (error) {
    if (error instanceof Damage) return [];
    throw error;
  }
}

/** Whether a folder has all of these. Not only for a thread of its own. */
export async function holds(folder: string, ...names: readonly string[]): Promise<boolean> {
  try {
    await Promise.all(names.map((name) => lstat(join(folder, name))));
    return true;
  } catch {
    return false;
  }
}

function isAbsence(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === "ENOENT" || code === "ENOTDIR";
}

function unreadable(cause: unknown): Damage {
  return new Damage(`it can't be read (${(cause as NodeJS.ErrnoException).code})`, { cause });
}
