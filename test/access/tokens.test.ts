import assert from "node:assert/strict";
import {
  createHmac,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  sign,
  X509Certificate,
  type KeyObject,
} from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as fc from "fast-check";
import type { Limit, Principal, Verb } from "../../src/access/principal.ts";
import { serviceName, Tokens, type Grant, type TokenRequest } from "../../src/access/tokens.ts";
import { parseConfig } from "../../src/config/load.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { RegistryError } from "../../src/oci/errors.ts";
import type { RepositoryName } from "../../src/oci/reference.ts";
import "../kit/seed.ts";

const LIFE_MS = 300_000;
const DAY_MS = 86_400_000;
const SERVICE = "registry.example.com";

type Part = Record<string, unknown>;

interface Stage extends AsyncDisposable {
  tokens: Tokens;
  nowMs: number;
  /** Of the key that signs. */
  privateKey: KeyObject;
  issue(request?: Partial<TokenRequest>): Promise<string>;
  refused(token: string): Promise<RegistryError>;
}

async function openStage(): Promise<Stage> {
  const root = await mkdtemp(join(tmpdir(), "entrepot-tokens-"));
  const db = await openSqlite(join(root, "entrepot.db"));
  const clock = { now: () => stage.nowMs, sleep: () => Promise.reject(new Error("nobody sleeps here")) };
  const stage: Stage = {
    nowMs: Date.UTC(2026, 10, 22, 12),
    tokens: undefined as unknown as Tokens,
    privateKey: foreign.privateKey,
    issue: async (request) => {
      const { token } = await stage.tokens.issue({
        principal: ALICE,
        audience: SERVICE,
        granted: [grant("team/app", "pull", "create", "push")],
        catalog: false,
        ...request,
      });
      return token;
    },
    refused: async (token) => {
      const error: unknown = await stage.tokens.verify(token).then(
        () => assert.fail("it was taken"),
        (error: unknown) => error,
      );
      assert.ok(error instanceof RegistryError, String(error));
      assert.equal(error.code, "UNAUTHORIZED");
      assert.deepEqual(error.detail, { error: "invalid_token" });
      assert.ok(token.length < 100 || !JSON.stringify(error).includes(token));
      return error;
    },
    [Symbol.asyncDispose]: async () => {
      await db[Symbol.asyncDispose]();
      await rm(root, { recursive: true });
    },
  };
  const config = () => ({ life: LIFE_MS, rotate: 90 * DAY_MS });
  stage.tokens = await Tokens.open({ db, clock, config, service: SERVICE });
  const row = await db.get<{ pem: string }>("SELECT private_key AS pem FROM signing_keys WHERE kind = 'signer'");
  stage.privateKey = createPrivateKey(row?.pem ?? "");
  return stage;
}

const ALICE: Principal = { kind: "user", id: 7, name: "alice", admin: false, teams: new Map(), limits: undefined };

function grant(repository: string, ...verbs: Verb[]): Grant {
  return { name: repository, repository: repository as RepositoryName, verbs: new Set(verbs) };
}

const encode = (part: Part): string => Buffer.from(JSON.stringify(part)).toString("base64url");
const decode = (part: string | undefined): Part => JSON.parse(Buffer.from(part ?? "", "base64url").toString()) as Part;

function parts(token: string): { head: Part; body: Part } {
  const [head, body] = token.split(".");
  return { head: decode(head), body: decode(body) };
}

function es256(head: Part, body: Part, key: KeyObject): string {
  const text = `${encode(head)}.${encode(body)}`;
  return `${text}.${sign("sha256", Buffer.from(text), { key, dsaEncoding: "ieee-p1363" }).toString("base64url")}`;
}

const foreign = generateKeyPairSync("ec", { namedCurve: "P-256" });

