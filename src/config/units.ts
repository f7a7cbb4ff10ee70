import type { Bytes, Milliseconds } from "../base/clock.ts";

const DURATIONS: readonly [unit: string, ms: number][] = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1000],
  ["ms", 1],
];
const BINARY_SIZES: readonly [unit: string, bytes: number][] = [
  ["TiB", 2 ** 40],
  ["GiB", 2 ** 30],
  ["MiB", 2 ** 20],
  ["KiB", 2 ** 10],
];
const SIZES: readonly [unit: string, bytes: number][] = [
  ...BINARY_SIZES,
  ["TB", 1e12],
  ["GB", 1e9],
  ["MB", 1e6],
  ["kB", 1000],
  ["B", 1],
  ["", 1],
];

/** The grammar of durations, as a regular expression. */
export const DURATION_PATTERN = "^[0-9]+(ms|s|m|h|d)$";
/** The grammar of sizes, as a regular expression. */
export const SIZE_PATTERN = "^[0-9]+ ?(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?$";

/** What a person is told to write. */
export const DURATION_REMEDY = "write a whole number and a unit (ms, s, m, h, d), such as 30s";
export const SIZE_REMEDY = "write a whole number and a unit (KiB, MiB, GiB, TiB, kB, MB, GB, TB), such as 10MiB";

/** `250ms`, `30s`, `5m`, `12h`, `7d`; a whole number and one unit. Undefined for anything else. */
export function parseDuration(text: string): Milliseconds | undefined {
  return new RegExp(DURATION_PATTERN).test(text) ? scale(text, DURATIONS) : undefined;
}

/** `10MiB`, `50 GB`, `4096`; a whole number and at most one unit, binary or decimal. Undefined for anything else. */
export function parseSize(text: string): Bytes | undefined {
  return new RegExp(SIZE_PATTERN).test(text) ? scale(text, SIZES) : undefined;
}

/**
 * The shortest text without loss: 90000 is `90s`, 3600000 is `1h`. `parseDuration` reads it back.
 * @param ms a whole number from 0
 */
export function formatDuration(ms: Milliseconds): string {
  return ms === 0 ? "0s" : (inLargestUnit(ms, DURATIONS) ?? `${ms}ms`);
}

/**
 * The shortest text without loss, in binary units: 10485760 is `10MiB`, 1500 is `1500B`. `parseSize` reads it back.
 * @param bytes a whole number from 0
 */
export function formatSize(bytes: Bytes): string {
  return bytes === 0 ? "0B" : (inLargestUnit(bytes, BINARY_SIZES) ?? `${bytes}B`);
}

function scale(text: string, units: readonly [string, number][]): number | undefined {
  const digits = /^[0-9]+/.exec(text)?.[0] ?? "";
  const unit = text.slice(digits.length).trim();
  const factor = units.find(([name]) => name === unit)?.[1];
  const value = Number(digits) * (factor ?? Number.NaN);
  return Number.isSafeInteger(value) ? value : undefined;
}

function inLargestUnit(value: number, units: readonly [string, number][]): string | undefined {
  const exact = units.find(([, factor]) => value % factor === 0);
  return exact && `${value / exact[1]}${exact[0]}`;
}
