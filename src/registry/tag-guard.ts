/** Whether a client may move a tag or delete it: what it made that depend on, what its credentials allow, and which tags stay as they are. */
import type { Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import type { Reference, RepositoryName, Tag } from "../oci/reference.ts";
import type { TagGuard } from "../store/hosted-catalog.ts";
import type { Immutable } from "./policy.ts";

/** What a client makes a change to a tag depend on. Source: RFC 9110 §13.1 */
export interface TagCondition {
  /** The tag must point to one of these digests now; "any": to something. */
  ifMatch?: readonly string[] | "any";
  /** The tag must point to none of these; "any": it must not exist. */
  ifNoneMatch?: readonly string[] | "any";
}

/** A change to the tags of a repository. */
interface TagChange {
  repository: RepositoryName;
  /** What the client named. */
  reference: Reference;
  /** Holds for the tag that the client named, for no other. */
  condition: TagCondition;
  immutable: Immutable;
}

/**
 * Guards the tags that a push points to a manifest: throws RegistryError DENIED, with status 412 where the condition does not hold.
 * A tag that leads there already asks for nothing else.
 * @param mayMove whether a tag may be moved from another manifest to this one
 */
export function guardOfPush(change: TagChange, digest: Digest, mayMove: boolean): TagGuard {
  const { repository, immutable } = change;
  return (tag, current) => {
    checkCondition(change, tag, current);
    if (current === undefined || current === digest) return;
    if (immutable(repository, tag)) throw immutableTag(repository, tag);
    if (!mayMove) throw unmovedTag(repository, tag);
  };
}

/** Guards the tags that go with a deletion: throws as {@link guardOfPush}. */
export function guardOfDeletion(change: TagChange): TagGuard {
  const { repository, immutable } = change;
  return (tag, current) => {
    if (immutable(repository, tag)) throw immutableTag(repository, tag);
    checkCondition(change, tag, current);
  };
}

function immutableTag(repository: RepositoryName, tag: Tag): RegistryError {
  return new RegistryError("DENIED", `${repository}:${tag} is immutable by hosted.immutableTags: push another tag`, {
    detail: { repository, tag },
  });
}

function unmovedTag(repository: RepositoryName, tag: Tag): RegistryError {
  return new RegistryError(
    "DENIED",
    `${repository}:${tag} points to another manifest, and these credentials make tags but move none: push another tag`,
    { detail: { repository, tag } },
  );
}

/** @throws RegistryError with status 412 */
function checkCondition({ repository, reference, condition }: TagChange, tag: Tag, current: Digest | undefined): void {
  if (tag !== reference) return;
  const { ifMatch, ifNoneMatch } = condition;
  const isOneOf = (wanted: readonly string[] | "any"): boolean =>
    current !== undefined && (wanted === "any" || wanted.includes(current));
  if ((ifMatch === undefined || isOneOf(ifMatch)) && !(ifNoneMatch !== undefined && isOneOf(ifNoneMatch))) return;
  throw new RegistryError("DENIED", `${repository}:${tag} ${current ? `points to ${current}` : "does not exist"}`, {
    status: 412,
    detail: { repository, tag, digest: current ?? null },
  });
}
