/**
 * Heads of tar entries. Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar, "Basic Tar Format"
 */
export const TAR_BLOCK_BYTES = 512;

const NAME_BYTES = 100;
/** Beyond it, the eleven octal digits of a head do not tell a size. */
const MAX_OCTAL = 0o77777777777;

/** A file that a tar is to hold. What does not fit into its head goes into a pax head before it. Nothing in it depends on when or by whom it is written. */
export function fileHead(name: string, sizeBytes: number): Buffer {
  const records: [string, string][] = [];
  if (Buffer.byteLength(name) > NAME_BYTES) records.push(["path", name]);
  if (sizeBytes > MAX_OCTAL) records.push(["size", String(sizeBytes)]);
  const head = ustarHead(name.slice(0, NAME_BYTES), sizeBytes > MAX_OCTAL ? 0 : sizeBytes, "0");
  if (records.length === 0) return head;
  const pax = Buffer.from(records.map(([key, value]) => paxRecord(key, value)).join(""));
  return Buffer.concat([ustarHead("pax", pax.length, "x"), pax, padding(pax.length), head]);
}

/** What follows content so that the next head begins at a whole block. */
export function padding(sizeBytes: number): Buffer {
  return Buffer.alloc((TAR_BLOCK_BYTES - (sizeBytes % TAR_BLOCK_BYTES)) % TAR_BLOCK_BYTES);
}

/** What ends a tar. */
export const TAR_END: Buffer = Buffer.alloc(2 * TAR_BLOCK_BYTES);

function ustarHead(name: string, sizeBytes: number, type: string): Buffer {
  const head = Buffer.alloc(TAR_BLOCK_BYTES);
  head.write(name, 0);
  head.write("0000644\0", 100);
  head.write("0000000\0", 108);
  head.write("0000000\0", 116);
  head.write(`${sizeBytes.toString(8).padStart(11, "0")}\0`, 124);
  head.write("00000000000\0", 136);
  head.write(type, 156);
  head.write("ustar\x0000", 257);
  head.write(`${checksum(head).toString(8).padStart(6, "0")}\0 `, 148);
  return head;
}

/** A record tells its own length, the digits of which count. */
function paxRecord(key: string, value: string): string {
  const rest = Buffer.byteLength(` ${key}=${value}\n`);
  let length = rest + String(rest).length;
  if (String(length).length > String(rest).length) length = rest + String(length).length;
  return `${length} ${key}=${value}\n`;
}

/** Its own field counts as blanks. */
function checksum(head: Buffer): number {
  let sum = 8 * 0x20;
  for (const [at, byte] of head.entries()) if (at < 148 || at >= 156) sum += byte;
  return sum;
}

/** What a head says, nothing of it checked but its checksum. */
export interface TarHead {
  name: string;
  sizeBytes: number;
  /** One character; `\0` in very old ones means a file. */
  type: string;
}

/** @returns undefined for what is no head, or one with a damaged checksum or size */
export function parseHead(head: Buffer): TarHead | undefined {
  if (octal(head.subarray(148, 156)) !== checksum(head)) return undefined;
  const sizeBytes = number(head.subarray(124, 136));
  if (sizeBytes === undefined) return undefined;
  const name = text(head.subarray(0, 100));
  const posix = head.toString("latin1", 257, 263) === "ustar\0";
  const prefix = posix ? text(head.subarray(345, 500)) : "";
  return {
    name: prefix === "" ? name : `${prefix}/${name}`,
    sizeBytes,
    type: String.fromCharCode(head[156] ?? 0),
  };
}

/** @returns the records of a pax head; undefined where it is damaged */
export function parsePax(bytes: Buffer): Map<string, string> | undefined {
  const records = new Map<string, string>();
  for (let at = 0; at < bytes.length;) {
    const blank = bytes.indexOf(0x20, at);
    const digits = blank < 0 ? "" : bytes.toString("latin1", at, Math.min(blank, at + 8));
    const end = at + Number(digits);
    if (!/^[1-9]\d{0,6}$/.test(digits) || blank - at > 7 || end > bytes.length || bytes[end - 1] !== 0x0a)
      return undefined;
    const equals = bytes.indexOf(0x3d, blank);
    if (equals < 0 || equals >= end) return undefined;
    records.set(bytes.toString("utf8", blank + 1, equals), bytes.toString("utf8", equals + 1, end - 1));
    at = end;
  }
  return records;
}

function text(field: Buffer): string {
  const end = field.indexOf(0);
  return field.toString("utf8", 0, end < 0 ? field.length : end);
}

/** Octal digits or, as GNU writes what is larger, a big-endian number behind a set bit. */
function number(field: Buffer): number | undefined {
  if (((field[0] ?? 0) & 0x80) === 0) return octal(field);
  let value = (field[0] ?? 0) & 0x7f;
  for (const byte of field.subarray(1)) value = value * 256 + byte;
  return Number.isSafeInteger(value) ? value : undefined;
}

function octal(field: Buffer): number | undefined {
  const digits = field.toString("latin1").replaceAll("\0", " ").trim();
  return /^[0-7]*$/.test(digits) ? Number.parseInt(digits || "0", 8) : undefined;
}
