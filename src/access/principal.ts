import type { RepositoryName } from "../oci/reference.ts";

/** What may be done to a repository. `create` is a push that moves no tag. */
export const VERBS = ["pull", "create", "push", "delete"] as const;
export type Verb = (typeof VERBS)[number];

/** In a team: a viewer pulls, a contributor pushes, too, an owner also deletes and looks after the team's people, namespaces and robots. */
export const ROLES = ["viewer", "contributor", "owner"] as const;
export type Role = (typeof ROLES)[number];

/** Who may pull beside those who have a role: nobody, whoever has logged in, everybody. */
export const VISIBILITIES = ["private", "protected", "public"] as const;
export type Visibility = (typeof VISIBILITIES)[number];

/** What a token or a robot is limited to: the union of these. */
export interface Limit {
  /** Globs of full repository names. */
  repositories: readonly string[];
  verbs: readonly Verb[];
}

/** Who asks. */
export type Principal =
  /** Nobody has said who it is. */
  | { kind: "anonymous" }
  /** Access is open: whoever asks may do everything. */
  | { kind: "everybody" }
  /** May read the storage folder, and so everything. */
  | { kind: "operator" }
  /** A line of the htpasswd file, with the role of all of them on every hosted repository. */
  | { kind: "file"; name: string; role: Role | "admin" }
  | {
      kind: "user";
      id: number;
      name: string;
      admin: boolean;
      /** By the id of the team. */
      teams: ReadonlyMap<number, Role>;
      /** Of the personal token that it came with; undefined: it came with the password. */
      limits: readonly Limit[] | undefined;
    }
  | {
      kind: "robot";
      id: number;
      name: string;
      /** Whose namespaces it may touch at most; undefined: every one. */
      team: number | undefined;
      limits: readonly Limit[];
    };

/** What is governed as one: a hosted namespace, or an upstream with all that is cached from it. */
export type Space =
  | { kind: "namespace"; name: string; visibility: Visibility; owner: SpaceOwner; granted: ReadonlyMap<number, Role> }
  | { kind: "upstream"; name: string; visibility: Visibility; granted: ReadonlyMap<number, Role> };

export type SpaceOwner =
  /** Administrators push. */
  | { kind: "global" }
  | { kind: "team"; team: number }
  /** It is the user's own. */
  | { kind: "personal"; user: number };

/** Who asks, and what the token that it came with leaves of its rights. */
export interface Caller {
  principal: Principal;
  /**
   * Of a bearer token from the token service: verbs by full repository name, nothing else. Undefined: all that the principal may.
   */
  granted: ReadonlyMap<RepositoryName, ReadonlySet<Verb>> | undefined;
  /** Of such a token: whether it also lists the repositories that the principal sees. */
  catalog?: boolean;
}

export const ANONYMOUS: Caller = { principal: { kind: "anonymous" }, granted: undefined };
export const EVERYBODY: Caller = { principal: { kind: "everybody" }, granted: undefined };
export const OPERATOR: Caller = { principal: { kind: "operator" }, granted: undefined };

/** As events name it; undefined: nobody logged in. */
export function actorOf(principal: Principal): string | undefined {
  if (principal.kind === "operator") return "operator";
  return "name" in principal ? principal.name : undefined;
}
