/**
 * Another registry, asked over HTTP: an upstream to pull from. One `Remote` is one configured endpoint with its credentials,
 * connections and limits.
 *
 * Invariants
 * - Credentials reach the configured origin and a token realm that the guard accepts; a redirect elsewhere is followed without them.
 * - Every hop's address is checked by the guard. Redirects are followed by hand, five at most, never from https to http.
 * - Bytes are what upstream sent: identity is asked for, nothing is decompressed. Whether they are the right ones, the caller proves.
 * - Absence (`undefined`) is a 404. Whatever else is not the answer is a RemoteError.
 *
 * On failure, idempotent requests are repeated with jitter (`host.ts`); a caller with a stale copy at hand says `urgent` and gets one
 * try and 3 s. A body that breaks is not resumed here: its reader knows what it has, and opens the rest.
 */
import type { Readable } from "node:stream";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { RetryPolicy } from "../base/retry.ts";
import type { EndpointConfig } from "../config/schema.ts";
import { isDigest, type Digest } from "../oci/digest.ts";
import { MANIFEST_ACCEPT, MAX_MANIFEST_BYTES, MEDIA_TYPES } from "../oci/manifest.ts";
import { ORIGIN_HEADER, parseOrigin, type Origin } from "../oci/origin.ts";
import { parseContentRange } from "../oci/range.ts";
import { isRepositoryName, isTag, type RepositoryName } from "../oci/reference.ts";
import { Authenticator, type AuthenticatorOptions } from "./authenticator.ts";
import { createCredentialSource } from "./credentials.ts";
import { headerOf, type Body, type Patience } from "./exchange.ts";
import {
  errorCodeOf,
  readLength,
  type HostRequest,
  type RateLimit,
  type RemoteKind,
  type RemoteObserver,
} from "./host.ts";
import { Pace, Turns } from "./pace.ts";
import { RemoteError } from "./remote-error.ts";
import { readTlsContexts, Transport, type Endpoint, type FollowedAnswer } from "./transport.ts";

export type { RateLimit, RemoteKind, RemoteObserver };

export interface RemoteOptions {
  signal?: AbortSignal | undefined;
  /** A stale copy is at hand: one try, and at most 3 s until the answer's head. */
  urgent?: boolean | undefined;
}

export interface ManifestHead {
  digest: Digest | undefined;
  mediaType: string | undefined;
  sizeBytes: number | undefined;
  etag: string | undefined;
  /** Of a tag, where the registry tells. */
  origin?: Origin | undefined;
}

export interface RemoteManifest {
  /** At most MAX_MANIFEST_BYTES, unproven. */
  bytes: Buffer;
  contentType: string | undefined;
  digestHeader: Digest | undefined;
  etag: string | undefined;
  /** Of a tag, where the registry tells. */
  origin?: Origin | undefined;
}

export interface RemoteBody {
  /** Fails with RemoteError interrupted, timeout or protocol. To be read or destroyed, which closes the connection. */
  body: AsyncIterable<Buffer> & Readable;
  /** Where in the blob the body starts: 0 where the registry ignored the range. */
  firstByte: number;
  /** Whether a range was answered (206), not the whole. */
  partial: boolean;
  /** Of the whole blob. */
  sizeBytes: number | undefined;
}

export interface RemoteState {
  /** Whether the registry, and the token realm it needs, are being asked: false while a circuit breaker is open. */
  readonly up: boolean;
  /** As of the last answer that told. */
  readonly rateLimit: RateLimit | undefined;
  /** Until when some kind of request is not sent because of a 429, milliseconds since 1970. */
  readonly pausedUntilMs: Milliseconds | undefined;
}

