import { hash } from "node:crypto";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import { parseChallenges } from "./challenge.ts";
import type { Credentials, CredentialSource } from "./credentials.ts";
import { headerOf, type AnswerHeaders, type Patience } from "./exchange.ts";
import type { HostAnswer } from "./host.ts";
import { RemoteError } from "./remote-error.ts";
import type { Transport } from "./transport.ts";

/** What a request is about: tokens are good for one scope. */
export interface Subject {
  kind: string;
  /** Undefined for the registry as a whole. */
  repository: string | undefined;
  /** Another repository, which is read: the source of a mount. */
  from?: string | undefined;
}

/** How the registry wants to be asked, as its last challenge said. */
type Scheme = { name: "basic" } | { name: "bearer"; realm: URL; service: string | undefined };

interface Token {
  value: string;
  renewAtMs: Milliseconds;
  expiresAtMs: Milliseconds;
}

export interface AuthenticatorOptions {
  transport: Transport;
  credentials: CredentialSource;
  /** Whether no credentials are configured. */
  anonymous: boolean;
  /** What is asked for before a challenge says otherwise. */
  actions: "pull" | "pull,push";
  clock: Clock;
  log: Logger;
}

const MAX_TOKEN_BYTES = 64 * 1024;
const MAX_TOKENS = 1000;
const DEFAULT_LIFE_SECONDS = 60;
const MAX_LIFE_SECONDS = 86_400;

/**
 * The `Authorization` header for a registry's requests. Learns from the first challenge how to log in, so that later requests carry
 * their token at once. Tokens are kept by realm, service, scope and identity, fetched once however many wait, and renewed in the
 * background after three quarters of their life.
 * Source: distribution, "Token Authentication Specification" and "OAuth2 Token Authentication"
 */
export class Authenticator implements AsyncDisposable {
  readonly #transport: Transport;
  readonly #credentials: CredentialSource;
  readonly #anonymous: boolean;
  readonly #actions: AuthenticatorOptions["actions"];
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #closing = new AbortController();
  #scheme: Scheme | undefined;
  #realmOrigin: string | undefined;
  /** Scopes that challenges asked for where they differ from the usual, by subject. */
  readonly #scopes = new Map<string, string>();
  readonly #tokens = new Map<string, Token>();
  readonly #fetching = new Map<string, Promise<Token>>();

  constructor({ transport, credentials, anonymous, actions, clock, log }: AuthenticatorOptions) {
    this.#actions = actions;
    this.#transport = transport;
    this.#anonymous = anonymous;
    this.#credentials = credentials;
    this.#clock = clock;
    this.#log = log;
  }

  /** The origin of the last token realm. */
  get realmOrigin(): string | undefined {
    return this.#realmOrigin;
  }

  /**
   * @returns the header's value; undefined while no challenge is known
   * @throws RemoteError of the token realm, unauthorized; the signal's reason
   */
  async authorization(subject: Subject, patience: Patience): Promise<string | undefined> {
    const scheme = this.#scheme;
    if (scheme === undefined) return undefined;
    if (scheme.name === "basic") {
      const credentials = await this.#waitFor(this.#credentials.get(), patience);
      return credentials && basic(credentials);
    }
    return `Bearer ${(await this.#token(scheme, this.#scopeOf(subject), patience)).value}`;
  }

  /**
   * Answers a 401.
   * @param tried the header's value that was refused
   * @returns another value to try
   * @throws RemoteError unauthorized where there is none; refused for a foreign realm; of the token realm; the signal's reason
   */
  async challenged(
    headers: AnswerHeaders,
    tried: string | undefined,
    subject: Subject,
    patience: Patience,
  ): Promise<string> {
    const { scheme, scope } = this.#readChallenge(headers);
    this.#scheme = scheme;
    if (scheme.name === "bearer") {
      if (scope !== undefined) this.#learnScope(subject, scope);
      return `Bearer ${(await this.#token(scheme, this.#scopeOf(subject), patience, tried)).value}`;
    }
    let credentials = await this.#waitFor(this.#credentials.get(), patience);
    if (credentials && basic(credentials) === tried) {
      this.#credentials.rejected();
      credentials = await this.#waitFor(this.#credentials.get(), patience);
    }
    const answer = credentials && basic(credentials);
    if (answer !== undefined && answer !== tried) return answer;
    throw this.giveUp();
  }

