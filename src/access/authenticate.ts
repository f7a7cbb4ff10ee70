/**
 * Who sends a request: what it presents is checked in full once, and then remembered for a while.
 *
 * - What is remembered (`proofs.ts`) is a proof: "this was the password of that hash", "this token was signed by us". Who that is now, and what it may do,
 *   is looked up anew after every change of anybody's rights, before the next request is answered. A proof by password ends with its hash.
 * - The same credentials that come many times at once are checked once.
 * - Wrong passwords meet brakes (`brakes.ts`). Secrets of robots and tokens can't be guessed: a right one is never slowed down.
 * - Whoever is refused is told the same, in the same time, whatever was wrong with the name or the password. The record of events tells
 *   administrators more, and never what was typed as a password, nor a name that is not written as names are: it may be one.
 */
import { timingSafeEqual } from "node:crypto";
import { setImmediate as turn } from "node:timers/promises";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Metrics } from "../base/metrics.ts";
import type { Requester } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import { RegistryError } from "../oci/errors.ts";
import type { Accounts } from "./accounts.ts";
import type { Attempt, Brakes } from "./brakes.ts";
import type { Credentials, Presented as Holder } from "./credentials.ts";
import type { Htpasswd } from "./htpasswd.ts";
import { isLoginName } from "./names.ts";
import type { Passwords } from "./passwords.ts";
import { parseAuthorization, type Presented } from "./presented.ts";
import { ANONYMOUS, OPERATOR, type Caller, type Principal } from "./principal.ts";
import { Proofs, type ProofName } from "./proofs.ts";
import type { Tokens } from "./tokens.ts";

export interface AuthenticatorDeps {
  accounts: Accounts;
  credentials: Credentials;
  passwords: Passwords;
  htpasswd: Htpasswd | undefined;
  brakes: Brakes;
  tokens: Pick<Tokens, "verify">;
  operatorSecret: string;
  journal: Pick<Journal, "note">;
  metrics: Metrics;
  clock: Clock;
}

/** Tries that wait for the outcome of others from the same address, or on the same account. */
const MOST_WAITING = 256;
const BUSY_SECONDS = 5;
const WOKEN_A_TURN = 4;
/** So long what was wrong is wrong without another look, unless anything has changed meanwhile. */
const REFUSED_MS: Milliseconds = 60_000;

type Method = "password" | "secret" | "operator" | "token" | "certificate" | "other";

export class Authenticator {
  readonly #deps: AuthenticatorDeps;
  readonly #proofs: Proofs;
  /** What was wrong lately. */
  readonly #refusals: Proofs;
  /** Passwords that are being checked. */
  readonly #checks = new Map<string, Promise<Caller | undefined>>();
  readonly #waiting: (() => void)[] = [];
  #generation = 0;

