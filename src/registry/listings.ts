import type { Clock, Milliseconds } from "../base/clock.ts";
import type { CacheResult } from "../base/metrics.ts";
import { RegistryError } from "../oci/errors.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { Catalog, Listing } from "../store/catalog.ts";
import { staleWarning } from "./answers.ts";
import { mayServeStale } from "./freshness.ts";
import { attempt, Beliefs, Shared } from "./shared.ts";
import { ownerOf, type Target } from "./upstream.ts";

export interface Listed {
  /** Undefined where upstream has no such list. */
  items: unknown[] | undefined;
  warning: string | undefined;
  result: CacheResult;
}

/** What upstream answered; a warning where it came out of a cache itself. */
export interface Asked {
  items: unknown[];
  warning?: string | undefined;
}

export interface ListingDeps {
  catalog: Catalog;
  clock: Clock;
  /** A failure of the cache that no client notices. */
  onFault: (operation: string, error: unknown) => void;
}

/** Lists of cached repositories (tags, referrers): as upstream tells them, for `listTtl`, and longer while it can't be asked. */
export class Listings {
  readonly #deps: ListingDeps;
  readonly #running = new Shared<Listed>();
  /** Lists that are not there, or have nothing in them: remembered here alone, so that asking for made-up names fills no database. */
  readonly #nothing = new Beliefs();

  constructor(deps: ListingDeps) {
    this.#deps = deps;
  }

  /**
   * @param subject what the list is about; "" for a repository's tags
   * @param ask asks upstream, quickly where `urgent`; undefined: there is no such list
   * @throws what `ask` throws, where nothing may be served instead
   */
  async find(
    target: Target,
    kind: "tags" | "referrers",
    subject: string,
    ask: (urgent: boolean) => Promise<Asked | undefined>,
  ): Promise<Listed> {
    const { catalog, clock } = this.#deps;
    const { listTtl, notFoundTtl, maxStale } = target.upstream.config;
    const key = `${kind} ${target.repository} ${subject}`;
    const stored = await this.#attempt("find listing", () => catalog.findListing(target.repository, kind, subject));
    const nowMs = clock.now();
    if (stored && isFresh(stored, nowMs, listTtl)) return { items: parse(stored), warning: undefined, result: "hit" };
    if (this.#nothing.holds(`empty ${key}`, nowMs)) return { items: [], warning: undefined, result: "negative" };
    if (this.#nothing.holds(key, nowMs)) return { items: undefined, warning: undefined, result: "negative" };
    return this.#running.run(key, async () => {
      try {
        const asked = await ask(stored !== undefined);
        const items = asked?.items;
        if (!items) this.#nothing.believe(key, nowMs, notFoundTtl);
        else if (items.length === 0 && !stored) this.#nothing.believe(`empty ${key}`, nowMs, listTtl);
        else if (asked.warning === undefined) await this.#store(target, kind, subject, items, nowMs);
        return { items, warning: asked?.warning, result: "miss" };
      } catch (error) {
        if (!stored || !mayServeStale(nowMs - stored.fetchedAtMs, maxStale) || isRefusal(error)) throw error;
        return { items: parse(stored), warning: staleWarning((error as Error).message), result: "stale" };
      }
    });
  }

  /** Resolves when nothing is asked of any upstream. */
  idle(): Promise<void> {
    return this.#running.idle();
  }

  async #store(
    target: Target,
    kind: "tags" | "referrers",
    subject: string,
    items: unknown[],
    nowMs: Milliseconds,
  ): Promise<void> {
    const body = JSON.stringify(items);
    await this.#attempt("set listing", () =>
      this.#deps.catalog.setListing(ownerOf(target), kind, subject, body, nowMs),
    );
  }

  #attempt<T>(operation: string, work: () => Promise<T>): Promise<T | undefined> {
    return attempt(this.#deps.onFault, operation, work);
  }
}

// A clock that was set back makes an age negative: then ask.
function isFresh({ fetchedAtMs }: Listing, nowMs: Milliseconds, listTtl: Milliseconds): boolean {
  const ageMs = nowMs - fetchedAtMs;
  return ageMs >= 0 && ageMs < listTtl;
}

/** Whether upstream said no to whom it was asked for: then nothing is served in its place. */
function isRefusal(error: unknown): boolean {
  if (error instanceof RemoteError) return !error.othersMayAnswer;
  return error instanceof RegistryError && error.code === "DENIED";
}

function parse(listing: Listing): unknown[] {
  const parsed: unknown = JSON.parse(listing.body);
  return Array.isArray(parsed) ? parsed : [];
}
