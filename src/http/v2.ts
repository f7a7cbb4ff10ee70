import { ANONYMOUS, type Caller } from "../access/principal.ts";
import type { Metrics } from "../base/metrics.ts";
import type { Config } from "../config/schema.ts";
import { RegistryError } from "../oci/errors.ts";
import { MEDIA_TYPES } from "../oci/manifest.ts";
import { formatOrigin, ORIGIN_HEADER } from "../oci/origin.ts";
import { parseRange } from "../oci/range.ts";
import { isDigest, type Digest } from "../oci/digest.ts";
import type { Reference, RepositoryName } from "../oci/reference.ts";
import { parseRoute, type Route } from "../oci/route.ts";
import type { Gate } from "../registry/gate.ts";
import type { Located } from "../registry/names.ts";
import type { Quotas } from "../registry/quota.ts";
import type { Registry, Wanted } from "../registry/registry.ts";
import { API_VERSION, warningValue, type Exchange } from "./exchange.ts";
import { isOwnOrigin } from "./own-host.ts";
import { Push, type Written } from "./push.ts";
import { immutable } from "./secure-headers.ts";
import { ClientGone, guardEnd, sendBlob, type ProgressRule } from "./send.ts";

export interface V2Deps {
  registry: Registry;
  gate: Gate;
  /** A page of the repositories that a caller sees, in order of their names. */
  visible: (caller: Caller, last: string, limit: number) => Promise<{ items: RepositoryName[]; more: boolean }>;
  quotas: Quotas;
  metrics: Metrics;
  /** Whether a Host header is a name of this server. */
  isOwnHost: (host: string | undefined) => boolean;
  progress: ProgressRule;
  /** Answered in front of every Location; undefined: Locations are relative. */
  publicUrl: string | undefined;
  /** Read whenever it is needed: it can be reloaded. */
  hosted: () => Config["hosted"];
}

const PULL_METHODS = new Set(["GET", "HEAD"]);
const MAX_PAGE = 10_000;

/** The OCI distribution API. Answers are written straight to the socket: nothing of Koa's body handling lies on the path of a pull. */
export class V2 {
  readonly #deps: V2Deps;
  readonly #push: Push;