  constructor(deps: AuthenticatorDeps) {
    this.#deps = deps;
    this.#proofs = new Proofs(deps.clock);
    this.#refusals = new Proofs(deps.clock);
    const changed = (): void => void (this.#generation += 1);
    deps.accounts.onChange(changed);
    deps.htpasswd?.onChange(changed);
  }

  /**
   * Tells who presents this. Synchronous where it is remembered.
   * @param presented the header as it came, and the name in a client certificate that TLS has verified, which counts where there is no header
   * @returns ANONYMOUS where nothing is presented, and for a certificate of no robot
   * @throws RegistryError UNAUTHORIZED for credentials that are not good (detail `{error: "invalid_token"}` for those of Bearer);
   * TOOMANYREQUESTS with retryAfterSeconds, by the brakes or while too many wait
   */
  authenticate(
    { authorization, certificateName }: { authorization: string | undefined; certificateName: string | undefined },
    by: Requester,
  ): Caller | Promise<Caller> {
    const header = authorization === "" ? undefined : authorization;
    if (header === undefined && certificateName === undefined) return ANONYMOUS;
    const name =
      header === undefined ? this.#proofs.nameOfCertificate(certificateName ?? "") : this.#proofs.nameOfHeader(header);
    const proof = this.#proofs.get(name);
    if (proof && proof.generation === this.#generation) return proof.caller;
    return this.#authenticate(name, header, certificateName ?? "", by);
  }

  async #authenticate(
    name: ProofName,
    header: string | undefined,
    certificateName: string,
    by: Requester,
  ): Promise<Caller> {
    const known = await this.#recall(name);
    if (known) return known;
    if (header === undefined) return this.#ofCertificate(name, certificateName, by);
    const presented = parseAuthorization(header);
    switch (presented.kind) {
      case "password":
        return this.#ofPassword(name, presented, by);
      case "secret":
        return this.#ofSecret(name, presented, by);
      case "operator":
        return this.#ofOperator(name, presented, by);
      case "token":
        return this.#ofToken(name, presented.token);
      case "unusable":
        this.#count("password", "wrong");
        throw wrongPassword();
      default:
        this.#count("other", "wrong");
        throw new RegistryError("UNAUTHORIZED", "this way to log in is not known here: use Basic or Bearer");
    }
  }

  // ---- what is remembered ----

  /** Whom remembered credentials stand for now. */
  async #recall(name: ProofName): Promise<Caller | undefined> {
    const proof = this.#proofs.get(name);
    const generation = this.#generation;
    if (!proof || proof.generation === generation) return proof?.caller;
    const caller = await proof.renew?.();
    // Of the generation in which the search began: what has changed meanwhile is looked up again.
    if (caller) Object.assign(proof, { caller, generation });
    else if (this.#proofs.get(name) === proof) this.#proofs.delete(name);
    return caller;
  }

  // ---- passwords ----

  async #ofPassword(
    name: ProofName,
    presented: Extract<Presented, { kind: "password" }>,
    by: Requester,
  ): Promise<Caller> {
    // Once more is no new guess: a host that sends its password for another registry with each pull must not spend its neighbours' tries.
    if (this.#refusals.get(name)?.generation === this.#generation) {
      this.#count("password", "wrong");
      throw wrongPassword();
    }
    const attempt = await this.#attempt(name, presented.user, by);
    if ("principal" in attempt) return attempt;
    let caller: Caller | undefined;
    let outcome: "right" | "wrong" | "dropped" = "dropped";
    try {
      caller = await this.#checkOnce(name, presented, attempt.isKnown, by);
      outcome = caller ? "right" : "wrong";
    } finally {
      attempt.end(outcome, this.#deps.clock.now());
      this.#count("password", outcome === "dropped" ? "busy" : outcome);
      void this.#wake();
    }
    if (!caller) throw wrongPassword();
    return caller;
  }

  /**
   * Takes a place on the brakes, once there is one.
   * @returns the caller where another try has proven the same meanwhile
   * @throws RegistryError TOOMANYREQUESTS
   */
  async #attempt(name: ProofName, account: string, by: Requester): Promise<Attempt | Caller> {
    const { brakes, clock } = this.#deps;
    for (;;) {
      const verdict = brakes.begin(by.address, account, clock.now());
      if (verdict.kind === "go") return verdict.attempt;
      if (verdict.kind === "spent") throw this.#braked("password", verdict, by, subjectOf(account));
      if (this.#waiting.length >= MOST_WAITING) {
        this.#count("password", "busy");
        throw new RegistryError("TOOMANYREQUESTS", "too many log in at once from there: try again in some seconds", {
          retryAfterSeconds: BUSY_SECONDS,
        });
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
      const known = await this.#recall(name);
      if (known) return known;
    }
  }

  /** A few in each turn of the event loop: hundreds that are refused at once would hold up the pulls. */
  async #wake(): Promise<void> {
    for (const [index, wake] of this.#waiting.splice(0).entries()) {
      if (index > 0 && index % WOKEN_A_TURN === 0) await turn();
      wake();
    }
  }

