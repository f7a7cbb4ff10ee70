import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";

export const ACTIONS = ["push", "pull", "delete", "mount"] as const;
export type Action = (typeof ACTIONS)[number];

/** denied: the registry's rules forbade it; failed: it could not, though it should have. */
export const OUTCOMES = ["done", "denied", "failed"] as const;
export type Outcome = (typeof OUTCOMES)[number];

/** Who sends a request, and from where. */
export interface Requester {
  /** Undefined: nobody logged in. */
  actor: string | undefined;
  /** The client's, or that which a trusted proxy tells; empty on a Unix socket. */
  address: string;
  /** At most 256 characters of `User-Agent`. */
  agent: string | undefined;
  /** As in `X-Request-Id` and the log. */
  requestId: string;
}

/** The daemon's own work. */
export interface SystemActor {
  actor: string;
}

/** What happens to a repository: one row in the journal. */
export interface NewEvent {
  action: Action;
  outcome: Outcome;
  repository: RepositoryName;
  /** A push or delete of several tags is several events. Undefined: it was asked for by digest. */
  tag?: Tag;
  /** Undefined where it never came to be known. */
  digest?: Digest;
  mediaType?: string;
  sizeBytes?: number;
  by: Requester | SystemActor;
  /** A delete: "tag", "manifest" or "blob". A mount: the repository that it came from. A refusal: why. */
  detail?: string;
}

/** A row of the journal. Ids grow in the order of commits; `atMs` is when it happened, which for pulls is up to some seconds earlier. */
export interface StoredEvent {
  id: number;
  atMs: number;
  action: Action;
  outcome: Outcome;
  repository: RepositoryName;
  tag: Tag | undefined;
  digest: Digest | undefined;
  mediaType: string | undefined;
  sizeBytes: number | undefined;
  actor: string | undefined;
  address: string | undefined;
  agent: string | undefined;
  requestId: string | undefined;
  detail: string | undefined;
}
