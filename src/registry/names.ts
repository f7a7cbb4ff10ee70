import type { Config } from "../config/schema.ts";
import { RegistryError } from "../oci/errors.ts";
import type { Claims } from "../store/hosted-catalog.ts";
import { isRepositoryName, namespaceOf, type RepositoryName } from "../oci/reference.ts";

/** A repository as the registry keeps it: the full name is the key, however the client spelt it. */
export type Located =
  | {
      kind: "cached";
      /** `ghcr.io/owner/app`: the key in storage. */
      repository: RepositoryName;
      /** The key under `upstreams`. */
      upstream: string;
      /** `owner/app`: what the upstream calls it. */
      remoteName: RepositoryName;
      /** Answered as `OCI-Namespace` where the client scoped its request by `ns`. */
      namespace: string | undefined;
    }
  | Hosted;

/** `team/app`: a repository that lives here. */
export interface Hosted {
  kind: "hosted";
  repository: RepositoryName;
  /** Its namespace is not hosted yet: a push makes it so, unless the default upstream has been asked for what these name. */
  claims?: Claims;
}

/** Docker Hub keeps its official images under `library/`, and its clients leave that out. */
const HUB = "docker.io";

/**
 * Tells what a client means by a name: the one place where the spellings of a repository come together.
 * `ns` is a key into the configured upstreams, never an address; a hosted name never becomes an upstream's.
 */
export class Names {
  readonly #upstreams = new Map<string, string>();
  readonly #configs: Config["upstreams"];
  readonly #default: string | undefined;
  readonly #configured: ReadonlySet<string>;
  readonly #hosted: Set<string>;

  constructor(config: Pick<Config, "upstreams" | "hosted">) {
    this.#configs = config.upstreams;
    this.#configured = new Set(config.hosted.namespaces);
    this.#hosted = new Set(this.#configured);
    let byDefault: string | undefined;
    for (const [name, upstream] of Object.entries(config.upstreams)) {
      for (const alias of [name, ...upstream.aliases]) this.#upstreams.set(alias, name);
      if (upstream.default) byDefault = name;
    }
    this.#default = byDefault;
  }

  /**
   * @param ns the `ns` query parameter that containerd adds
   * @throws RegistryError NAME_UNKNOWN: `ns` or the name leads to no configured upstream; NAME_INVALID: the full name is too long
   */
  locate(name: RepositoryName, ns: string | undefined): Located {
    const slash = name.indexOf("/");
    const first = slash < 0 ? name : name.slice(0, slash);
    if (ns !== undefined) {
      const upstream = this.#upstreams.get(ns);
      if (upstream === undefined) {
        throw new RegistryError("NAME_UNKNOWN", `ns=${ns.slice(0, 100)} is no configured upstream: ${this.#remedy()}`);
      }
      const prefixed = slash >= 0 && this.#upstreams.get(first) === upstream;
      return this.#cached(upstream, prefixed ? name.slice(slash + 1) : name, ns);
    }
    const prefix = slash < 0 ? undefined : this.#upstreams.get(first);
    if (prefix !== undefined) return this.#cached(prefix, name.slice(slash + 1), undefined);
    if (this.#hosted.has(first)) return { kind: "hosted", repository: name };
    // No name at Docker Hub has a dot in its first component: this one means a registry that is not configured.
    if (this.#default === HUB && slash >= 0 && first.includes(".")) {
      throw new RegistryError("NAME_UNKNOWN", `${first.slice(0, 100)} is no configured upstream: ${this.#remedy()}`);
    }
    if (this.#default !== undefined) return this.#cached(this.#default, name, undefined);
    throw new RegistryError(
      "NAME_UNKNOWN",
      `"${name}" names neither a hosted namespace nor an upstream: ${this.#remedy()}`,
    );
  }

  /**
   * As {@link locate}, but a name whose namespace a first push may make a hosted one is hosted: then it has `claims`.
   * `library`, names with a dot and those of upstreams never are.
   */
  locateForPush(name: RepositoryName, ns: string | undefined): Located {
    const first = namespaceOf(name);
    const claimable =
      ns === undefined &&
      !this.#hosted.has(first) &&
      !this.#upstreams.has(first) &&
      !first.includes(".") &&
      first !== "library";
    if (!claimable) return this.locate(name, ns);
    const rival = this.#default === undefined ? undefined : this.#cached(this.#default, first, undefined).repository;
    return {
      kind: "hosted",
      repository: name,
      claims: {
        namespace: first,
        rivals: rival === undefined ? undefined : { repository: rival, prefix: `${this.#default}/${first}` },
      },
    };
  }

  /**
   * From now on the namespace is hosted.
   * @throws Error where it is an upstream's name by now: what was pushed would turn into something else under the same name
   */
  host(namespace: string): void {
    const upstream = this.#upstreams.get(namespace);
    if (upstream !== undefined) {
      throw new Error(
        `${namespace} is a hosted namespace that a push has made, and a name of upstream ${upstream} in the configuration: give the upstream another name or alias`,
      );
    }
    this.#hosted.add(namespace);
  }

  /** The namespace is gone: a push may make it anew. One that the configuration names stays. */
  unhost(namespace: string): void {
    if (!this.#configured.has(namespace)) this.#hosted.delete(namespace);
  }

  /** The cached repository that a full name in storage stands for; undefined where its upstream is configured no more. */
  stored(repository: RepositoryName): Extract<Located, { kind: "cached" }> | undefined {
    const slash = repository.indexOf("/");
    const upstream = repository.slice(0, slash);
    if (slash < 0 || !Object.hasOwn(this.#configs, upstream)) return undefined;
    return this.#cached(upstream, repository.slice(slash + 1), undefined);
  }

  /** What a full name in storage stands for; of an upstream that is configured no more, it is as a hosted one of that name. */
  full(repository: RepositoryName): Located {
    return this.stored(repository) ?? { kind: "hosted", repository };
  }

  #cached(upstream: string, rest: string, namespace: string | undefined): Extract<Located, { kind: "cached" }> {
    const remoteName = upstream === HUB && !rest.includes("/") ? `library/${rest}` : rest;
    const repository = `${upstream}/${remoteName}`;
    if (!isRepositoryName(remoteName) || !isRepositoryName(repository)) {
      throw new RegistryError("NAME_INVALID", `"${repository.slice(0, 300)}" is longer than 255 characters`);
    }
    return { kind: "cached", repository, upstream, remoteName, namespace };
  }

  #remedy(): string {
    const known = Object.keys(this.#configs).join(", ") || "none";
    return `configured upstreams are ${known}; add others under upstreams`;
  }
}