  /** The error for a 401 that nothing helps against now. */
  giveUp(): RemoteError {
    this.#credentials.rejected();
    const reason = this.#anonymous
      ? "wants credentials for this, or it does not exist (401): set auth"
      : "does not accept the credentials for this, or it does not exist (401): check auth";
    return new RemoteError("unauthorized", this.#transport.endpoint.name, reason, { status: 401 });
  }

  /** Ends and awaits what is being fetched. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new Error("closed"));
    await Promise.allSettled(this.#fetching.values());
  }

  #readChallenge(headers: AnswerHeaders): { scheme: Scheme; scope: string | undefined } {
    const challenges = parseChallenges([headers["www-authenticate"] ?? []].flat().join(", "));
    const bearer = challenges.find(({ scheme, parameters }) => scheme === "bearer" && parameters.has("realm"));
    if (bearer) {
      const text = bearer.parameters.get("realm") ?? "";
      if (!URL.canParse(text)) throw this.#protocolError("names a token realm that is not a URL");
      const realm = new URL(text);
      realm.username = "";
      realm.password = "";
      this.#transport.guard.checkRealm(realm);
      const service = bearer.parameters.get("service");
      this.#realmOrigin = realm.origin;
      return { scheme: { name: "bearer", realm, service }, scope: bearer.parameters.get("scope") };
    }
    if (challenges.some(({ scheme }) => scheme === "basic")) return { scheme: { name: "basic" }, scope: undefined };
    throw this.#protocolError("answered 401 without a Bearer or Basic challenge");
  }

  #scopeOf(subject: Subject): string {
    return this.#scopes.get(subjectKey(subject)) ?? usualScope(subject, this.#actions);
  }

  #learnScope(subject: Subject, scope: string): void {
    const key = subjectKey(subject);
    if (scope === usualScope(subject, this.#actions)) this.#scopes.delete(key);
    else setBounded(this.#scopes, key, scope);
  }

  /** @param tried is not returned again: a token that the registry refused is forgotten */
  async #token(scheme: Scheme & { name: "bearer" }, scope: string, patience: Patience, tried?: string): Promise<Token> {
    const credentials = await this.#waitFor(this.#credentials.get(), patience);
    const key = JSON.stringify([scheme.realm.href, scheme.service, scope, identityOf(credentials)]);
    const cached = this.#tokens.get(key);
    const now = this.#clock.now();
    if (cached && now < cached.expiresAtMs && tried !== `Bearer ${cached.value}`) {
      if (now >= cached.renewAtMs) this.#renew(key, scheme, scope);
      return cached;
    }
    this.#tokens.delete(key);
    return await this.#waitFor(this.#fetchOnce(key, scheme, scope), patience);
  }