test("a token says who asked and what for, and is proven by our keys", async () => {
  await using stage = await openStage();
  const { tokens } = stage;
  const issued = await tokens.issue({
    principal: ALICE,
    audience: SERVICE,
    granted: [
      { name: "alpine", repository: "docker.io/library/alpine" as RepositoryName, verbs: new Set(["pull"]) },
      grant("team/app", "pull", "create", "push"),
      grant("team/none"),
    ],
    catalog: true,
  });
  assert.equal(issued.expiresInSeconds, 300);
  assert.equal(issued.issuedAtMs, stage.nowMs);
  const { head, body } = parts(issued.token);
  assert.deepEqual(Object.keys(head).sort(), ["alg", "kid", "typ", "x5c"]);
  assert.deepEqual({ typ: head["typ"], alg: head["alg"] }, { typ: "JWT", alg: "ES256" });
  const [certificate = ""] = head["x5c"] as string[];
  assert.equal(
    new X509Certificate(Buffer.from(certificate, "base64")).verify(
      new X509Certificate(tokens.certificates()).publicKey,
    ),
    true,
  );
  const now = stage.nowMs / 1000;
  const { jti, entrepot, ...rest } = body;
  assert.equal(typeof jti, "string");
  assert.ok(entrepot);
  assert.deepEqual(rest, {
    iss: SERVICE,
    sub: "alice",
    aud: SERVICE,
    exp: now + 300,
    nbf: now - 60,
    iat: now,
    access: [
      { type: "repository", name: "alpine", actions: ["pull"] },
      { type: "repository", name: "team/app", actions: ["pull", "push"] },
      { type: "registry", name: "catalog", actions: ["*"] },
    ],
  });
  assert.deepEqual(await tokens.verify(issued.token), {
    who: { kind: "user", id: 7, limits: undefined },
    granted: new Map([
      ["docker.io/library/alpine", new Set(["pull"])],
      ["team/app", new Set(["pull", "create", "push"])],
    ]),
    catalog: true,
    expiresAtMs: stage.nowMs + LIFE_MS,
  });
});

test("whoever may only make tags is let push, and known to us as one who may not move them", async () => {
  await using stage = await openStage();
  const token = await stage.issue({ granted: [grant("team/app", "create")] });
  assert.deepEqual(parts(token).body["access"], [{ type: "repository", name: "team/app", actions: ["push"] }]);
  assert.deepEqual((await stage.tokens.verify(token)).granted, new Map([["team/app", new Set(["create"])]]));
});

test("a name that means two repositories, to pull and to push, grants each its own", async () => {
  await using stage = await openStage();
  const name = "team/app" as RepositoryName;
  const token = await stage.issue({
    granted: [
      { name, repository: `docker.io/${name}` as RepositoryName, verbs: new Set(["pull"]) },
      { name, repository: name, verbs: new Set(["create", "push"]) },
    ],
  });
  assert.deepEqual(parts(token).body["access"], [{ type: "repository", name, actions: ["pull", "push"] }]);
  assert.deepEqual(
    (await stage.tokens.verify(token)).granted,
    new Map([
      ["docker.io/team/app", new Set(["pull"])],
      ["team/app", new Set(["create", "push"])],
    ]),
  );
});

test("every kind of principal is known again", async () => {
  await using stage = await openStage();
  const limits: Limit[] = [{ repositories: ["team/**"], verbs: ["pull"] }];
  const kinds: [Principal, string, unknown][] = [
    [{ ...ALICE, limits }, "alice", { kind: "user", id: 7, limits }],
    [{ kind: "robot", id: 3, name: "ci", team: 1, limits }, "ci", { kind: "robot", id: 3 }],
    [{ kind: "file", name: "bob", role: "viewer" }, "bob", { kind: "file", name: "bob" }],
    [{ kind: "operator" }, "operator", { kind: "operator" }],
    [{ kind: "anonymous" }, "", { kind: "anonymous" }],
    [{ kind: "everybody" }, "", { kind: "anonymous" }],
  ];
  for (const [principal, subject, who] of kinds) {
    const token = await stage.issue({ principal });
    assert.equal(parts(token).body["sub"], subject);
    assert.deepEqual((await stage.tokens.verify(token)).who, who);
  }
});

test("limits that are too long for a token leave what it grants, and nothing beside", async () => {
  await using stage = await openStage();
  const limits = [
    {
      repositories: Array.from({ length: 50 }, (_, index) => `team/${"x".repeat(200)}${index}`),
      verbs: ["pull" as const],
    },
  ];
  const token = await stage.issue({ principal: { ...ALICE, limits }, granted: [grant("team/app", "pull")] });
  const { who } = await stage.tokens.verify(token);
  assert.deepEqual(who, { kind: "user", id: 7, limits: [{ repositories: ["team/app"], verbs: ["pull"] }] });
});

