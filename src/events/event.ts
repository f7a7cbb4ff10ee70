import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";

/** What happens to repositories: webhooks tell nothing else. */
export const IMAGE_ACTIONS = ["push", "pull", "delete", "mount"] as const;
export type ImageAction = (typeof IMAGE_ACTIONS)[number];

/** login: a password, token or certificate was checked in full. access: who may do what, or a rule of replication, was changed. */
export const ACTIONS = [...IMAGE_ACTIONS, "login", "access"] as const;
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

/** What happens: one row in the journal. */
export interface NewEvent {
  action: Action;
  outcome: Outcome;
  /** Undefined: it is about no repository. */
  repository?: RepositoryName;
  /** Whom or what a login or a change of rights is about: `user:alice`, `team:backend`, `namespace:team`, `robot:ci`, `token:alice/laptop`, `rule:base`. */
  subject?: string;
  /** A push or delete of several tags is several events. Undefined: it was asked for by digest. */
  tag?: Tag;
  /** Undefined where it never came to be known. */
  digest?: Digest;
  mediaType?: string;
  sizeBytes?: number;
  by: Requester | SystemActor;
  /** A delete: "tag", "manifest" or "blob". A mount: the repository that it came from. A refusal: why. A change of rights: which. */
  detail?: string;
}

/** A row of the journal. Ids grow in the order of commits; `atMs` is when it happened, which for pulls is up to some seconds earlier. */
export interface StoredEvent {
  id: number;
  atMs: number;
  action: Action;
  outcome: Outcome;
  repository: RepositoryName | undefined;
  subject: string | undefined;
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

/** An event of which webhooks tell. */
export type ImageEvent = StoredEvent & { action: ImageAction; repository: RepositoryName };

export function isImageEvent(event: StoredEvent): event is ImageEvent {
  return event.repository !== undefined && IMAGE_ACTIONS.some((action) => action === event.action);
}