  constructor(deps: V2Deps) {
    this.#deps = deps;
    const { registry, gate, quotas, progress, publicUrl } = deps;
    this.#push = new Push({
      hosted: registry.hosted,
      gate,
      quotas,
      locate: (name) => registry.locate(name, undefined),
      progress,
      publicUrl,
      chunkMinLength: () => deps.hosted().chunkMinLength,
    });
  }

  /** @returns false for a path that is no endpoint of it */
  async handle(exchange: Exchange): Promise<boolean> {
    const route = parseRoute(exchange.path);
    if (!route) return false;
    exchange.note({ handler: route.kind });
    if (route.kind === "base" || route.kind === "catalog") {
      if (!PULL_METHODS.has(exchange.method)) throw methodNotAllowed(exchange.method);
      // Clients ask here first whether they need a token at all: one of nobody will do.
      if (route.kind === "base") {
        if (exchange.caller === ANONYMOUS)
          throw new RegistryError("UNAUTHORIZED", "log in, or ask for a token of nobody");
        writeJson(exchange, {}, {});
      } else await this.#catalog(exchange);
      guardEnd(exchange.response, this.#deps.progress);
      return true;
    }
    const ns = exchange.query.get("ns") ?? undefined;
    const { method } = exchange;
    if (route.kind === "uploads" || route.kind === "upload" || !PULL_METHODS.has(method)) {
      if (route.kind === "tags" || route.kind === "referrers") throw methodNotAllowed(method);
      await this.#write(exchange, route, ns);
      return true;
    }
    const { registry, gate } = this.#deps;
    const located = registry.locate(route.name, ns);
    const isSought = method === "HEAD" && (route.kind === "manifest" || route.kind === "blob");
    try {
      gate.check(exchange.caller, located, "pull");
    } catch (error) {
      // What an upstream may have under the name of a user's own namespace is nothing to its first push.
      if (isSought && this.#mayBegin(exchange, route, ns, undefined)) throw notYet(route, error as Error);
      this.#refused(exchange, pulledBy(route, ns), error);
      throw error;
    }
    try {
      await this.#pull(exchange, route, located);
    } catch (error) {
      if (!isSought || !this.#mayBegin(exchange, route, ns, error as Error)) throw error;
      throw notYet(route, error as Error);
    }
    guardEnd(exchange.response, this.#deps.progress);
    return true;
  }

  async #write(exchange: Exchange, route: Written, ns: string | undefined): Promise<void> {
    const { registry } = this.#deps;
    const { method } = exchange;
    const by = exchange.requester();
    try {
      // What is deleted has to be here; what is pushed may make its namespace.
      const located =
        method === "DELETE" && route.kind !== "upload"
          ? registry.locateForDelete(route.name, ns)
          : registry.locateForPush(route.name, ns);
      this.#checkOrigin(exchange);
      await this.#push.handle(exchange, route, located, by);
    } catch (error) {
      const wanted = wantedBy(method, route, ns);
      if (wanted && !(error instanceof ClientGone)) this.#refused(exchange, wanted, error);
      throw error;
    }
  }

  #refused(exchange: Exchange, wanted: Wanted, error: unknown): void {
    // Who brings no credentials is asked for some: that is how every client begins.
    const asked = exchange.caller === ANONYMOUS && error instanceof RegistryError && error.status === 401;
    if (!asked) this.#deps.registry.refused(wanted, error, exchange.requester());
  }

  #mayBegin(
    exchange: Exchange,
    { name }: { name: RepositoryName },
    ns: string | undefined,
    error: Error | undefined,
  ): boolean {
    const { registry, gate } = this.#deps;
    const located = registry.mayBeginWith(name, ns, error);
    return located !== undefined && gate.rights(exchange.caller, located).has("create");
  }

  /** Browsers name the page that a write comes from, and send with it what they know of passwords. @throws RegistryError DENIED */
  #checkOrigin(exchange: Exchange): void {
    const { origin, host } = exchange.request.headers;
    if (origin === undefined || isOwnOrigin(origin, host, this.#deps.isOwnHost)) return;
    throw new RegistryError(
      "DENIED",
      `a web page of ${origin.slice(0, 300)} sends this: pages push and delete from the server's own address only, such as localhost or server.publicUrl`,
    );
  }

  #pull(
    exchange: Exchange,
    route: Exclude<Route, { kind: "base" | "catalog" | "uploads" | "upload" }>,
    located: Located,
  ): Promise<void> {
    if (route.kind === "manifest") return this.#manifest(exchange, route, located);
    if (route.kind === "blob") return this.#blob(exchange, route, located);
    if (route.kind === "tags") return this.#tags(exchange, route, located);
    return this.#referrers(exchange, route, located);
  }

  async #manifest(
    exchange: Exchange,
    { reference }: Extract<Route, { kind: "manifest" }>,
    located: Located,
  ): Promise<void> {
    const { request, response, method } = exchange;
    const answer = await this.#deps.registry.manifest(located, reference, method === "HEAD", exchange.requester());
    exchange.note({ result: answer.result, upstream: answer.upstream });
    const etag = `"${answer.digest}"`;
    const headers = {
      ...API_VERSION,
      "docker-content-digest": answer.digest,
      // Its full name, however the client spelt it: an export is named by that.
      "entrepot-repository": located.repository,
      etag,
      ...(answer.origin ? { [ORIGIN_HEADER]: formatOrigin(answer.origin) } : {}),
      ...(isDigest(reference) ? immutable(request) : {}),
      ...scopeHeaders(located, answer.warning),
    };
    if (matchesEtag(request.headers["if-none-match"], etag)) {
      response.writeHead(304, headers);
      response.end();
      return;
    }
    response.writeHead(200, {
      ...headers,
      "content-type": answer.mediaType,
      ...(answer.sizeBytes === undefined ? {} : { "content-length": answer.sizeBytes }),
    });
    response.end(answer.bytes);
    if (answer.bytes) this.#served(answer.upstream, answer.result, answer.bytes.length, exchange);
  }

  async #blob(exchange: Exchange, { digest }: Extract<Route, { kind: "blob" }>, located: Located): Promise<void> {
    const { request, response, method } = exchange;
    const etag = `"${digest}"`;
    const notModified = matchesEtag(request.headers["if-none-match"], etag);
    // Who has it already needs its head alone: nothing is downloaded for that.
    const answer = await this.#deps.registry.blob(located, digest, method === "HEAD" || notModified);
    exchange.note({ result: answer.result, upstream: answer.upstream });
    const { content, sizeBytes } = answer;
    const reader = content instanceof Uint8Array ? undefined : content;
    try {
      const headers = {
        ...API_VERSION,
        "docker-content-digest": digest,
        etag,
        ...immutable(request),
        ...scopeHeaders(located, undefined),
      };
      if (notModified) {
        response.writeHead(304, headers);
        response.end();
        return;
      }
      const range =
        sizeBytes === undefined || method === "HEAD" ? undefined : parseRange(request.headers.range, sizeBytes);
      if (range === "unsatisfiable") {
        const body = Buffer.from(
          JSON.stringify(new RegistryError("SIZE_INVALID", `the range lies outside of the blob's ${sizeBytes} bytes`)),
        );
        response.writeHead(416, {
          ...headers,
          "content-range": `bytes */${sizeBytes}`,
          "content-type": "application/json",
          "content-length": body.length,
        });
        response.end(body);
        return;
      }
      const length = range ? range.lastByte - range.firstByte + 1 : sizeBytes;
      response.writeHead(range ? 206 : 200, {
        ...headers,
        "content-type": "application/octet-stream",
        ...(sizeBytes === undefined ? {} : { "accept-ranges": "bytes" }),
        ...(length === undefined ? {} : { "content-length": length }),
        ...(range ? { "content-range": `bytes ${range.firstByte}-${range.lastByte}/${sizeBytes}` } : {}),
      });
      if (reader) {
        // The head goes out while the first byte is still on its way.
        response.flushHeaders();
        if (range) reader.narrow?.(range);
        const bytes = await sendBlob(response, reader, range, this.#deps.progress);
        response.end();
        this.#served(answer.upstream, answer.result, bytes, exchange);
      } else if (content instanceof Uint8Array) {
        const bytes = range ? content.subarray(range.firstByte, range.lastByte + 1) : content;
        response.end(bytes);
        this.#served(answer.upstream, answer.result, bytes.length, exchange);
      } else {
        response.end();
      }
    } finally {
      reader?.close();
    }
  }

  async #tags(exchange: Exchange, { name }: Extract<Route, { kind: "tags" }>, located: Located): Promise<void> {
    const { n, last } = readPage(exchange.query);
    const answer = await this.#deps.registry.tags(located, { n, last });
    exchange.note({ result: answer.result, upstream: answer.upstream });
    writeJson(
      exchange,
      // The client's own spelling, so that it finds what it asked for.
      { name, tags: answer.items },
      {
        ...scopeHeaders(located, answer.warning),
        ...linkHeader(exchange, answer.more, n, answer.items.at(-1)),
      },
    );
  }

  async #referrers(
    exchange: Exchange,
    { digest }: Extract<Route, { kind: "referrers" }>,
    located: Located,
  ): Promise<void> {
    const artifactType = exchange.query.get("artifactType");
    const { n, last } = readPage(exchange.query);
    const answer = await this.#deps.registry.referrers(located, digest, artifactType ?? undefined, { n, last });
    exchange.note({ result: answer.result, upstream: answer.upstream });
    writeJson(
      exchange,
      { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: answer.items },
      {
        ...scopeHeaders(located, answer.warning),
        "content-type": MEDIA_TYPES.ociIndex,
        ...(artifactType === null ? {} : { "oci-filters-applied": "artifactType" }),
        ...linkHeader(exchange, answer.more, n, answer.items.at(-1)?.["digest"] as string | undefined),
      },
    );
  }

  async #catalog(exchange: Exchange): Promise<void> {
    const { n = 100, last = "" } = readPage(exchange.query);
    const { principal, granted, catalog } = exchange.caller;
    const isAnonymous = principal.kind === "anonymous";
    if (granted && !catalog && !isAnonymous) {
      throw new RegistryError("UNAUTHORIZED", "the token is not for this: ask for one to list repositories", {
        detail: { error: "insufficient_scope" },
      });
    }
    const { items, more } = await this.#deps.visible({ principal, granted: undefined }, last, n);
    if (items.length === 0 && last === "" && n > 0 && isAnonymous) {
      throw new RegistryError("UNAUTHORIZED", "log in to see repositories: nobody else sees any");
    }
    writeJson(exchange, { repositories: items }, linkHeader(exchange, more, n, items.at(-1)));
  }

  #served(upstream: string | undefined, source: string, bytes: number, exchange: Exchange): void {
    exchange.note({ bytes });
    if (upstream !== undefined) this.#deps.metrics.cacheServedBytes.inc({ upstream, source }, bytes);
  }
}

