/**
 * Copies images from one registry to another: manifests byte for byte, everything below them, and what refers to them.
 *
 * Order, so that nobody sees half an image: blobs, children, the root by its digest, what refers to each of them, and the tag last.
 *
 * Invariants
 * - A tag moves only when all that it leads to has been stored, or was said by the target to be there.
 * - Within a `Copier`, whatever several images share is asked for and sent once, however many want it at the same time.
 * - What the target turns out not to have is forgotten, sent again, once.
 *
 * On failure an image ends with its cause; what has arrived stays, is found by the next try, and is not sent again. Other images go on.
 */
import PQueue from "p-queue";
import type { Bytes, Clock } from "../base/clock.ts";
import { Turns } from "../base/turns.ts";
import { digestOf, type Digest } from "../oci/digest.ts";
import { isManifestType, ownBlobs, type Descriptor } from "../oci/manifest.ts";
import { isBehind, isPushedLater, type Origin, type Told } from "../oci/origin.ts";
import { isTag, referrersTag, type Reference, type Tag } from "../oci/reference.ts";
import { RemoteError } from "../remote/remote-error.ts";
import { isTagNewer, type Target, type UploadSession } from "../remote/target.ts";
import { Attachments } from "./copy-attached.ts";
import { pauseAfter, sendBlob, type UploadMemory } from "./copy-blob.ts";
import { CopyError } from "./copy-error.ts";
import {
  allOf,
  type CopyOptions,
  type CopyProgress,
  type CopyRequest,
  type CopyResult,
  type CopySource,
  type IndexMode,
  type Job,
  type Node,
} from "./copy-job.ts";
import { KnownBlobs } from "./copy-known.ts";
import {
  addReferrer,
  chooseChildren,
  isStoredByTag,
  proveManifest,
  type Pointer,
  type ProvenManifest,
} from "./copy-manifests.ts";
import { rewriteIndex } from "./rewrite.ts";

export interface CopierParts {
  source: CopySource;
  target: Target;
  clock: Clock;
  options: CopyOptions;
  known?: KnownBlobs;
  uploads?: UploadMemory;
  /** Shared by all that write to the same targets: what two of them bring there at the same time is sent by one. */
  turns?: Turns;
}

/** What is known of a manifest before it is copied. */
interface Circumstances {
  found: ProvenManifest | undefined;
  /** The target does not have it for certain. */
  isNew: boolean;
  /** It is stored with its tag: only what is below it is brought. */
  byTag: boolean;
  /** The target was wrong about what it has: it is not asked. */
  doubted: boolean;
}

const ASKED: Circumstances = { found: undefined, isNew: false, byTag: false, doubted: false };

/** For one run: what it has learnt of both registries is true for a while only. */
export class Copier {
  readonly #source: CopySource;
  readonly #target: Target;
  readonly #clock: Clock;
  readonly #options: CopyOptions;
  readonly #known: KnownBlobs;
  readonly #uploads: UploadMemory;
  readonly #attachments: Attachments;
  readonly #tags: PQueue;
  readonly #images: PQueue;
  readonly #blobs: PQueue;
  /** By repository and digest. A failed one is forgotten: the next image may fare better. */
  readonly #contents = new Map<string, Promise<Node>>();
  /** Whether the target has a manifest, by repository and digest. */
  readonly #there = new Map<string, Promise<boolean>>();
  readonly #arriving = new Map<string, Promise<void>>();
  /** By digest: who wants it elsewhere waits, and mounts it. */
  readonly #onTheWay = new Map<Digest, Promise<void>>();
  readonly #turns: Turns;

