/**
 * The registries that rules name, each opened when it is first asked for, and shared by all that a daemon copies.
 *
 * - This registry as a source is read in this process; as a target it is written to over HTTP, as any other.
 * - Another one as a source is read through the mirror. Where it is an upstream and brings nothing of its own, that upstream is asked: pulls
 *   and copies share one cache, one rate limit and one set of connections. Else it has a place in the cache that no client can name.
 * - One that a reload has changed is opened anew; what is at work with the old one goes on with it.
 */
import PQueue from "p-queue";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import { SELF } from "../config/replication-checks.ts";
import { upstreamAt, type Config } from "../config/schema.ts";
import { Later } from "../jobs/kind.ts";
import { hiddenPlaceOf } from "../oci/hidden-place.ts";
import { Upstream } from "../registry/upstream.ts";
import { createRemote, limitsOf, type EndpointLimits, type Remote, type RemoteDependencies } from "../remote/remote.ts";
import { createTarget } from "../remote/target.ts";
import type { Endpoint } from "../remote/transport.ts";
import { FlightRemote, type Flights } from "./flight-remote.ts";
import { LocalRemote, type LocalRemoteParts } from "./local-remote.ts";
import { writable, type PlanRegistry, type TargetRegistry } from "./plan-registry.ts";
import { endpointOf, type ReplicationRegistry } from "./rules.ts";
import { SparingRemote } from "./sparing-remote.ts";

export interface RegistriesDeps {
  /** As it is now. */
  config: () => Config["replication"];
  /** This daemon, as a registry that is written to. @throws Error where it can't be reached that way */
  self: () => Promise<Endpoint>;
  /** This daemon, as it is read. */
  local: LocalRemoteParts;
  flights: Flights;
  upstreams: ReadonlyMap<string, Upstream>;
  clock: Clock;
  log: Logger;
}

type Access = "read" | "write";

/** Images of this registry at a time that are read. */
const OWN_CONCURRENCY = 16;

/** One configuration of a registry, and what is open of it. */
class Registry {
  readonly name: string;
  /** Another one is another registry. Undefined: this one itself. */
  readonly config: ReplicationRegistry | undefined;
  readonly #deps: RegistriesDeps;
  readonly #queue: PQueue;
  readonly #limits: EndpointLimits | undefined;
  readonly #opened = new Map<Access, Promise<PlanRegistry>>();
  /** Once it was read from. */
  spared: SparingRemote | undefined;

  constructor(name: string, config: ReplicationRegistry | undefined, deps: RegistriesDeps) {
    this.name = name;
    this.config = config;
    this.#deps = deps;
    this.#queue = new PQueue({ concurrency: config?.concurrency ?? OWN_CONCURRENCY });
    this.#limits = config && limitsOf(endpointOf(config));
  }

