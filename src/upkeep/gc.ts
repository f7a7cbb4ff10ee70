import type { Bytes, Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import { hexOf, type Digest } from "../oci/digest.ts";
import type { BlobStore } from "../store/blobs.ts";
import type { Ledger } from "../store/catalog.ts";
import type { Garbage, GarbageCatalog, Link, Span, Terms } from "../store/garbage.ts";
import type { MemoryCache } from "../store/memory.ts";
import type { Usage } from "../store/usage.ts";
import type { ClockWatch } from "./clock-watch.ts";
import { Preview } from "./gc-preview.ts";
import { Steps } from "./steps.ts";

/** What has gone, or would go. */
export interface GcReport {
  manifests: number;
  blobs: number;
  /** Blobs that a repository no longer reaches though they stay: no manifest of it points to them. */
  links: number;
  repositories: number;
  /** Of the manifests and blobs. */
  bytes: Bytes;
  ms: Milliseconds;
  dryRun: boolean;
  /** The clock has jumped ahead by so much: for as long as `gc.grace`, content has to be that much older to go. */
  clockGainedMs: Milliseconds;
}

export type GcPhase = "untagged" | "manifests" | "blobs" | "links" | "repositories";

/** What is told of a collection while it runs. */
export type GcEvent =
  /** `total` is an estimate; `removed` counts this phase, `bytes` all of them. */
  | { type: "progress"; phase: GcPhase; scanned: number; total: number; removed: number; bytes: Bytes }
  /** What a dry run would remove. */
  | { type: "garbage"; kind: "manifest" | "blob"; digest: Digest; sizeBytes: Bytes; reason: string };

export interface GcDeps {
  limits: () => { grace: Milliseconds; deleteUntagged: boolean };
  garbage: GarbageCatalog;
  blobs: BlobStore;
  memory: MemoryCache;
  usage: Usage;
  clock: Clock;
  watch: ClockWatch;
  /** Keeps the count of what is cached. */
  ledger: Ledger;
  /** Digests whose download is under way. */
  inFlight: () => ReadonlySet<Digest>;
  log: Logger;
  metrics: Metrics;
}

/** How garbage goes, or only seems to. `further…` is what becomes garbage by that without the database showing it. */
export interface Sweep {
  unlinkManifests(links: readonly Link[]): Promise<Link[]>;
  removeManifests(manifests: readonly Garbage[]): Promise<Garbage[]>;
  furtherManifests(): AsyncIterable<Garbage>;
  removeBlobs(blobs: readonly Garbage[]): Promise<Garbage[]>;
  furtherBlobs(): AsyncIterable<Garbage>;
  unlinkBlobs(links: readonly Link[]): Promise<Link[]>;
  furtherLinks(): AsyncIterable<Link>;
  removeRepositories(ids: readonly number[]): Promise<number>;
  furtherRepositories(): AsyncIterable<number>;
}

/** So many go at a time: one transaction, one sync of the disk. */
const GROUP = 50;
const TELL_EVERY_MS: Milliseconds = 250;
/** A dry run names so many contents. */
const MOST_NAMED = 1000;
const BEFORE_ALL = "" as Digest;

/**
 * Removes what was pushed and is needed no more, while pushes and pulls go on.
 *
 * - A manifest goes once no repository reaches it; with `gc.deleteUntagged`, a repository loses the manifests that no tag, no index of it
 *   and no subject in it keeps. A blob goes once no manifest points to it. What was used or linked within `gc.grace` stays.
 * - Everything is looked for in small steps and decided in the statement that removes it. Readers note a use before they look, and wait
 *   while a collection is alone with a digest: what they were told is there stays for the grace.
 * - A row goes before its file, and durably: killed in between, the file is collected at the next start.
 */
export class GarbageCollector {
  readonly #deps: GcDeps;

  constructor(deps: GcDeps) {
    this.#deps = deps;
  }

  /** @throws the signal's reason; Error of the database: what has gone has gone, and the next run goes on */
  async run(
    { dryRun }: { dryRun: boolean },
    tell: (event: GcEvent) => Promise<void>,
    signal: AbortSignal,
  ): Promise<GcReport> {
    const { clock, watch, usage, limits, blobs, inFlight, garbage, metrics } = this.#deps;
    const startedAtMs = performance.now();
    const { grace, deleteUntagged } = limits();
    const clockGainedMs = watch.gainedMs(grace);
    // Before the flush: what it writes is used now.
    const beforeMs = clock.now() - grace - clockGainedMs;
    await usage.flush();
    const terms: Terms = {
      beforeMs,
      inUse: (digest) => usage.pending(digest) || blobs.isOpen(digest) || inFlight().has(digest),
    };
    const sweep = dryRun ? new Preview(garbage, terms) : new Removal(this.#deps, terms);
    const run = new Run(this.#deps, sweep, terms, tell, signal, dryRun);
    try {
      if (deleteUntagged) await run.untagged();
      await run.manifests();
      await run.blobs();
      await run.links();
      await run.repositories();
    } finally {
      if (!dryRun) metrics.gcReclaimedBytes.inc(run.counts.bytes);
    }
    return { ...run.counts, ms: Math.round(performance.now() - startedAtMs), dryRun, clockGainedMs };
  }
}

/** How a phase goes over a table in the order of its keys. */
interface Way<Key> {
  first: Key;
  /** How far a key is on the way through all of them, from 0 to 1. */
  share: (key: Key) => number;
  span: (after: Key, rows: number) => Promise<Span<Key> | undefined>;
  /** Looks at the rows after a key; what it returns removes what was found. */
  find: (after: Key, rows: number) => Promise<() => Promise<void>>;
  /** How much of it has gone so far. */
  removed: () => number;
}

/** One collection: its phases, and what they count. */
class Run {
  readonly counts = { manifests: 0, blobs: 0, links: 0, repositories: 0, bytes: 0 };
  readonly #garbage: GarbageCatalog;
  readonly #sweep: Sweep;
  readonly #terms: Terms;
  readonly #tell: (event: GcEvent) => Promise<void>;
  readonly #steps: Steps;
  readonly #dryRun: boolean;
  #named = 0;
  #toldAtMs = 0;

  constructor(
    { garbage, clock }: GcDeps,
    sweep: Sweep,
    terms: Terms,
    tell: (event: GcEvent) => Promise<void>,
    signal: AbortSignal,
    dryRun: boolean,
  ) {
    this.#garbage = garbage;
    this.#sweep = sweep;
    this.#terms = terms;
    this.#tell = tell;
    this.#steps = new Steps(clock, signal);
    this.#dryRun = dryRun;
  }

  /** Manifests without a tag leave their repositories, and then what belonged to them. */
  async untagged(): Promise<void> {
    let removed = 0;
    const unlink = async (links: readonly Link[]): Promise<void> => {
      for (let at = 0; at < links.length; at += GROUP) {
        const gone = await this.#steps.rest(() => this.#sweep.unlinkManifests(links.slice(at, at + GROUP)));
        removed += gone.length;
        for (const link of gone) for await (const relatives of this.#garbage.relatives(link)) await unlink(relatives);
      }
    };
    await this.#overLinks("untagged", {
      find: async (after, rows) => {
        const found = await this.#garbage.looseManifests(after, rows, this.#terms.beforeMs);
        return () => unlink(found);
      },
      removed: () => removed,
    });
  }

  /** Manifests that no repository reaches. */
  async manifests(): Promise<void> {
    const remove = async (manifests: readonly Garbage[]): Promise<void> => {
      for (let at = 0; at < manifests.length; at += GROUP) {
        const gone = await this.#steps.rest(() => this.#sweep.removeManifests(manifests.slice(at, at + GROUP)));
        this.counts.manifests += gone.length;
        await this.#count("manifest", "no repository has it", gone);
      }
    };
    await this.#over("manifests", {
      first: BEFORE_ALL,
      share: shareOf,
      span: (after, rows) => this.#garbage.manifests(after, rows),
      find: async (after, rows) => {
        const found = await this.#garbage.unlinkedManifests(after, rows);
        return () => remove(found);
      },
      removed: () => this.counts.manifests,
    });
    for await (const manifest of this.#sweep.furtherManifests()) await remove([manifest]);
  }

  /** Pushed blobs that no manifest points to. */
  async blobs(): Promise<void> {
    const remove = async (blobs: readonly Garbage[]): Promise<void> => {
      for (let at = 0; at < blobs.length; at += GROUP) {
        const gone = await this.#steps.rest(() => this.#sweep.removeBlobs(blobs.slice(at, at + GROUP)));
        this.counts.blobs += gone.length;
        await this.#count("blob", "no manifest needs it", gone);
      }
    };
    await this.#over("blobs", {
      first: BEFORE_ALL,
      share: shareOf,
      span: (after, rows) => this.#garbage.blobs(after, rows),
      find: async (after, rows) => {
        const found = await this.#garbage.unneededBlobs(after, rows, this.#terms.beforeMs);
        return () => remove(found);
      },
      removed: () => this.counts.blobs,
    });
    for await (const blob of this.#sweep.furtherBlobs()) await remove([blob]);
  }

  /** What a repository may reach though no manifest of it points to it. */
  async links(): Promise<void> {
    const unlink = async (links: readonly Link[]): Promise<void> => {
      for (let at = 0; at < links.length; at += GROUP) {
        const gone = await this.#steps.rest(() => this.#sweep.unlinkBlobs(links.slice(at, at + GROUP)));
        this.counts.links += gone.length;
      }
    };
    await this.#overLinks("links", {
      find: async (after, rows) => {
        const found = await this.#garbage.idleLinks(after, rows, this.#terms.beforeMs);
        return () => unlink(found);
      },
      removed: () => this.counts.links,
    });
    for await (const link of this.#sweep.furtherLinks()) await unlink([link]);
  }

  /** Repositories that hold nothing. */
  async repositories(): Promise<void> {
    const remove = async (ids: readonly number[]): Promise<void> => {
      if (ids.length > 0) this.counts.repositories += await this.#steps.rest(() => this.#sweep.removeRepositories(ids));
    };
    const most = await this.#garbage.lastRepository();
    await this.#over("repositories", {
      first: 0,
      share: (id) => id / most,
      span: (after, rows) => this.#garbage.repositories(after, rows),
      find: async (after, rows) => {
        const found = await this.#garbage.emptyRepositories(after, rows, this.#terms.beforeMs);
        return () => remove(found);
      },
      removed: () => this.counts.repositories,
    });
    for await (const id of this.#sweep.furtherRepositories()) await remove([id]);
  }

  async #overLinks(phase: GcPhase, { find, removed }: Pick<Way<Link>, "find" | "removed">): Promise<void> {
    const most = await this.#garbage.lastRepository();
    await this.#over(phase, {
      first: { repositoryId: 0, digest: BEFORE_ALL },
      share: ({ repositoryId, digest }) => (repositoryId - 1 + shareOf(digest)) / most,
      span: (after, rows) => this.#garbage.links(after, rows),
      find,
      removed,
    });
  }

  async #over<Key>(phase: GcPhase, { first, share, span, find, removed }: Way<Key>): Promise<void> {
    let scanned = 0;
    for (let after = first; ;) {
      const step = await this.#steps.look(async (rows) => {
        const here = await span(after, rows);
        return here && { ...here, remove: await find(after, here.rows) };
      });
      if (!step) break;
      await step.remove();
      after = step.last;
      scanned += step.rows;
      // Digests are spread evenly, so the last one tells how many there are without counting them.
      await this.#progress(phase, scanned, Math.max(scanned, Math.round(scanned / share(after))), removed());
    }
    this.#toldAtMs = 0;
    await this.#progress(phase, scanned, scanned, removed());
  }

  async #progress(phase: GcPhase, scanned: number, total: number, removed: number): Promise<void> {
    if (performance.now() - this.#toldAtMs < TELL_EVERY_MS) return;
    this.#toldAtMs = performance.now();
    await this.#tell({ type: "progress", phase, scanned, total, removed, bytes: this.counts.bytes });
  }

  async #count(kind: "manifest" | "blob", reason: string, gone: readonly Garbage[]): Promise<void> {
    for (const { digest, sizeBytes } of gone) {
      this.counts.bytes += sizeBytes;
      if (this.#dryRun && this.#named++ < MOST_NAMED)
        await this.#tell({ type: "garbage", kind, digest, sizeBytes, reason });
    }
  }
}