/** @param cause why a look-up at the default upstream is of no use */
function notYet({ kind, name }: { kind: string; name: RepositoryName }, cause: Error): RegistryError {
  return new RegistryError(
    kind === "blob" ? "BLOB_UNKNOWN" : "MANIFEST_UNKNOWN",
    `${name} is not hosted here yet, and not known to strangers elsewhere: ${cause.message}`,
    { cause },
  );
}

/** What a request would have pulled. */
function pulledBy(
  route: { name: RepositoryName; kind: string; reference?: Reference; digest?: Digest },
  ns: string | undefined,
): Wanted {
  return { action: "pull", name: route.name, ns, reference: route.reference ?? route.digest };
}

/** The change that a request is for; undefined: none, such as giving an upload up. */
function wantedBy(method: string, route: Written, ns: string | undefined): Wanted | undefined {
  const { name } = route;
  if (route.kind === "manifest" && (method === "PUT" || method === "DELETE"))
    return { action: method === "PUT" ? "push" : "delete", name, ns, reference: route.reference };
  if (route.kind === "blob" && method === "DELETE") return { action: "delete", name, ns, reference: route.digest };
  const uploads = route.kind === "uploads" ? method === "POST" : method === "PATCH" || method === "PUT";
  return (route.kind === "uploads" || route.kind === "upload") && uploads
    ? { action: "push", name, ns, reference: undefined }
    : undefined;
}

