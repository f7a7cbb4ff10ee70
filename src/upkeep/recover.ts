import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Digest } from "../oci/digest.ts";
import type { BlobStore } from "../store/blobs.ts";
import type { Catalog } from "../store/catalog.ts";

const PARTIAL_LIFE_MS: Milliseconds = 7 * 86_400_000;

export interface RecoverDeps {
  catalog: Catalog;
  blobs: BlobStore;
  clock: Clock;
  log: Logger;
  /** How long a list of tags or referrers may be served at most. */
  listingLifeMs: Milliseconds;
  inFlight: () => ReadonlySet<Digest>;
}

/**
 * Puts in order what an earlier run left: partial files stay for the next pull unless they are a week old; blobs without a row
 * (killed between the rename and the commit, or between the eviction of the row and of the file) are removed.
 * Lists of tags and referrers that may not be served any more go, too. Runs beside the serving of requests, one file at a time.
 */
export async function recover(deps: RecoverDeps, signal: AbortSignal): Promise<{ partials: number; orphans: number }> {
  const { catalog, blobs, clock, log, inFlight } = deps;
  const startedAtMs = clock.now();
  let partials = 0;
  let orphans = 0;
  await catalog.removeListings(startedAtMs - deps.listingLifeMs);
  for (const { digest, modifiedAtMs } of await blobs.leftovers()) {
    if (signal.aborted) break;
    if (startedAtMs - modifiedAtMs < PARTIAL_LIFE_MS || inFlight().has(digest)) continue;
    await blobs.removeLeftover(digest);
    partials++;
  }
  for await (const { digest, modifiedAtMs } of blobs.list()) {
    if (signal.aborted) break;
    // What this run stores may be between its rename and its row.
    if (modifiedAtMs >= startedAtMs || inFlight().has(digest) || (await catalog.hasBlob(digest))) continue;
    await blobs.exclusive([digest], async () => {
      if (inFlight().has(digest) || (await catalog.hasBlob(digest))) return;
      await blobs.remove(digest);
      orphans++;
    });
  }
  if (partials + orphans > 0) log.info({ partials, orphans }, "removed what an earlier run left behind");
  return { partials, orphans };
}
