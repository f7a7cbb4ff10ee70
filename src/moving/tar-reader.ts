import { open, type FileHandle } from "node:fs/promises";
import type { Readable } from "node:stream";
import { createGunzip } from "node:zlib";
import { padding, parseHead, parsePax, TAR_BLOCK_BYTES, type TarHead } from "./tar-format.ts";

/** A tar can't be read on, and why: told with the entry that it is about, and the remedy. */
export class TarFault extends Error {
  override readonly name = "TarFault";
}

/** A file of a tar, while the reader is at it. */
export interface TarEntry {
  /** Relative, without `.` and `..`. */
  name: string;
  sizeBytes: number;
  /** Its content, in new buffers. To be read before the next entry is asked for, or not at all. @throws TarFault where it is cut short */
  body(): AsyncGenerator<Buffer, void, undefined>;
}

const PIECE_BYTES = 256 * 1024;
/** What a pax head or a long name may take: the names here are of 140 characters. */
const MAX_EXTENSION_BYTES = 64 * 1024;
const MAX_ENTRIES = 200_000;
const REMEDY = "copy or export it again";

/** Bytes in order. */
interface ByteSource {
  /** @returns that many bytes; fewer only at the end */
  read(bytes: number): Promise<Buffer>;
  /** @returns how many there were */
  skip(bytes: number): Promise<number>;
  close(): Promise<void>;
}

/**
 * Reads the files of a tar, plain or gzipped, in the order in which they lie there. Folders are passed over. Nothing is ever unpacked, so a
 * name leads nowhere; what a sound archive of images does not hold is refused all the same.
 * @throws TarFault: no tar, cut short, damaged, links, devices, sparse files, paths that lead elsewhere, a name that comes twice
 */
export async function* readTar(file: string): AsyncGenerator<TarEntry, void, undefined> {
  const source = await openSource(file);
  try {
    yield* entriesOf(source);
  } finally {
    await source.close();
  }
}

async function* entriesOf(source: ByteSource): AsyncGenerator<TarEntry, void, undefined> {
  const names = new Set<string>();
  let extended: { name?: string; sizeBytes?: number } = {};
  for (let first = true; ; first = false) {
    const block = await source.read(TAR_BLOCK_BYTES);
    if (block.length < TAR_BLOCK_BYTES) {
      throw new TarFault(
        first
          ? `this is no tar: it has ${block.length} bytes`
          : `the tar is cut short: its end mark is missing; ${REMEDY}`,
      );
    }
    if (isZero(block)) {
      if (first) throw new TarFault("the tar is empty");
      return;
    }
    const head = parseHead(block);
    if (!head) throw new TarFault(first ? notTar(block) : `the tar is damaged behind ${lastOf(names)}; ${REMEDY}`);
    if ("xgLK".includes(head.type)) {
      const bytes = await readExtension(source, head);
      if (head.type === "L") extended.name = bytes.toString("utf8").replace(/\0[^]*$/, "");
      if (head.type === "x") extended = { ...extended, ...paxOf(bytes) };
      if (head.type === "g" && Object.keys(paxOf(bytes)).length > 0) {
        throw new TarFault("the tar has a global pax header with a path or a size, which no archive of images has");
      }
      continue;
    }
    const { type } = head;
    const name = checkedName(extended.name ?? head.name);
    const sizeBytes = extended.sizeBytes ?? head.sizeBytes;
    extended = {};
    checkType(type, name);
    if (type === "5") {
      await skipAll(source, sizeBytes + padding(sizeBytes).length, name);
      continue;
    }
    if (names.has(name))
      throw new TarFault(`${shown(name)} is in the tar twice: which of the two counts is not to be guessed`);
    names.add(name);
    if (names.size > MAX_ENTRIES) throw new TarFault(`the tar has more than ${MAX_ENTRIES} entries`);
    let left = sizeBytes;
    yield {
      name,
      sizeBytes,
      async *body() {
        while (left > 0) {
          const bytes = await source.read(Math.min(left, PIECE_BYTES));
          left -= bytes.length;
          if (bytes.length === 0) throw cutShort(name, sizeBytes);
          yield bytes;
        }
      },
    };
    await skipAll(source, left + padding(sizeBytes).length, name);
  }
}

async function skipAll(source: ByteSource, bytes: number, name: string): Promise<void> {
  if ((await source.skip(bytes)) < bytes) throw cutShort(name, bytes);
}

function cutShort(name: string, sizeBytes: number): TarFault {
  return new TarFault(`the tar is cut short: it ends within ${shown(name)}, which has ${sizeBytes} bytes; ${REMEDY}`);
}

function lastOf(names: ReadonlySet<string>): string {
  return shown([...names].at(-1) ?? "its start");
}

function notTar(block: Buffer): string {
  if (block.readUInt32LE(0) === 0xfd2fb528) return "this is compressed by zstd: decompress it first (zstd -d FILE)";
  if (block.toString("latin1", 0, 5) === "BZh91" || block.readUInt32BE(0) === 0xfd377a58)
    return "this is compressed: decompress it first, or compress it by gzip";
  return "this is no tar";
}

async function readExtension(source: ByteSource, { sizeBytes, name }: TarHead): Promise<Buffer> {
  if (sizeBytes > MAX_EXTENSION_BYTES) {
    throw new TarFault(`${shown(name)}: a header of ${sizeBytes} bytes, which no archive of images has`);
  }
  const bytes = await source.read(sizeBytes);
  if (bytes.length < sizeBytes) throw cutShort(name, sizeBytes);
  await skipAll(source, padding(sizeBytes).length, name);
  return bytes;
}

