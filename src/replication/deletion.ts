/**
 * Which tags a rule deletes at a target, and how one is deleted.
 *
 * Invariants, since nothing brings a deleted tag back
 * - Nothing is deleted where the source's list is empty or could not be read.
 * - A tag is missed for the whole of `delete.grace` first, by runs that had a list; one that was back in between begins anew.
 * - In one run at most `delete.maxPercent` of a repository's copies go, or one; are there more, none goes, and the run says so.
 * - What `write.immutable` matches stays; with `ownedOnly`, so does what the rule has not put there.
 * - Tags that are named after an image's digest are no copies of their own, and stay.
 * - A tag that leads to something else than what the rule knows has been moved by others, and stays.
 */
import { Readable } from "node:stream";
import type { Milliseconds } from "../base/clock.ts";
import type { ReplicationRule } from "../config/schema.ts";
import { digestOf, type Digest } from "../oci/digest.ts";
import { MEDIA_TYPES } from "../oci/manifest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { Target } from "../remote/target.ts";
import { globFinder, isDigestTag } from "./tag-filter.ts";
import { manifestAt, toldAt } from "./tags-at.ts";

/** What a rule knows of a tag at a target. */
export interface KnownCopy {
  tag: Tag;
  /** What the rule has put there; of a tag that it has not put there, what that led to when it was first missed. */
  digest: Digest;
  /** No other tag was there before. */
  owned: boolean;
  /** Since when the source is without it, or the rule leaves it out. */
  goneSinceMs: Milliseconds | undefined;
}

export interface DeletionQuestion {
  rule: ReplicationRule["delete"] & Pick<ReplicationRule["write"], "immutable" | "backup">;
  /** Of one rule at one repository of a target. */
  copies: readonly KnownCopy[];
  /** What the target has there, less what other rules have put there; undefined with `ownedOnly`: it is not asked. */
  listed: ReadonlySet<Tag> | undefined;
  /** What the rule selects now; undefined: that could not be found out. */
  wanted: ReadonlySet<Tag> | undefined;
  nowMs: Milliseconds;
}

export interface DeletionPlan {
  remove: { tag: Tag; digest: Digest }[];
  /** Missed for the first time. Without a digest, nothing is known of it yet: what it leads to is to be noted with the time. */
  missed: { tag: Tag; digest: Digest | undefined }[];
  /** Are no longer missed. */
  back: Tag[];
  /** Why nothing is removed of what is due. */
  refused?: string;
}

export function planDeletions({ rule, copies, listed, wanted, nowMs }: DeletionQuestion): DeletionPlan {
  const none: DeletionPlan = { remove: [], missed: [], back: [] };
  const missedBefore = copies.filter(({ goneSinceMs }) => goneSinceMs !== undefined);
  // What was missed under an earlier configuration does not count when deletion is turned on again.
  if (!rule.mirror) return { ...none, back: missedBefore.map(({ tag }) => tag) };
  if (!wanted) return none;

  const images = copies.filter(({ tag }) => !isDigestTag(tag));
  const known = new Set(images.map(({ tag }) => tag));
  const others = rule.ownedOnly ? [] : [...(listed ?? [])].filter((tag) => !known.has(tag) && !isDigestTag(tag));
  const immutable = globFinder(rule.immutable);
  const backups = new Set([...wanted].map((tag) => rule.backup?.replaceAll("{{tag}}", tag)));
  const isGone = (tag: Tag): boolean => !wanted.has(tag) && !backups.has(tag) && immutable(tag) === undefined;
  const gone = images.filter(({ tag, owned }) => (owned || !rule.ownedOnly) && isGone(tag));
  const missing = new Set(gone);
  const strangers = others.filter(isGone);

  if (wanted.size === 0) {
    if (gone.length + strangers.length === 0) return none;
    return { ...none, refused: "the rule selects nothing, which is taken for a mistake: nothing is deleted" };
  }
  const plan: DeletionPlan = {
    remove: [],
    missed: [
      ...gone.filter(({ goneSinceMs }) => goneSinceMs === undefined),
      ...strangers.map((tag) => ({ tag, digest: undefined })),
    ].map(({ tag, digest }) => ({ tag, digest })),
    back: missedBefore.filter((copy) => !missing.has(copy)).map(({ tag }) => tag),
  };
  const due = gone.filter(({ goneSinceMs }) => (goneSinceMs ?? nowMs) + rule.grace <= nowMs);
  const total = images.length + others.length;
  const most = Math.max(1, Math.floor((total * rule.maxPercent) / 100));
  if (due.length > most) {
    const refused = `${due.length} of ${total} copies would go, and delete.maxPercent (${rule.maxPercent}) lets ${most}: nothing is deleted; raise it if that is right`;
    return { ...plan, refused };
  }
  return { ...plan, remove: due.map(({ tag, digest }) => ({ tag, digest })) };
}

