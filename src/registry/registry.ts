import { setImmediate as turn } from "node:timers/promises";
import type { Outcome, Requester } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import { RegistryError } from "../oci/errors.ts";
import { isDigest, type Digest } from "../oci/digest.ts";
import type { Reference, RepositoryName } from "../oci/reference.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { BlobAnswer, ListAnswer, ManifestAnswer } from "./answers.ts";
import type { HostedRepositories } from "./hosted.ts";
import type { Mirror } from "./mirror.ts";
import type { Hosted, Located, Names } from "./names.ts";
import { pageOf } from "./page.ts";

/** A part of a list that a client asks for. */
export interface PageRequest {
  /** At most so many; undefined: as many as fit into an answer. */
  n: number | undefined;
  /** What the part starts after (exclusive). */
  last: string | undefined;
}

/** What a client has asked for. */
export interface Wanted {
  action: "push" | "pull" | "delete" | "mount";
  name: RepositoryName;
  ns: string | undefined;
  /** Of an upload that has just begun: undefined. */
  reference: Reference | undefined;
}

const HOSTED_PAGE = 10_000;
const SEARCHED_PER_TURN = 500;

/** The registry as clients see it: every request for a repository comes through here, and goes on to the mirror or to what is hosted. */
export class Registry {
  readonly #names: Names;
  readonly #mirror: Mirror;
  readonly #journal: Journal;
  /** What is pushed here, and who takes the pushes. */
  readonly hosted: HostedRepositories;

  constructor(names: Names, mirror: Mirror, hosted: HostedRepositories, journal: Journal) {
    this.#names = names;
    this.#mirror = mirror;
    this.hosted = hosted;
    this.#journal = journal;
  }

  /** @throws RegistryError as `Names.locate` */
  locate(name: RepositoryName, ns: string | undefined): Located {
    return this.#names.locate(name, ns);
  }

  /** @throws RegistryError UNSUPPORTED: nothing is pushed to what is cached; and as `Names.locate` */
  locateForPush(name: RepositoryName, ns: string | undefined): Hosted {
    return onlyHosted(this.#names.locateForPush(name, ns));
  }

  /**
   * Where a client that looked for content before its first push to a namespace begins; undefined: it is another error. Docker Hub answers 401 for what it does not
   * have, and most clients would give up on anything but 404.
   * @param error how the look-up at the default upstream failed; undefined: the client may not have it looked up
   */
  mayBeginWith(name: RepositoryName, ns: string | undefined, error: Error | undefined): Hosted | undefined {
    if (error && !(error.cause instanceof RemoteError && error.cause.fault === "unauthorized")) return undefined;
    const located = this.#names.locateForPush(name, ns);
    return located.kind === "hosted" && located.claims !== undefined ? located : undefined;
  }

  /** @throws as {@link locateForPush} */
  locateForDelete(name: RepositoryName, ns: string | undefined): Hosted {
    return onlyHosted(this.#names.locate(name, ns));
  }

  /**
   * Records that a change was refused, or that it failed. What is a mistake of the client's own (a wrong digest, a missing blob, a
   * condition of its own that does not hold) leaves no record.
   */
  refused({ action, name, ns, reference }: Wanted, error: unknown, by: Requester): void {
    const outcome = outcomeOf(error);
    if (outcome === undefined) return;
    this.#journal.note({
      action,
      outcome,
      repository: this.#fullName(name, ns),
      ...(reference === undefined ? {} : isDigest(reference) ? { digest: reference } : { tag: reference }),
      by,
      detail: error instanceof RegistryError ? error.message.slice(0, MAX_REASON) : "internal error",
    });
  }