function paxOf(bytes: Buffer): { name?: string; sizeBytes?: number } {
  const records = parsePax(bytes);
  if (!records) throw new TarFault(`the tar has a damaged pax header; ${REMEDY}`);
  for (const key of records.keys()) {
    if (key.startsWith("GNU.sparse")) throw new TarFault("the tar has sparse files: write it without --sparse");
  }
  const path = records.get("path");
  const size = records.get("size");
  if (size !== undefined && !(/^\d{1,16}$/.test(size) && Number.isSafeInteger(Number(size)))) {
    throw new TarFault(`the tar has a pax header with a size that is none: ${shown(size)}`);
  }
  return { ...(path === undefined ? {} : { name: path }), ...(size === undefined ? {} : { sizeBytes: Number(size) }) };
}

/** @throws TarFault for a name that leads elsewhere */
function checkedName(raw: string): string {
  const parts = raw.split("/").filter((part) => part !== "" && part !== ".");
  if (raw.startsWith("/") || parts.includes("..") || raw.includes("\0") || raw.includes("\\")) {
    throw new TarFault(`${shown(raw)}: a path that leads out of the archive, which no archive of images has`);
  }
  return parts.join("/");
}

const KINDS: Record<string, string> = {
  "1": "a hard link",
  "2": "a symbolic link",
  "3": "a device",
  "4": "a device",
  "6": "a pipe",
  S: "a sparse file",
};

function checkType(type: string, name: string): void {
  if ("\x0007".includes(type) || type === "5") return;
  const kind = KINDS[type] ?? `an entry of the unknown type ${shown(type)}`;
  throw new TarFault(
    `${shown(name)} is ${kind}, which no OCI image layout has: write the image anew with a current tool`,
  );
}

/** For a message: a name may hold anything. */
export function shown(name: string): string {
  return JSON.stringify(name.length > 200 ? `${name.slice(0, 200)}…` : name);
}

function isZero(block: Buffer): boolean {
  return block.every((byte) => byte === 0);
}

async function openSource(path: string): Promise<ByteSource> {
  const file = await open(path, "r");
  try {
    const stats = await file.stat();
    if (!stats.isFile()) throw new TarFault(`${path} is no file`);
    const magic = Buffer.alloc(2);
    await file.read(magic, 0, 2, 0);
    return magic.readUInt16BE(0) === 0x1f8b ? new GzipSource(file) : new FileSource(file, stats.size);
  } catch (error) {
    await file.close();
    throw error;
  }
}

class FileSource implements ByteSource {
  readonly #file: FileHandle;
  readonly #sizeBytes: number;
  #at = 0;

  constructor(file: FileHandle, sizeBytes: number) {
    this.#file = file;
    this.#sizeBytes = sizeBytes;
  }

  async read(bytes: number): Promise<Buffer> {
    const target = Buffer.allocUnsafe(bytes);
    let filled = 0;
    while (filled < bytes) {
      const { bytesRead } = await this.#file.read(target, filled, bytes - filled, this.#at);
      if (bytesRead === 0) break;
      filled += bytesRead;
      this.#at += bytesRead;
    }
    return target.subarray(0, filled);
  }

  async skip(bytes: number): Promise<number> {
    const skipped = Math.min(bytes, Math.max(0, this.#sizeBytes - this.#at));
    this.#at += skipped;
    return skipped;
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

/** However much it unpacks to, a piece at a time is in memory and nothing on the disk. */
class GzipSource implements ByteSource {
  readonly #compressed: Readable;
  readonly #plain: ReturnType<typeof createGunzip>;
  readonly #chunks: AsyncIterator<Buffer>;
  readonly #file: FileHandle;
  #rest: Buffer = Buffer.alloc(0);

  constructor(file: FileHandle) {
    this.#file = file;
    this.#compressed = file.createReadStream({ start: 0, autoClose: false });
    this.#plain = createGunzip({ chunkSize: PIECE_BYTES });
    this.#compressed.on("error", (error) => this.#plain.destroy(error));
    this.#compressed.pipe(this.#plain);
    this.#chunks = this.#plain[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  }

  async read(bytes: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    let missing = bytes;
    while (missing > 0 && (await this.#more())) {
      const part = this.#rest.subarray(0, missing);
      parts.push(part);
      missing -= part.length;
      this.#rest = this.#rest.subarray(part.length);
    }
    return parts.length === 1 && parts[0] ? parts[0] : Buffer.concat(parts);
  }

  async skip(bytes: number): Promise<number> {
    let missing = bytes;
    while (missing > 0 && (await this.#more())) {
      const skipped = Math.min(missing, this.#rest.length);
      missing -= skipped;
      this.#rest = this.#rest.subarray(skipped);
    }
    return bytes - missing;
  }

  async close(): Promise<void> {
    this.#compressed.destroy();
    this.#plain.destroy();
    await this.#file.close();
  }

  async #more(): Promise<boolean> {
    if (this.#rest.length > 0) return true;
    try {
      const next = await this.#chunks.next();
      if (next.done === true) return false;
      this.#rest = next.value;
      return true;
    } catch (cause) {
      const code = (cause as NodeJS.ErrnoException).code ?? "";
      if (!code.startsWith("Z_")) throw cause;
      throw new TarFault(`the gzip file is damaged or cut short (${code}); ${REMEDY}`, { cause });
    }
  }
}
