import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { runExport } from "../../src/cli/export.ts";
import { importFile } from "../../src/cli/import-file.ts";
import type { CommandIo } from "../../src/cli/io.ts";
import { hexOf, type Digest } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import type { Image, Published } from "../kit/images.ts";
import type { TestRegistry } from "../kit/registry.ts";

/** A folder of a test's own. */
export async function makeFolder(): Promise<AsyncDisposable & { path: string }> {
  const path = await mkdtemp(join(tmpdir(), "entrepot-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

function captured(): { io: CommandIo; output: () => string } {
  const stdout = new PassThrough();
  const stderr = new PassThrough();
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { io: { stdout, stderr, env: {} }, output: () => text(stdout) + text(stderr) };
}

/** @returns what `entrepot export` told @throws Error with what it said, for another exit status than 0 */
export async function exportBy(registry: TestRegistry, ...args: string[]): Promise<string> {
  const { io, output } = captured();
  const status = await runExport([...args, "--server", registry.url], io);
  if (status !== 0) throw new Error(output());
  return output();
}

/** @returns what `entrepot import FILE` told @throws Error where it fails */
export async function importBy(registry: TestRegistry, file: string, ...as: string[]): Promise<string> {
  const { io, output } = captured();
  await importFile(file, { as, server: registry.url, json: false }, io);
  return output();
}

/** A configuration that tells where the storage is; where it says that a daemon listens, none does. */
export async function configFor(folder: string, root: string, listen = "127.0.0.1:0"): Promise<string> {
  const file = join(folder, "entrepot.yaml");
  await writeFile(
    file,
    JSON.stringify({
      server: { listen },
      storage: { root, minFree: 0 },
      upstreams: {},
      hosted: { namespaces: ["team"] },
    }),
  );
  return file;
}

/** The same command on a storage without a daemon. */
export async function exportFrom(config: string, ...args: string[]): Promise<string> {
  const { io, output } = captured();
  const status = await runExport([...args, "--config", config], io);
  if (status !== 0) throw new Error(output());
  return output();
}

export async function importInto(config: string, file: string, ...as: string[]): Promise<string> {
  const { io, output } = captured();
  await importFile(file, { as, config, json: false }, io);
  return output();
}

/** An entry of a tar that may be wrong in any way. */
export interface MadeEntry {
  name: string;
  body?: Buffer | string;
  /** "0" without it: a file. */
  type?: string;
  /** What the head says, where that is not the size of the body. */
  sizeField?: string | Buffer;
  link?: string;
}

/** Heads are made by hand here, so that the reader is not tried by its own writer. Source: POSIX.1-1988, "ustar" */
export function makeTar(entries: readonly MadeEntry[], end = Buffer.alloc(1024)): Buffer {
  return Buffer.concat([...entries.flatMap(entryOf), end]);
}

function entryOf({ name, body = "", type = "0", sizeField, link = "" }: MadeEntry): Buffer[] {
  const bytes = Buffer.from(body);
  const head = Buffer.alloc(512);
  head.write(name, 0, 100);
  head.write("0000644", 100);
  head.write("0000000", 108);
  head.write("0000000", 116);
  const size = sizeField ?? `${bytes.length.toString(8).padStart(11, "0")}\0`;
  Buffer.from(size).copy(head, 124);
  head.write("00000000000\0", 136);
  head.write("        ", 148);
  head.write(type, 156);
  head.write(link, 157);
  head.write("ustar\u000000", 257);
  head.write(
    `${head
      .reduce((sum, byte) => sum + byte, 0)
      .toString(8)
      .padStart(6, "0")}\0 `,
    148,
  );
  return [head, bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512)];
}

export function blobEntry(digest: Digest, body: Buffer): MadeEntry {
  return { name: `blobs/${digest.replace(":", "/")}`, body };
}

export interface IndexRoot {
  image: Published;
  annotations?: Record<string, string>;
}

/** `oci-layout` and `index.json`. */
export function layoutEntries(roots: readonly IndexRoot[]): MadeEntry[] {
  const manifests = roots.map(({ image, annotations }) => ({
    mediaType: image.mediaType,
    digest: image.digest,
    size: image.manifest.length,
    ...(annotations ? { annotations } : {}),
  }));
  return [
    { name: "oci-layout", body: '{"imageLayoutVersion":"1.0.0"}' },
    { name: "index.json", body: JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests }) },
  ];
}

export const NAMED = { "io.containerd.image.name": "team/app:1", "org.opencontainers.image.ref.name": "1" };

/** The contents of an image, as entries. */
export function imageEntries(image: Image): MadeEntry[] {
  return [
    blobEntry(image.digest, image.manifest),
    ...[...image.blobs].map(([digest, blob]) => blobEntry(digest, blob.bytes)),
  ];
}

/** A sound archive of one image, `team/app:1`. */
export function soundEntries(image: Image): MadeEntry[] {
  return [...layoutEntries([{ image, annotations: NAMED }]), ...imageEntries(image)];
}

/** Where a blob lies in a storage. */
export function blobFile(root: string, digest: Digest): string {
  return join(root, "blobs/sha256", hexOf(digest).slice(0, 2), hexOf(digest));
}