  /** As {@link #check}; joins one that is under way. */
  #checkOnce(
    name: ProofName,
    presented: Extract<Presented, { kind: "password" }>,
    isKnown: boolean,
    by: Requester,
  ): Promise<Caller | undefined> {
    const running = this.#checks.get(name.key);
    if (running) return running;
    const check = this.#check(name, presented, isKnown, by).finally(() => this.#checks.delete(name.key));
    this.#checks.set(name.key, check);
    return check;
  }

  /** Compares a password, remembers it if it is right, and records the outcome. */
  async #check(
    name: ProofName,
    { user, password }: Extract<Presented, { kind: "password" }>,
    isKnown: boolean,
    by: Requester,
  ): Promise<Caller | undefined> {
    const { accounts, htpasswd, passwords } = this.#deps;
    const generation = this.#generation;
    const inFile = htpasswd?.hashOf(user);
    const found = inFile === undefined ? await accounts.findUser(user) : undefined;
    const hash = inFile ?? (found?.disabled ? undefined : found?.passwordHash);
    const isRight = await passwords.matches(password, hash, isKnown);
    if (!isRight || hash === undefined) {
      const untilMs = this.#deps.clock.now() + REFUSED_MS;
      this.#refusals.set(name, { renew: undefined, caller: ANONYMOUS, generation }, untilMs);
      this.#note("denied", subjectOf(user), denialOf(hash, found), by);
      return undefined;
    }
    const renew =
      inFile === undefined ? () => this.#userOfHash(user, hash) : () => Promise.resolve(this.#lineOfHash(user, hash));
    const caller = await renew();
    if (!caller) {
      this.#note("denied", subjectOf(user), "changed while the password was checked", by);
      return undefined;
    }
    this.#proofs.set(name, { renew, caller, generation });
    if (found) accounts.touchUser(found.id);
    this.#note("done", `user:${user}`, "with the password", { ...by, actor: user });
    return caller;
  }

  /** The user in the database whose hash this still is, unless the htpasswd file has come to name it. */
  async #userOfHash(name: string, hash: string): Promise<Caller | undefined> {
    const { accounts, htpasswd } = this.#deps;
    const user = await accounts.findUser(name);
    if (htpasswd?.hashOf(name) !== undefined || user?.passwordHash !== hash) return undefined;
    return callerOf(await accounts.userPrincipal(user.id));
  }

  #lineOfHash(name: string, hash: string): Caller | undefined {
    const { htpasswd } = this.#deps;
    return htpasswd?.hashOf(name) === hash ? callerOf(htpasswd?.principal(name)) : undefined;
  }

  // ---- secrets ----

  async #ofSecret(
    name: ProofName,
    { user, secret }: Extract<Presented, { kind: "secret" }>,
    by: Requester,
  ): Promise<Caller> {
    const generation = this.#generation;
    const holder = await this.#deps.credentials.bySecret(secret);
    if (!holder || (user !== undefined && user !== holder.name)) {
      const detail = holder ? "a secret of another name" : "an unknown, expired or disabled secret";
      throw this.#wrongSecret("secret", user, detail, by);
    }
    return this.#hold(name, holder, generation, "secret", by);
  }

  async #ofOperator(
    name: ProofName,
    { user, secret }: Extract<Presented, { kind: "operator" }>,
    by: Requester,
  ): Promise<Caller> {
    const [given, own] = [secret, this.#deps.operatorSecret].map((each) => Buffer.from(this.#proofs.digestOf(each)));
    const isRight = given !== undefined && own !== undefined && timingSafeEqual(given, own);
    if (!isRight || (user !== undefined && user !== "operator")) {
      throw this.#wrongSecret("operator", user, "a wrong operator's secret", by);
    }
    this.#proofs.set(name, { renew: undefined, caller: OPERATOR, generation: this.#generation });
    this.#count("operator", "right");
    this.#note("done", "operator", "with the operator's secret", { ...by, actor: "operator" });
    return Promise.resolve(OPERATOR);
  }

  async #ofCertificate(name: ProofName, robot: string, by: Requester): Promise<Caller> {
    const generation = this.#generation;
    const holder = await this.#deps.credentials.robotByName(robot);
    if (holder) return this.#hold(name, holder, generation, "certificate", by);
    // Its host may have it for other servers: it goes on as everybody does.
    this.#count("certificate", "wrong");
    this.#proofs.set(name, { renew: undefined, caller: ANONYMOUS, generation });
    return ANONYMOUS;
  }

  #hold(
    proven: ProofName,
    holder: Holder,
    generation: number,
    method: "secret" | "certificate",
    by: Requester,
  ): Caller {
    const { principal, name, expiresAtMs, kind, id } = holder;
    const caller: Caller = { principal, granted: undefined };
    this.#proofs.set(proven, { renew: undefined, caller, generation }, expiresAtMs);
    this.#deps.credentials.touch(kind, id);
    this.#count(method, "right");
    const subject = `${kind === "robot" ? "robot" : "user"}:${name}`;
    const by_ = { ...by, actor: name };
    this.#note("done", subject, method === "certificate" ? "with a certificate" : `with a ${kind}'s secret`, by_);
    return caller;
  }

  #wrongSecret(method: Method, user: string | undefined, detail: string, by: Requester): RegistryError {
    const { brakes, clock } = this.#deps;
    const subject = user === undefined ? undefined : subjectOf(user);
    const verdict = brakes.wrongSecret(by.address, clock.now());
    if (verdict.kind === "spent") return this.#braked(method, verdict, by, subject);
    this.#count(method, "wrong");
    this.#note("denied", subject, detail, by);
    return user === undefined ? badToken("the token is unknown, expired or disabled") : wrongPassword();
  }

  // ---- tokens of the token service ----

  async #ofToken(name: ProofName, token: string): Promise<Caller> {
    const generation = this.#generation;
    try {
      const { who, granted, catalog, expiresAtMs } = await this.#deps.tokens.verify(token);
      const renew = async (): Promise<Caller | undefined> => {
        const principal = await this.#principalOf(who);
        return principal && { principal, granted, catalog };
      };
      const caller = await renew();
      if (!caller) throw badToken("the token's user is gone or disabled");
      this.#proofs.set(name, { renew, caller, generation }, expiresAtMs);
      this.#count("token", "right");
      return caller;
    } catch (error) {
      if (error instanceof RegistryError && error.code === "UNAUTHORIZED") this.#count("token", "wrong");
      throw error;
    }
  }

  async #principalOf(who: Awaited<ReturnType<Tokens["verify"]>>["who"]): Promise<Principal | undefined> {
    const { accounts, credentials, htpasswd } = this.#deps;
    switch (who.kind) {
      case "user": {
        const user = await accounts.userPrincipal(who.id);
        // A token that was issued for a personal token has what that one has.
        return user && { ...user, limits: who.limits };
      }
      case "robot":
        return credentials.robotPrincipal(who.id);
      case "file":
        return htpasswd?.principal(who.name);
      case "operator":
        return OPERATOR.principal;
      default:
        return ANONYMOUS.principal;
    }
  }

  // ---- telling ----

  #braked(
    method: Method,
    { retryAfterMs, isFirst }: { retryAfterMs: Milliseconds; isFirst: boolean },
    by: Requester,
    subject: string | undefined,
  ): RegistryError {
    this.#count(method, "braked");
    if (isFirst) this.#note("denied", subject, "too many wrong passwords or secrets", by);
    const retryAfterSeconds = Math.max(1, Math.ceil(retryAfterMs / 1000));
    return new RegistryError(
      "TOOMANYREQUESTS",
      `too many wrong passwords or secrets: try again in ${retryAfterSeconds} s`,
      { retryAfterSeconds },
    );
  }

  #note(outcome: "done" | "denied", subject: string | undefined, detail: string, by: Requester): void {
    this.#deps.journal.note({ action: "login", outcome, ...(subject === undefined ? {} : { subject }), detail, by });
  }

  #count(method: Method, result: "right" | "wrong" | "braked" | "busy"): void {
    this.#deps.metrics.authAttempts.inc({ method, result });
  }
}

function callerOf(principal: Principal | undefined): Caller | undefined {
  return principal && { principal, granted: undefined };
}

/** What was typed as a name is recorded only where it is written as one: else it may be a password. */
function subjectOf(user: string): string | undefined {
  return isLoginName(user) ? `user:${user}` : undefined;
}

function denialOf(hash: string | undefined, found: { disabled: boolean } | undefined): string {
  if (hash !== undefined) return "wrong password";
  if (!found) return "unknown user";
  return found.disabled ? "disabled user" : "user without a password";
}

function wrongPassword(): RegistryError {
  return new RegistryError("UNAUTHORIZED", "the user name or the password is wrong");
}

function badToken(message: string): RegistryError {
  return new RegistryError("UNAUTHORIZED", message, { detail: { error: "invalid_token" } });
}