/** moved: it leads to something else than was expected, and stays. */
export type Deleted = "deleted" | "absent" | "moved";

export interface TagDeletion {
  repository: RepositoryName;
  tag: Tag;
  /** What it has to lead to. */
  expected: Digest;
}

/**
 * Deletes a tag of a target, and nothing else that the image has. A registry that deletes no tags (docker-registry 2) has a manifest of our own put
 * under it, which is deleted by its digest.
 * @throws RemoteError; Error: nothing can be deleted there
 */
export async function deleteTag(target: Target, deletion: TagDeletion, signal: AbortSignal): Promise<Deleted> {
  const { repository, tag, expected } = deletion;
  const present = (await toldAt(target, repository, tag, signal))?.digest;
  if (present === undefined) return "absent";
  const stand = standIn(deletion);
  // An earlier process came as far as that.
  if (present === stand.digest) return await deleteStandIn(target, deletion, stand, signal);
  if (present !== expected) return "moved";
  try {
    if (await target.deleteManifest(repository, tag, { signal, ifMatch: expected })) return "deleted";
    // Not there: the tag, or all that the path could mean.
    if ((await toldAt(target, repository, tag, signal)) === undefined) return "absent";
  } catch (error) {
    if (!(error instanceof RemoteError)) throw error;
    if (error.status === 412) return "moved";
    if (error.status !== 400 && error.status !== 405 && error.code !== "UNSUPPORTED") throw error;
  }
  return await deleteStandIn(target, deletion, stand, signal);
}

interface StandIn {
  bytes: Buffer;
  digest: Digest;
}

const EMPTY = Buffer.from("{}");

/** A manifest that no other tag leads to, and that is known again after a restart. */
function standIn({ repository, tag, expected }: TagDeletion): StandIn {
  const bytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociImage,
      config: {
        mediaType: "application/vnd.oci.image.config.v1+json",
        digest: digestOf(EMPTY),
        size: EMPTY.byteLength,
      },
      layers: [],
      annotations: { "entrepot.deleted": `${repository}:${tag} ${expected}` },
    }),
  );
  return { bytes, digest: digestOf(bytes) };
}

async function deleteStandIn(
  target: Target,
  { repository, tag, expected }: TagDeletion,
  { bytes, digest }: StandIn,
  signal: AbortSignal,
): Promise<Deleted> {
  // Before the tag is touched: whether the registry deletes at all.
  await deleteByDigest(target, repository, digest, signal);
  if ((await toldAt(target, repository, tag, signal)) === undefined) return "deleted";
  const before = await manifestAt(target, repository, expected, signal);
  if (!(await target.headBlob(repository, digestOf(EMPTY), { signal }))) {
    const session = await target.startUpload(repository, digestOf(EMPTY), { signal });
    const rest = { lengthBytes: EMPTY.byteLength, pieces: Readable.from([EMPTY]) };
    await target.finishUpload(repository, session, digestOf(EMPTY), rest, { signal });
  }
  const put = async (manifest: { bytes: Buffer; mediaType: string }): Promise<void> => {
    const stored = await target.putManifest(repository, tag, manifest, { signal });
    if (stored.missing) throw stored.cause;
  };
  await put({ bytes, mediaType: MEDIA_TYPES.ociImage });
  try {
    await deleteByDigest(target, repository, digest, signal);
  } catch (error) {
    // The tag leads back to what it was; where that fails, too, the next try finds the stand-in and goes on.
    if (before && !signal.aborted) await put(before).catch(() => undefined);
    throw error;
  }
  return "deleted";
}

async function deleteByDigest(
  target: Target,
  repository: RepositoryName,
  digest: Digest,
  signal: AbortSignal,
): Promise<void> {
  try {
    await target.deleteManifest(repository, digest, { signal });
  } catch (error) {
    if (!(error instanceof RemoteError) || (error.status !== 405 && error.code !== "UNSUPPORTED")) throw error;
    throw new Error(
      `${error.message}: turn deletion on there (storage.delete.enabled of docker-registry), or leave delete.mirror out`,
      { cause: error },
    );
  }
}
