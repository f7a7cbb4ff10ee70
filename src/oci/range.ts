/** Bytes first…last of a body, both included, 0-based. */
export interface ByteRange {
  firstByte: number;
  lastByte: number;
}

const RANGE = /^bytes=(\d{0,16})-(\d{0,16})$/;

/**
 * Reads a `Range` request header against a body of known size.
 * @returns the range, "unsatisfiable" (answer 416), or undefined where the header is to be ignored (absent, another unit, several ranges).
 * Source: RFC 9110 §14.1.2, §14.2; `bytes=500-0` is unsatisfiable to the OCI conformance suite.
 */
export function parseRange(header: string | undefined, sizeBytes: number): ByteRange | "unsatisfiable" | undefined {
  if (header === undefined) return undefined;
  const match = RANGE.exec(header.trim());
  if (!match) return undefined;
  const [, first = "", last = ""] = match;
  if (first === "") {
    const suffix = Number(last);
    if (last === "" || suffix === 0 || sizeBytes === 0) return "unsatisfiable";
    return { firstByte: Math.max(0, sizeBytes - suffix), lastByte: sizeBytes - 1 };
  }
  const firstByte = Number(first);
  const lastByte = last === "" ? sizeBytes - 1 : Math.min(Number(last), sizeBytes - 1);
  if (firstByte >= sizeBytes || lastByte < firstByte) return "unsatisfiable";
  return { firstByte, lastByte };
}

/** The parts of a `Content-Range: bytes 0-9/100` answer; sizeBytes is undefined for `*`. */
export interface ContentRange extends ByteRange {
  sizeBytes: number | undefined;
}

/** @returns undefined for anything but one well-formed range. Source: RFC 9110 §14.4 */
export function parseContentRange(header: string | undefined): ContentRange | undefined {
  const match = header === undefined ? null : /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16}|\*)$/.exec(header);
  if (!match) return undefined;
  const range = {
    firstByte: Number(match[1]),
    lastByte: Number(match[2]),
    sizeBytes: match[3] === "*" ? undefined : Number(match[3]),
  };
  if (range.lastByte < range.firstByte) return undefined;
  if (range.sizeBytes !== undefined && range.lastByte >= range.sizeBytes) return undefined;
  return range;
}
