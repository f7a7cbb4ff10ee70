import type { Clock } from "../base/clock.ts";
import type { Digest } from "../oci/digest.ts";
import type { Platform } from "../oci/manifest.ts";
import { parseImageReference } from "../oci/reference.ts";
import type { FlightProgress } from "../transfer/download.ts";
import type { Mirror } from "./mirror.ts";
import type { Names } from "./names.ts";

/** What a client that warms images is told, one JSON object a line. Sizes are bytes. */
export type WarmEvent =
  | { type: "image"; image: string; repository: string }
  | { type: "blob"; image: string; digest: Digest; sizeBytes: number; here: boolean }
  | { type: "progress"; flights: FlightProgress[] }
  | { type: "done"; image: string }
  | { type: "failed"; image: string; message: string };

const TICK_MS = 250;

/** Brings whole images into the cache before anyone asks for them. */
export class Warming {
  readonly #deps: { mirror: Mirror; names: Names; clock: Clock; progress: () => FlightProgress[] };

  constructor(deps: { mirror: Mirror; names: Names; clock: Clock; progress: () => FlightProgress[] }) {
    this.#deps = deps;
  }

  /**
   * Warms images one after the other; a failed one does not keep the others from coming.
   * @param platforms `os/architecture[/variant]`; none: all
   * @param signal ends it; what nobody else waits for is not downloaded further
   */
  async run(
    images: readonly string[],
    platforms: readonly string[],
    tell: (event: WarmEvent) => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    const { clock } = this.#deps;
    const done = new AbortController();
    const ticks = (async () => {
      while (!done.signal.aborted && !signal.aborted) {
        await clock.sleep(TICK_MS, AbortSignal.any([done.signal, signal])).catch(() => undefined);
        await tell({ type: "progress", flights: this.#deps.progress() });
      }
    })();
    try {
      for (const image of images) {
        if (signal.aborted) return;
        await this.#warm(image, platforms, tell, signal);
      }
    } finally {
      done.abort();
      await ticks;
    }
  }

  async #warm(
    image: string,
    platforms: readonly string[],
    tell: (event: WarmEvent) => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    const { mirror, names } = this.#deps;
    try {
      const { host, repository, reference } = parseImageReference(image);
      const located = names.locate(repository, host);
      if (located.kind !== "cached") throw new Error(`${located.repository} is hosted here: there is nothing to warm`);
      await tell({ type: "image", image, repository: located.repository });
      const told: Promise<void>[] = [];
      await mirror.warm(
        located,
        reference,
        (platform) => wanted(platforms, platform),
        (blob) => {
          told.push(tell({ type: "blob", image, ...blob }));
        },
        signal,
      );
      await Promise.all(told);
      if (told.length === 0 && platforms.length > 0)
        throw new Error(`${image} has nothing for ${platforms.join(", ")}: look at the platforms of its index`);
      await tell({ type: "done", image });
    } catch (error) {
      await tell({ type: "failed", image, message: (error as Error).message });
    }
  }
}

/** A platform without a variant stands for all of them: some indexes name `arm64`, others `arm64/v8`. */
export function wanted(platforms: readonly string[], { os, architecture, variant }: Platform): boolean {
  const named = `${os}/${architecture}`;
  return (
    platforms.length === 0 ||
    platforms.includes(named) ||
    platforms.some(
      (platform) => platform.startsWith(`${named}/`) && (variant === undefined || platform === `${named}/${variant}`),
    )
  );
}
