import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Between two collections of one stream. */
const EVERY_BYTES = 8 * 1024 * 1024;

/**
 * Frees the buffers that a long stream leaves behind. They lie outside of the heap, where V8 notices them late: a GiB that is copied through the
 * cache peaked at 240 to 320 MiB resident, and at 195 with collections of the young generation. One takes about a millisecond.
 */
export class YoungGarbage {
  #collect: ((options: object) => void) | undefined;
  #passedBytes = 0;

  /** Told of each buffer that is given away. */
  passed(bytes: number): void {
    this.#passedBytes += bytes;
    if (this.#passedBytes < EVERY_BYTES) return;
    this.#passedBytes = 0;
    this.#collect ??= readCollector();
    this.#collect({ type: "minor", execution: "sync" });
  }
}

function readCollector(): (options: object) => void {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as (options: object) => void;
  setFlagsFromString("--no-expose-gc");
  return collect;
}
