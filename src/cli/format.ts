import type { Bytes, Milliseconds } from "../base/clock.ts";

export { bytesText } from "../base/bytes-text.ts";

/** `0.42 s`, `3.2 s`, `42 s`, `2:05`, `1:02:05`. */
export function timeText(ms: Milliseconds): string {
  const seconds = ms / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(seconds < 0.995 ? 2 : 1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (part: number): string => String(part).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  return minutes < 60
    ? `${minutes}:${two(whole % 60)}`
    : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`;
}

/** @param share from 0 to 1 @param width in characters */
export function barText(share: number, width: number): string {
  const full = Math.round(Math.min(1, Math.max(0, share)) * width);
  return "█".repeat(full) + "░".repeat(width - full);
}

/** The text within a number of characters; what is left out becomes `…`. */
export function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`;
}

/** `1 blob`, `12 blobs`. */
export function countText(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}

const WINDOW_MS = 3000;

/** How fast something goes, over the last three seconds. */
export class Rate {
  #samples: { atMs: number; bytes: number }[] = [];

  /** @param bytes so far, in all */
  sample(bytes: Bytes, nowMs: Milliseconds): void {
    this.#samples.push({ atMs: nowMs, bytes });
    while ((this.#samples[1]?.atMs ?? Infinity) <= nowMs - WINDOW_MS) this.#samples.shift();
  }

  /** Undefined until enough is known. */
  get bytesPerSecond(): number | undefined {
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    if (!first || !last || last.atMs - first.atMs < 200 || last.bytes <= first.bytes) return undefined;
    return ((last.bytes - first.bytes) * 1000) / (last.atMs - first.atMs);
  }
}
