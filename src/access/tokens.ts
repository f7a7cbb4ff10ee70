/**
 * Tokens of the token service: JSON Web Tokens signed by ES256, in the form that stock registries take, with a claim of our own beside it
 * that says who asked and what for, by full names of repositories. A token is proven by our keys alone, whatever its head offers.
 * Source: distribution/distribution, docs/spec/auth/jwt.md; RFC 7519; RFC 8725
 */
import { randomUUID, type JsonWebKey } from "node:crypto";
import { errors, jwtVerify, SignJWT } from "jose";
import { z } from "zod";
import type { Clock } from "../base/clock.ts";
import type { Config } from "../config/schema.ts";
import type { Database } from "../db/database.ts";
import { RegistryError } from "../oci/errors.ts";
import { isRepositoryName, type RepositoryName } from "../oci/reference.ts";
import { SigningKeys } from "./keys.ts";
import { actorOf, VERBS, type Limit, type Principal, type Verb } from "./principal.ts";

export interface TokensDeps {
  db: Database;
  clock: Clock;
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Pick<Config["access"]["tokens"], "life" | "rotate">;
  /** What this registry is called in tokens: {@link serviceName}. */
  service: string;
}

/** What a token is good for in one repository. */
export interface Grant {
  /** As the client wrote it. */
  name: string;
  /** The full name. */
  repository: RepositoryName;
  verbs: ReadonlySet<Verb>;
}

export interface TokenRequest {
  principal: Principal;
  /** {@link Tokens.service}, or another registry's. */
  audience: string;
  /** Several may be about one name: to pull it and to push it may lead to two places. */
  granted: readonly Grant[];
  /** Whether it may list the repositories that it sees. */
  catalog: boolean;
}

export interface IssuedToken {
  token: string;
  expiresInSeconds: number;
  issuedAtMs: number;
}

/** Whom a token was issued to. It has yet to be looked up whether they are still there. */
export type TokenHolder =
  /** With the limits of the personal token that it was issued for, if it was one. */
  | { kind: "user"; id: number; limits: readonly Limit[] | undefined }
  | { kind: "robot"; id: number }
  | { kind: "file"; name: string }
  | { kind: "operator" }
  | { kind: "anonymous" };

export interface VerifiedToken {
  who: TokenHolder;
  /** By full name. */
  granted: ReadonlyMap<RepositoryName, ReadonlySet<Verb>>;
  /** Whether it lists the repositories that its holder sees. */
  catalog: boolean;
  expiresAtMs: number;
}

/** Verifiers may be behind by so much. */
const BACKDATED_SECONDS = 60;
const SKEW_SECONDS = 30;
/** The head of a request with a longer one is refused by common servers; ours are shorter. */
const MOST_CHARACTERS = 8_000;
/** Of JSON about what is granted, and about limits: in base64, and with everything else, the token is then short enough. */
const MOST_GRANTED = 3_000;
const MOST_LIMITS = 1_000;
/** Decoders forgive blanks, and more; an ES256 signature has 64 bytes. */
const FORM = /^[\w-]+\.[\w-]+\.[\w-]{86}$/;

const verb = z.enum(VERBS);
const id = z.int();
const claims = z.object({
  aud: z.string(),
  exp: z.int(),
  entrepot: z.object({
    who: z.discriminatedUnion("kind", [
      z.object({
        kind: z.literal("user"),
        id,
        limits: z.array(z.object({ repositories: z.array(z.string()), verbs: z.array(verb) })).optional(),
      }),
      z.object({ kind: z.literal("robot"), id }),
      z.object({ kind: z.literal("file"), name: z.string() }),
      z.object({ kind: z.literal("operator") }),
      z.object({ kind: z.literal("anonymous") }),
    ]),
    granted: z.array(
      z.tuple([z.custom<RepositoryName>((text) => typeof text === "string" && isRepositoryName(text)), z.array(verb)]),
    ),
    catalog: z.literal(true).optional(),
  }),
});
type OwnClaim = z.input<typeof claims>["entrepot"];

/** What this registry is called in challenges and tokens, as their service and issuer. */
export function serviceName({ access, server }: Pick<Config, "access" | "server">): string {
  const { service } = access.tokens;
  return service ?? (server.publicUrl === undefined ? "entrepot" : new URL(server.publicUrl).host);
}

/** Issues tokens and proves them. */
export class Tokens {
  /** What this registry is called in tokens. */
  readonly service: string;
  readonly #keys: SigningKeys;
  readonly #clock: Clock;
  readonly #config: TokensDeps["config"];

  private constructor({ clock, config, service }: TokensDeps, keys: SigningKeys) {
    this.service = service;
    this.#keys = keys;
    this.#clock = clock;
    this.#config = config;
  }

  /** Makes the keys at the first start. */
  static async open(deps: TokensDeps): Promise<Tokens> {
    return new Tokens(deps, await SigningKeys.open(deps));
  }

  /** Has another key sign where one is due. To be called at start, and daily. */
  rotate(): Promise<void> {
    return this.#keys.rotate();
  }

  /** The public keys that tokens are proven with. Source: RFC 7517 §5 */
  jwks(): { keys: JsonWebKey[] } {
    return this.#keys.jwks;
  }

