import { execFile } from "node:child_process";
import { promisify } from "node:util";
import type { Bytes, Milliseconds } from "../base/clock.ts";
import { hexOf, type Digest } from "../oci/digest.ts";
import type { Quotas } from "../registry/quota.ts";
import { FileThreads } from "../store/file-threads.ts";
import type { Namespaces } from "../store/namespaces.ts";
import { findSource, readSource, type SourceFolder } from "./read-source.ts";
import type { Portion } from "./source.ts";
import { TakeOver, type LeftOut, type TakeOverDeps, type TakeOverOptions } from "./take-over.ts";

export interface ImportOptions extends TakeOverOptions {
  /** A folder on this machine, absolute. */
  path: string;
}

/** What is told of an import while it runs. */
export type ImportEvent =
  /** `total` is an estimate of the contents, manifests among them; `bytes` are those that came over. */
  | { type: "progress"; scanned: number; total: number; bytes: Bytes; leftOut: number }
  /** Of many, the first thousand. */
  | ({ type: "leftOut" } & LeftOut)
  /** What the source itself did not serve: deleted, or never finished. Of many, the first thousand. */
  | { type: "unserved"; where: string; reason: string };

export interface ImportReport {
  source: SourceFolder["kind"];
  blobs: number;
  manifests: number;
  tags: number;
  /** Of the blobs. */
  bytes: Bytes;
  /** Blobs that could not be linked to. */
  copied: number;
  /** Contents and tags that were here already, as they should be. */
  here: number;
  leftOut: number;
  unserved: number;
  /** Namespaces that hold more than hosted.quotas lets them, by now. */
  overQuota: string[];
  /** Whether every blob that came over was read and proven. */
  verified: boolean;
  dryRun: boolean;
  ms: Milliseconds;
}

export interface ImportDeps extends TakeOverDeps {
  quotas: Pick<Quotas, "ofNamespace">;
  namespaces: Namespaces;
}

const TELL_EVERY_MS: Milliseconds = 250;
const MOST_NAMED = 1000;

/** Takes over what a folder holds that registry:2 wrote, or an OCI layout. The folder stays as it is. */
export class Importer {
  readonly #deps: ImportDeps;

  constructor(deps: ImportDeps) {
    this.#deps = deps;
  }

  /**
   * @throws NoSource; Error naming cause and remedy: the disk is full; the signal's reason. What has been taken over until then stays, and
   * the next run goes on.
   */
  async run(
    options: ImportOptions,
    tell: (event: ImportEvent) => Promise<void>,
    signal: AbortSignal,
  ): Promise<ImportReport> {
    const { blobs, quotas, namespaces } = this.#deps;
    const startedAtMs = performance.now();
    const source = await findSource(options.path);
    await using threads = new FileThreads();
    const run = new Run(tell);
    // Disposed of before the end is told.
    await using _ticking = run.ticking();
    const takeOver = new TakeOver(
      this.#deps,
      options,
      {
        threads,
        syncedAtMs: options.dryRun ? undefined : await sync(source.root, signal),
        copies: !(await blobs.isBeside(source.root)),
      },
      (left) => run.leaveOut(left),
      signal,
    );
    run.bytes = () => takeOver.counts.bytes;
    for await (const found of readSource(source, signal)) {
      if (found.type === "total") run.total = found.contents;
      else if (found.type === "portion") {
        await takeOver.add(found.portion);
        run.passed(found.portion);
        await run.progress();
      } else if (found.type === "damage")
        await run.leaveOut({ kind: "other", name: found.where, reason: found.reason });
      else await run.unserve(found);
    }
    await takeOver.end();
    await run.progress(true);
    const overQuota: string[] = [];
    for (const namespace of takeOver.namespaces) {
      const quota = quotas.ofNamespace(namespace);
      if (quota && (await namespaces.usedBytes(namespace)) > quota.maxBytes) overQuota.push(namespace);
    }
    return {
      source: source.kind,
      ...takeOver.counts,
      leftOut: run.leftOut,
      unserved: run.unserved,
      overQuota,
      verified: !options.deferVerification,
      dryRun: options.dryRun,
      ms: Math.round(performance.now() - startedAtMs),
    };
  }
}

/** What one import has told so far. */
class Run {
  total = 0;
  leftOut = 0;
  unserved = 0;
  /** What came over. */
  bytes: () => Bytes = () => 0;
  readonly #tell: (event: ImportEvent) => Promise<void>;
  /** The beginnings of digests, 48 bits each: enough to count by. */
  readonly #seen = new Set<number>();
  #toldAtMs = -Infinity;

  constructor(tell: (event: ImportEvent) => Promise<void>) {
    this.#tell = tell;
  }

  passed({ files, manifests, absent }: Portion): void {
    for (const { digest } of [...files, ...manifests, ...absent]) this.#seen.add(beginningOf(digest));
  }

  async leaveOut(left: LeftOut): Promise<void> {
    if (this.leftOut++ < MOST_NAMED) await this.#tell({ type: "leftOut", ...left });
  }

  async unserve({ where, reason }: { where: string; reason: string }): Promise<void> {
    if (this.unserved++ < MOST_NAMED) await this.#tell({ type: "unserved", where, reason });
  }

  /** Tells it also while one file is read for minutes: a client takes silence for an end. */
  ticking(): AsyncDisposable {
    let telling: Promise<void> | undefined;
    const timer = setInterval(() => {
      telling ??= this.progress()
        .catch(() => undefined)
        .finally(() => (telling = undefined));
    }, TELL_EVERY_MS);
    return {
      [Symbol.asyncDispose]: async () => {
        clearInterval(timer);
        await telling;
      },
    };
  }

  async progress(isLast = false): Promise<void> {
    if (!isLast && performance.now() - this.#toldAtMs < TELL_EVERY_MS) return;
    this.#toldAtMs = performance.now();
    const scanned = this.#seen.size;
    const total = isLast ? scanned : Math.max(scanned, this.total);
    await this.#tell({ type: "progress", scanned, total, bytes: this.bytes(), leftOut: this.leftOut });
  }
}

function beginningOf(digest: Digest): number {
  return Number.parseInt(hexOf(digest).slice(0, 12), 16);
}

/**
 * Brings a file system's bytes to the disk in one go: of 5,000 fresh files in 0.1 s, one by one it took 1.2 s.
 * @returns since when; undefined where the system has no such command: then each file has to be seen to
 */
async function sync(folder: string, signal: AbortSignal): Promise<number | undefined> {
  // A file's time may be older than now by a tick of the kernel's clock.
  const startedAtMs = Date.now() - 1_000;
  try {
    await promisify(execFile)("sync", ["-f", folder], { signal });
    return startedAtMs;
  } catch {
    return undefined;
  }
}
