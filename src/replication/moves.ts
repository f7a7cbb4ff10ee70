/**
 * Tags of a run that move together, at its end, and back again.
 *
 * Invariants
 * - Before the first tag moves, all that they lead to is known to be at the target, every one of them may move, and what each led to is recorded.
 * - Between the first and the last there is nothing but one PUT for each.
 * - Run again after a failure or `kill -9`, it moves the rest, and what was recorded of the others stays.
 * - Taken back is only what still leads to what the run has put there.
 */
import PQueue from "p-queue";
import type { ReplicationRule } from "../config/schema.ts";
import type { Digest } from "../oci/digest.ts";
import type { Origin } from "../oci/origin.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { isTagNewer, type Target } from "../remote/target.ts";
import { allOf } from "./copy-job.ts";
import { deleteTag } from "./deletion.ts";
import { judgeTag } from "./rules.ts";
import { manifestAt, putUnder, toldAt } from "./tags-at.ts";

/** A tag of a target that is to move. */
export interface StagedTag {
  repository: RepositoryName;
  tag: Tag;
  /** At the target by now. */
  digest: Digest;
  /** Of the source's tag, where it has told. */
  origin?: Origin | undefined;
}

/** A tag that a run has moved, or was about to. */
export interface RecordedMove {
  repository: RepositoryName;
  tag: Tag;
  /** Undefined: it was not there. */
  was: Digest | undefined;
  became: Digest;
}

export interface MoveTarget {
  /** As rules call it. */
  name: string;
  target: Target;
  /** Requests at a time. */
  concurrency: number;
}

/** kept: the rule does not let it move. */
export interface MovedTag extends StagedTag {
  outcome: "moved" | "unchanged" | "kept";
  because?: string;
}

/**
 * @param write what the rule says of tags that are there: each is looked at again
 * @param record durably, before it resolves; is told of what is about to move, which may have been recorded by an earlier try: this is truer
 * @returns of each what became of it, in order
 * @throws Error: not all can move, and none has; or only some have, with the cause: to be called again
 */
export async function moveTogether(
  staged: readonly StagedTag[],
  { name, target, concurrency }: MoveTarget,
  write: ReplicationRule["write"],
  record: (moves: RecordedMove[]) => Promise<void>,
  signal: AbortSignal,
): Promise<MovedTag[]> {
  const queue = new PQueue({ concurrency });
  const ready = await allOf(staged.map((one) => queue.add(() => prepare(one, { name, target }, write, signal))));
  const moving = ready.filter((one) => one.outcome === "moved");
  // Backups first: once the first tag moves, nothing but the others comes after it.
  await allOf(
    moving.flatMap(({ staged: { repository }, was, backup }) =>
      was === undefined || backup === undefined
        ? []
        : [queue.add(() => putUnder(target, repository, was, backup, signal))],
    ),
  );
  if (moving.length > 0) {
    await record(
      moving.map(({ staged: { repository, tag, digest }, was }) => ({ repository, tag, was, became: digest })),
    );
  }
  const moved: string[] = [];
  const newer = new Set<StagedTag>();
  let failed: { name: string; cause: Error } | undefined;
  await allOf(
    moving.map(({ staged: { repository, tag, origin }, staged: one, manifest }) =>
      queue.add(async () => {
        // After a failure no other move begins.
        if (failed) return;
        const place = `${repository}:${tag}`;
        try {
          const stored = await target.putManifest(repository, tag, manifest, { signal, origin });
          if (stored.missing) throw stored.cause;
          moved.push(place);
        } catch (cause) {
          if (isTagNewer(cause)) newer.add(one);
          else failed ??= { name: place, cause: cause as Error };
        }
      }),
    ),
  );
  signal.throwIfAborted();
  if (failed) {
    const { cause } = failed;
    const which = moved.length === 0 ? "none has" : `only ${moved.join(", ")} ${moved.length === 1 ? "has" : "have"}`;
    throw new Error(
      `${name} ${failed.name} could not be moved, and of ${moving.length} tags ${which}: ${cause.message}`,
      {
        cause,
      },
    );
  }
  return ready.map(({ staged: one, outcome, because }) => {
    if (newer.has(one)) return { ...one, outcome: "kept", because: "it has been pushed later at the target" };
    return { ...one, outcome, ...(because === undefined ? {} : { because }) };
  });
}

/** A tag that may move, with all that its move needs; or one that stays. */
type Prepared = { staged: StagedTag } & (
  | {
      outcome: "moved";
      was: Digest | undefined;
      backup: Tag | undefined;
      // All of them at once: a release of a thousand tags has a few MiB.
      manifest: { bytes: Buffer; mediaType: string };
      because?: never;
    }
  | { outcome: "unchanged" | "kept"; because?: string }
);

async function prepare(
  staged: StagedTag,
  { name, target }: Pick<MoveTarget, "name" | "target">,
  write: ReplicationRule["write"],
  signal: AbortSignal,
): Promise<Prepared> {
  const { repository, tag, digest } = staged;
  const there = await toldAt(target, repository, tag, signal);
  const verdict = judgeTag(tag, digest, there?.digest, write);
  if (verdict.action === "same") return { staged, outcome: "unchanged" };
  if (verdict.action === "keep") return { staged, outcome: "kept", because: verdict.because };
  if (verdict.action === "fail") {
    throw new Error(
      `${name} ${repository}:${tag} leads to ${verdict.was}, and ${verdict.because}: no tag has been moved`,
    );
  }
  const manifest = await manifestAt(target, repository, digest, signal);
  if (!manifest) {
    throw new Error(`${name} does not have ${repository}@${digest} any more: no tag has been moved; run it again`);
  }
  const [was, backup] = verdict.action === "replace" ? [verdict.was, verdict.backup] : [undefined, undefined];
  return { staged, outcome: "moved", was, backup, manifest };
}

/** undone: it leads again to what it did, or is gone again; left: others have moved it since; failed: it stays as it is. */
export interface UndoneMove {
  move: RecordedMove;
  outcome: "undone" | "left" | "failed";
  because?: string;
}

/**
 * Takes moves back. Each for itself: one that fails does not hold up the others. What was taken back already counts as undone.
 * @param tell of each, once it has ended
 * @throws the signal's reason
 */
export async function undoMoves(
  moves: readonly RecordedMove[],
  { name, target, concurrency }: MoveTarget,
  signal: AbortSignal,
  tell: (undone: UndoneMove) => void,
): Promise<void> {
  const queue = new PQueue({ concurrency });
  await allOf(
    moves.map((move) =>
      queue.add(async () => {
        try {
          const left = await undo(target, move, signal);
          tell(left === undefined ? { move, outcome: "undone" } : { move, outcome: "left", because: left });
        } catch (error) {
          signal.throwIfAborted();
          tell({ move, outcome: "failed", because: `${name} ${(error as Error).message}` });
        }
      }),
    ),
  );
}

/** @returns why it is left as it is */
async function undo(target: Target, move: RecordedMove, signal: AbortSignal): Promise<string | undefined> {
  const { repository, tag, was, became } = move;
  const present = (await toldAt(target, repository, tag, signal))?.digest;
  if (present === was) return undefined;
  const moved = (to: Digest | undefined): string =>
    to === undefined ? "others have deleted it since" : `others have moved it since, to ${to}`;
  if (was === undefined) {
    const deleted = await deleteTag(target, { repository, tag, expected: became }, signal);
    return deleted === "moved" ? moved(present) : undefined;
  }
  if (present !== became) return moved(present);
  await putUnder(target, repository, was, tag, signal);
  return undefined;
}
