import type { Caller, Space, Verb } from "../access/principal.ts";
import { may, rightsOf } from "../access/rights.ts";
import type { Spaces } from "../access/spaces.ts";
import type { Config } from "../config/schema.ts";
import { RegistryError } from "../oci/errors.ts";
import { namespaceOf, type RepositoryName } from "../oci/reference.ts";
import type { Hosted, Located, Names } from "./names.ts";

export interface GateDeps {
  names: Names;
  spaces: Spaces;
  /** Read whenever it is needed: it can be reloaded. */
  create: () => Config["access"]["create"];
}

const OWN_NAMESPACE: ReadonlySet<Verb> = new Set(["pull", "create", "push"]);
const NOTHING: ReadonlySet<Verb> = new Set();

/** What a caller may do to a repository, by whatever name it calls it: rights (`access/rights.ts`) meet names. */
export class Gate {
  readonly #deps: GateDeps;

  constructor(deps: GateDeps) {
    this.#deps = deps;
  }

  /** What governs a repository. */
  #space(located: Located): Space {
    return this.#deps.spaces.of(located.repository, located.kind === "cached" ? located.upstream : undefined);
  }

  rights(caller: Caller, located: Located): ReadonlySet<Verb> {
    if (located.kind === "hosted" && located.claims && this.#isOwnName(caller, located)) {
      const { granted } = caller;
      return granted ? OWN_NAMESPACE.intersection(granted.get(located.repository) ?? NOTHING) : OWN_NAMESPACE;
    }
    return rightsOf(caller, this.#space(located), located.repository);
  }

  /** Whether somebody may read what is stored under a full name. */
  mayRead(caller: Caller, repository: RepositoryName): boolean {
    return this.#may(caller, this.#deps.names.full(repository), "pull");
  }

  /**
   * @throws RegistryError UNAUTHORIZED where other credentials, or a token for more, would help; DENIED where whoever asks may not
   */
  check(caller: Caller, located: Located, verb: Verb): void {
    if (this.#may(caller, located, verb)) return;
    const { principal } = caller;
    if (principal.kind === "anonymous") {
      throw new RegistryError("UNAUTHORIZED", `log in to ${WORDS[verb]} ${located.repository}`, {
        detail: { verb, repository: located.repository },
      });
    }
    if (caller.granted && this.rights({ principal, granted: undefined }, located).has(verb)) {
      throw new RegistryError("UNAUTHORIZED", `the token is not for this: ask for one to ${WORDS[verb]} it`, {
        detail: { error: "insufficient_scope" },
      });
    }
    throw new RegistryError("DENIED", this.#denial(caller, located, verb), {
      detail: { verb, repository: located.repository },
    });
  }

  #may(caller: Caller, located: Located, verb: Verb): boolean {
    // Whose own name it is may make a namespace of it.
    if (located.kind === "hosted" && located.claims) return this.rights(caller, located).has(verb);
    return may(caller, this.#space(located), located.repository, verb);
  }

  /** A place to push to, as the caller makes it: a namespace of its own name is its own. */
  placeOf(caller: Caller, located: Hosted): Hosted {
    const { principal } = caller;
    const { claims } = located;
    if (!claims || principal.kind !== "user" || !this.#isOwnName(caller, located)) return located;
    return { ...located, claims: { ...claims, ownerUserId: principal.id } };
  }

  /**
   * What somebody may do under a name that a client wrote, by full names of repositories: to pull it and to push it may be about two.
   * Nothing for a name that leads nowhere.
   */
  rightsToName(
    caller: Caller,
    name: RepositoryName,
    ns: string | undefined,
  ): { kind: Located["kind"]; repository: RepositoryName; verbs: ReadonlySet<Verb> }[] {
    const { names } = this.#deps;
    const places = new Map<RepositoryName, Located>();
    for (const locate of [() => names.locate(name, ns), () => names.locateForPush(name, ns)]) {
      try {
        const located = locate();
        places.set(located.repository, located);
      } catch (error) {
        if (!(error instanceof RegistryError)) throw error;
      }
    }
    return [...places.values()].map((located) => ({
      kind: located.kind,
      repository: located.repository,
      verbs: this.rights(caller, located),
    }));
  }

  #isOwnName({ principal }: Caller, located: Hosted): boolean {
    if (principal.kind !== "user" || principal.admin || principal.limits !== undefined) return false;
    return this.#deps.create().personal && located.claims?.namespace === principal.name;
  }

  #denial({ principal }: Caller, located: Located, verb: Verb): string {
    const who = "name" in principal ? principal.name : principal.kind;
    if (located.kind === "cached") return `${who} may not ${WORDS[verb]} what is cached of ${located.upstream}: ${ASK}`;
    const namespace = namespaceOf(located.repository);
    if (located.claims && verb !== "pull") {
      const own = this.#deps.create().personal ? ", or push to the namespace of your own name" : "";
      return `there is no namespace ${namespace} that ${who} may push to: have it made (entrepot namespace add ${namespace} --team TEAM)${own}`;
    }
    return `${who} may not ${WORDS[verb]} ${located.repository}: ${ASK}`;
  }
}

const WORDS: Readonly<Record<Verb, string>> = {
  pull: "pull",
  create: "push to",
  push: "push to",
  delete: "delete from",
};
const ASK = "ask for a role in a team that may, or for a token that is not limited to less";
