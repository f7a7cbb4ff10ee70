import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startSink } from "../kit/sink.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { fault, openRemote, startScript } from "./remotes.ts";

const image = makeImage({ layers: [1000], seed: "auth" });
const users = { ann: "s3cret" };
const auth = { username: "ann", password: "s3cret" };

function unauthorizedAnswers(upstream: Upstream): number {
  return upstream.requests.filter(({ status, path }) => status === 401 && path !== "/token").length;
}

test("after the first challenge every request carries its token at once", async () => {
  await using upstream = await startUpstream({ auth: { kind: "bearer", users } });
  for (const name of ["a/one", "a/two"]) upstream.add(name, "v1", image);
  await using opened = await openRemote(upstream.url, { auth });
  assert.ok(await opened.remote.headManifest("a/one", "v1"));
  assert.ok(await opened.remote.getManifest("a/one", "v1"));
  assert.ok(await opened.remote.headManifest("a/two", "v1"));
  assert.equal(unauthorizedAnswers(upstream), 1);
  assert.equal(upstream.tokensIssued, 2);
  const scopes = upstream.requests.filter(({ path }) => path === "/token").map(({ query }) => query.get("scope"));
  assert.deepEqual(scopes, ["repository:a/one:pull", "repository:a/two:pull"]);
});

test("without credentials the token is asked for anonymously", async () => {
  await using upstream = await startUpstream({ auth: { kind: "bearer", anonymousPull: true } });
  upstream.add("a/one", "v1", image);
  await using opened = await openRemote(upstream.url);
  assert.ok(await opened.remote.getManifest("a/one", "v1"));
  const token = upstream.requests.find(({ path }) => path === "/token");
  assert.equal(token?.headers.authorization, undefined);
  assert.equal(token?.headers["accept-encoding"], "identity");
});

test("basic authentication: challenged once, sent from then on", async () => {
  await using upstream = await startUpstream({ auth: { kind: "basic", users } });
  upstream.add("a/one", "v1", image);
  await using opened = await openRemote(upstream.url, { auth });
  await opened.remote.ping();
  assert.ok(await opened.remote.getManifest("a/one", "v1"));
  assert.equal(unauthorizedAnswers(upstream), 1);
  await using anonymous = await openRemote(upstream.url);
  await assert.rejects(anonymous.remote.ping(), fault("unauthorized", /wants credentials.*set auth/));
});

test("wrong credentials are a clear error without a secret in it, and other endpoints do not stand in", async () => {
  for (const kind of ["bearer", "basic"] as const) {
    await using upstream = await startUpstream({ auth: { kind, users } });
    upstream.add("a/one", "v1", image);
    await using opened = await openRemote(upstream.url, { auth: { username: "ann", password: "wr0ng" } });
    await assert.rejects(opened.remote.getManifest("a/one", "v1"), (error) => {
      assert.ok(fault("unauthorized", /check auth/)(error));
      assert.ok(error instanceof Error && !error.message.includes("wr0ng"));
      assert.equal("othersMayAnswer" in error && error.othersMayAnswer, false);
      return true;
    });
    assert.ok(upstream.hits("GET") <= 3, `${upstream.hits("GET")} requests`);
  }
});

test("twenty cold requests ask for one token", async () => {
  await using upstream = await startUpstream({ auth: { kind: "bearer", users }, firstByteDelayMs: 20 });
  upstream.add("a/one", "v1", image);
  await using opened = await openRemote(upstream.url, { auth });
  const found = await Promise.all(Array.from({ length: 20 }, () => opened.remote.getManifest("a/one", "v1")));
  assert.ok(found.every((manifest) => manifest !== undefined));
  assert.equal(upstream.tokensIssued, 1);
});

test("a token is renewed in the background after three quarters of its life, and not used after its end", async () => {
  await using upstream = await startUpstream({ auth: { kind: "bearer", users, expiresInSeconds: 300 } });
  upstream.add("a/one", "v1", image);
  await using opened = await openRemote(upstream.url, { auth });
  const { remote, clock } = opened;
  const sent = () =>
    upstream.requests.filter(({ method }) => method === "HEAD").map(({ headers }) => headers.authorization);
  await remote.headManifest("a/one", "v1");
  clock.nowMs += 224_000;
  await remote.headManifest("a/one", "v1");
  assert.equal(upstream.tokensIssued, 1);
  clock.nowMs += 2000;
  await remote.headManifest("a/one", "v1");
  await upstream.waitFor(
    () => upstream.requests.filter(({ path, state }) => path === "/token" && state === "complete").length === 2,
  );
  const [, first, second, third] = sent();
  assert.ok(first !== undefined && first === second && second === third);
  clock.nowMs += 301_000;
  await remote.headManifest("a/one", "v1");
  assert.equal(upstream.tokensIssued, 3);
  assert.notEqual(sent().at(-1), first);
  assert.equal(unauthorizedAnswers(upstream), 1);
});

