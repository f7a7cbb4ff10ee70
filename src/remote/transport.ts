import { readFile } from "node:fs/promises";
import { createSecureContext, getCACertificates, type SecureContext } from "node:tls";
import { Agent, buildConnector, ProxyAgent, type Dispatcher } from "undici";
import { VERSION } from "../base/version.ts";
import type { EndpointConfig } from "../config/schema.ts";
import { headerOf, isStream } from "./exchange.ts";
import { Guard } from "./guard.ts";
import { Host, type HostAnswer, type HostLimits, type HostRequest } from "./host.ts";
import { RemoteError } from "./remote-error.ts";

/** A registry as it is connected to. */
export type Endpoint = EndpointConfig & {
  /** Where its connections go, whatever the name in its URL leads to: `http://127.0.0.1:5000`. TLS by this one's scheme, under the URL's name. */
  dial?: string;
};

export interface FollowOptions {
  /** Sent to the first URL's origin only, until the first redirect away from it. */
  authorization?: string | undefined;
  /** @throws for a redirect's target that is not to be followed */
  accept?: (target: URL) => void;
}

export interface FollowedAnswer extends HostAnswer {
  /** Where the answer came from. */
  url: URL;
  /** Whether a redirect led away from the first URL's origin. */
  strayed: boolean;
}

const MAX_REDIRECTS = 5;
const MAX_FOREIGN_HOSTS = 64;
/** Beside the configured ones, which are for blobs: a tag's check never waits behind layers. */
const SMALL_CONNECTIONS = 4;
const KEEP_ALIVE_MS = 30_000;
/** Bodies are wanted as they are: a digest is that of the bytes, and a size cap that of what is decoded. */
const ALWAYS = { "accept-encoding": "identity", "user-agent": `entrepot/${VERSION}` };
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

/** The connections to a configured registry, and to where it sends Entrepot: every one of them goes through the guard. */
export class Transport implements AsyncDisposable {
  readonly endpoint: Host;
  readonly guard: Guard;
  readonly #origin: string;
  readonly #hostname: string;
  readonly #limits: HostLimits;
  /** By origin, the least recently used first. */
  readonly #foreign = new Map<string, Host>();
  readonly #dispatchers: Record<"own" | "foreign", { small: Dispatcher; blobs: Dispatcher }>;

  constructor(config: Endpoint, contexts: TlsContexts, limits: HostLimits) {
    const { host, hostname, origin } = new URL(config.url);
    this.guard = new Guard(config);
    this.endpoint = new Host(host, limits);
    this.#origin = origin;
    this.#hostname = hostname;
    this.#limits = limits;
    const dispatchers = (endpoint: Endpoint, context: SecureContext | undefined) => ({
      small: createDispatcher(endpoint, SMALL_CONNECTIONS, context, this.guard),
      blobs: createDispatcher(endpoint, config.connections, context, this.guard),
    });
    const { dial: _, ...foreign } = config;
    this.#dispatchers = { own: dispatchers(config, contexts.own), foreign: dispatchers(foreign, contexts.foreign) };
  }

  /** The host of an origin, as far as it is known. */
  hostOf(origin: string): Host | undefined {
    return origin === this.#origin ? this.endpoint : this.#foreign.get(origin);
  }

  /**
   * Sends a request and follows up to five redirects of a GET or HEAD, never from https to http.
   * @throws as {@link Host.send}; RemoteError protocol for a bad redirect, refused where the guard forbids a hop
   */
  async follow(request: HostRequest, options: FollowOptions = {}): Promise<FollowedAnswer> {
    let { url } = request;
    let strayed = false;
    for (let redirects = 0; ; redirects++) {
      const headers: Record<string, string> = { ...request.headers, ...ALWAYS };
      if (options.authorization !== undefined && !strayed) headers["authorization"] = options.authorization;
      const answer = await this.#send({ ...request, url, headers });
      const location = headerOf(answer.headers, "location");
      const follows = request.method === "GET" || request.method === "HEAD";
      if (!REDIRECTS.has(answer.status) || !follows || location === undefined) {
        return { ...answer, url, strayed };
      }
      if (redirects === MAX_REDIRECTS) {
        throw new RemoteError("protocol", this.endpoint.name, `redirects more than ${MAX_REDIRECTS} times`);
      }
      const target = redirectTarget(url, location);
      options.accept?.(target);
      strayed ||= target.origin !== url.origin;
      url = target;
    }
  }

