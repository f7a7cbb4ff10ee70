import { randomBytes } from "node:crypto";

export type UpstreamAuth =
  | {
      kind: "bearer";
      /** Name → password. */
      users?: Record<string, string>;
      /** Whether a token for pulls is given without credentials; not so without it. */
      anonymousPull?: boolean;
      /** The realm of the challenge instead of this server's own `/token`. */
      realm?: string;
      /** Of a token's life; 300 without it. */
      expiresInSeconds?: number;
    }
  | { kind: "basic"; users: Record<string, string> };

export interface Refusal {
  status: 401;
  headers: Record<string, string>;
}

interface Token {
  repositories: ReadonlySet<string>;
  expiresAtMs: number;
}

/** Who may pull: a token server or a list of passwords. Source: distribution, "Token Authentication Specification" */
export class Authority {
  readonly #auth: UpstreamAuth;
  readonly #tokens = new Map<string, Token>();
  tokensIssued = 0;

  constructor(auth: UpstreamAuth) {
    this.#auth = auth;
  }

  /** No token is good from now on. */
  revoke(): void {
    this.#tokens.clear();
  }

  /** @param repository whose pull is asked for; undefined for `/v2/` itself */
  refuse(authorization: string | undefined, repository: string | undefined, ownUrl: string): Refusal | undefined {
    if (this.#auth.kind === "basic") {
      if (userOf(authorization, this.#auth.users) !== undefined) return undefined;
      return { status: 401, headers: { "www-authenticate": 'Basic realm="upstream"' } };
    }
    const sent = /^Bearer (.+)$/i.exec(authorization ?? "")?.[1];
    const token = sent === undefined ? undefined : this.#tokens.get(sent);
    const alive = token !== undefined && token.expiresAtMs > Date.now();
    if (alive && (repository === undefined || token.repositories.has(repository))) return undefined;
    const challenge = [
      `realm="${this.#auth.realm ?? `${ownUrl}/token`}"`,
      'service="upstream"',
      ...(repository === undefined ? [] : [`scope="repository:${repository}:pull"`]),
      ...(sent === undefined ? [] : [`error="${alive ? "insufficient_scope" : "invalid_token"}"`]),
    ];
    return { status: 401, headers: { "www-authenticate": `Bearer ${challenge.join(",")}` } };
  }

  /** Answers `GET /token`; undefined means 401. */
  issue(authorization: string | undefined, scopes: string[]): Record<string, unknown> | undefined {
    if (this.#auth.kind !== "bearer") return undefined;
    const { users = {}, anonymousPull = false, expiresInSeconds = 300 } = this.#auth;
    const allowed = authorization === undefined ? anonymousPull : userOf(authorization, users) !== undefined;
    if (!allowed) return undefined;
    const repositories = scopes
      .flatMap((scope) => scope.split(" "))
      .map((scope) => /^repository:(.+):([^:]*)$/.exec(scope))
      .filter((match) => match?.[2]?.split(",").includes("pull") === true)
      .map((match) => match?.[1] ?? "");
    const token = randomBytes(24).toString("base64url");
    const now = Date.now();
    this.#tokens.set(token, { repositories: new Set(repositories), expiresAtMs: now + expiresInSeconds * 1000 });
    this.tokensIssued += 1;
    return { token, access_token: token, expires_in: expiresInSeconds, issued_at: new Date(now).toISOString() };
  }
}

function userOf(authorization: string | undefined, users: Record<string, string>): string | undefined {
  const encoded = /^Basic (.+)$/i.exec(authorization ?? "")?.[1];
  if (encoded === undefined) return undefined;
  const [, name = "", password = ""] = /^([^:]*):(.*)$/s.exec(Buffer.from(encoded, "base64").toString()) ?? [];
  return Object.hasOwn(users, name) && users[name] === password ? name : undefined;
}