/** All requests throw RemoteError, or the signal's reason. Repository names and references have been validated by the caller. */
export interface Remote extends AsyncDisposable {
  /** host, with its port unless that is the scheme's own. */
  readonly name: string;
  readonly state: RemoteState;
  /** @returns undefined if it is not there; "notModified" if the registry's etag is still `ifNoneMatch` */
  headManifest(
    repository: string,
    reference: string,
    options?: RemoteOptions & { ifNoneMatch?: string | undefined },
  ): Promise<ManifestHead | "notModified" | undefined>;
  getManifest(repository: string, reference: string, options?: RemoteOptions): Promise<RemoteManifest | undefined>;
  headBlob(
    repository: string,
    digest: Digest,
    options?: RemoteOptions,
  ): Promise<{ sizeBytes: number | undefined } | undefined>;
  /**
   * Opens bytes [firstByte, lastByte] of a blob, to its end without lastByte. The registry may send fewer than asked for, or all.
   * @throws RemoteError protocol for a first byte beyond the end
   */
  openBlob(
    repository: string,
    digest: Digest,
    options?: RemoteOptions & { firstByte?: number | undefined; lastByte?: number | undefined },
  ): Promise<RemoteBody | undefined>;
  /**
   * All repositories that the credentials may see; names outside the grammar are left out. @throws RemoteError protocol beyond 100 pages or 16 MiB
   * @returns undefined if the registry has no such list, as many have none
   */
  listRepositories(options?: RemoteOptions): Promise<RepositoryName[] | undefined>;
  /** All pages; names outside the grammar of tags are left out. @throws RemoteError protocol beyond 100 pages or 16 MiB */
  listTags(repository: string, options?: RemoteOptions): Promise<string[] | undefined>;
  /**
   * The descriptors in all pages of the referrers index, as they came. @throws RemoteError protocol beyond 100 pages or 16 MiB
   * @returns undefined if the registry has no such endpoint: then the tag `sha256-…` may list them
   */
  referrers(
    repository: string,
    digest: Digest,
    options?: RemoteOptions,
  ): Promise<Record<string, unknown>[] | undefined>;
  /** Asks for `/v2/`, logging in if need be. */
  ping(options?: RemoteOptions): Promise<void>;
}

export interface RemoteDependencies {
  clock: Clock;
  log: Logger;
  observe: RemoteObserver;
  /** Three tries without it. */
  policy?: RetryPolicy | undefined;
  /** Those of the endpoint, where several share them; else it gets its own. */
  limits?: EndpointLimits | undefined;
}

/** How much an endpoint is asked, and what is read from it and sent to it. */
export interface EndpointLimits {
  pace: Pace | undefined;
  turns: Turns | undefined;
}

export function limitsOf({ bandwidth, requests }: EndpointConfig): EndpointLimits {
  return {
    pace: bandwidth === undefined ? undefined : new Pace(bandwidth),
    turns: requests === 0 ? undefined : new Turns(requests),
  };
}

/** Reads the TLS files and sets up connections; sends nothing yet. @throws RemoteError unreachable for unreadable TLS files */
export async function createRemote(config: EndpointConfig, dependencies: RemoteDependencies): Promise<Remote> {
  return new HttpRemote(await connect(config, dependencies, "pull"));
}

/** What the requests to one endpoint share. */
export interface Connection {
  config: EndpointConfig;
  clock: Clock;
  transport: Transport;
  authenticator: Authenticator;
  /** The limit of its bandwidth. */
  pace: Pace | undefined;
}

/** @param actions what its tokens are asked for @throws as {@link createRemote} */
export async function connect(
  config: Endpoint,
  dependencies: RemoteDependencies,
  actions: AuthenticatorOptions["actions"],
): Promise<Connection> {
  const { clock, log, observe, policy = STANDARD_POLICY } = dependencies;
  const { pace, turns } = dependencies.limits ?? limitsOf(config);
  const transport = new Transport(config, await readTlsContexts(config), {
    clock,
    log,
    observe,
    policy,
    pace,
    turns,
    firstByteMs: config.timeouts.firstByte,
    progressMs: config.timeouts.progress,
  });
  const credentials = createCredentialSource(config.auth, transport.endpoint.name, clock);
  const anonymous = config.auth === undefined;
  const authenticator = new Authenticator({ transport, credentials, anonymous, actions, clock, log });
  return { config, clock, transport, authenticator, pace };
}

const STANDARD_POLICY: RetryPolicy = { attempts: 3, baseMs: 250, maxMs: 2000 };
const URGENT_MS = 3000;
const MAX_PAGES = 100;
const MAX_LISTING_BYTES = 16 * 1024 * 1024;
const TAGS_PER_PAGE = 1000;
const REPOSITORIES_PER_PAGE = 1000;
const REDIRECT_TRUST_MS = 60_000;
const MAX_REMEMBERED_REDIRECTS = 1000;

interface Ask extends Omit<HostRequest, "url" | "body"> {
  repository?: string;
  /** Under `/v2/`. */
  path: string;
}