  /** A failure is told, and the next who asks tries anew. */
  open(access: Access): Promise<PlanRegistry> {
    const known = this.#opened.get(access);
    if (known) return known;
    const opening = access === "write" ? this.#openTarget() : this.#openSource();
    this.#opened.set(access, opening);
    opening.catch(() => this.#opened.delete(access));
    return opening;
  }

  async close(): Promise<void> {
    const all = [...this.#opened.values()];
    this.#opened.clear();
    // What could not be opened is not open.
    await Promise.all(
      all.map((one) =>
        one.then(
          (registry) => registry[Symbol.asyncDispose](),
          () => undefined,
        ),
      ),
    );
  }

  async #openTarget(): Promise<PlanRegistry> {
    const { name, config } = this;
    const endpoint = config ? endpointOf(config) : await this.#deps.self();
    let requests = 0;
    const target = await createTarget(
      endpoint,
      this.#dependencies(() => requests++),
    );
    return {
      ...this.#shared(),
      name,
      remote: target,
      target,
      get requests() {
        return requests;
      },
      [Symbol.asyncDispose]: () => target[Symbol.asyncDispose](),
    };
  }

  async #openSource(): Promise<PlanRegistry> {
    const { name, config } = this;
    if (!config) {
      const remote = new LocalRemote(this.#deps.local);
      return {
        ...this.#shared(),
        name,
        remote,
        target: undefined,
        requests: 0,
        [Symbol.asyncDispose]: () => remote[Symbol.asyncDispose](),
      };
    }
    const { flights, upstreams } = this.#deps;
    const shared = sameAs(config, upstreams.values());
    const remotes = shared?.remotes ?? [
      await createRemote(
        endpointOf(config),
        this.#dependencies(() => undefined),
      ),
    ];
    const spared = this.#spare(remotes[0]);
    this.spared = spared;
    const alone = new Upstream(hiddenPlaceOf(name), { ...upstreamAt(config.url), notFoundTtl: 0 }, [spared]);
    // A reload changes an upstream's policy, and leaves its connections.
    const upstream = (): Upstream => {
      const now = shared && upstreams.get(shared.name);
      return now ? new Upstream(now.name, now.config, [spared, ...now.remotes.slice(1)]) : alone;
    };
    const remote = new FlightRemote({ remote: spared, flights, upstream });
    return {
      ...this.#shared(),
      name,
      remote,
      keeps: (repository, digest) => remote.keeps(repository, digest),
      target: undefined,
      get requests() {
        return spared.asked;
      },
      // An upstream's connections are its own.
      [Symbol.asyncDispose]: async () => (shared ? undefined : remotes[0][Symbol.asyncDispose]()),
    };
  }

  #spare(remote: Remote): SparingRemote {
    const { name, config } = this;
    const { clock } = this.#deps;
    const spent = (message: string, atMs: Milliseconds): Error => new Later(message, atMs);
    return new SparingRemote(remote, { name, keep: config?.quota.keep ?? 0, clock, spent });
  }

  #shared(): Pick<PlanRegistry, "queue" | "keep"> {
    return { queue: this.#queue, keep: this.config?.quota.keep ?? 0 };
  }

  #dependencies(request: () => void): RemoteDependencies {
    const { clock, log } = this.#deps;
    return { clock, log, observe: { request, received: () => undefined }, limits: this.#limits };
  }
}

export class Registries implements AsyncDisposable {
  readonly #deps: RegistriesDeps;
  readonly #known = new Map<string, Registry>();
  /** A copy may still be at work with one that a reload has changed. Its connections close by themselves once they are idle. */
  readonly #changed: Registry[] = [];

  constructor(deps: RegistriesDeps) {
    this.#deps = deps;
  }

  /** To read from. @throws RangeError where it is not configured; RemoteError unreachable for unreadable TLS files */
  async source(name: string): Promise<PlanRegistry> {
    return await this.#registry(name).open("read");
  }

  /** To write to. @throws as {@link source}; Error where it is this one and can't be written to by HTTP */
  async target(name: string): Promise<TargetRegistry> {
    return writable(await this.#registry(name).open("write"));
  }

  /**
   * When a copy may begin that takes so many pulls of a source's rate limit, of which the reserve is for others. Who has to wait has a place
   * in line: ask once.
   * @returns undefined: now
   */
  mayPullAtMs(name: string, pulls: number): Milliseconds | undefined {
    return this.#known.get(name)?.spared?.mayPullAtMs(pulls);
  }

  #registry(name: string): Registry {
    const config = name === SELF ? undefined : this.#deps.config().registries[name];
    if (name !== SELF && !config) {
      throw new RangeError(`registry ${name} is not configured: add it under replication.registries`);
    }
    const known = this.#known.get(name);
    if (known && JSON.stringify(known.config) === JSON.stringify(config)) return known;
    if (known) this.#changed.push(known);
    const registry = new Registry(name, config, this.#deps);
    this.#known.set(name, registry);
    return registry;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#known.values(), ...this.#changed].map((registry) => registry.close()));
    this.#known.clear();
  }
}

/** The upstream that a registry is. With its own login it may see what clients of the upstream may not, and limits of its own are its own. */
function sameAs(
  { url, auth, tls, proxy, bandwidth, requests }: ReplicationRegistry,
  upstreams: Iterable<Upstream>,
): Upstream | undefined {
  if ((auth ?? tls ?? proxy ?? bandwidth) !== undefined || requests > 0) return undefined;
  return [...upstreams].find(({ config }) => config.url === url);
}