  #renew(key: string, scheme: Scheme & { name: "bearer" }, scope: string): void {
    this.#fetchOnce(key, scheme, scope).catch((error: unknown) => {
      if (this.#closing.signal.aborted) return;
      this.#log.debug({ endpoint: this.#transport.endpoint.name, err: error }, "token not renewed; it is still good");
    });
  }

  #fetchOnce(key: string, scheme: Scheme & { name: "bearer" }, scope: string): Promise<Token> {
    const running = this.#fetching.get(key);
    if (running) return running;
    const fetching = this.#fetchToken(scheme, scope)
      .then((token) => {
        setBounded(this.#tokens, key, token);
        return token;
      })
      .catch((error: unknown) => {
        // The realm may have moved: let the next request be challenged anew.
        if (this.#scheme === scheme) this.#scheme = undefined;
        throw error;
      })
      .finally(() => this.#fetching.delete(key));
    this.#fetching.set(key, fetching);
    return fetching;
  }

  async #fetchToken(scheme: Scheme & { name: "bearer" }, scope: string): Promise<Token> {
    let credentials = await this.#credentials.get();
    let answer = await this.#askRealm(scheme, scope, credentials);
    if (answer.status === 401 && credentials) {
      const refused = identityAndSecret(credentials);
      this.#credentials.rejected();
      credentials = await this.#credentials.get();
      if (credentials && identityAndSecret(credentials) !== refused) {
        answer = await this.#askRealm(scheme, scope, credentials);
      }
    }
    return this.#readToken(answer, scheme.realm);
  }

  async #askRealm(
    { realm, service }: Scheme & { name: "bearer" },
    scope: string,
    credentials: Credentials | undefined,
  ): Promise<HostAnswer> {
    const patience: Patience = { signal: this.#closing.signal };
    const scopes = scope.split(" ").filter((one) => one !== "");
    if (credentials && "identityToken" in credentials) {
      const form = new URLSearchParams({
        grant_type: "refresh_token",
        client_id: "entrepot",
        refresh_token: credentials.identityToken,
        scope: scopes.join(" "),
        ...(service === undefined ? {} : { service }),
      });
      return await this.#transport.follow({
        kind: "token",
        method: "POST",
        url: realm,
        headers: { accept: "application/json", "content-type": "application/x-www-form-urlencoded" },
        body: form.toString(),
        take: MAX_TOKEN_BYTES,
        patience,
      });
    }
    const url = new URL(realm);
    if (service !== undefined) url.searchParams.set("service", service);
    for (const one of scopes) url.searchParams.append("scope", one);
    if (credentials) url.searchParams.set("account", credentials.username);
    return await this.#transport.follow(
      { kind: "token", method: "GET", url, headers: { accept: "application/json" }, take: MAX_TOKEN_BYTES, patience },
      {
        authorization: credentials && basic(credentials),
        accept: (target) => this.#transport.guard.checkRealm(target),
      },
    );
  }

  #readToken({ status, headers, bytes }: HostAnswer, realm: URL): Token {
    if (status === 401 || status === 403) {
      const reason = this.#anonymous
        ? `wants credentials (${status}): set auth`
        : `refuses the credentials (${status}): check auth`;
      throw new RemoteError(status === 401 ? "unauthorized" : "denied", realm.host, reason, { status });
    }
    if (status !== 200) {
      const where = headerOf(headers, "location") === undefined ? "" : " and a redirect that is not followed";
      throw new RemoteError("protocol", realm.host, `answered a request for a token with ${status}${where}`, {
        status,
      });
    }
    const body = parseObject(bytes);
    const value = body?.["token"] || body?.["access_token"];
    // What cannot stand in a header is no token.
    if (typeof value !== "string" || !/^[\x21-\x7e]+$/.test(value)) {
      throw new RemoteError("protocol", realm.host, "answered a request for a token without one", { status });
    }
    const announced = body?.["expires_in"];
    const seconds = typeof announced === "number" && announced > 0 ? announced : DEFAULT_LIFE_SECONDS;
    const lifeMs = Math.min(seconds, MAX_LIFE_SECONDS) * 1000;
    const now = this.#clock.now();
    return { value, renewAtMs: now + (lifeMs * 3) / 4, expiresAtMs: now + lifeMs };
  }

  /** Waits for what others may wait for as well: it goes on when this caller leaves. */
  async #waitFor<T>(shared: Promise<T>, { signal, deadline }: Patience): Promise<T> {
    shared.catch(() => {});
    signal?.throwIfAborted();
    const left = Promise.withResolvers<never>();
    const leave = (): void => left.reject(signal?.reason);
    const late = (): void => {
      const name = this.#transport.endpoint.name;
      left.reject(new RemoteError("timeout", name, "cannot be logged in to in time for a quick check"));
    };
    signal?.addEventListener("abort", leave);
    deadline?.addEventListener("abort", late);
    try {
      if (deadline?.aborted) late();
      return await Promise.race([shared, left.promise]);
    } finally {
      signal?.removeEventListener("abort", leave);
      deadline?.removeEventListener("abort", late);
    }
  }

  #protocolError(reason: string): RemoteError {
    return new RemoteError("protocol", this.#transport.endpoint.name, reason, { status: 401 });
  }
}

function usualScope({ repository, from }: Subject, actions: AuthenticatorOptions["actions"]): string {
  if (repository === undefined) return "";
  return `repository:${repository}:${actions}${from === undefined ? "" : ` repository:${from}:pull`}`;
}

function subjectKey({ kind, repository = "", from = "" }: Subject): string {
  return `${kind} ${repository} ${from}`;
}

function basic(credentials: Credentials): string | undefined {
  if (!("username" in credentials)) return undefined;
  return `Basic ${Buffer.from(`${credentials.username}:${credentials.password}`).toString("base64")}`;
}

function identityOf(credentials: Credentials | undefined): string {
  if (!credentials) return "";
  return "username" in credentials
    ? `user ${credentials.username}`
    : `token ${hash("sha256", credentials.identityToken)}`;
}

function identityAndSecret(credentials: Credentials): string {
  return JSON.stringify(credentials);
}

function setBounded<T>(map: Map<string, T>, key: string, value: T): void {
  map.delete(key);
  map.set(key, value);
  const [oldest] = map.keys();
  if (map.size > MAX_TOKENS && oldest !== undefined) map.delete(oldest);
}

function parseObject(bytes: Buffer): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(bytes.toString());
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}
