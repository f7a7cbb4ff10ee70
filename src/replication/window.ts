import type { Milliseconds } from "../base/clock.ts";

const MINUTE_MS: Milliseconds = 60_000;
const DAY_MS: Milliseconds = 86_400_000;

/**
 * When copies may begin that nobody asked for by hand.
 * @param window `20:00-06:00` in UTC, its end exclusive, perhaps over midnight; undefined: it is always open
 * @returns `nowMs` while it is open, else the time of its next opening
 */
export function opensAtMs(window: string | undefined, nowMs: Milliseconds): Milliseconds {
  if (window === undefined) return nowMs;
  const [from = 0, to = 0] = window.split("-").map(minutesOf);
  // Days of UTC have no leap seconds here: each is as long as any other.
  const midnightMs = nowMs - (nowMs % DAY_MS);
  const opensMs = midnightMs + from * MINUTE_MS;
  const closesMs = midnightMs + to * MINUTE_MS;
  const isOpen = from < to ? nowMs >= opensMs && nowMs < closesMs : nowMs >= opensMs || nowMs < closesMs;
  if (isOpen) return nowMs;
  return nowMs < opensMs ? opensMs : opensMs + DAY_MS;
}

function minutesOf(time: string): number {
  const [hours = 0, minutes = 0] = time.split(":").map(Number);
  return hours * 60 + minutes;
}
