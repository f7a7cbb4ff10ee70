import { setImmediate as turn } from "node:timers/promises";
import type { Milliseconds } from "./clock.ts";

const HOLD_MS: Milliseconds = 5;

/**
 * For work that waits for nothing by itself, as what SQLite answers: called between its steps, it lets others have the event loop every
 * few milliseconds. All who share it share the time, and rest together.
 */
export function givingWay(): () => Promise<void> {
  let sinceMs = performance.now();
  let resting: Promise<void> | undefined;
  const rest = async (): Promise<void> => {
    await turn();
    sinceMs = performance.now();
    resting = undefined;
  };
  return async () => {
    if (resting || performance.now() - sinceMs >= HOLD_MS) await (resting ??= rest());
  };
}

/** Does work that is divided in steps, all at once. */
export function atOnce<T>(steps: Generator<void, T, void>): T {
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}

/** Does work that is divided in steps, and lets others have the event loop in between. @throws the signal's reason */
export async function inTurns<T>(steps: Generator<void, T, void>, signal: AbortSignal): Promise<T> {
  for (const giveWay = givingWay(); ;) {
    signal.throwIfAborted();
    const step = steps.next();
    if (step.done === true) return step.value;
    await giveWay();
  }
}
