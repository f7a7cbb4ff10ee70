/**
 * Copies what a plan says of one tag at one target: the root by its digest, then what belongs to it, then the tag, which so never leads to
 * what is not whole. Shared by all tags of a rule at a target: what several need is asked for and sent once.
 */
import type { Bytes, Clock } from "../base/clock.ts";
import type { Turns } from "../base/turns.ts";
import type { ReplicationRule } from "../config/schema.ts";
import type { Told } from "../oci/origin.ts";
import type { Reference, RepositoryName, Tag } from "../oci/reference.ts";
import type { Target } from "../remote/target.ts";
import { Copier } from "./copy.ts";
import type { UploadMemory } from "./copy-blob.ts";
import type { CopyProgress, CopyRequest, CopySource } from "./copy-job.ts";
import type { KnownBlobs } from "./copy-known.ts";
import type { PlannedTag } from "./plan-tag.ts";
import { platformsOf } from "./rules.ts";
import { globFinder } from "./tag-filter.ts";
import { putUnder } from "./tags-at.ts";

type Existing = ReplicationRule["write"]["existing"];

export interface ImageCopiesParts {
  rule: ReplicationRule;
  source: CopySource;
  target: Target;
  /** Blobs, images and tags on their way at a time, each. */
  concurrency: number;
  clock: Clock;
  known: KnownBlobs;
  uploads?: UploadMemory;
  /** Of all copies to the target. */
  turns: Turns;
}

export interface ImageCopy {
  source: RepositoryName;
  target: RepositoryName;
  image: PlannedTag;
  /** Tags that are named after its digest, and are to be copied. */
  companions: readonly PlannedTag[];
  /** All but its tag. */
  staged: boolean;
}

export interface ImageCopied {
  outcome: "copied" | "unchanged" | "kept";
  sentBytes: Bytes;
  mountedBytes: Bytes;
  presentBytes: Bytes;
  /** What the copy lacks. */
  notes: string[];
}

export class ImageCopies {
  readonly #target: Target;
  readonly #copier: Copier;
  readonly #existingFor: (tag: Tag) => Existing;

  constructor({ rule, ...parts }: ImageCopiesParts) {
    this.#target = parts.target;
    this.#copier = new Copier({
      ...parts,
      options: {
        platforms: platformsOf(rule),
        // The plan names what belongs to the root, for one request; what belongs to a platform of it shows when that is copied.
        attached: rule.attached.referrers && rule.attached.digestTags ? "whenChanged" : "never",
        existing: rule.write.existing,
        keepOrigin: true,
        dryRun: false,
        concurrency: parts.concurrency,
      },
    });
    const immutable = globFinder(rule.write.immutable);
    this.#existingFor = (tag) => (immutable(tag) === undefined ? rule.write.existing : "keep");
  }

  /**
   * @param tell called often while bytes flow
   * @throws CopyError, RemoteError, RegistryError MANIFEST_INVALID, the signal's reason
   */
  async copy(
    { source, target, image, companions, staged }: ImageCopy,
    signal: AbortSignal,
    tell: (progress: CopyProgress & { sentBytes: Bytes }) => void = () => {},
  ): Promise<ImageCopied> {
    const total: ImageCopied = { outcome: "unchanged", sentBytes: 0, mountedBytes: 0, presentBytes: 0, notes: [] };
    const before = { totalBytes: 0, doneBytes: 0 };
    const copy = async (
      reference: Reference,
      { digest, rewritten, origin }: Told & Pick<PlannedTag, "rewritten">,
      known: Pick<CopyRequest, "existing" | "there" | "found" | "isAttended">,
    ): Promise<void> => {
      const request = {
        from: { repository: source, reference },
        to: { repository: target, reference },
        digest,
        rewritten,
        origin,
        ...known,
      };
      const copied = await this.#copier.copy(request, signal, (now) => {
        const [totalBytes, doneBytes] = [before.totalBytes + now.totalBytes, before.doneBytes + now.doneBytes];
        tell({ totalBytes, doneBytes, sentBytes: total.sentBytes + now.sentBytes });
      });
      if (copied.outcome !== "unchanged") total.outcome = copied.outcome;
      before.totalBytes += copied.totalBytes;
      before.doneBytes += copied.doneBytes;
      total.sentBytes += copied.sentBytes;
      total.mountedBytes += copied.mountedBytes;
      total.presentBytes += copied.presentBytes;
      total.notes.push(...copied.notes);
    };
    const moves = isChange(image);
    const known = {
      existing: existingOf(image, this.#existingFor(image.tag)),
      there: thereOf(image),
      isAttended: true,
    };
    if (moves && (staged || companions.length + image.referrers.length > 0)) {
      const found = staged ? undefined : await this.#copier.read(source, image.digest, signal);
      await copy(image.digest, image, { ...known, there: undefined, found });
      Object.assign(known, { found });
    }
    for (const one of companions) {
      await copy(one.tag, one, { existing: existingOf(one, this.#existingFor(one.tag)), there: thereOf(one) });
    }
    for (const digest of image.referrers) await copy(digest, { digest }, { existing: known.existing });
    // What is only marked moves nothing, and need not wait for the others.
    if (moves && (!staged || image.action === "mark")) {
      await this.#keepBackup(target, image, signal);
      await copy(image.tag, image, known);
    }
    return total;
  }

  /** What refers to something, with all below it; under its tag where it has one. @throws as {@link copy} */
  async attach(
    { source, target, tag, ...told }: Told & { source: RepositoryName; target: RepositoryName; tag: Tag | undefined },
    signal: AbortSignal,
  ): Promise<ImageCopied> {
    const reference = tag ?? told.digest;
    const existing = tag === undefined ? "replace" : this.#existingFor(tag);
    const place = { from: { repository: source, reference }, to: { repository: target, reference } };
    const request = { ...place, ...told, existing };
    const { outcome, sentBytes, mountedBytes, presentBytes, notes } = await this.#copier.copy(request, signal);
    return { outcome, sentBytes, mountedBytes, presentBytes, notes };
  }

  /** What the tag leads to by now gets another name, before the tag moves. */
  async #keepBackup(target: RepositoryName, image: PlannedTag, signal: AbortSignal): Promise<void> {
    if (image.action !== "replace" || image.backup === undefined) return;
    await putUnder(this.#target, target, image.was, image.backup, signal);
  }
}

/** Whether the tag is to be written. */
export function isChange({ action }: PlannedTag): boolean {
  return action === "copy" || action === "replace" || action === "mark";
}

/** What its tag at the target leads to, as far as the plan has just asked; undefined: that is to be asked. */
function thereOf(planned: PlannedTag): CopyRequest["there"] {
  if (planned.action === "copy") return null;
  return planned.action === "replace" ? { digest: planned.was } : undefined;
}

/** A tag that the plan found absent and that is there now is no tag that may be moved. */
function existingOf({ action }: PlannedTag, existing: Existing): Existing {
  return action === "replace" ? "replace" : existing;
}

/** What there is to copy in a repository: each image with the tags that are named after it, which one of its tags brings. */
export function imagesOf({ tags }: { tags: readonly PlannedTag[] }): { image: PlannedTag; companions: PlannedTag[] }[] {
  const images = tags.filter(({ companionOf }) => companionOf === undefined);
  const companions = Map.groupBy(
    tags.filter((tag) => isChange(tag)),
    ({ companionOf }) => companionOf,
  );
  return images.flatMap((image) => {
    const attached = companions.get(image.digest) ?? [];
    companions.delete(image.digest);
    return isChange(image) || attached.length > 0 || image.referrers.length > 0
      ? [{ image, companions: attached }]
      : [];
  });
}
