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
 * `copy-content.ts` has what a root leads to at the target, `copy-attached.ts` what refers to it, and `copy-tags.ts` moves the tag.
 *
 * On failure an image ends with its cause; what has arrived stays, is found by the next try, and is not sent again. Other images go on.
 */
import PQueue from "p-queue";
import type { Clock } from "../base/clock.ts";
import { Turns } from "../base/turns.ts";
import type { Digest } from "../oci/digest.ts";
import type { Told } from "../oci/origin.ts";
import { isTag } from "../oci/reference.ts";
import type { Target } from "../remote/target.ts";
import { Attachments } from "./copy-attached.ts";
import type { UploadMemory } from "./copy-blob.ts";
import { BlobCopies } from "./copy-blobs.ts";
import { ContentCopies } from "./copy-content.ts";
import { CopyError } from "./copy-error.ts";
import {
  allOf,
  type CopyOptions,
  type CopyRequest,
  type CopyResult,
  type CopySource,
  type Job,
  type Node,
} from "./copy-job.ts";
import { KnownBlobs } from "./copy-known.ts";
import { isStoredByTag, type ProvenManifest } from "./copy-manifests.ts";
import { againBy, type Again } from "./copy-retry.ts";
import { TagCopies } from "./copy-tags.ts";
import { TargetManifests } from "./copy-target.ts";
import { toldAt } from "./tags-at.ts";

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

/** For one run: what it has learnt of both registries is true for a while only. */
export class Copier {
  readonly #source: CopySource;
  readonly #options: CopyOptions;
  readonly #again: Again;
  readonly #manifests: TargetManifests;
  readonly #contents: ContentCopies;
  readonly #tags: TagCopies;
  readonly #attachments: Attachments;
  readonly #queue: PQueue;

  constructor({
    source,
    target,
    clock,
    options,
    known = new KnownBlobs(),
    uploads = new Map(),
    turns = new Turns(),
  }: CopierParts) {
    const again = againBy(clock);
    const blobs = new BlobCopies({ source, target, clock, options, known, uploads, turns, again });
    const manifests = new TargetManifests({ target, dryRun: options.dryRun, turns, again });
    const contents = new ContentCopies({ source, options, manifests, blobs, again });
    const tags = new TagCopies({ target, clock, options, manifests, contents, again });
    this.#source = source;
    this.#options = options;
    this.#again = again;
    this.#manifests = manifests;
    this.#contents = contents;
    this.#tags = tags;
    this.#attachments = new Attachments({
      source,
      again,
      copy: (job, pointer, found) => contents.bring(job, pointer, "all", { found }),
      tag: (job, tag, found, origin) => tags.move(job, tag, found, { before: undefined, origin }),
    });
    this.#queue = new PQueue({ concurrency: options.concurrency });
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
    return await this.#queue.add(() => this.#copy(request, signal, tell));
  }

  /** Reads a manifest of the source, and proves it. @throws as {@link copy} */
  async read(repository: string, digest: Digest, signal: AbortSignal): Promise<ProvenManifest> {
    return await this.#contents.read({ from: repository, signal }, { digest });
  }

  async #copy({ from, to, ...told }: CopyRequest, signal: AbortSignal, tell: Job["tell"]): Promise<CopyResult> {
    const { attached } = this.#options;
    const { digest, rewritten, existing = this.#options.existing } = told;
    const asked = isTag(to.reference) ? to.reference : (rewritten ?? to.reference);
    const [source, there] = await allOf([
      digest ? { digest, origin: told.origin } : this.#resolve(from, signal),
      told.there === undefined ? this.#manifests.stateAt(to.repository, asked, signal) : (told.there ?? undefined),
    ]);
    const [wanted, present] = [rewritten ?? source.digest, there?.digest];
    const copied = { ...source, digest: wanted };
    const settled = this.#tags.isSettled(there, copied);
    const none = { totalBytes: 0, doneBytes: 0, sentBytes: 0, mountedBytes: 0, presentBytes: 0 };
    const result: CopyResult = { outcome: "unchanged", digest: wanted, ...none, tagsMoved: [], notes: [] };
    if (settled && attached !== "always") return result;
    const job: Job = { from: from.repository, to: to.repository, existing, result, tell, signal };
    if (this.#tags.stays(job, to.reference, there, copied)) return { ...result, outcome: "kept" };
    let found = told.found ?? (await this.#contents.read(job, source));
    const mode = rewritten === undefined ? "sparse" : "rewrite";
    if (present !== wanted || attached === "always" || rewritten !== undefined) {
      const isNew = !isTag(to.reference) && present === undefined && mode === "sparse";
      const isAlone = attached === "never" || told.isAttended === true;
      const byTag = isTag(to.reference) && isAlone && mode === "sparse" && isStoredByTag(found);
      const root = await this.#contents.bring(job, found, mode, { found, isNew, byTag });
      if (attached !== "never") {
        const isAttended = told.isAttended === true && root.made === undefined;
        await this.#attachments.copyAll(job, isAttended ? root.children : fromSource(root));
      }
      found = root.made ?? found;
    }
    const moved =
      settled ||
      !isTag(to.reference) ||
      (await this.#tags.move(job, to.reference, found, { before: present, origin: source.origin }));
    if (!moved) return { ...result, outcome: "kept" };
    const changed = present !== wanted || result.sentBytes > 0 || result.tagsMoved.length > 0;
    return changed ? { ...result, outcome: "copied" } : result;
  }

  /** @throws CopyError missing */
  async #resolve({ repository, reference }: CopyRequest["from"], signal: AbortSignal): Promise<Told> {
    if (!isTag(reference)) return { digest: reference };
    const told = await this.#again(() => toldAt(this.#source, repository, reference, signal), signal);
    if (told) return told;
    throw new CopyError("missing", `${this.#source.name}/${repository}:${reference} does not exist`);
  }
}

/** What refers to a rewritten index would refer to what the target does not have: only what is below it is asked for. */
function fromSource(node: Node): Node[] {
  return node.made ? node.children.flatMap(fromSource) : [node];
}