  /** Cuts all connections. */
  async [Symbol.asyncDispose](): Promise<void> {
    const all = Object.values(this.#dispatchers).flatMap(({ small, blobs }) => [small, blobs]);
    await Promise.all(all.map((dispatcher) => dispatcher.destroy()));
  }

  async #send(request: HostRequest): Promise<HostAnswer> {
    this.guard.checkUrl(request.url);
    // The client certificate is a credential: only the configured host sees it.
    const pools = this.#dispatchers[request.url.hostname === this.#hostname ? "own" : "foreign"];
    const dispatcher = request.take === "stream" || isStream(request.body) ? pools.blobs : pools.small;
    return await this.#host(request.url).send(dispatcher, request);
  }

  #host({ origin, host }: URL): Host {
    if (origin === this.#origin) return this.endpoint;
    const known = this.#foreign.get(origin) ?? new Host(host, { ...this.#limits, turns: undefined });
    this.#foreign.delete(origin);
    this.#foreign.set(origin, known);
    const [oldest] = this.#foreign.keys();
    if (this.#foreign.size > MAX_FOREIGN_HOSTS && oldest !== undefined) this.#foreign.delete(oldest);
    return known;
  }
}

function redirectTarget(from: URL, location: string): URL {
  const fault = (reason: string): RemoteError => new RemoteError("protocol", from.host, `redirects ${reason}`);
  if (!URL.canParse(location, from.href)) throw fault("to what is not a URL");
  const target = new URL(location, from.href);
  if (target.protocol !== "https:" && target.protocol !== "http:")
    throw fault(`to ${target.protocol}, which is not HTTP`);
  if (from.protocol === "https:" && target.protocol === "http:") {
    throw fault(`from https to plain http (${target.host}), which is not followed`);
  }
  target.username = "";
  target.password = "";
  target.hash = "";
  return target;
}

/** Undefined where Node's own defaults serve. */
export interface TlsContexts {
  own: SecureContext | undefined;
  foreign: SecureContext | undefined;
}

/** Reads the files of `tls`. Own authorities add to the system's: a private registry may redirect to a public store. */
export async function readTlsContexts({ tls, url }: EndpointConfig): Promise<TlsContexts> {
  if (tls === undefined) return { own: undefined, foreign: undefined };
  const read = async (path: string | undefined): Promise<Buffer | undefined> => {
    if (path === undefined) return undefined;
    try {
      return await readFile(path);
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      const { host } = new URL(url);
      throw new RemoteError("unreachable", host, `has tls files that cannot be read (${path}: ${code})`, { cause });
    }
  };
  const [authority, cert, key] = await Promise.all([read(tls.ca), read(tls.certificate), read(tls.key)]);
  const ca = authority && { ca: [...getCACertificates("default"), authority] };
  return {
    own: createSecureContext({ ...ca, ...(cert && key ? { cert, key } : {}) }),
    foreign: ca && createSecureContext(ca),
  };
}

function createDispatcher(
  config: Endpoint,
  connections: number,
  secureContext: SecureContext | undefined,
  guard: Guard,
): Dispatcher {
  const timeout = config.timeouts.connect;
  // HTTP/1.1: parallel transfers want connections of their own, and one blob is faster on it.
  const tls = { allowH2: false, timeout, ...(secureContext ? { secureContext } : {}) };
  const shared = { connections, allowH2: false, keepAliveTimeout: KEEP_ALIVE_MS };
  if (config.dial !== undefined) return new Agent({ ...shared, connect: connectorTo(new URL(config.dial), tls) });
  if (config.proxy === undefined) return new Agent({ ...shared, connect: { ...tls, lookup: guard.lookup } });
  // The proxy is the operator's word and resolves names itself: what can be checked here are literal addresses.
  return new ProxyAgent({
    ...shared,
    uri: config.proxy,
    connectTimeout: timeout,
    requestTls: tls,
    proxyTls: { allowH2: false, timeout },
  });
}

function connectorTo(
  { protocol, hostname, port }: URL,
  options: buildConnector.BuildOptions,
): buildConnector.connector {
  const connect = buildConnector(options);
  const place = { protocol, hostname: hostname.replaceAll(/^\[|\]$/g, ""), port };
  return (asked, callback) => connect({ ...asked, ...place }, callback);
}
