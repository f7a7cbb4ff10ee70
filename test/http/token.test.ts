import assert from "node:assert/strict";
import { createPublicKey, X509Certificate, type JsonWebKey } from "node:crypto";
import { readFile } from "node:fs/promises";
import { request as send } from "node:http";
import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import { join } from "node:path";
import { test } from "node:test";
import { jwtVerify } from "jose";
import { startRegistry, type Answer, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";

interface Claims {
  aud: string;
  iss: string;
  sub: string;
  access: { type: string; name: string; actions: string[] }[];
  entrepot?: { granted: [string, string[]][] };
}

interface Stage extends AsyncDisposable {
  registry: TestRegistry;
  /** By the API, as the operator. */
  call(method: string, path: string, body: unknown): Promise<Record<string, unknown>>;
  /** Asks for a token by GET. */
  ask(query: string, authorization?: string): Promise<Claims>;
}

const ELSEWHERE = "other.example.com";
const PASSWORD = "correct horse battery staple";

const basic = (name: string, password: string): string =>
  `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}`;

function json({ bytes }: Answer): unknown {
  return JSON.parse(bytes.toString());
}

/** A daemon with users alice (an administrator) and bob (a contributor of a team), and namespaces team (the team's), open (public) and shut. */
async function openStage(upstreams: Record<string, { url: string; visibility?: string }> = {}): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const registry = stack.use(
    await startRegistry({
      upstreams,
      config: { access: { open: false, tokens: { audiences: [ELSEWHERE] } } },
    }),
  );
  const authorization = `Bearer ${(await readFile(join(registry.root, "operator-secret"), "utf8")).trim()}`;
  const headers = { authorization, "content-type": "application/json" };
  const call: Stage["call"] = async (method, path, body) => {
    const answer = await registry.send(method, `/api/v1${path}`, headers, JSON.stringify(body));
    assert.ok(answer.status < 300, `${method} ${path}: ${answer.status} ${answer.bytes.toString()}`);
    return answer.bytes.length === 0 ? {} : (json(answer) as Record<string, unknown>);
  };
  await call("POST", "/users", { name: "alice", password: PASSWORD });
  await call("POST", "/users", { name: "bob", password: PASSWORD });
  await call("POST", "/teams", { name: "builders" });
  await call("PUT", "/teams/builders/members/bob", { role: "contributor" });
  await call("POST", "/namespaces", { name: "team", owner: { kind: "team", name: "builders" } });
  await call("POST", "/namespaces", { name: "open", visibility: "public" });
  await call("POST", "/namespaces", { name: "shut" });
  const owned = stack.move();
  return {
    registry,
    call,
    ask: async (query, authorization) => {
      const answer = await registry.get(`/token?${query}`, authorization === undefined ? {} : { authorization });
      assert.equal(answer.status, 200, answer.bytes.toString());
      return claimsOf(registry, (json(answer) as { token: string }).token);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Proven by the published keys. */
async function claimsOf(registry: TestRegistry, token: string): Promise<Claims> {
  const { keys } = json(await registry.get("/token/jwks.json")) as { keys: (JsonWebKey & { kid: string })[] };
  const { payload } = await jwtVerify(token, ({ kid }) => {
    const key = keys.find((one) => one.kid === kid);
    assert.ok(key);
    return createPublicKey({ key, format: "jwk" });
  });
  return payload as unknown as Claims;
}

function post(
  registry: TestRegistry,
  fields: Record<string, string> | string,
  type = "application/x-www-form-urlencoded",
): Promise<Answer> {
  return registry.send("POST", "/token", { "content-type": type }, new URLSearchParams(fields).toString());
}

const actions = ({ access }: Claims): Record<string, string[]> =>
  Object.fromEntries(access.map(({ name, actions }) => [name, actions]));

test("a token comes as clients read it, and is stored nowhere on its way", async () => {
  await using stage = await openStage();
  const answer = await stage.registry.get("/token?service=entrepot&scope=repository:team/app:pull", {
    authorization: basic("bob", PASSWORD),
  });
  assert.equal(answer.headers["cache-control"], "no-store");
  const body = json(answer) as Record<string, unknown>;
  assert.equal(body["token"], body["access_token"]);
  assert.equal(body["expires_in"], 300);
  assert.match(String(body["issued_at"]), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z$/);
  assert.equal(body["refresh_token"], undefined);
});

test("what is granted is what was asked for and is allowed: less is still a token", async () => {
  await using stage = await openStage();
  const scopes = ["team/app", "open/app", "shut/app"]
    .map((name) => `scope=repository:${name}:pull,push,delete`)
    .join("&");
  const asAlice = await stage.ask(scopes, basic("alice", PASSWORD));
  assert.deepEqual(actions(asAlice), {
    "team/app": ["pull", "push", "delete"],
    "open/app": ["pull", "push", "delete"],
    "shut/app": ["pull", "push", "delete"],
  });
  assert.deepEqual(
    { aud: asAlice.aud, iss: asAlice.iss, sub: asAlice.sub },
    { aud: "entrepot", iss: "entrepot", sub: "alice" },
  );
  assert.deepEqual(actions(await stage.ask(scopes, basic("bob", PASSWORD))), {
    "team/app": ["pull", "push"],
    "open/app": ["pull"],
  });
  const asNobody = await stage.ask(scopes);
  assert.equal(asNobody.sub, "");
  assert.deepEqual(actions(asNobody), { "open/app": ["pull"] });
});

test("nothing is granted that was not asked for", async () => {
  await using stage = await openStage();
  const alice = basic("alice", PASSWORD);
  assert.deepEqual((await stage.ask("scope=repository:team/app:pull", alice)).entrepot?.granted, [
    ["team/app", ["pull"]],
  ]);
  assert.deepEqual((await stage.ask("service=entrepot", alice)).access, []);
  for (const scope of [
    "repository:TEAM/App:pull",
    "repository:team/app",
    "repository:team/app:own",
    "project:team/app:pull",
    "repository:127.0.0.1:5000/team/app:pull",
    "%00",
    "repository:../team:pull",
  ]) {
    assert.deepEqual((await stage.ask(`scope=${scope}`, alice)).access, [], scope);
  }
});

test("the subject is who the credentials say, never the account parameter", async () => {
  await using stage = await openStage();
  assert.equal((await stage.ask("account=alice&scope=repository:shut/app:pull", basic("bob", PASSWORD))).sub, "bob");
  assert.equal((await stage.ask("account=alice")).sub, "");
});

test("whoever has logged in may list the catalog", async () => {
  await using stage = await openStage();
  const catalog = [{ type: "registry", name: "catalog", actions: ["*"] }];
  assert.deepEqual((await stage.ask("scope=registry:catalog:*", basic("bob", PASSWORD))).access, catalog);
  assert.deepEqual((await stage.ask("scope=registry:catalog:*")).access, []);
});

test("a name is granted as the client spelt it, and known to us by its full name", async () => {
  await using hub = await startUpstream({});
  await using stage = await openStage({ "docker.io": hub });
  const claims = await stage.ask("scope=repository:alpine:pull+repository:library/alpine:pull", basic("bob", PASSWORD));
  assert.deepEqual(actions(claims), { alpine: ["pull"], "library/alpine": ["pull"] });
  assert.deepEqual(claims.entrepot?.granted, [["docker.io/library/alpine", ["pull"]]]);
});

test("a robot that may only make tags is let push, and kept from moving them", async () => {
  await using stage = await openStage();
  const { secret } = await stage.call("POST", "/robots", {
    name: "ci",
    team: "builders",
    limits: [{ repositories: ["team/**"], verbs: ["pull", "create"] }],
    expires: "30d",
  });
  for (const authorization of [`Bearer ${String(secret)}`, basic("ci", String(secret))]) {
    const here = await stage.ask("scope=repository:team/app:pull,push,delete", authorization);
    assert.equal(here.sub, "ci");
    assert.deepEqual(actions(here), { "team/app": ["pull", "push"] });
    assert.deepEqual(here.entrepot?.granted, [["team/app", ["pull", "create"]]]);
    // Another registry would let it move tags.
    const elsewhere = await stage.ask(`service=${ELSEWHERE}&scope=repository:team/app:pull,push,delete`, authorization);
    assert.deepEqual(actions(elsewhere), { "team/app": ["pull"] });
  }
});

test("for another registry, names are those of hosted repositories: what anybody may pull through here is not meant", async () => {
  await using hub = await startUpstream({});
  await using stage = await openStage({ "docker.io": hub });
  const scopes = ["alpine", "library/alpine", "docker.io/library/alpine", "else/app", "open/app"].map(
    (name) => `scope=repository:${name}:pull,push`,
  );
  const ask = (authorization?: string): Promise<Claims> =>
    stage.ask(`service=${ELSEWHERE}&scope=registry:catalog:*&${scopes.join("&")}`, authorization);
  const asNobody = await ask();
  assert.equal(asNobody.aud, ELSEWHERE);
  assert.equal(asNobody.entrepot, undefined);
  assert.deepEqual(actions(asNobody), { "open/app": ["pull"] });
  assert.deepEqual(
    actions(await ask(basic("bob", PASSWORD))),
    { "open/app": ["pull"] },
    "bob may not list all that the other one has",
  );
  assert.deepEqual(actions(await ask(basic("alice", PASSWORD)))["catalog"], ["*"]);
  const { token } = json(await stage.registry.get(`/token?service=${ELSEWHERE}&scope=repository:open/app:pull`)) as {
    token: string;
  };
  const refused = await stage.registry.get("/v2/open/app/tags/list", { authorization: `Bearer ${token}` });
  assert.equal(refused.status, 401);
  assert.match(String(refused.headers["www-authenticate"]), /error="invalid_token"/);
});

test("for a service that it does not know it issues nothing", async () => {
  await using stage = await openStage();
  const answer = await stage.registry.get("/token?service=evil.example.com", { authorization: basic("bob", PASSWORD) });
  assert.equal(answer.status, 400);
  assert.equal((json(answer) as { error: string }).error, "invalid_request");
  assert.equal(await stage.registry.metric("entrepot_tokens_issued_total", { result: "invalid" }), 1);
});

test("wrong credentials are told as docker prints them, and do not lead in a circle", async () => {
  await using stage = await openStage();
  const { registry } = stage;
  for (const answer of [
    await registry.get("/token?service=entrepot", { authorization: basic("bob", "wrong") }),
    await registry.get("/token", { authorization: basic("nobody", PASSWORD) }),
    await registry.get("/token", { authorization: `Bearer entrepot_${"A".repeat(43)}` }),
    await post(registry, { grant_type: "password", service: "entrepot", username: "bob", password: "wrong" }),
  ]) {
    assert.equal(answer.status, 401);
    assert.equal(answer.headers["www-authenticate"], 'Basic realm="entrepot"');
    assert.equal(answer.headers["cache-control"], "no-store");
    const { errors, error } = json(answer) as { error: string; errors: { code: string }[] };
    assert.equal(errors[0]?.code, "UNAUTHORIZED");
    assert.equal(error, "invalid_grant");
  }
  assert.equal(await registry.metric("entrepot_tokens_issued_total", { result: "unauthorized" }), 4);
});

test("credentials for another registry do not keep anybody from pulling what is public through the mirror", async () => {
  await using hub = await startUpstream();
  await using stage = await openStage({
    "docker.io": { url: hub.url },
    "closed.example": { url: hub.url, visibility: "private" },
  });
  const { registry } = stage;
  const elsewhere = { username: "jane", password: "the password at Docker Hub" };
  const authorization = basic(elsewhere.username, elsewhere.password);
  const scope = "repository:library/alpine:pull";
  const asked = await stage.ask(`service=entrepot&scope=${scope}`, authorization);
  assert.deepEqual({ sub: asked.sub, actions: actions(asked) }, { sub: "", actions: { "library/alpine": ["pull"] } });
  const form = await post(registry, { grant_type: "password", service: "entrepot", scope, ...elsewhere });
  assert.equal(form.status, 200);
  assert.equal((await claimsOf(registry, (json(form) as { token: string }).token)).sub, "");

  for (const query of [
    "",
    "service=entrepot",
    "scope=registry:catalog:*",
    "scope=repository:library/alpine:pull,push",
    "scope=repository:open/app:pull",
    "scope=repository:team/app:pull",
    "scope=repository:closed.example/app:pull",
    `scope=${scope}&scope=repository:team/app:pull`,
    `service=${ELSEWHERE}&scope=${scope}`,
  ])
    assert.ok([401, 429].includes((await registry.get(`/token?${query}`, { authorization })).status), query);

  // Nor do the brakes: nothing is learnt of a password that is not looked at.
  const guess = (i: number): Record<string, string> => ({ authorization: basic(elsewhere.username, `guess ${i}`) });
  for (let i = 0; (await registry.get("/token", guess(i))).status !== 429; i++) assert.ok(i < 100);
  assert.equal((await stage.ask(`scope=${scope}`, authorization)).sub, "");
});

test("too many wrong passwords are slowed down, and told for how long", async () => {
  await using stage = await openStage();
  let answer: Answer;
  let tries = 0;
  do answer = await stage.registry.get("/token", { authorization: basic("bob", `wrong ${++tries}`) });
  while (answer.status === 401 && tries < 100);
  assert.equal(answer.status, 429);
  assert.ok(Number(answer.headers["retry-after"]) > 0);
  assert.equal(await stage.registry.metric("entrepot_tokens_issued_total", { result: "slowed" }), 1);
});

test("a form with a name and password gets the same token, and no refresh token", async () => {
  await using stage = await openStage();
  const answer = await post(stage.registry, {
    grant_type: "password",
    service: "entrepot",
    client_id: "containerd-client",
    access_type: "offline",
    scope: "repository:team/app:pull,push repository:shut/app:pull",
    username: "bob",
    password: PASSWORD,
  });
  assert.equal(answer.status, 200, answer.bytes.toString());
  const body = json(answer) as { token: string; refresh_token?: string };
  assert.equal(body.refresh_token, undefined);
  const claims = await claimsOf(stage.registry, body.token);
  assert.equal(claims.sub, "bob");
  assert.deepEqual(actions(claims), { "team/app": ["pull", "push"] });
});

test("a form without a Content-Length is read", async () => {
  await using stage = await openStage();
  const request = send(`${stage.registry.url}/token`, {
    method: "POST",
    headers: { "content-type": "application/x-www-form-urlencoded; charset=utf-8", "transfer-encoding": "chunked" },
    agent: false,
  });
  request.write("grant_type=password&username=bob&");
  request.end(`password=${encodeURIComponent(PASSWORD)}`);
  const [response] = (await once(request, "response")) as [IncomingMessage];
  assert.equal(response.statusCode, 200);
  response.resume();
  await once(response, "end");
});

test("a form that asks in another way is refused as RFC 6749 says", async () => {
  await using stage = await openStage();
  const { registry } = stage;
  const bob = { username: "bob", password: PASSWORD };
  const refused: [Record<string, string>, string][] = [
    [{ grant_type: "refresh_token", refresh_token: "x", service: "entrepot" }, "unsupported_grant_type"],
    [{ grant_type: "client_credentials", ...bob }, "unsupported_grant_type"],
    [{ ...bob }, "invalid_request"],
    [{ grant_type: "password" }, "invalid_request"],
    [{ grant_type: "password", username: "bob" }, "invalid_request"],
    [{ grant_type: "password", ...bob, service: "evil" }, "invalid_request"],
  ];
  for (const [fields, code] of refused) {
    const answer = await post(registry, fields);
    assert.equal(answer.status, 400);
    assert.equal((json(answer) as { error: string }).error, code);
  }
  assert.equal((await post(registry, { grant_type: "password", ...bob }, "application/json")).status, 400);
  assert.equal((await post(registry, { scope: "a".repeat(70_000) })).status, 413);
  const put = await registry.send("PUT", "/token");
  assert.equal(put.status, 405);
  assert.equal(put.headers["allow"], "GET, POST");
});

test("a token does not get another one: a stolen one ends", async () => {
  await using stage = await openStage();
  const { registry } = stage;
  const { token } = json(
    await registry.get("/token?scope=repository:team/app:pull", { authorization: basic("bob", PASSWORD) }),
  ) as { token: string };
  const again = await registry.get("/token?scope=repository:team/app:pull", { authorization: `Bearer ${token}` });
  assert.equal(again.status, 401);
});

test("a token does what it was granted: to pull, to push, and nothing beside", async () => {
  await using stage = await openStage();
  const { registry } = stage;
  const bearer = async (scope: string): Promise<{ authorization: string }> => {
    const answer = await registry.get(`/token?scope=${scope}`, { authorization: basic("bob", PASSWORD) });
    return { authorization: `Bearer ${(json(answer) as { token: string }).token}` };
  };
  const pull = await bearer("repository:team/app:pull");
  const push = await bearer("repository:team/app:pull,push");
  const begin = (headers: Record<string, string>, name: string): Promise<Answer> =>
    registry.send("POST", `/v2/${name}/blobs/uploads/`, headers);
  assert.equal((await begin(push, "team/app")).status, 202);
  const refused = await begin(pull, "team/app");
  assert.equal(refused.status, 401, "another token would help");
  assert.match(
    String(refused.headers["www-authenticate"]),
    /^Bearer realm="http:\/\/127\.0\.0\.1:\d+\/token",service="entrepot",scope="repository:team\/app:pull,push",error="insufficient_scope"$/,
  );
  assert.equal((await begin(push, "team/other")).status, 401);
  assert.equal((await begin(push, "shut/app")).status, 403, "no token would help");
  assert.equal((await registry.get("/v2/team/app/tags/list", pull)).status, 404, "there is none yet");
});

test("other registries find the authority's certificate and the keys", async () => {
  await using stage = await openStage();
  const certificates = await stage.registry.get("/token/certificates.pem");
  assert.equal(new X509Certificate(certificates.bytes).ca, true);
  const keys = await stage.registry.get("/token/jwks.json");
  assert.equal(keys.headers["content-type"], "application/jwk-set+json");
  assert.ok(!keys.bytes.toString().includes('"d"'), "the private half stays here");
});