test("a token for another registry tells it no more than it asks for, and is not taken here", async () => {
  await using stage = await openStage();
  const token = await stage.issue({ audience: "other.example.com" });
  const { body } = parts(token);
  assert.equal(body["aud"], "other.example.com");
  assert.equal(body["entrepot"], undefined);
  await stage.refused(token);
});

test("however much is granted, a token fits into a request's head and is taken", async () => {
  await using stage = await openStage();
  const name = fc.stringMatching(/^[a-z0-9]{1,255}$/);
  const request = fc.record({
    names: fc.array(name, { maxLength: 100 }),
    limits: fc.option(
      fc.array(fc.record({ repositories: fc.array(name, { maxLength: 50 }), verbs: fc.constant<Verb[]>(["pull"]) })),
    ),
  });
  await fc.assert(
    fc.asyncProperty(request, async ({ names, limits }) => {
      const token = await stage.issue({
        principal: { ...ALICE, name: "a".repeat(64), limits: limits ?? undefined },
        granted: names.map((name) => grant(name, "pull", "create", "push", "delete")),
        catalog: true,
      });
      assert.ok(token.length < 8_000, `${token.length} characters`);
      const { granted } = await stage.tokens.verify(token);
      assert.deepEqual([...granted.keys()], [...new Set(names)].slice(0, granted.size));
    }),
    { numRuns: 50 },
  );
});

test("tokens by the former key are good until they end", async () => {
  await using stage = await openStage();
  stage.nowMs += 90 * DAY_MS - 60_000;
  const before = await stage.issue();
  stage.nowMs += 60_000;
  await stage.tokens.rotate();
  const after = await stage.issue();
  assert.notEqual(parts(after).head["kid"], parts(before).head["kid"]);
  await stage.tokens.verify(before);
  await stage.tokens.verify(after);
  stage.nowMs += LIFE_MS;
  await stage.refused(before);
});

test("an expired token is refused, after half a minute for clocks that differ", async () => {
  await using stage = await openStage();
  const token = await stage.issue();
  stage.nowMs += LIFE_MS + 29_000;
  await stage.tokens.verify(token);
  stage.nowMs += 1_000;
  assert.match((await stage.refused(token)).message, /expired/);
});

test("a token from the future is refused", async () => {
  await using stage = await openStage();
  const token = await stage.issue();
  stage.nowMs -= 90_000;
  await stage.tokens.verify(token);
  stage.nowMs -= 1_000;
  await stage.refused(token);
});

test("alg=none is refused", async () => {
  await using stage = await openStage();
  const { head, body } = parts(await stage.issue());
  for (const alg of ["none", "None", "", undefined]) {
    for (const signature of ["", "AAAA"])
      await stage.refused(`${encode({ ...head, alg })}.${encode(body)}.${signature}`);
  }
});

test("HS256 with the public key for a secret is refused", async () => {
  await using stage = await openStage();
  const { head, body } = parts(await stage.issue());
  const [jwk] = stage.tokens.jwks().keys;
  assert.ok(jwk);
  const publicKey = createPublicKey({ key: jwk, format: "jwk" });
  const secrets = [
    publicKey.export({ type: "spki", format: "pem" }),
    publicKey.export({ type: "spki", format: "der" }),
    JSON.stringify(jwk),
    stage.tokens.certificates(),
  ];
  for (const secret of secrets) {
    const text = `${encode({ ...head, alg: "HS256" })}.${encode(body)}`;
    await stage.refused(`${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`);
  }
});

test("a key that the token brings along is not trusted: jwk, jku, x5u, x5c", async () => {
  await using stage = await openStage();
  const { head, body } = parts(await stage.issue());
  const { privateKey, publicKey } = foreign;
  const jwk = { ...publicKey.export({ format: "jwk" }), kid: head["kid"], alg: "ES256" };
  const der = publicKey.export({ type: "spki", format: "der" }).toString("base64");
  for (const offered of [
    { jwk },
    { jku: "http://127.0.0.1:9/keys.json" },
    { x5u: "http://127.0.0.1:9/chain.pem" },
    { x5c: [der] },
    { jwk, kid: undefined },
    { jwk, x5c: [der], kid: "ABCD" },
  ]) {
    await stage.refused(es256({ ...head, ...offered }, body, privateKey));
  }
});

