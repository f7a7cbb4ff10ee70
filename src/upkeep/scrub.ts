import type { Bytes, Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import { algorithmOf, digestOf, type Digest } from "../oci/digest.ts";
import { parseManifest } from "../oci/manifest.ts";
import type { RepositoryName } from "../oci/reference.ts";
import { Pace } from "../remote/pace.ts";
import { BlobFault, type BlobStore } from "../store/blobs.ts";
import type { Catalog, Ledger } from "../store/catalog.ts";
import type { Holders, Inventory, ListedBlob, ListedManifest } from "../store/inventory.ts";
import type { MemoryCache } from "../store/memory.ts";
import type { UsageAudit } from "../store/usage-audit.ts";
import { proveStored } from "../store/proving-reader.ts";
import { recount } from "./recount.ts";
import { shareOf } from "./share.ts";
import { Steps } from "./steps.ts";

export type ScrubPhase = "blobs" | "manifests" | "tags" | "files" | "usage";

/** Something that is wrong with what is stored. */
export interface Finding {
  type: "finding";
  /**
   * `missing`, `damaged`: the file of a blob, or the bytes of a manifest. `unreadable`: the disk does not give it; it stays where it is.
   * `dangling`: a manifest or a tag points to what is not there. `miscounted`: what is counted of a namespace is not what it holds.
   */
  kind: "missing" | "damaged" | "unreadable" | "dangling" | "miscounted";
  /** Absent of what is miscounted. */
  digest?: Digest;
  /** Of what is miscounted. */
  namespace?: string;
  /** Those that reach it, or cannot. Of many, twenty. */
  repositories: RepositoryName[];
  /** Those that point to it. Of many, twenty. */
  manifests: Digest[];
  repaired: boolean;
  /** What it is, and what to do. */
  message: string;
}

export type ScrubEvent =
  /** `total` is an estimate; `bytes` counts all phases. */
  { type: "progress"; phase: ScrubPhase; scanned: number; total: number; bytes: Bytes; findings: number } | Finding;

export interface ScrubReport {
  blobs: number;
  manifests: number;
  tags: number;
  /** Read and proven. */
  bytes: Bytes;
  /** Files that no row knows: removed by the next start or within a day. */
  orphans: number;
  findings: number;
  /** How many of the findings are right again. */
  repaired: number;
  ms: Milliseconds;
}

/** Brings what is damaged once more from where it was cached. */
export interface Repair {
  /** @throws Error where it can't be had */
  blob(repository: RepositoryName, digest: Digest, signal: AbortSignal): Promise<void>;
  manifest(repository: RepositoryName, digest: Digest): Promise<void>;
}

export interface ScrubDeps {
  bandwidth: () => Bytes;
  inventory: Inventory;
  audit: UsageAudit;
  catalog: Catalog;
  blobs: BlobStore;
  memory: MemoryCache;
  clock: Clock;
  /** Keeps the count of what is cached. */
  ledger: Ledger;
  /** Undefined: no upstream is asked. */
  repair: Repair | undefined;
  log: Logger;
  metrics: Metrics;
}

const PAGE = 100;
/** Opening a file costs about as much as reading so much of it. */
const FILE_BYTES: Bytes = 64 * 1024;
const TELL_EVERY_MS: Milliseconds = 250;
const PAUSE_MS: Milliseconds = 1_000;

/**
 * Reads everything that is stored and proves it: files of blobs, bytes of manifests, that hosted manifests and tags have what they point to,
 * and that what is counted of namespaces is what they hold.
 *
 * What is wrong is told, and a damaged file goes to quarantine: whoever brings the blob again, by a push or from its upstream, repairs it for
 * all who had it. Where a cached repository has it, that is done at once. What can't be read stays: a disk may recover.
 */
export class Scrubber {
  readonly #deps: ScrubDeps;

  constructor(deps: ScrubDeps) {
    this.#deps = deps;
  }

  /** @throws the signal's reason; Error of the database or a folder */
  async run(
    { bandwidth = this.#deps.bandwidth() }: { bandwidth?: Bytes | undefined },
    tell: (event: ScrubEvent) => Promise<void>,
    signal: AbortSignal,
  ): Promise<ScrubReport> {
    const startedAtMs = performance.now();
    const run = new Run(this.#deps, new Pace(bandwidth), tell, signal);
    await run.blobs();
    await run.manifests();
    await run.tags();
    await run.files();
    await run.usage();
    return { ...run.counts, ms: Math.round(performance.now() - startedAtMs) };
  }
}

/** One scrub: its phases, and what they count. */
class Run {
  readonly counts = { blobs: 0, manifests: 0, tags: 0, bytes: 0, orphans: 0, findings: 0, repaired: 0 };
  readonly #deps: ScrubDeps;
  readonly #pace: Pace;
  readonly #tell: (event: ScrubEvent) => Promise<void>;
  readonly #signal: AbortSignal;
  readonly #steps: Steps;
  /** What has been told, and need not be told again of whoever points to it. */
  readonly #found = new Set<Digest>();
  #reached: { phase: ScrubPhase; scanned: number; total: number } = { phase: "blobs", scanned: 0, total: 0 };
  #toldAtMs = 0;

  constructor(deps: ScrubDeps, pace: Pace, tell: (event: ScrubEvent) => Promise<void>, signal: AbortSignal) {
    this.#deps = deps;
    this.#pace = pace;
    this.#tell = tell;
    this.#signal = signal;
    this.#steps = new Steps(deps.clock, signal);
  }

  async blobs(): Promise<void> {
    const { inventory } = this.#deps;
    for (let after = ""; ;) {
      const page = await inventory.blobs(after, PAGE);
      for (const blob of page) {
        after = blob.digest;
        this.#reach("blobs", this.counts.blobs, (this.counts.blobs + 1) / shareOf(after));
        await this.#pause(FILE_BYTES);
        await this.#checkBlob(blob);
        this.counts.blobs++;
        await this.#progress();
      }
      if (page.length < PAGE) break;
    }
    this.#reach("blobs", this.counts.blobs, this.counts.blobs);
    await this.#progress(true);
  }

  async #checkBlob({ digest, sizeBytes }: ListedBlob): Promise<void> {
    const { inventory, blobs, catalog, ledger } = this.#deps;
    if (!(await this.#faultOf(digest, sizeBytes))) return;
    const wrong = await blobs.exclusive([digest], async () => {
      // Meanwhile it may have been removed, or brought anew.
      const now = await inventory.blob(digest);
      const fault = now && (await this.#faultOf(digest, now.sizeBytes));
      if (!fault) return undefined;
      const holders = await inventory.holders(digest);
      if (fault.fault !== "unreadable") {
        ledger.removed(await catalog.retireBlob(digest));
        await blobs.quarantine(digest);
      }
      return { fault, holders };
    });
    if (!wrong) return;
    const { fault, holders } = wrong;
    const kind = fault.fault === "corrupt" ? "damaged" : fault.fault;
    const repaired = kind !== "unreadable" && (await this.#bring(digest, holders.cached));
    await this.#report(kind, digest, holders, repaired, fault.message, "it");
  }

  async #faultOf(digest: Digest, sizeBytes: number): Promise<BlobFault | undefined> {
    const { blobs, metrics } = this.#deps;
    try {
      await proveStored(blobs, digest, sizeBytes, async (bytes) => {
        this.counts.bytes += bytes;
        metrics.scrubbedBytes.inc(bytes);
        await this.#pause(bytes);
      });
      return undefined;
    } catch (error) {
      if (error instanceof BlobFault) return error;
      throw error;
    }
  }

  async manifests(): Promise<void> {
    const { inventory } = this.#deps;
    for (let after = ""; ;) {
      const page = await inventory.manifests(after, PAGE);
      for (const manifest of page) {
        after = manifest.digest;
        await this.#steps.rest(() => this.#checkManifest(manifest));
        this.counts.manifests++;
        this.#reach("manifests", this.counts.manifests, this.counts.manifests / shareOf(after));
        await this.#progress();
      }
      if (page.length < PAGE) break;
    }
    this.#reach("manifests", this.counts.manifests, this.counts.manifests);
    await this.#progress(true);
  }

  async #checkManifest({ digest, mediaType, upstream }: ListedManifest): Promise<void> {
    const { catalog, inventory, metrics } = this.#deps;
    const bytes = await catalog.readManifest(digest);
    // It has been removed.
    if (!bytes) return;
    this.counts.bytes += bytes.length;
    metrics.scrubbedBytes.inc(bytes.length);
    await this.#pause(bytes.length);
    if (digestOf(bytes, algorithmOf(digest)) !== digest) {
      await this.#damagedManifest(digest, upstream);
      return;
    }
    let foreign: ReadonlySet<Digest> | undefined;
    for await (const { child, repository } of inventory.dangling(digest)) {
      foreign ??= foreignOf(bytes, mediaType);
      if (foreign.has(child) || this.#found.has(child)) continue;
      const holders = await inventory.holders(child);
      const repaired = await this.#bring(child, holders.cached);
      const fault = `manifest ${digest} of ${repository} points to it, and it is not there`;
      await this.#report(
        "dangling",
        child,
        { ...holders, hosted: [repository], manifests: [digest] },
        repaired,
        fault,
        "it",
      );
    }
  }

  async #damagedManifest(digest: Digest, upstream: string | null): Promise<void> {
    const { catalog, inventory, memory, ledger, repair, log } = this.#deps;
    const holders = await inventory.holders(digest);
    memory.delete(digest);
    let repaired = false;
    // What was pushed stays as it is: its edges keep its blobs, and a push of the same bytes puts it right.
    if (upstream !== null) {
      ledger.removed(await catalog.evictManifests([digest]));
      for (const repository of repair ? holders.cached : []) {
        try {
          await repair?.manifest(repository, digest);
          repaired = true;
          break;
        } catch (error) {
          log.warn({ repository, digest, err: error }, "could not repair it from there");
        }
      }
    }
    await this.#report(
      "damaged",
      digest,
      holders,
      repaired,
      `the stored bytes of manifest ${digest} are damaged`,
      "it",
    );
  }

  async tags(): Promise<void> {
    const { inventory } = this.#deps;
    const most = await inventory.lastRepository();
    let after = { repositoryId: 0, tag: "" };
    for (;;) {
      const page = await this.#steps.look(async (rows) => {
        const tags = await inventory.tags(after, rows);
        return { tags, isLast: tags.length < rows };
      });
      for (const { repository, tag, digest, sound } of page.tags) {
        if (sound || this.#found.has(digest)) continue;
        const holders = await inventory.holders(digest);
        const fault = `${repository}:${tag} points to ${digest}, which is not there`;
        await this.#report("dangling", digest, { ...holders, hosted: [repository] }, false, fault, "the image");
      }
      this.counts.tags += page.tags.length;
      const last = page.tags.at(-1);
      if (page.isLast || !last) break;
      after = last;
      this.#reach("tags", this.counts.tags, (this.counts.tags * most) / last.repositoryId);
      await this.#progress();
    }
    this.#reach("tags", this.counts.tags, this.counts.tags);
    await this.#progress(true);
  }

  async files(): Promise<void> {
    const { blobs, catalog, clock } = this.#deps;
    const startedAtMs = clock.now();
    let scanned = 0;
    for await (const { digest, modifiedAtMs } of blobs.list()) {
      this.#signal.throwIfAborted();
      scanned++;
      // What is stored now may be between its rename and its row.
      if (modifiedAtMs < startedAtMs && !(await catalog.hasBlob(digest))) this.counts.orphans++;
      this.#reach("files", scanned, Math.max(scanned, this.counts.blobs));
      await this.#progress();
    }
    this.#reach("files", scanned, scanned);
    await this.#progress(true);
  }

  async usage(): Promise<void> {
    const { audit, inventory, metrics, log } = this.#deps;
    const most = await inventory.lastRepository();
    let looked = 0;
    const reached = (rows: number, repositoryId: number): Promise<void> => {
      looked = rows;
      this.#reach("usage", rows, (rows * most) / repositoryId);
      return this.#progress();
    };
    for await (const { namespace, countedBytes, heldBytes, contents } of recount(audit, this.#steps, reached)) {
      const kind = "miscounted";
      this.counts.findings++;
      this.counts.repaired++;
      metrics.scrubFindings.inc({ kind, repaired: "true" });
      log.warn({ kind, namespace, countedBytes, heldBytes, contents }, "scrub found damage");
      const message = `namespace ${namespace} was counted as ${countedBytes} bytes and holds ${heldBytes}, ${contents} of its contents were counted wrongly: the count is right again`;
      await this.#tell({ type: "finding", kind, namespace, repositories: [], manifests: [], repaired: true, message });
    }
    this.#reach("usage", looked, looked);
    await this.#progress(true);
  }

  /** @returns whether it is here and whole, brought from one of these */
  async #bring(digest: Digest, repositories: readonly RepositoryName[]): Promise<boolean> {
    const { repair, inventory, blobs, log } = this.#deps;
    for (const repository of repair ? repositories : []) {
      try {
        await repair?.blob(repository, digest, this.#signal);
        // It is proven before it is stored.
        await blobs.settled(digest);
        const blob = await inventory.blob(digest);
        if (blob && !(await this.#faultOf(digest, blob.sizeBytes))) return true;
      } catch (error) {
        this.#signal.throwIfAborted();
        log.warn({ repository, digest, err: error }, "could not repair it from there");
      }
    }
    return false;
  }

  async #report(
    kind: Finding["kind"],
    digest: Digest,
    { hosted, cached, manifests }: Holders,
    repaired: boolean,
    fault: string,
    what: string,
  ): Promise<void> {
    const { repair, metrics, log } = this.#deps;
    this.#found.add(digest);
    this.counts.findings++;
    if (repaired) this.counts.repaired++;
    metrics.scrubFindings.inc({ kind, repaired: String(repaired) });
    const remedy = repaired
      ? "it was brought again from its upstream"
      : kind === "unreadable"
        ? "it stays where it is: look after the disk, then scrub again"
        : hosted.length > 0
          ? `push ${what} again to repair it`
          : cached.length > 0
            ? `the next pull brings it again${repair ? "" : " (a scrub without the daemon asks no upstream)"}`
            : "nothing reaches it";
    const finding: Finding = {
      type: "finding",
      kind,
      digest,
      repositories: [...hosted, ...cached],
      manifests,
      repaired,
      message: `${fault}: ${remedy}`,
    };
    const { type: _, ...facts } = finding;
    log[repaired ? "warn" : "error"](facts, "scrub found damage");
    await this.#tell(finding);
  }

  async #pause(bytes: Bytes): Promise<void> {
    this.#signal.throwIfAborted();
    for (let restMs = this.#pace.book(bytes); restMs > 0; restMs -= PAUSE_MS) {
      // At the least bandwidth one piece takes days: whoever watches is told that it goes on.
      await this.#progress();
      await this.#deps.clock.sleep(Math.min(restMs, PAUSE_MS), this.#signal);
    }
  }

  /** Notes how far a phase is. */
  #reach(phase: ScrubPhase, scanned: number, total: number): void {
    this.#reached = { phase, scanned, total: Math.max(scanned, Math.round(total)) };
  }

  async #progress(isLast = false): Promise<void> {
    if (!isLast && performance.now() - this.#toldAtMs < TELL_EVERY_MS) return;
    this.#toldAtMs = performance.now();
    const { bytes, findings } = this.counts;
    await this.#tell({ type: "progress", ...this.#reached, bytes, findings });
  }
}

function foreignOf(bytes: Buffer, mediaType: string): ReadonlySet<Digest> {
  const { config, layers } = parseManifest(bytes, mediaType);
  const own = [...(config ? [config] : []), ...layers];
  return new Set(own.filter(({ foreign }) => foreign).map(({ digest }) => digest));
}
