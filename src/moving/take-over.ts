import type { Bytes, Clock } from "../base/clock.ts";
import type { Journal } from "../events/journal.ts";
import type { Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { requiredBy } from "../oci/manifest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { isRepositoryName, namespaceOf } from "../oci/reference.ts";
import type { Hosted, Names } from "../registry/names.ts";
import type { BlobStore } from "../store/blobs.ts";
import { newManifest, type Ledger } from "../store/catalog.ts";
import type { FileThreads, ForeignFile } from "../store/file-threads.ts";
import { NamespaceTaken, type HostedCatalog } from "../store/hosted-catalog.ts";
import type { ImportCatalog, ImportedTag, MovedTag } from "../store/import-catalog.ts";
import type { Room } from "../store/incoming.ts";
import type { FoundManifest, Portion } from "./source.ts";

export interface TakeOverDeps {
  names: Names;
  /** What comes in has made a namespace: from now on it is hosted. */
  host: (namespace: string) => Promise<void>;
  hosted: HostedCatalog;
  imports: ImportCatalog;
  blobs: BlobStore;
  room: Room;
  journal: Journal;
  clock: Clock;
  /** Keeps the count of what is cached: what is taken over is cached no more. */
  ledger: Ledger;
  isImmutable: (repository: RepositoryName, tag: Tag) => boolean;
}

export interface TakeOverOptions {
  /** What repositories come below, or the repository of what has no name. */
  into: RepositoryName | undefined;
  /** Tags that point elsewhere are moved. */
  overwrite: boolean;
  /** Of files, only the size is looked at. Manifests are proven always. */
  deferVerification: boolean;
  /** Nothing is written. */
  dryRun: boolean;
}

/** What does not come over, and why. */
export interface LeftOut {
  kind: "repository" | "blob" | "manifest" | "tag" | "other";
  /** As the source calls it; of `other`, where in the source it is. */
  name: string;
  tag?: Tag;
  digest?: Digest;
  reason: string;
}

/** So much gathers: a sync of the 256 folders of blobs is shared by as many files. */
const FILES = 5000;
const MANIFESTS = 500;
/** Of manifests, which are held in memory meanwhile. */
const MANIFEST_BYTES: Bytes = 64 * 1024 ** 2;
const TAGS = 2000;
/** Files are read, or copied, for so long before what comes of them is kept: a pull or a push of one of them waits as long. */
const FILES_BYTES: Bytes = 4 * 1024 ** 3;
/** A transaction; pushes wait for its end. */
const ROWS = 500;

/** A file that a repository is to reach. */
interface Wanted {
  place: Hosted;
  file: ForeignFile;
}

/**
 * Puts content into hosted repositories: the one way in beside a push.
 *
 * Portions gather until a transaction is worth its sync of the disk. Then, for all that has gathered: files in place, and their folders on the
 * disk; the rows of the blobs and who may reach them; manifests, what they point to first; tags last. So whatever is visible has what it
 * needs, whenever this ends. What is here already is skipped: a run that was killed is gone on with by the next.
 *
 * What is damaged takes with it what needs it, and nothing else.
 */
export class TakeOver {
  readonly counts = { blobs: 0, manifests: 0, tags: 0, bytes: 0, copied: 0, here: 0 };
  readonly namespaces = new Set<string>();
  readonly #deps: TakeOverDeps;
  readonly #options: TakeOverOptions;
  readonly #threads: FileThreads;
  readonly #syncedAtMs: number | undefined;
  readonly #copies: boolean;
  readonly #leaveOut: (left: LeftOut) => Promise<void>;
  readonly #signal: AbortSignal;
  /** Files that were looked at and are damaged, for every repository. */
  readonly #damaged = new Map<Digest, string>();
  /** `REPOSITORY@DIGEST`, by the names of the source. */
  readonly #absent = new Map<string, string>();
  /** By the names of the source; undefined: it can't be hosted. */
  #places = new Map<RepositoryName | "", Hosted | undefined>();
  readonly #refused = new Set<string>();
  readonly #previewed = new Set<Digest>();
  #gathered: Portion[] = [];

  /**
   * @param source.syncedAtMs what was written before is on the disk
   * @param source.copies its files are on another file system, and need room of their own
   * @param leaveOut is told of what does not come over
   */
  constructor(
    deps: TakeOverDeps,
    options: TakeOverOptions,
    source: { threads: FileThreads; syncedAtMs: number | undefined; copies: boolean },
    leaveOut: (left: LeftOut) => Promise<void>,
    signal: AbortSignal,
  ) {
    this.#deps = deps;
    this.#options = options;
    this.#threads = source.threads;
    this.#syncedAtMs = source.syncedAtMs;
    this.#copies = source.copies;
    this.#leaveOut = leaveOut;
    this.#signal = signal;
  }

  /** @throws Error where the disk or the database fails; the signal's reason. What has been taken over until then stays. */
  async add(portion: Portion): Promise<void> {
    this.#gathered.push(portion);
    const sum = (count: (one: Portion) => number): number => this.#gathered.reduce((all, one) => all + count(one), 0);
    if (
      sum(({ files }) => files.length) >= FILES ||
      sum(({ manifests, absent }) => manifests.length + absent.length) >= MANIFESTS ||
      sum(({ manifests }) => manifests.reduce((all, { bytes }) => all + bytes.length, 0)) >= MANIFEST_BYTES ||
      sum(({ tags }) => tags.length) >= TAGS
    ) {
      await this.end();
    }
  }

  /** Takes over what has gathered. @throws as {@link add} */
  async end(): Promise<void> {
    const gathered = this.#gathered;
    this.#gathered = [];
    const placed: { portion: Portion; place: Hosted }[] = [];
    this.#places = new Map();
    for (const portion of gathered) {
      const place = await this.#place(portion.repository);
      if (place) placed.push({ portion, place });
    }
    for (const { portion } of placed) {
      for (const { kind, digest, reason } of portion.absent) {
        await this.#lack(portion.repository, kind, digest, reason);
      }
    }
    const claimed = new Map<Digest, Bytes>();
    for (const { portion } of placed) {
      for (const { manifest } of portion.manifests) {
        for (const { digest, sizeBytes } of [...(manifest.config ? [manifest.config] : []), ...manifest.layers]) {
          claimed.set(digest, sizeBytes);
        }
      }
    }
    await this.#blobs(
      placed.flatMap(({ portion, place }) => portion.files.map((file) => ({ place, file }))),
      claimed,
    );
    await this.#manifests(placed);
    await this.#tags(placed);
  }

  /** Where a repository of the source comes to; undefined where it can't, which is told. */
  async #place(name: RepositoryName | ""): Promise<Hosted | undefined> {
    if (this.#places.has(name)) return this.#places.get(name);
    const { names, hosted } = this.#deps;
    const { into } = this.#options;
    let place: Hosted | undefined;
    let reason: string | undefined;
    const full = [into, name].filter((part) => part !== undefined && part !== "").join("/");
    try {
      if (full === "") reason = "the source tells no name, only tags: say the repository with --into";
      else if (!isRepositoryName(full)) reason = `${full} is longer than 255 characters`;
      else {
        const located = names.locateForPush(full, undefined);
        if (located.kind === "cached") {
          reason = `${full} is a name of upstream ${located.upstream} here: put it below another one with --into PREFIX`;
        } else {
          await hosted.checkClaims(located);
          place = located;
        }
      }
    } catch (error) {
      if (!(error instanceof RegistryError || error instanceof NamespaceTaken)) throw error;
      reason = `${full} can't be hosted here (${error.message}): put it below another name with --into PREFIX`;
    }
    this.#places.set(name, place);
    if (reason !== undefined && !this.#refused.has(name)) {
      this.#refused.add(name);
      await this.#leaveOut({ kind: "repository", name, reason });
    }
    if (place) this.namespaces.add(namespaceOf(place.repository));
    return place;
  }

  // ---- blobs ----

  async #blobs(wanted: readonly Wanted[], claimed: ReadonlyMap<Digest, Bytes>): Promise<void> {
    for (const group of groupsOf(wanted)) {
      this.#signal.throwIfAborted();
      const here = await this.#find(group);
      this.counts.here += here.filter(({ linked }) => linked).length;
      const missing = (stored: boolean): Wanted[] =>
        group.filter((_, index) => here[index]?.linked !== true && here[index]?.stored === stored);
      const unstored = group.filter((_, index) => here[index]?.stored !== true).map(({ file }) => file);
      const suspect = ({ digest, sizeBytes }: ForeignFile): boolean => (claimed.get(digest) ?? sizeBytes) !== sizeBytes;
      const proven = await this.#prove(
        unstored,
        (file) => suspect(file) || !(this.#options.deferVerification || this.#previewed.has(file.digest)),
      );
      if (this.#options.dryRun) this.#countFiles(unstored.filter(({ digest }) => proven.has(digest)));
      else {
        // Apart from the others: pulls of what is stored already don't wait for copies.
        await this.#record(missing(true), proven);
        await this.#record(missing(false), proven);
      }
    }
  }

  #find(wanted: readonly Wanted[]): ReturnType<ImportCatalog["find"]> {
    const { imports } = this.#deps;
    return imports.find(
      "blob",
      wanted.map(({ place, file }) => ({ repository: place.repository, digest: file.digest })),
    );
  }

  /** Notes those that are damaged. @returns those that may be put in place as they are */
  async #prove(files: readonly ForeignFile[], needsIt: (file: ForeignFile) => boolean): Promise<Set<Digest>> {
    const unique = new Map(files.filter(({ digest }) => !this.#damaged.has(digest)).map((file) => [file.digest, file]));
    const doubtful = [...unique.values()].filter(needsIt);
    const outcomes = await this.#threads.run(
      doubtful.map((file) => ({ verb: "prove", file })),
      this.#signal,
    );
    for (const [index, outcome] of outcomes.entries()) {
      const digest = doubtful[index]?.digest as Digest;
      if ("reason" in outcome) await this.#damage(digest, outcome.reason);
    }
    return new Set(unique.keys().filter((digest) => !this.#damaged.has(digest)));
  }

  async #record(missing: readonly Wanted[], proven: ReadonlySet<Digest>): Promise<void> {
    const { blobs, imports, clock, ledger } = this.#deps;
    const wanted = missing.filter(({ file }) => !this.#damaged.has(file.digest));
    if (wanted.length === 0) return;
    const digests = [...new Set(wanted.map(({ file }) => file.digest))];
    await blobs.exclusive(digests, async () => {
      const here = await this.#find(wanted);
      const unstored = wanted.filter((_, index) => here[index]?.stored !== true).map(({ file }) => file);
      // What was here a moment ago was not proven.
      const sound = await this.#prove(
        unstored,
        ({ digest }) => !proven.has(digest) && !this.#options.deferVerification,
      );
      const files = [...new Map(unstored.map((file) => [file.digest, file])).values()];
      const adopted = files.filter(({ digest }) => sound.has(digest));
      await this.#adopt(adopted);
      const taken = wanted.filter(({ file }) => !this.#damaged.has(file.digest));
      const rows = taken.map(({ place, file: { digest, sizeBytes } }) => ({ place, digest, sizeBytes }));
      for (let at = 0; at < rows.length; at += ROWS) {
        ledger.removed(await imports.addBlobs(rows.slice(at, at + ROWS), clock.now()));
      }
      await this.#host(taken);
      this.#countFiles(adopted.filter(({ digest }) => !this.#damaged.has(digest)));
    });
  }

  async #adopt(files: readonly ForeignFile[]): Promise<void> {
    if (files.length === 0) return;
    const { blobs, room } = this.#deps;
    const bytes = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const reservation = this.#copies ? await room.reserve(bytes) : undefined;
    if (this.#copies && !reservation) {
      throw new Error(
        "there is no room for copies of the source's files under storage.root: free space, or move the source to the same file system, then run this again",
      );
    }
    try {
      const outcomes = await blobs.adopt(files, {
        syncedAtMs: this.#syncedAtMs,
        threads: this.#threads,
        signal: this.#signal,
      });
      for (const [index, outcome] of outcomes.entries()) {
        if ("reason" in outcome) await this.#damage(files[index]?.digest as Digest, outcome.reason);
        else if (outcome.copied) this.counts.copied++;
      }
    } finally {
      reservation?.release();
    }
  }

  #countFiles(files: readonly ForeignFile[]): void {
    for (const { digest, sizeBytes } of files) {
      if (this.#options.dryRun) {
        // Nothing is stored, so the next repository that has it brings it again.
        if (this.#previewed.has(digest)) continue;
        this.#previewed.add(digest);
      }
      this.counts.blobs++;
      this.counts.bytes += sizeBytes;
    }
  }

  async #damage(digest: Digest, reason: string): Promise<void> {
    this.#damaged.set(digest, reason);
    await this.#leaveOut({ kind: "blob", name: "", digest, reason });
  }

  async #lack(name: string, kind: "blob" | "manifest", digest: Digest, reason: string): Promise<void> {
    this.#absent.set(`${name}@${digest}`, reason);
    await this.#leaveOut({ kind, name, digest, reason });
  }

  // ---- manifests ----

  async #manifests(placed: readonly { portion: Portion; place: Hosted }[]): Promise<void> {
    const { imports, clock, ledger } = this.#deps;
    const wanted: { name: string; place: Hosted; found: FoundManifest }[] = [];
    for (const { portion, place } of placed) {
      for (const found of portion.manifests) {
        const needs = this.#fault(portion.repository, found);
        if (needs === undefined) wanted.push({ name: portion.repository, place, found });
        else await this.#lack(portion.repository, "manifest", found.digest, needs);
      }
    }
    const here = await imports.find(
      "manifest",
      wanted.map(({ place, found }) => ({ repository: place.repository, digest: found.digest })),
    );
    this.counts.here += here.filter(({ linked }) => linked).length;
    const missing = wanted.filter((_, index) => here[index]?.linked !== true);
    if (this.#options.dryRun) {
      this.counts.manifests += missing.length;
      return;
    }
    for (let at = 0; at < missing.length; at += ROWS) {
      this.#signal.throwIfAborted();
      const group = missing.slice(at, at + ROWS);
      const rows = group.map(({ place, found: { digest, bytes, manifest } }) => ({
        place,
        manifest: newManifest(digest, Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), manifest),
        required: requiredBy(manifest),
      }));
      const added = await imports.addManifests(rows, clock.now());
      ledger.removed(added.cached);
      await this.#host(group);
      for (const [index, { name, found }] of group.entries()) {
        const [lacking] = added.missing[index] ?? [];
        if (lacking === undefined) this.counts.manifests++;
        else
          await this.#lack(
            name,
            "manifest",
            found.digest,
            `it needs ${lacking}, which was removed meanwhile: run this again`,
          );
      }
    }
  }

  /** Why a manifest can't come over, if it can't. */
  #fault(name: string, { manifest }: FoundManifest): string | undefined {
    const { blobs, manifests } = requiredBy(manifest);
    for (const [kind, digests] of [
      ["blob", blobs],
      ["manifest", manifests],
    ] as const) {
      for (const digest of digests) {
        const reason =
          this.#absent.get(`${name}@${digest}`) ?? (kind === "blob" ? this.#damaged.get(digest) : undefined);
        if (reason !== undefined) return `it needs ${kind} ${digest}, which was left out (${reason})`;
      }
    }
    return undefined;
  }

  // ---- tags ----

  async #tags(placed: readonly { portion: Portion; place: Hosted }[]): Promise<void> {
    const { imports, clock, journal, isImmutable } = this.#deps;
    const { overwrite, dryRun } = this.#options;
    const wanted: (ImportedTag & { name: string })[] = [];
    for (const { portion, place } of placed) {
      const name = portion.repository;
      for (const { tag, digest } of portion.tags) {
        const fault = this.#absent.get(`${name}@${digest}`);
        if (fault === undefined) wanted.push({ name, place, tag, digest });
        else
          await this.#leaveOut({
            kind: "tag",
            name,
            tag,
            digest,
            reason: `its manifest ${digest} was left out (${fault})`,
          });
      }
    }
    const mayMove = ({ place, tag }: ImportedTag): boolean => overwrite && !isImmutable(place.repository, tag);
    for (let at = 0; at < wanted.length; at += ROWS) {
      this.#signal.throwIfAborted();
      const group = wanted.slice(at, at + ROWS);
      const outcomes = dryRun
        ? await this.#previewTags(group, mayMove)
        : await imports.setTags(group, mayMove, clock.now(), (tx, moved) =>
            journal.recordWithin(tx, moved.map(eventOf)),
          );
      if (!dryRun) journal.recorded();
      for (const [index, { name, place, tag, digest }] of group.entries()) {
        const outcome = outcomes[index];
        if (outcome === "now") this.counts.tags++;
        else if (outcome === "before") this.counts.here++;
        else if (outcome === undefined) {
          const reason = `its manifest ${digest} was removed meanwhile: run this again`;
          await this.#leaveOut({ kind: "tag", name, tag, digest, reason });
        } else {
          const remedy = isImmutable(place.repository, tag)
            ? "it is immutable by hosted.immutableTags"
            : "move it with --overwrite";
          const reason = `${place.repository}:${tag} points to ${outcome.kept} here: ${remedy}`;
          await this.#leaveOut({ kind: "tag", name, tag, digest, reason });
        }
      }
    }
  }

  #previewTags(
    tags: readonly ImportedTag[],
    mayMove: (tag: ImportedTag) => boolean,
  ): ReturnType<ImportCatalog["setTags"]> {
    return Promise.all(
      tags.map(async (one) => {
        const current = await this.#deps.imports.findTag(one.place.repository, one.tag);
        if (current?.digest === one.digest) return "before";
        return current && !mayMove(one) ? { kept: current.digest } : "now";
      }),
    );
  }

  async #host(contents: readonly { place: Hosted }[]): Promise<void> {
    const made = new Set(contents.flatMap(({ place }) => place.claims?.namespace ?? []));
    for (const namespace of made) await this.#deps.host(namespace);
  }
}

function* groupsOf(wanted: readonly Wanted[]): Generator<Wanted[]> {
  let group: Wanted[] = [];
  let bytes = 0;
  for (const one of wanted) {
    if (group.length === FILES || bytes >= FILES_BYTES) {
      yield group;
      group = [];
      bytes = 0;
    }
    group.push(one);
    bytes += one.file.sizeBytes;
  }
  if (group.length > 0) yield group;
}

function eventOf({
  place,
  tag,
  digest,
  mediaType,
  sizeBytes,
}: MovedTag): Parameters<Journal["recordWithin"]>[1][number] {
  return {
    action: "push",
    outcome: "done",
    repository: place.repository,
    tag,
    digest,
    mediaType,
    sizeBytes,
    by: { actor: "import" },
  };
}