  /** The certificates to be trusted by registries that take our tokens, in PEM. */
  certificates(): string {
    return this.#keys.certificates;
  }

  /** Issues a token. What would make it too long to be sent in a request's head is left out. */
  async issue({ principal, audience, granted, catalog }: TokenRequest): Promise<IssuedToken> {
    const issuedAtMs = this.#clock.now();
    const issuedAt = Math.floor(issuedAtMs / 1000);
    const expiresInSeconds = Math.floor(this.#config().life / 1000);
    const { kid, privateKey, certificate } = this.#keys.signer;
    const taken = within(granted, MOST_GRANTED);
    const entrepot: OwnClaim = {
      who: holderOf(principal, taken),
      granted: byRepository(taken),
      ...(catalog ? { catalog } : {}),
    };
    const token = await new SignJWT({
      iss: this.service,
      sub: actorOf(principal) ?? "",
      aud: audience,
      exp: issuedAt + expiresInSeconds,
      nbf: issuedAt - BACKDATED_SECONDS,
      iat: issuedAt,
      jti: randomUUID(),
      access: [...byName(taken), ...(catalog ? [{ type: "registry", name: "catalog", actions: ["*"] }] : [])],
      // Other registries learn no more than they ask for.
      ...(audience === this.service ? { entrepot } : {}),
    })
      .setProtectedHeader({ typ: "JWT", alg: "ES256", kid, x5c: [certificate] })
      .sign(privateKey);
    return { token, expiresInSeconds, issuedAtMs };
  }

  /** Proves a token that was issued for this registry. @throws RegistryError UNAUTHORIZED for any other */
  async verify(token: string): Promise<VerifiedToken> {
    if (token.length > MOST_CHARACTERS || !FORM.test(token)) throw invalidToken(undefined);
    try {
      const { payload } = await jwtVerify(
        token,
        ({ kid }) => {
          const key = kid === undefined ? undefined : this.#keys.publicKey(kid);
          if (!key) throw new errors.JWKSNoMatchingKey();
          return key;
        },
        {
          algorithms: ["ES256"],
          typ: "JWT",
          issuer: this.service,
          audience: this.service,
          currentDate: new Date(this.#clock.now()),
          clockTolerance: SKEW_SECONDS,
          requiredClaims: ["exp", "nbf"],
        },
      );
      const { entrepot, exp } = claims.parse(payload);
      const { who } = entrepot;
      return {
        who: who.kind === "user" ? { ...who, limits: who.limits } : who,
        granted: new Map(entrepot.granted.map(([repository, verbs]) => [repository, new Set(verbs)])),
        catalog: entrepot.catalog === true,
        expiresAtMs: exp * 1000,
      };
    } catch (cause) {
      throw invalidToken(cause);
    }
  }
}

function invalidToken(cause: unknown): RegistryError {
  const why =
    cause instanceof errors.JWTExpired
      ? "the token has expired: ask the token service for another one"
      : "the token is not one that this registry's token service issued for it: log in again";
  return new RegistryError("UNAUTHORIZED", why, { cause, detail: { error: "invalid_token" } });
}

function holderOf(principal: Principal, granted: readonly Grant[]): OwnClaim["who"] {
  switch (principal.kind) {
    case "user": {
      const { id, limits } = principal;
      return { kind: "user", id, ...(limits ? { limits: shorten(limits, granted) } : {}) };
    }
    case "robot":
      return { kind: "robot", id: principal.id };
    case "file":
      return { kind: "file", name: principal.name };
    case "operator":
      return { kind: "operator" };
    default:
      return { kind: "anonymous" };
  }
}

/** Limits too long for a token become what it grants: it can do no more, but lists no other repositories. */
function shorten(limits: readonly Limit[], granted: readonly Grant[]): { repositories: string[]; verbs: Verb[] }[] {
  const short = JSON.stringify(limits).length <= MOST_LIMITS;
  const left = short
    ? limits
    : granted.map(({ repository, verbs }) => ({ repositories: [repository], verbs: [...verbs] }));
  return left.map(({ repositories, verbs }) => ({ repositories: [...repositories], verbs: [...verbs] }));
}

/** As many of the first ones as have room. */
function within(granted: readonly Grant[], most: number): Grant[] {
  let used = 0;
  return granted.filter(({ name, repository, verbs }) => {
    if (verbs.size === 0) return false;
    used += name.length + repository.length + 130;
    return used <= most;
  });
}

/** As stock registries read it: who may make a tag is let push. */
function byName(granted: readonly Grant[]): { type: "repository"; name: string; actions: string[] }[] {
  return [...Map.groupBy(granted, ({ name }) => name)].map(([name, grants]) => {
    const verbs = union(grants);
    const actions = verbs.map((verb) => (verb === "create" ? "push" : verb));
    return { type: "repository", name, actions: [...new Set(actions)] };
  });
}

function byRepository(granted: readonly Grant[]): [RepositoryName, Verb[]][] {
  return [...Map.groupBy(granted, ({ repository }) => repository)].map(([name, grants]) => [name, union(grants)]);
}

function union(grants: readonly Grant[]): Verb[] {
  return VERBS.filter((verb) => grants.some(({ verbs }) => verbs.has(verb)));
}