  #fullName(name: RepositoryName, ns: string | undefined): RepositoryName {
    try {
      return this.#names.locateForPush(name, ns).repository;
    } catch {
      return name;
    }
  }

  /** @throws RegistryError MANIFEST_UNKNOWN, NAME_UNKNOWN, DENIED, TOOMANYREQUESTS, UNAVAILABLE */
  async manifest(located: Located, reference: Reference, head: boolean, by: Requester): Promise<ManifestAnswer> {
    const answer =
      located.kind === "cached"
        ? await this.#mirror.manifest(located, reference, head)
        : await this.hosted.pulls.manifest(located, reference, head);
    if (!head) {
      const { digest, mediaType, sizeBytes } = answer;
      this.#journal.note({
        action: "pull",
        outcome: "done",
        repository: located.repository,
        ...(isDigest(reference) ? {} : { tag: reference }),
        digest,
        mediaType,
        ...(sizeBytes === undefined ? {} : { sizeBytes }),
        by,
      });
    }
    return answer;
  }

  /** @throws RegistryError BLOB_UNKNOWN, NAME_UNKNOWN, DENIED, TOOMANYREQUESTS, UNAVAILABLE */
  blob(located: Located, digest: Digest, head: boolean): Promise<BlobAnswer> {
    return located.kind === "cached"
      ? this.#mirror.blob(located, digest, head)
      : this.hosted.pulls.blob(located, digest, head);
  }

  /** Tags in lexical order. @throws RegistryError NAME_UNKNOWN, DENIED, TOOMANYREQUESTS, UNAVAILABLE */
  async tags(located: Located, { n, last }: PageRequest): Promise<ListAnswer<string>> {
    if (located.kind === "cached") {
      const answer = await this.#mirror.tags(located);
      return { ...answer, ...pageOf(answer.items, n, last) };
    }
    const page = await this.hosted.pulls.tags(located, last ?? "", Math.min(n ?? HOSTED_PAGE, HOSTED_PAGE));
    return { ...page, more: page.more && n !== 0, ...HERE };
  }

  /** None for what is not there: distribution-spec, "Listing Referrers". @throws RegistryError DENIED, TOOMANYREQUESTS, UNAVAILABLE */
  async referrers(
    located: Located,
    digest: Digest,
    artifactType: string | undefined,
    { n, last }: PageRequest,
  ): Promise<ListAnswer<Record<string, unknown>>> {
    if (located.kind === "cached") {
      const answer = await this.#mirror.referrers(located, digest);
      const wanted = (item: Record<string, unknown>): boolean =>
        artifactType === undefined || item["artifactType"] === artifactType;
      return { ...answer, items: answer.items.filter(wanted) };
    }
    return { ...(await this.hosted.pulls.referrers(located, digest, artifactType, last ?? "", n)), ...HERE };
  }

  /**
   * Repositories whose name holds the text, whatever its case: those first that end with it, then in order of their names.
   * Looks at a part of the names a turn of the event loop.
   * @param pages the names to look at, in order, after `last` (exclusive)
   */
  async search(
    text: string,
    limit: number,
    pages: (last: string, limit: number) => Promise<{ items: RepositoryName[]; more: boolean }>,
  ): Promise<{ name: RepositoryName; description: string }[]> {
    const wanted = text.toLowerCase();
    const last: RepositoryName[] = [];
    const others: RepositoryName[] = [];
    for (let after = ""; ;) {
      const { items, more } = await pages(after, SEARCHED_PER_TURN);
      for (const name of items) {
        if (name === wanted || name.endsWith(`/${wanted}`)) last.push(name);
        else if (name.includes(wanted) && others.length < limit) others.push(name);
      }
      if (!more || last.length >= limit) break;
      after = items.at(-1) ?? after;
      await turn();
    }
    return [...last, ...others].slice(0, limit).map((name) => {
      const upstream = this.#names.stored(name)?.upstream;
      return { name, description: upstream === undefined ? "hosted here" : `cached from ${upstream}` };
    });
  }
}

const MAX_REASON = 300;

/** Undefined: a mistake of the client's own. */
function outcomeOf(error: unknown): Outcome | undefined {
  if (!(error instanceof RegistryError) || error.status >= 500) return "failed";
  return error.status === 401 || error.status === 403 || error.status === 405 ? "denied" : undefined;
}

const HERE = { warning: undefined, upstream: undefined, result: "hit" } as const;

function onlyHosted(located: Located): Hosted {
  if (located.kind === "hosted") return located;
  throw new RegistryError(
    "UNSUPPORTED",
    `${located.repository} is a cached copy of ${located.upstream}: push to ${located.upstream} itself`,
  );
}
