/**
 * Tells V8 when to look for dead buffers. Bodies of transfers lie outside of its heap, where it does not see them pile up: between two
 * collections of the young generation there may be a hundred MiB of them.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { Bytes } from "./clock.ts";

/** A collection takes one to three milliseconds, V8's own ones included that come later for it. */
const EVERY_BYTES: Bytes = 8 * 1024 * 1024;

let collect: ((options: object) => void) | undefined;
let untilNext: Bytes = EVERY_BYTES;

/** So much has come from the network, in buffers of its own. */
export function arrived(bytes: Bytes): void {
  untilNext -= bytes;
  if (untilNext > 0) return;
  untilNext = EVERY_BYTES;
  collector()({ type: "minor" });
}

/**
 * Gives back what only the start needed, most of it schemas and modules' sources: left alone, it stays until the heap has grown by as much
 * again, 60 MiB in the middle of the first transfers. It takes 30 ms, once.
 */
export function collectAll(): void {
  // The flavor that also hands the freed pages back to the system.
  collector()({ type: "major", execution: "sync", flavor: "last-resort" });
}

function collector(): (options: object) => void {
  if (!collect) {
    setFlagsFromString("--expose-gc");
    collect = runInNewContext("gc") as (options: object) => void;
    setFlagsFromString("--no-expose-gc");
  }
  return collect;
}
