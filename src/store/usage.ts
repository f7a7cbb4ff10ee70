import { setImmediate as turn } from "node:timers/promises";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import type { Catalog, PulledTag } from "./catalog.ts";

const FLUSH_MS: Milliseconds = 30_000;
/** Rows per transaction: a few hundred updates hold the event loop for about a millisecond. */
const BATCH = 200;

/** Notes which content was used and which tags were pulled, and writes it in batches: a pull costs no write. */
export class Usage implements AsyncDisposable {
  readonly #catalog: Catalog;
  readonly #clock: Clock;
  readonly #onFault: (operation: string, error: unknown) => void;
  readonly #stop = new AbortController();
  readonly #loop: Promise<void>;
  #used = new Set<Digest>();
  #pulled = new Map<string, PulledTag>();
  /** What is being written, by each who does. */
  readonly #written = new Set<ReadonlySet<Digest>>();
  readonly #writtenTags = new Set<ReadonlyMap<string, PulledTag>>();

  constructor(catalog: Catalog, clock: Clock, onFault: (operation: string, error: unknown) => void) {
    this.#catalog = catalog;
    this.#clock = clock;
    this.#onFault = onFault;
    this.#loop = this.#run();
  }

  touch(digest: Digest): void {
    this.#used.add(digest);
  }

  /** Notes that a tag of a hosted repository was pulled. */
  touchTag(repository: RepositoryName, tag: Tag): void {
    this.#pulled.set(`${repository}:${tag}`, { repository, tag, atMs: this.#clock.now() });
  }

  /** Whether a pull of it is noted and not written yet. */
  pendingTag(repository: RepositoryName, tag: Tag): boolean {
    const key = `${repository}:${tag}`;
    return this.#pulled.has(key) || this.#writtenTags.values().some((tags) => tags.has(key));
  }

  /** Whether its use is noted and not written yet: what the database says of it is out of date. */
  pending(digest: Digest): boolean {
    return this.#used.has(digest) || this.#written.values().some((digests) => digests.has(digest));
  }

  /** Writes what has gathered. Eviction does so first: the order of use decides what goes. */
  async flush(): Promise<void> {
    await Promise.all([this.#flushContent(), this.#flushTags()]);
  }

  async #flushTags(): Promise<void> {
    const written = this.#pulled;
    const pulled = [...written];
    this.#pulled = new Map();
    this.#writtenTags.add(written);
    try {
      for (let at = 0; at < pulled.length; at += BATCH) {
        await this.#catalog.touchTags(pulled.slice(at, at + BATCH).map(([, tag]) => tag));
        await turn();
      }
    } catch (error) {
      // A newer pull of it stays.
      for (const [key, tag] of pulled) if (!this.#pulled.has(key)) this.#pulled.set(key, tag);
      this.#onFault("touch tags", error);
    } finally {
      this.#writtenTags.delete(written);
    }
  }

  async #flushContent(): Promise<void> {
    const written = this.#used;
    const used = [...written];
    this.#used = new Set();
    this.#written.add(written);
    try {
      for (let at = 0; at < used.length; at += BATCH) {
        await this.#catalog.touch(used.slice(at, at + BATCH), this.#clock.now());
        // SQLite answers within the same turn: let requests have theirs between two batches.
        await turn();
      }
    } catch (error) {
      // The next flush tries again: what was used must not look forgotten.
      for (const digest of used) this.#used.add(digest);
      this.#onFault("touch", error);
    } finally {
      this.#written.delete(written);
    }
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      await this.#clock.sleep(FLUSH_MS, this.#stop.signal).catch(() => undefined);
      await this.flush();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }
}
