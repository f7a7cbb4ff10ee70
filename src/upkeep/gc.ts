import type { Bytes, Clock, Milliseconds } from "../base/clock.ts";
import type { Metrics } from "../base/metrics.ts";
import type { Digest } from "../oci/digest.ts";
import type { Garbage, GarbageCatalog, Link, Span, Terms } from "../store/garbage.ts";
import type { Usage } from "../store/usage.ts";
import type { ClockWatch } from "./clock-watch.ts";
import { Preview } from "./gc-preview.ts";
import { shareOf } from "./share.ts";
import { Steps } from "./steps.ts";
import { NO_MORE, Removal, type RemovalDeps, type Sweep } from "./sweep.ts";

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

export interface GcDeps extends RemovalDeps {
  limits: () => { grace: Milliseconds; deleteUntagged: boolean };
  usage: Usage;
  clock: Clock;
  watch: ClockWatch;
  /** Digests whose download is under way. */
  inFlight: () => ReadonlySet<Digest>;
  metrics: Metrics;
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
interface Way<Key, Item> {
  first: Key;
  /** How far a key is on the way through all of them, from 0 to 1. */
  share: (key: Key) => number;
  span: (after: Key, rows: number) => Promise<Span<Key> | undefined>;
  /** What of the rows after a key is garbage. */
  find: (after: Key, rows: number) => Promise<readonly Item[]>;
  remove: (items: readonly Item[]) => Promise<void>;
  /** What has become garbage without the database showing it. */
  further: AsyncIterable<Item>;
  /** How much has gone so far. */
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
    await this.#over("untagged", {
      first: BEFORE_ALL,
      share: shareOf,
      span: (after, rows) => this.#garbage.manifests(after, rows),
      find: (after, rows) => this.#garbage.looseManifests(after, rows, this.#terms.beforeMs),
      remove: unlink,
      further: NO_MORE,
      removed: () => removed,
    });
  }

  /** Manifests that no repository reaches. */
  async manifests(): Promise<void> {
    await this.#over("manifests", {
      first: BEFORE_ALL,
      share: shareOf,
      span: (after, rows) => this.#garbage.manifests(after, rows),
      find: (after, rows) => this.#garbage.unlinkedManifests(after, rows),
      remove: async (manifests) => {
        const gone = await this.#sweep.removeManifests(manifests);
        this.counts.manifests += gone.length;
        await this.#count("manifest", "no repository has it", gone);
      },
      further: this.#sweep.furtherManifests(),
      removed: () => this.counts.manifests,
    });
  }

  /** Pushed blobs that no manifest points to. */
  async blobs(): Promise<void> {
    await this.#over("blobs", {
      first: BEFORE_ALL,
      share: shareOf,
      span: (after, rows) => this.#garbage.blobs(after, rows),
      find: (after, rows) => this.#garbage.unneededBlobs(after, rows, this.#terms.beforeMs),
      remove: async (blobs) => {
        const gone = await this.#sweep.removeBlobs(blobs);
        this.counts.blobs += gone.length;
        await this.#count("blob", "no manifest needs it", gone);
      },
      further: this.#sweep.furtherBlobs(),
      removed: () => this.counts.blobs,
    });
  }

  /** What a repository may reach though no manifest of it points to it. */
  async links(): Promise<void> {
    const most = await this.#garbage.lastRepository();
    await this.#over("links", {
      first: { repositoryId: 0, digest: BEFORE_ALL },
      share: ({ repositoryId, digest }) => (repositoryId - 1 + shareOf(digest)) / most,
      span: (after, rows) => this.#garbage.links(after, rows),
      find: (after, rows) => this.#garbage.idleLinks(after, rows, this.#terms.beforeMs),
      remove: async (links) => {
        this.counts.links += (await this.#sweep.unlinkBlobs(links)).length;
      },
      further: this.#sweep.furtherLinks(),
      removed: () => this.counts.links,
    });
  }

  /** Repositories that hold nothing. */
  async repositories(): Promise<void> {
    const most = await this.#garbage.lastRepository();
    await this.#over("repositories", {
      first: 0,
      share: (id) => id / most,
      span: (after, rows) => this.#garbage.repositories(after, rows),
      find: (after, rows) => this.#garbage.emptyRepositories(after, rows, this.#terms.beforeMs),
      remove: async (ids) => {
        this.counts.repositories += await this.#sweep.removeRepositories(ids);
      },
      further: this.#sweep.furtherRepositories(),
      removed: () => this.counts.repositories,
    });
  }

  async #over<Key, Item>(phase: GcPhase, way: Way<Key, Item>): Promise<void> {
    const { first, share, span, find, remove, further, removed } = way;
    let scanned = 0;
    let found: Item[] = [];
    const removeFound = async (least: number): Promise<void> => {
      while (found.length >= least) {
        const group = found.slice(0, GROUP);
        found = found.slice(GROUP);
        await this.#steps.rest(() => remove(group));
      }
    };
    for (let after = first; ;) {
      const step = await this.#steps.look(async (rows) => {
        const here = await span(after, rows);
        return here && { ...here, found: await find(after, here.rows) };
      });
      if (!step) break;
      after = step.last;
      scanned += step.rows;
      found.push(...step.found);
      await removeFound(GROUP);
      // Digests are spread evenly, so the last one tells how many there are without counting them.
      await this.#progress(phase, scanned, Math.max(scanned, Math.round(scanned / share(after))), removed());
    }
    await removeFound(1);
    for await (const item of further) await this.#steps.rest(() => remove([item]));
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