/** How far a digest is in the order of all. Those of sha512 come last, and are few. */
function shareOf(digest: string): number {
  return digest.startsWith("sha256:") ? (Number.parseInt(hexOf(digest as Digest).slice(0, 8), 16) + 1) / 2 ** 32 : 1;
}

/** Removes for good. */
class Removal implements Sweep {
  readonly #deps: GcDeps;
  readonly #terms: Terms;

  constructor(deps: GcDeps, terms: Terms) {
    this.#deps = deps;
    this.#terms = terms;
  }

  unlinkManifests(links: readonly Link[]): Promise<Link[]> {
    return this.#deps.garbage.unlinkManifests(links, this.#terms);
  }

  async removeManifests(manifests: readonly Garbage[]): Promise<Garbage[]> {
    const { garbage, memory, ledger } = this.#deps;
    const gone = await garbage.removeManifests(manifests.map(({ digest }) => digest));
    ledger.removed(gone);
    for (const { digest } of gone) memory.delete(digest);
    return gone;
  }

  async removeBlobs(candidates: readonly Garbage[]): Promise<Garbage[]> {
    const { garbage, blobs, memory, log } = this.#deps;
    const digests = candidates.map(({ digest }) => digest);
    return blobs.exclusive(digests, async () => {
      const gone = await garbage.removeBlobs(digests, this.#terms);
      for (const { digest } of gone) {
        memory.delete(digest);
        // What can't be removed now is a file without a row: collected at the next start.
        await blobs
          .remove(digest)
          .catch((error: unknown) => log.warn({ digest, err: error }, "could not remove a file"));
      }
      return gone;
    });
  }

  unlinkBlobs(links: readonly Link[]): Promise<Link[]> {
    const { garbage, blobs } = this.#deps;
    return blobs.exclusive(
      links.map(({ digest }) => digest),
      () => garbage.unlinkBlobs(links, this.#terms),
    );
  }

  removeRepositories(ids: readonly number[]): Promise<number> {
    return this.#deps.garbage.removeRepositories(ids, this.#terms.beforeMs);
  }

  // The database shows all that becomes garbage.
  async *furtherManifests(): AsyncGenerator<never> {}
  async *furtherBlobs(): AsyncGenerator<never> {}
  async *furtherLinks(): AsyncGenerator<never> {}
  async *furtherRepositories(): AsyncGenerator<never> {}
}
