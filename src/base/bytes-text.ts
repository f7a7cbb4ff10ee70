import type { Bytes } from "./clock.ts";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** `999 B`, `12.3 MiB`, `640 MiB`: three digits or so, for people. */
export function bytesText(bytes: Bytes): string {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}
