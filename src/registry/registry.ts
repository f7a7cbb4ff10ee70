import { RegistryError } from "../oci/errors.ts";
import type { Digest } from "../oci/digest.ts";
import type { Reference, RepositoryName } from "../oci/reference.ts";
import type { Catalog } from "../store/catalog.ts";
import type { BlobAnswer, ListAnswer, ManifestAnswer } from "./answers.ts";
import type { Mirror } from "./mirror.ts";
import type { Located, Names } from "./names.ts";

/** The registry as clients see it: every request for a repository comes through here, and goes on to the mirror or to what is hosted. */
export class Registry {
  readonly #names: Names;
  readonly #mirror: Mirror;
  readonly #catalog: Catalog;

  constructor(names: Names, mirror: Mirror, catalog: Catalog) {
    this.#names = names;
    this.#mirror = mirror;
    this.#catalog = catalog;
  }

  /** @throws RegistryError as `Names.locate` */
  locate(name: RepositoryName, ns: string | undefined): Located {
    return this.#names.locate(name, ns);
  }

  /** @throws RegistryError MANIFEST_UNKNOWN, NAME_UNKNOWN, DENIED, TOOMANYREQUESTS, UNAVAILABLE */
  manifest(located: Located, reference: Reference, head: boolean): Promise<ManifestAnswer> {
    return located.kind === "cached" ? this.#mirror.manifest(located, reference, head) : notHosted(located);
  }

  /** @throws RegistryError BLOB_UNKNOWN, NAME_UNKNOWN, DENIED, TOOMANYREQUESTS, UNAVAILABLE */
  blob(located: Located, digest: Digest, head: boolean): Promise<BlobAnswer> {
    return located.kind === "cached" ? this.#mirror.blob(located, digest, head) : notHosted(located);
  }

  /** @throws RegistryError NAME_UNKNOWN, DENIED, TOOMANYREQUESTS, UNAVAILABLE */
  tags(located: Located): Promise<ListAnswer<string>> {
    return located.kind === "cached" ? this.#mirror.tags(located) : notHosted(located);
  }

  /** None for what is not there: distribution-spec, "Listing Referrers". @throws RegistryError DENIED, TOOMANYREQUESTS, UNAVAILABLE */
  async referrers(located: Located, digest: Digest): Promise<ListAnswer<Record<string, unknown>>> {
    if (located.kind === "cached") return this.#mirror.referrers(located, digest);
    return { items: [], warning: undefined, upstream: undefined, result: "hit" };
  }

  /** Repositories in order of their names, after `last` (exclusive). */
  repositories(last: string, limit: number): Promise<RepositoryName[]> {
    return this.#catalog.listRepositories(last, limit);
  }

  /** Why nothing can be written to the repository. */
  refuseWrite(located: Located): RegistryError {
    return new RegistryError(
      "UNSUPPORTED",
      located.kind === "cached"
        ? `${located.repository} is a cached copy of ${located.upstream}: push to ${located.upstream} itself`
        : `${located.repository} is hosted here, and this version takes no pushes`,
    );
  }
}

// Never looked up elsewhere: a hosted name that is absent here is absent.
function notHosted(located: Located): Promise<never> {
  return Promise.reject(
    new RegistryError("NAME_UNKNOWN", `${located.repository} is a hosted repository, and there is none of that name`),
  );
}