function scopeHeaders(located: Located, warning: string | undefined): Record<string, string> {
  const namespace = located.kind === "cached" ? located.namespace : undefined;
  if (namespace === undefined && warning === undefined) return {};
  return {
    ...(namespace === undefined ? {} : { "oci-namespace": namespace }),
    ...(warning === undefined ? {} : { warning: warningValue(warning) }),
  };
}

/** Source: RFC 9110 §13.1.2: a list of entity tags, weak comparison, or `*`. */
function matchesEtag(header: string | undefined, etag: string): boolean {
  if (header === undefined) return false;
  return header.split(",").some((candidate) => {
    const bare = candidate.trim().replace(/^W\//, "");
    return bare === "*" || bare === etag;
  });
}

/** @throws RegistryError UNSUPPORTED (400) for an `n` that is no number */
function readPage(query: URLSearchParams): { n: number | undefined; last: string | undefined } {
  const n = query.get("n");
  if (n !== null && !/^\d{1,12}$/.test(n)) {
    throw new RegistryError("UNSUPPORTED", `n=${n.slice(0, 40)} is not a number of entries`, { status: 400 });
  }
  const last = query.get("last");
  return {
    n: n === null ? undefined : Math.min(Number(n), MAX_PAGE),
    last: last === null || last === "" ? undefined : last,
  };
}

function linkHeader(
  exchange: Exchange,
  more: boolean | undefined,
  n: number | undefined,
  last: string | undefined,
): Record<string, string> {
  if (!more || last === undefined) return {};
  const query = new URLSearchParams({ ...(n === undefined ? {} : { n: String(n) }), last });
  for (const kept of ["artifactType", "ns"]) {
    const value = exchange.query.get(kept);
    if (value !== null) query.set(kept, value);
  }
  return { link: `<${exchange.path}?${query.toString()}>; rel="next"` };
}

function writeJson(exchange: Exchange, value: unknown, headers: Record<string, string>): void {
  const body = Buffer.from(JSON.stringify(value));
  exchange.response.writeHead(200, {
    ...API_VERSION,
    "content-type": "application/json",
    "content-length": body.length,
    ...headers,
  });
  exchange.response.end(exchange.method === "HEAD" ? undefined : body);
}

function methodNotAllowed(method: string): RegistryError {
  return new RegistryError("UNSUPPORTED", `${method} is not supported here`);
}