test("a token that is refused is dropped, and another asked for, once", async () => {
  await using upstream = await startUpstream({ auth: { kind: "bearer", users } });
  upstream.add("a/one", "v1", image);
  await using opened = await openRemote(upstream.url, { auth });
  await opened.remote.headManifest("a/one", "v1");
  upstream.revokeTokens();
  assert.ok(await opened.remote.headManifest("a/one", "v1"));
  assert.equal(upstream.tokensIssued, 2);
});

test("a registry that is never content ends as unauthorized, not in a loop", async () => {
  await using server = await startScript(({ path }, response) => {
    if (path === "/token") response.end('{"token":"t"}');
    else response.writeHead(401, { "www-authenticate": `Bearer realm="${server.url}/token"` }).end();
  });
  await using opened = await openRemote(server.url);
  await assert.rejects(opened.remote.headManifest("a/one", "v1"), fault("unauthorized", /does not exist/));
  assert.deepEqual(
    server.requests.map(({ path }) => path),
    ["/v2/a/one/manifests/v1", "/token", "/v2/a/one/manifests/v1"],
  );
});

test("a challenge's own scope is asked for, and remembered; a life of a minute where none is told", async () => {
  const scopes: string[][] = [];
  await using server = await startScript(({ path, query, headers }, response) => {
    const challenge = `Bearer realm="${server.url}/token?tenant=7",service="s",scope="aws extra:*:x"`;
    if (path === "/token") {
      assert.equal(query.get("tenant"), "7");
      scopes.push(query.getAll("scope"));
      response.end(`{"access_token":"t${scopes.length}"}`);
    } else if (headers.authorization === undefined) response.writeHead(401, { "www-authenticate": challenge }).end();
    else response.end("{}");
  });
  await using opened = await openRemote(server.url);
  await opened.remote.headManifest("a/one", "v1");
  opened.clock.nowMs += 44_000;
  await opened.remote.headManifest("a/one", "v1");
  assert.deepEqual(scopes, [["aws", "extra:*:x"]]);
  assert.equal(server.requests.at(-1)?.headers.authorization, "Bearer t1");
  opened.clock.nowMs += 17_000;
  await opened.remote.headManifest("a/one", "v1");
  assert.equal(server.requests.at(-1)?.headers.authorization, "Bearer t2");
  assert.equal(server.hits("HEAD"), 4);
});

test("an urgent request waits three seconds for a token at most; the fetch goes on for others", async () => {
  await using upstream = await startUpstream({ auth: { kind: "bearer", users } });
  upstream.add("a/one", "v1", image);
  const gate = upstream.hold({ path: "/token" });
  await using opened = await openRemote(upstream.url, {
    auth,
    timeouts: { connect: 5000, firstByte: 15_000, progress: 15_000 },
  });
  const patient = opened.remote.headManifest("a/one", "v1");
  await gate.reached;
  await using hurried = await openRemote(upstream.url, {
    auth,
    timeouts: { connect: 5000, firstByte: 200, progress: 5000 },
  });
  await assert.rejects(hurried.remote.headManifest("a/one", "v1", { urgent: true }), fault("timeout", /logged in/));
  gate.release();
  assert.ok(await patient);
});

test("a realm that moved is found by a new challenge", async () => {
  await using realm = await startSink({ status: 500 });
  let path = "/old";
  await using server = await startScript((request, response) => {
    const challenge = { "www-authenticate": `Bearer realm="${realm.url}${path}"` };
    if (request.headers.authorization === undefined) response.writeHead(401, challenge).end();
    else response.end("{}");
  });
  await using opened = await openRemote(server.url, { realms: [`127.0.0.1:${realm.port}`] }, 1);
  await assert.rejects(opened.remote.headManifest("a/one", "v1"), fault("server", /500/));
  realm.answerWith({ status: 200, body: '{"token":"fresh"}' });
  path = "/new";
  assert.ok(await opened.remote.headManifest("a/one", "v1"));
  assert.deepEqual(
    realm.requests.map((request) => request.path),
    ["/old", "/new"],
  );
});

test("while the token realm rests, the registry counts as down", async () => {
  await using realm = await startSink({ status: 503 });
  await using server = await startSink({
    status: 401,
    headers: { "www-authenticate": `Bearer realm="${realm.url}"` },
  });
  await using opened = await openRemote(server.url, { realms: [`127.0.0.1:${realm.port}`] }, 1);
  for (let n = 0; n < 5; n++) await assert.rejects(opened.remote.ping(), fault("server", /503/));
  await assert.rejects(opened.remote.ping(), fault("circuitOpen"));
  assert.equal(opened.remote.state.up, false);
  assert.equal(realm.hits(), 5);
});