  constructor({
    source,
    target,
    clock,
    options,
    known = new KnownBlobs(),
    uploads = new Map(),
    turns = new Turns(),
  }: CopierParts) {
    this.#source = source;
    this.#target = target;
    this.#clock = clock;
    this.#options = options;
    this.#known = known;
    this.#uploads = uploads;
    this.#turns = turns;
    const { concurrency } = options;
    this.#tags = new PQueue({ concurrency });
    this.#images = new PQueue({ concurrency });
    this.#blobs = new PQueue({ concurrency });
    this.#attachments = new Attachments({
      source,
      again: (work, signal) => this.#again(work, signal),
      copy: (job, pointer, found) => this.#content(job, pointer, "all", { ...ASKED, found }),
      tag: (job, tag, found, origin) => this.#moveTag(job, tag, found, { before: undefined, origin }),
    });
  }

  /**
   * Copies an image.
   * @param tell called often while bytes flow
   * @throws CopyError, RemoteError, RegistryError MANIFEST_INVALID, the signal's reason
   */
  async copy(
    request: CopyRequest,
    signal: AbortSignal,
    tell: (progress: CopyResult) => void = () => {},
  ): Promise<CopyResult> {
    return await this.#tags.add(() => this.#copy(request, signal, tell));
  }

  /** Reads a manifest of the source, and proves it. @throws as {@link copy} */
  async read(repository: string, digest: Digest, signal: AbortSignal): Promise<ProvenManifest> {
    return await this.#fetch({ from: repository, signal }, { digest });
  }

  async #copy({ from, to, ...told }: CopyRequest, signal: AbortSignal, tell: Job["tell"]): Promise<CopyResult> {
    const { attached } = this.#options;
    const { digest, rewritten, existing = this.#options.existing } = told;
    const [source, there] = await allOf([
      digest ? { digest, origin: told.origin } : this.#resolve(from, signal),
      told.there === undefined
        ? this.#presentAt(to.repository, isTag(to.reference) ? to.reference : (rewritten ?? to.reference), signal)
        : (told.there ?? undefined),
    ]);
    const [wanted, present] = [rewritten ?? source.digest, there?.digest];
    const copied = { ...source, digest: wanted };
    const settled = present === wanted && !this.#isBehind(there, copied);
    const none = { totalBytes: 0, doneBytes: 0, sentBytes: 0, mountedBytes: 0, presentBytes: 0 };
    const result: CopyResult = { outcome: "unchanged", digest: wanted, ...none, tagsMoved: [], notes: [] };
    if (settled && attached !== "always") return result;
    const job: Job = { from: from.repository, to: to.repository, existing, result, tell, signal };
    if (present !== undefined && present !== wanted && existing !== "replace") {
      this.#refuseMove(to.reference, present, wanted, job);
      return { ...result, outcome: "kept" };
    }
    if (there && this.#options.keepOrigin && isPushedLater(there, copied, this.#clock.now())) {
      this.#noteLater(to.reference, there.digest, job);
      return { ...result, outcome: "kept" };
    }
    let found = told.found ?? (await this.#fetch(job, source));
    const mode = rewritten === undefined ? "sparse" : "rewrite";
    if (present !== wanted || attached === "always" || rewritten !== undefined) {
      const isNew = !isTag(to.reference) && present === undefined && mode === "sparse";
      const isAlone = attached === "never" || told.isAttended === true;
      const byTag = isTag(to.reference) && isAlone && mode === "sparse" && isStoredByTag(found);
      const root = await this.#content(job, found, mode, { ...ASKED, found, isNew, byTag });
      if (attached !== "never") {
        const isAttended = told.isAttended === true && root.made === undefined;
        await this.#attachments.copyAll(job, isAttended ? root.children : fromSource(root));
      }
      found = root.made ?? found;
    }
    const moved =
      settled ||
      !isTag(to.reference) ||
      (await this.#moveTag(job, to.reference, found, { before: present, origin: source.origin }));
    if (!moved) return { ...result, outcome: "kept" };
    const changed = present !== wanted || result.sentBytes > 0 || result.tagsMoved.length > 0;
    return changed ? { ...result, outcome: "copied" } : result;
  }

  /** @throws CopyError missing */
  async #resolve({ repository, reference }: CopyRequest["from"], signal: AbortSignal): Promise<Told> {
    if (!isTag(reference)) return { digest: reference };
    const head = await this.#again(() => this.#source.headManifest(repository, reference, { signal }), signal);
    if (typeof head === "object" && head.digest !== undefined) return { digest: head.digest, origin: head.origin };
    // Some registries do not tell the digest.
    const got = head && (await this.#again(() => this.#source.getManifest(repository, reference, { signal }), signal));
    if (!got) throw new CopyError("missing", `${this.#source.name}/${repository}:${reference} does not exist`);
    return { digest: digestOf(got.bytes), origin: got.origin };
  }

  async #digestAt(repository: string, reference: Reference, signal: AbortSignal): Promise<Digest | undefined> {
    return (await this.#stateAt(repository, reference, signal))?.digest;
  }

  async #stateAt(repository: string, reference: Reference, signal: AbortSignal): Promise<Told | undefined> {
    const head = await this.#again(() => this.#target.headManifest(repository, reference, { signal }), signal);
    if (typeof head !== "object") return undefined;
    if (head.digest !== undefined) return { digest: head.digest, origin: head.origin };
    const got = await this.#again(() => this.#target.getManifest(repository, reference, { signal }), signal);
    return got && { digest: digestOf(got.bytes), origin: got.origin };
  }

  async #presentAt(repository: string, reference: Reference, signal: AbortSignal): Promise<Told | undefined> {
    if (isTag(reference)) return await this.#stateAt(repository, reference, signal);
    return (await this.#isThere({ to: repository, signal }, reference)) ? { digest: reference } : undefined;
  }

  #isBehind(there: Told | undefined, source: Told): boolean {
    return this.#options.keepOrigin && there !== undefined && isBehind(there, source, this.#clock.now());
  }

  // ---- manifests ----

  async #fetch({ from, signal }: Pick<Job, "from" | "signal">, pointer: Pointer): Promise<ProvenManifest> {
    const { digest } = pointer;
    const where = `${this.#source.name}/${from}`;
    const got = await this.#again(() => this.#source.getManifest(from, digest, { signal }), signal);
    if (!got) throw new CopyError("missing", `${where}@${digest} does not exist`);
    return proveManifest(where, pointer, got);
  }

  /** Has a manifest and all below it at the target. */
  #content(job: Job, pointer: Pointer, mode: IndexMode, circumstances: Circumstances): Promise<Node> {
    const key = `${job.to} ${mode} ${pointer.digest}`;
    const known = this.#contents.get(key) ?? (circumstances.byTag ? this.#contents.get(`${key} below`) : undefined);
    if (known) return known;
    return this.#remember(
      circumstances.byTag ? `${key} below` : key,
      this.#copyContent(job, pointer, mode, circumstances),
    );
  }

  #remember(key: string, work: Promise<Node>): Promise<Node> {
    this.#contents.set(key, work);
    work.catch(() => this.#contents.delete(key));
    return work;
  }

  async #copyContent(job: Job, pointer: Pointer, mode: IndexMode, circumstances: Circumstances): Promise<Node> {
    const proven = circumstances.found ?? (await this.#fetch(job, pointer));
    if (proven.manifest.kind === "index") return await this.#copyIndex(job, proven, mode, circumstances);
    return await this.#images.add(() => this.#copyImage(job, proven, circumstances));
  }

  async #copyIndex(job: Job, index: ProvenManifest, mode: IndexMode, circumstances: Circumstances): Promise<Node> {
    const where = `${this.#source.name}/${job.from}@${index.digest}`;
    const platforms = mode === "all" ? [] : this.#options.platforms;
    const { chosen, left } = chooseChildren(where, index.manifest.manifests, platforms);
    const absent: Descriptor[] = [];
    const nested = new Map<Digest, ProvenManifest>();
    const areNew = await this.#areNew(job, index, mode, chosen.length, circumstances.isNew);
    const child = async (one: Descriptor): Promise<Node[]> => {
      if (!isManifestType(one.mediaType)) {
        // Caches of builds list layers as if they were manifests.
        await this.#blob(job, one, false);
        return [];
      }
      try {
        const node = await this.#content(job, one, mode, { ...ASKED, isNew: areNew });
        if (node.made) nested.set(one.digest, node.made);
        return [node];
      } catch (error) {
        if (!(error instanceof CopyError && error.fault === "missing" && error.message.includes(one.digest)))
          throw error;
        absent.push(one);
        job.result.notes.push(`${one.digest} of the index ${where} is not at the source, and so not in the copy`);
        return [];
      }
    };
    const children = (await allOf(chosen.map(child))).flat();
    const stored = mode === "rewrite" ? rewriteIndex(index, chosen, nested) : index;
    const node: Node = { digest: stored.digest, children, ...(stored === index ? {} : { made: stored }) };
    if (circumstances.byTag) return node;
    const lacking = [...(stored === index ? left : []), ...absent];
    try {
      await this.#put(job, stored, async (missing, cause) => {
        const isMissing = ({ digest }: Descriptor) => missing.length === 0 || missing.includes(digest);
        if (lacking.some(isMissing)) throw sparseRefused(cause);
        await allOf(
          chosen.filter(isMissing).map((one) => this.#copyContent(job, one, mode, { ...ASKED, doubted: true })),
        );
      });
    } catch (error) {
      // zot says no more than that.
      if (lacking.length > 0 && error instanceof RemoteError && error.code === "MANIFEST_INVALID") {
        throw sparseRefused(error);
      }
      throw error;
    }
    return node;
  }

  /** Whether the target lacks the children of an index, most likely: one question about the index spares one about each. */
  async #areNew(job: Job, index: ProvenManifest, mode: IndexMode, children: number, isNew: boolean): Promise<boolean> {
    if (mode === "rewrite") return false;
    if (isNew || children < 2) return isNew;
    return !(await this.#isThere(job, index.digest));
  }

  /** Asked once: what is copied since is known. */
  async #isThere({ to, signal }: Pick<Job, "to" | "signal">, digest: Digest): Promise<boolean> {
    const key = `${to} ${digest}`;
    const known = this.#there.get(key);
    if (known) return await known;
    const asking = this.#digestAt(to, digest, signal).then((present) => present === digest);
    this.#there.set(key, asking);
    asking.catch(() => this.#there.delete(key));
    return await asking;
  }

  async #copyImage(job: Job, image: ProvenManifest, { isNew, byTag, doubted }: Circumstances): Promise<Node> {
    const { digest, manifest } = image;
    const blobs = [...new Map(ownBlobs(manifest).map((blob) => [blob.digest, blob])).values()];
    const sizeBytes = blobs.reduce((sum, blob) => sum + blob.sizeBytes, 0);
    // Whether a referrer is listed, only the answer to its push tells.
    const askFirst = !doubted && !isNew && manifest.subject === undefined;
    if (askFirst && (await this.#isThere(job, digest))) {
      for (const blob of blobs) this.#known.add(job.to, blob.digest);
      job.result.presentBytes += sizeBytes;
      this.#progress(job, { totalBytes: sizeBytes, doneBytes: sizeBytes });
      return { digest, children: [] };
    }
    this.#progress(job, { totalBytes: sizeBytes, doneBytes: 0 });
    await allOf(blobs.map((blob) => this.#blob(job, blob, false)));
    if (byTag) return { digest, children: [] };
    await this.#put(job, image, async (missing) => {
      const again = blobs.filter((blob) => missing.length === 0 || missing.includes(blob.digest));
      await allOf(again.map((blob) => this.#blob(job, blob, true)));
    });
    return { digest, children: [] };
  }

  /** Puts a manifest by its digest. @param repair is told what the target lacks, and brings it */
  async #put(
    job: Job,
    proven: ProvenManifest,
    repair: (missing: Digest[], cause: RemoteError) => Promise<void>,
  ): Promise<void> {
    if (this.#options.dryRun) return;
    const { digest, bytes, manifest } = proven;
    const { to, signal } = job;
    const put = () =>
      this.#again(
        () => this.#target.putManifest(to, digest, { bytes, mediaType: manifest.mediaType }, { signal }),
        signal,
      );
    let stored = await put();
    if (stored.missing) {
      await repair(stored.missing, stored.cause);
      stored = await put();
    }
    if (stored.missing) throw stored.cause;
    if (manifest.subject && !stored.listed) await this.#list(job, manifest.subject.digest, proven);
  }

  /** Lists a referrer under the fallback tag of its subject, where the target has no API for that. */
  async #list({ to, signal }: Job, subject: Digest, referrer: ProvenManifest): Promise<void> {
    const tag = referrersTag(subject);
    const key = `${this.#target.name} ${to}:${tag}`;
    const merge = async (): Promise<void> => {
      const present = await this.#again(() => this.#target.getManifest(to, tag, { signal }), signal);
      const merged = addReferrer(present?.bytes, referrer);
      if (!merged) return;
      const stored = await this.#again(() => this.#target.putManifest(to, tag, merged, { signal }), signal);
      if (stored.missing) throw stored.cause;
    };
    // Merges into one fallback tag come one after the other.
    await this.#turns.take(key, merge, signal);
  }

  /**
   * @param before what the tag named when the copy began
   * @param origin the mark of the source's tag
   * @returns whether it names what was copied
   */
  async #moveTag(
    job: Job,
    tag: Tag,
    found: ProvenManifest,
    { before, origin }: { before: Digest | undefined; origin: Origin | undefined },
  ): Promise<boolean> {
    const { to, existing, result, signal } = job;
    const { dryRun, keepOrigin } = this.#options;
    const { digest, bytes, manifest } = found;
    const there = await this.#stateAt(to, tag, signal);
    const now = there?.digest;
    if (now === digest && !this.#isBehind(there, { digest, origin })) return true;
    if (now !== undefined && now !== digest && now !== before && existing !== "replace") {
      this.#refuseMove(tag, now, digest, job);
      return false;
    }
    if (!dryRun) {
      const options = { signal, ...(keepOrigin ? { origin } : {}) };
      const sent = { bytes, mediaType: manifest.mediaType };
      const put = () => this.#again(() => this.#target.putManifest(to, tag, sent, options), signal);
      try {
        let stored = await put().catch(asMissing);
        // Sent with its tag alone; or gone again: the target was emptied, or has collected it.
        if (stored.missing) {
          await this.#copyContent(job, found, "sparse", { ...ASKED, found, doubted: true });
          stored = await put();
        }
        if (stored.missing) throw stored.cause;
      } catch (error) {
        if (!isTagNewer(error)) throw error;
        this.#noteLater(tag, await this.#digestAt(to, tag, signal), job);
        return false;
      }
    }
    if (now !== digest) result.tagsMoved.push(tag);
    return true;
  }

  #noteLater(tag: string, present: Digest | undefined, { to, result }: Job): void {
    result.notes.push(`${this.#target.name}/${to}:${tag} names ${present}, which was pushed later, and is kept`);
  }

  /** @throws CopyError conflict where tags of other content are an error */
  #refuseMove(tag: string, present: Digest, wanted: Digest, { to, existing, result }: Job): void {
    const name = `${this.#target.name}/${to}:${tag}`;
    if (existing === "fail") {
      throw new CopyError("conflict", `${name} names ${present}, not ${wanted}: it is not replaced`);
    }
    result.notes.push(`${name} names ${present}, and is kept`);
  }

  // ---- blobs ----

  /** Has a blob in a repository of the target. @param doubted the target was wrong about it: it is sent */
  async #blob(job: Job, blob: Descriptor, doubted: boolean): Promise<void> {
    const { digest, sizeBytes } = blob;
    if (doubted) this.#known.forget(job.to, digest);
    const key = `${job.to} ${digest}`;
    const joined = this.#arriving.get(key);
    if (joined && !doubted) {
      await joined;
      job.result.presentBytes += sizeBytes;
      this.#progress(job, { totalBytes: 0, doneBytes: sizeBytes });
      return;
    }
    const work = this.#inTurn(job, blob, doubted);
    this.#arriving.set(key, work);
    try {
      await work;
    } finally {
      this.#arriving.delete(key);
    }
  }

  async #inTurn(job: Job, blob: Descriptor, doubted: boolean): Promise<void> {
    const { digest } = blob;
    for (let other; (other = this.#onTheWay.get(digest)) !== undefined;) await other;
    // Another one's upload of it would have the same session.
    const key = `${this.#target.name} ${job.to}@${digest}`;
    const work = this.#blobs.add(() => this.#turns.take(key, () => this.#bring(job, blob, doubted), job.signal));
    this.#onTheWay.set(
      digest,
      work.then(
        () => void this.#onTheWay.delete(digest),
        () => void this.#onTheWay.delete(digest),
      ),
    );
    await work;
  }

  async #bring(job: Job, blob: Descriptor, doubted: boolean): Promise<void> {
    const { to, from, result, signal } = job;
    const { digest, sizeBytes } = blob;
    const arrived = (as: "mountedBytes" | "presentBytes"): void => {
      this.#known.add(to, digest);
      result[as] += sizeBytes;
      this.#progress(job, { totalBytes: 0, doneBytes: sizeBytes });
    };
    let session: UploadSession | undefined;
    if (!doubted) {
      const next = this.#known.step(to, digest);
      if (next.step === "nothing") return arrived("presentBytes");
      if (next.step === "mount") {
        const mounted = this.#options.dryRun ? "mounted" : await this.#mount(to, digest, next.from, signal);
        if (mounted === "mounted") return arrived("mountedBytes");
        session = mounted;
      }
      const head = await this.#again(() => this.#target.headBlob(to, digest, { signal }), signal);
      if (head && (head.sizeBytes ?? sizeBytes) === sizeBytes) {
        if (session) await this.#target.cancelUpload(to, session);
        return arrived("presentBytes");
      }
    }
    let toldBytes = 0;
    const sent = (bytes: Bytes): void => {
      result.sentBytes += bytes;
      // What is sent once more after a break is no progress.
      const more = Math.min(bytes, sizeBytes - toldBytes);
      toldBytes += more;
      this.#progress(job, { totalBytes: 0, doneBytes: doubted ? 0 : more });
    };
    if (this.#options.dryRun) sent(sizeBytes);
    else {
      const [source, target, clock, uploads] = [this.#source, this.#target, this.#clock, this.#uploads];
      await sendBlob({ source, target, from, to, blob, session, uploads, clock, sent, signal });
      // An upload of before needed less.
      this.#progress(job, { totalBytes: 0, doneBytes: doubted ? 0 : sizeBytes - toldBytes });
    }
    this.#known.add(to, digest);
  }

  async #mount(
    to: string,
    digest: Digest,
    from: string,
    signal: AbortSignal,
  ): Promise<"mounted" | UploadSession | undefined> {
    const mounted = await this.#again(() => this.#target.mount(to, digest, from, { signal }), signal);
    if (mounted === undefined) this.#known.mountRefused();
    return mounted;
  }

  #progress({ result, tell }: Job, { totalBytes, doneBytes }: CopyProgress): void {
    result.totalBytes += totalBytes;
    result.doneBytes += doneBytes;
    tell(result);
  }

  /** What a registry asks to be repeated later is, within bounds. Each request has been tried a few times already. */
  async #again<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        const worthIt = error instanceof RemoteError && (error.fault === "rateLimited" || error.fault === "server");
        const pauseMs = worthIt ? pauseAfter(error, attempt) : undefined;
        if (pauseMs === undefined) throw error;
        await this.#clock.sleep(pauseMs, signal);
      }
    }
  }
}

/** What refers to a rewritten index would refer to what the target does not have: only what is below it is asked for. */
function fromSource(node: Node): Node[] {
  return node.made ? node.children.flatMap(fromSource) : [node];
}

function sparseRefused(cause: RemoteError): CopyError {
  const remedy = "copy all, or let a rule make a smaller one with platforms.index: rewrite";
  return new CopyError("sparse", `${cause.message}: it takes no index without all of its platforms; ${remedy}`, {
    cause,
  });
}

/** zot says no more than that where something is missing. */
function asMissing(error: unknown): { missing: Digest[]; cause: RemoteError } {
  if (error instanceof RemoteError && error.code === "MANIFEST_INVALID") return { missing: [], cause: error };
  throw error;
}