test("another's key under the name of ours, and names that we never gave, are refused", async () => {
  await using stage = await openStage();
  const { head, body } = parts(await stage.issue());
  await stage.refused(es256(head, body, foreign.privateKey));
  for (const kid of [undefined, "", "__proto__", "constructor", 7, null, ["a"], "../../etc/passwd"]) {
    await stage.refused(es256({ ...head, kid }, body, foreign.privateKey));
  }
});

test("tokens for another audience, by another issuer, of another type or without an end are refused, though our key signed them", async () => {
  await using stage = await openStage();
  const { head, body } = parts(await stage.issue());
  const signed = (more: Part, claims: Part): string =>
    es256({ ...head, ...more }, { ...body, ...claims }, stage.privateKey);
  await stage.tokens.verify(signed({}, {}));
  for (const claims of [
    { aud: "other.example.com" },
    { aud: undefined },
    { aud: [SERVICE] },
    { aud: [SERVICE, "other.example.com"] },
    { iss: "other.example.com" },
    { iss: undefined },
    { exp: undefined },
    { nbf: undefined },
    { exp: "4000000000" },
    { exp: 1e300 },
    { entrepot: undefined },
    { entrepot: { who: { kind: "administrator" }, granted: [] } },
    { entrepot: { who: { kind: "user", id: "7" }, granted: [] } },
    { entrepot: { who: { kind: "anonymous" }, granted: [["../x", ["pull"]]] } },
    { entrepot: { who: { kind: "anonymous" }, granted: [["a", ["all"]]] } },
  ]) {
    await stage.refused(signed({}, claims));
  }
  for (const more of [
    { typ: "at+jwt" },
    { typ: undefined },
    { crit: ["b64"], b64: false },
    { crit: ["x"], x: 1 },
    { alg: "ES384" },
  ]) {
    await stage.refused(signed(more, {}));
  }
});

test("tokens that are cut, changed, doubled, or a megabyte long (CVE-2025-24976) are refused", async () => {
  await using stage = await openStage();
  const token = await stage.issue();
  const [head = "", body = "", signature = ""] = token.split(".");
  for (let length = 0; length < token.length; length += 7) await stage.refused(token.slice(0, length));
  const { body: claims } = parts(token);
  await stage.refused(`${head}.${encode({ ...claims, sub: "root" })}.${signature}`);
  await stage.refused(`${head}.${body}.${Buffer.alloc(64).toString("base64url")}`);
  await stage.refused(`${head}.${body}.`);
  await stage.refused(`${token}.${signature}`);
  await stage.refused(`${token} `);
  const startedMs = performance.now();
  for (const long of [
    "a".repeat(1_000_000),
    ".".repeat(1_000_000),
    `${head}.${"a".repeat(1_000_000)}.${signature}`,
    `${token}${"A".repeat(1_000_000)}`,
  ]) {
    await stage.refused(long);
  }
  assert.ok(performance.now() - startedMs < 1_000, "their length alone is reason enough");
});

test("no text is taken for a token, whatever it is made of", async () => {
  await using stage = await openStage();
  const token = await stage.issue();
  const pieces = fc.array(fc.oneof(fc.constantFrom(...token.split("."), ".", ".."), fc.string({ unit: "binary" })), {
    maxLength: 6,
  });
  await fc.assert(
    fc.asyncProperty(pieces, async (pieces) => {
      const text = pieces.join("");
      fc.pre(text !== token);
      await stage.refused(text);
    }),
  );
});

test("the service is called as configured, else by the host of the public URL, else entrepot", () => {
  const named = (more: Part): string => serviceName(parseConfig(more));
  assert.equal(named({}), "entrepot");
  assert.equal(named({ server: { publicUrl: "https://registry.example.com:8443" } }), "registry.example.com:8443");
  assert.equal(
    named({ server: { publicUrl: "https://a.example.com" }, access: { tokens: { service: "Ours" } } }),
    "Ours",
  );
});