/** A registry over HTTP, to read from. */
export class HttpRemote implements Remote {
  readonly #config: EndpointConfig;
  readonly #transport: Transport;
  readonly #authenticator: Authenticator;
  readonly #clock: Clock;
  /** Where blobs were redirected to, for further ranges of the same blob; the oldest first. */
  readonly #redirects = new Map<string, { url: URL; untilMs: Milliseconds }>();

  constructor({ config, transport, authenticator, clock }: Connection) {
    this.#config = config;
    this.#transport = transport;
    this.#authenticator = authenticator;
    this.#clock = clock;
  }

  get name(): string {
    return this.#transport.endpoint.name;
  }

  get state(): RemoteState {
    const { endpoint } = this.#transport;
    const realm = this.#authenticator.realmOrigin;
    const realmUp = realm === undefined || (this.#transport.hostOf(realm)?.up ?? true);
    return { up: endpoint.up && realmUp, rateLimit: endpoint.rateLimit, pausedUntilMs: endpoint.pausedUntilMs };
  }

  async headManifest(
    repository: string,
    reference: string,
    options: RemoteOptions & { ifNoneMatch?: string | undefined } = {},
  ): Promise<ManifestHead | "notModified" | undefined> {
    const { ifNoneMatch } = options;
    const { status, headers } = await this.#expect([200, 304, 404], {
      kind: "manifest",
      method: "HEAD",
      repository,
      path: `${repository}/manifests/${reference}`,
      headers: { accept: MANIFEST_ACCEPT, ...(ifNoneMatch === undefined ? {} : { "if-none-match": ifNoneMatch }) },
      take: 0,
      patience: this.#patience(options),
    });
    if (status === 404) return undefined;
    if (status === 304) return "notModified";
    return {
      digest: digestHeader(headers),
      mediaType: headerOf(headers, "content-type"),
      sizeBytes: readLength(headers),
      etag: headerOf(headers, "etag"),
      origin: parseOrigin(headerOf(headers, ORIGIN_HEADER)),
    };
  }

  async getManifest(
    repository: string,
    reference: string,
    options: RemoteOptions = {},
  ): Promise<RemoteManifest | undefined> {
    const { status, headers, bytes } = await this.#expect([200, 404], {
      kind: "manifest",
      method: "GET",
      repository,
      path: `${repository}/manifests/${reference}`,
      headers: { accept: MANIFEST_ACCEPT },
      take: MAX_MANIFEST_BYTES,
      patience: this.#patience(options),
    });
    if (status === 404) return undefined;
    return {
      bytes,
      contentType: headerOf(headers, "content-type"),
      digestHeader: digestHeader(headers),
      etag: headerOf(headers, "etag"),
      origin: parseOrigin(headerOf(headers, ORIGIN_HEADER)),
    };
  }

  async headBlob(
    repository: string,
    digest: Digest,
    options: RemoteOptions = {},
  ): Promise<{ sizeBytes: number | undefined } | undefined> {
    const { status, headers } = await this.#expect([200, 404], {
      kind: "blob",
      method: "HEAD",
      repository,
      path: `${repository}/blobs/${digest}`,
      headers: {},
      take: 0,
      patience: this.#patience(options),
    });
    return status === 404 ? undefined : { sizeBytes: readLength(headers) };
  }

  async openBlob(
    repository: string,
    digest: Digest,
    options: RemoteOptions & { firstByte?: number | undefined; lastByte?: number | undefined } = {},
  ): Promise<RemoteBody | undefined> {
    const { firstByte = 0, lastByte } = options;
    const ranged = firstByte > 0 || lastByte !== undefined;
    const path = `${repository}/blobs/${digest}`;
    const ask: Ask = {
      kind: "blob",
      method: "GET",
      repository,
      path,
      headers: ranged ? { range: `bytes=${firstByte}-${lastByte ?? ""}` } : {},
      take: "stream",
      patience: this.#patience(options),
    };
    const shortcut = ranged ? await this.#askWhereItWas(ask) : undefined;
    const answer = shortcut ?? (await this.#expect([200, 206, 404, 416], ask));
    const { body, status } = answer;
    if (status === 404) return undefined;
    if (body === undefined) {
      throw this.#fault("protocol", answer, `has no byte ${firstByte} of ${digest} (416)`);
    }
    try {
      const opened = this.#readBlobHead(answer, body, ranged ? { firstByte, lastByte } : undefined);
      if (answer.strayed && shortcut === undefined) this.#remember(path, answer.url);
      return opened;
    } catch (error) {
      body.destroy();
      throw error;
    }
  }

  async listRepositories(options: RemoteOptions = {}): Promise<RepositoryName[] | undefined> {
    const ask: Ask = {
      kind: "tags",
      method: "GET",
      path: `_catalog?n=${REPOSITORIES_PER_PAGE}`,
      headers: { accept: "application/json" },
      take: MAX_LISTING_BYTES,
      patience: this.#patience(options),
    };
    const pages = await this.#pages(ask, "repositories");
    return pages?.filter((name): name is RepositoryName => typeof name === "string" && isRepositoryName(name));
  }

  async listTags(repository: string, options: RemoteOptions = {}): Promise<string[] | undefined> {
    const ask: Ask = {
      kind: "tags",
      method: "GET",
      repository,
      path: `${repository}/tags/list?n=${TAGS_PER_PAGE}`,
      headers: { accept: "application/json" },
      take: MAX_LISTING_BYTES,
      patience: this.#patience(options),
    };
    const pages = await this.#pages(ask, "tags");
    return pages?.filter((tag): tag is string => typeof tag === "string" && isTag(tag));
  }

  async referrers(
    repository: string,
    digest: Digest,
    options: RemoteOptions = {},
  ): Promise<Record<string, unknown>[] | undefined> {
    const ask: Ask = {
      kind: "referrers",
      method: "GET",
      repository,
      path: `${repository}/referrers/${digest}`,
      headers: { accept: MEDIA_TYPES.ociIndex },
      take: MAX_LISTING_BYTES,
      patience: this.#patience(options),
    };
    return (await this.#pages(ask, "manifests"))?.filter(isObject);
  }

  async ping(options: RemoteOptions = {}): Promise<void> {
    await this.#expect([200], {
      kind: "ping",
      method: "GET",
      path: "",
      headers: {},
      take: MAX_LISTING_BYTES,
      patience: this.#patience(options),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#authenticator[Symbol.asyncDispose]();
    await this.#transport[Symbol.asyncDispose]();
  }

  #patience({ signal, urgent }: RemoteOptions): Patience {
    if (urgent !== true) return { signal };
    return { signal, deadline: AbortSignal.timeout(Math.min(URGENT_MS, this.#config.timeouts.firstByte)) };
  }

  /** Sends a request, logging in if need be. @throws RemoteError for any status but the expected ones */
  async #expect(statuses: readonly number[], ask: Ask, url?: URL): Promise<FollowedAnswer> {
    const answer = await this.#ask(ask, url);
    const { status, strayed, bytes } = answer;
    if (statuses.includes(status)) return answer;
    answer.body?.destroy();
    const code = errorCodeOf(bytes);
    // What a storage behind the registry refuses is no word about the credentials, which it never saw.
    if (status === 401 && !strayed) throw this.#authenticator.giveUp();
    if ((status === 403 || status === 451) && !strayed) {
      throw this.#fault("denied", answer, `denies this (${status}${code}): check what the credentials in auth may see`);
    }
    throw this.#fault(
      "protocol",
      answer,
      `answered ${ask.method} with ${status}${code}, which is not expected of a registry`,
    );
  }

  async #ask({ repository, path, ...asked }: Ask, url = this.#url(path)): Promise<FollowedAnswer> {
    const { patience } = asked;
    const subject = { kind: asked.kind, repository };
    const request: HostRequest = { ...asked, url };
    const authorization = await this.#authenticator.authorization(subject, patience);
    const answer = await this.#transport.follow(request, { authorization });
    if (answer.status !== 401 || answer.strayed) return answer;
    const another = await this.#authenticator.challenged(answer.headers, authorization, subject, patience);
    return await this.#transport.follow(request, { authorization: another });
  }

  #url(path: string): URL {
    return new URL(`${this.#config.url}/v2/${path}`);
  }

  /** Asks where the blob was found a moment ago; undefined where that is not known, or known no more there. */
  async #askWhereItWas(ask: Ask): Promise<FollowedAnswer | undefined> {
    const known = this.#redirects.get(ask.path);
    if (known === undefined) return undefined;
    this.#redirects.delete(ask.path);
    if (this.#clock.now() >= known.untilMs) return undefined;
    const { kind, method, take, headers, patience } = ask;
    const answer = await this.#transport.follow({ kind, method, take, headers, patience, url: known.url });
    if (answer.body === undefined) return undefined;
    this.#redirects.set(ask.path, known);
    return { ...answer, strayed: true };
  }

  #remember(path: string, url: URL): void {
    this.#redirects.delete(path);
    this.#redirects.set(path, { url, untilMs: this.#clock.now() + REDIRECT_TRUST_MS });
    const [oldest] = this.#redirects.keys();
    if (this.#redirects.size > MAX_REMEMBERED_REDIRECTS && oldest !== undefined) this.#redirects.delete(oldest);
  }

  #readBlobHead(
    answer: FollowedAnswer,
    body: Body,
    asked: { firstByte: number; lastByte: number | undefined } | undefined,
  ): RemoteBody {
    const lengthBytes = readLength(answer.headers);
    if (answer.status === 200) return { body, firstByte: 0, partial: false, sizeBytes: lengthBytes };
    const range = parseContentRange(headerOf(answer.headers, "content-range"));
    const fits =
      asked !== undefined &&
      range?.firstByte === asked.firstByte &&
      (asked.lastByte === undefined || range.lastByte <= asked.lastByte);
    const sentBytes = range ? range.lastByte - range.firstByte + 1 : 0;
    if (answer.status !== 206 || !range || !fits || (lengthBytes ?? sentBytes) !== sentBytes) {
      throw this.#fault("protocol", answer, `answered ${answer.status} with another range than was asked for`);
    }
    body.expectBytes(sentBytes);
    return { body, firstByte: range.firstByte, partial: true, sizeBytes: range.sizeBytes };
  }

  /** The entries of the list `key` of all pages; undefined if the first page is not there. */
  async #pages(first: Ask, key: string): Promise<unknown[] | undefined> {
    const entries: unknown[] = [];
    let ask = first;
    let url: URL | undefined;
    for (let pages = 1; ; pages++) {
      const answer = await this.#expect(pages === 1 ? [200, 404] : [200], ask, url);
      if (answer.status === 404) return undefined;
      for (const entry of this.#readList(answer, key)) entries.push(entry);
      url = this.#nextPage(answer);
      if (url === undefined) return entries;
      if (pages === MAX_PAGES) throw this.#fault("protocol", answer, `lists ${key} in more than ${MAX_PAGES} pages`);
      // What is left of the bytes that the whole list may have.
      ask = { ...ask, take: (ask.take as number) - answer.bytes.byteLength };
    }
  }

  #readList(answer: FollowedAnswer, key: string): unknown[] {
    let body: unknown;
    try {
      body = JSON.parse(answer.bytes.toString());
    } catch (cause) {
      throw new RemoteError("protocol", answer.url.host, `lists ${key} in what is not JSON`, { cause, status: 200 });
    }
    // null is what Go makes of an empty list.
    const list = isObject(body) ? (body[key] ?? []) : undefined;
    if (!Array.isArray(list)) throw this.#fault("protocol", answer, `answered without a list of ${key}`);
    return list;
  }

  #nextPage(answer: FollowedAnswer): URL | undefined {
    const header = [answer.headers["link"] ?? []].flat().join(", ");
    const link = /<([^<>]*)>[^<>,]*;\s*rel="?next"?(?=[\s;,]|$)/i.exec(header.slice(0, 8192))?.[1];
    if (link === undefined) return undefined;
    if (!URL.canParse(link, answer.url.href)) {
      throw this.#fault("protocol", answer, "links to a next page that is not a URL");
    }
    const next = new URL(link, answer.url.href);
    if (next.origin === new URL(this.#config.url).origin) return next;
    throw this.#fault("refused", answer, `links to a next page on another host (${next.host})`);
  }

  #fault(fault: "denied" | "protocol" | "refused", { url, status }: FollowedAnswer, predicate: string): RemoteError {
    return new RemoteError(fault, url.host, predicate, { status });
  }
}

function digestHeader(headers: FollowedAnswer["headers"]): Digest | undefined {
  const text = headerOf(headers, "docker-content-digest");
  return text !== undefined && isDigest(text) ? text : undefined;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
