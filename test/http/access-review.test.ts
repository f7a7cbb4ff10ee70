/** Ways around who may do what, that have no home elsewhere. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { makeImage } from "../kit/images.ts";
import { adminApi, basic, operatorOf, passwordOf, tokenFor } from "../kit/people.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { connectTo } from "./raw.ts";

type Headers = Record<string, string>;

const EMPTY = Buffer.from(
  JSON.stringify({ schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [] }),
);

async function withUsers(users: string[], config: Record<string, unknown> = {}): Promise<TestRegistry> {
  const registry = await startRegistry({ config: { access: { open: false }, ...config } });
  const admin = await adminApi(registry);
  for (const name of users)
    await admin("POST", "/users", { name, password: passwordOf(name), admin: name.startsWith("root") });
  return registry;
}

/** Sends a request whose body ends only after something else has happened. @returns the answer's status line and what follows */
async function slowly(
  registry: TestRegistry,
  head: string,
  headers: Headers,
  body: Buffer,
  meanwhile: () => Promise<unknown>,
): Promise<string> {
  const { port } = new URL(registry.url);
  using connection = await connectTo(registry.url);
  // What it presents is known already: the request gets as far as its body.
  assert.equal((await registry.get("/v2/", headers)).status, 200);
  const before = await registry.metric("entrepot_http_requests_in_flight");
  connection.send(
    `${head} HTTP/1.1`,
    `host: 127.0.0.1:${port}`,
    `content-length: ${body.length}`,
    ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
  );
  connection.socket.write(body.subarray(0, 1));
  await registry.until(
    async () => (await registry.metric("entrepot_http_requests_in_flight")) > before,
    "the request is under way",
  );
  // Its head has been looked at once others, sent later, are answered.
  for (let i = 0; i < 3; i++) assert.equal((await registry.get("/livez")).status, 200);
  await meanwhile();
  connection.socket.write(body.subarray(1));
  await connection.until(/^HTTP\/1\.1 \d{3} .*\r\n\r\n/s);
  return connection.text;
}

test("who is disabled while the body of a request is still coming does nothing with it", async () => {
  await using registry = await withUsers(["root", "root-two"]);
  const admin = await adminApi(registry);
  const body = Buffer.from(JSON.stringify({ name: "evil", password: "a long enough word", admin: true }));
  const json = { ...basic("root-two"), "content-type": "application/json" };
  const told = await slowly(registry, "POST /api/v1/users", json, body, () =>
    admin("PATCH", "/users/root-two", { disabled: true }),
  );
  assert.match(told, /^HTTP\/1\.1 401 /);
  assert.equal((await registry.get("/api/v1/users/evil", await operatorOf(registry))).status, 404);
});

test("who leaves a team while the manifest that it pushes is still coming moves no tag", async () => {
  await using registry = await withUsers(["root", "carl"]);
  const admin = await adminApi(registry);
  await admin("POST", "/teams", { name: "crew" });
  await admin("PUT", "/teams/crew/members/carl", { role: "contributor" });
  await admin("POST", "/namespaces", { name: "crew", owner: { kind: "team", name: "crew" } });
  for (const headers of [basic("carl"), await tokenFor(registry, basic("carl"), "repository:crew/app:pull,push")]) {
    await admin("PUT", "/teams/crew/members/carl", { role: "contributor" });
    const sent = { ...headers, "content-type": "application/vnd.oci.image.index.v1+json" };
    const told = await slowly(registry, "PUT /v2/crew/app/manifests/latest", sent, EMPTY, () =>
      admin("DELETE", "/teams/crew/members/carl"),
    );
    assert.match(told, /^HTTP\/1\.1 403 /);
    const got = await registry.get("/v2/crew/app/manifests/latest", await operatorOf(registry));
    assert.equal(got.status, 404);
  }
});

test("a user's own name that has become a team's namespace meanwhile is not pushed to", async () => {
  await using registry = await withUsers(["root", "bob"]);
  const admin = await adminApi(registry);
  await admin("POST", "/teams", { name: "crew" });
  const sent = { ...basic("bob"), "content-type": "application/vnd.oci.image.index.v1+json" };
  const told = await slowly(registry, "PUT /v2/bob/app/manifests/latest", sent, EMPTY, () =>
    admin("POST", "/namespaces", { name: "bob", owner: { kind: "team", name: "crew" } }),
  );
  assert.match(told, /^HTTP\/1\.1 403 /);
  const got = await registry.get("/v2/bob/app/manifests/latest", await operatorOf(registry));
  assert.equal(got.status, 404);
});

test("a page that stands under a bare address is a stranger's, too", async () => {
  await using registry = await startRegistry();
  const { port } = new URL(registry.url);
  const digest = digestOf(EMPTY);
  const push = async (headers: Headers): Promise<number> =>
    (await registry.send("POST", `/v2/team/app/blobs/uploads/?digest=${digest}`, headers, EMPTY)).status;
  for (const origin of ["http://203.0.113.9", "http://[2001:db8::9]:8080", `http://203.0.113.9:${port}`]) {
    assert.equal(await push({ origin }), 403, origin);
    const json = { origin, "content-type": "application/json" };
    assert.equal((await registry.send("POST", "/api/v1/teams", json, '{"name":"crew"}')).status, 403, origin);
  }
  const lan = `192.0.2.7:${port}`;
  assert.equal(await push({ origin: `http://${lan}`, host: lan }), 201, "its own address is not");
  assert.equal(await push({ origin: registry.url }), 201);
  assert.equal(await push({ origin: `http://localhost:${port}` }), 201);
});

test("a page that lets its own name lead to this machine reads nothing of what is open here", async () => {
  await using registry = await startRegistry();
  const path = `/v2/team/app/blobs/uploads/?digest=${digestOf(EMPTY)}`;
  assert.equal((await registry.send("POST", path, {}, EMPTY)).status, 201);
  const blob = `/v2/team/app/blobs/${digestOf(EMPTY)}`;
  // Every browser says which languages its user reads, and no page can make it not to.
  const page = { host: "evil.example", "accept-language": "en" };
  for (const read of ["/v2/", "/v2/_catalog", blob, "/v1/search?q=team", "/api/v1/repositories"])
    assert.equal((await registry.get(read, page)).status, 403, read);
  assert.equal((await registry.get(blob, { host: "name-in-etc-hosts" })).status, 200, "docker is no browser");
  assert.equal((await registry.get(blob, { "accept-language": "en" })).status, 200);
});

test("what speaks HTTP/1.0 is a proxy that says nothing of whom it speaks for, as nginx does without further words", async () => {
  await using registry = await startRegistry();
  const { port } = new URL(registry.url);
  const status = async (version: string, path: string): Promise<string> => {
    using connection = await connectTo(registry.url);
    connection.send(`GET ${path} HTTP/${version}`, `host: 127.0.0.1:${port}`, "connection: close");
    await connection.until(/^HTTP\/1\.1 \d{3}/);
    return connection.text.slice(9, 12);
  };
  assert.equal(await status("1.1", "/api/v1/status"), "200");
  for (const path of ["/api/v1/status", "/v2/_catalog"]) assert.equal(await status("1.0", path), "401", path);
});

test("the first push to one's own namespace finds nothing there, where the default upstream is not for everybody", async () => {
  await using upstream = await startUpstream();
  await using registry = await startRegistry({
    upstreams: { "docker.io": { url: upstream.url, auth: { username: "u", password: "p" } } },
    config: { access: { open: false } },
  });
  const admin = await adminApi(registry);
  for (const name of ["root", "alice"]) await admin("POST", "/users", { name, password: passwordOf(name) });
  const token = await tokenFor(registry, basic("alice"), "repository:alice/app:pull,push");
  for (const headers of [basic("alice"), token]) {
    for (const path of [`blobs/${digestOf(EMPTY)}`, "manifests/1"])
      assert.equal((await registry.send("HEAD", `/v2/alice/app/${path}`, headers)).status, 404, path);
    assert.equal((await registry.send("HEAD", "/v2/bob/app/manifests/1", headers)).status, 403);
  }
});

test("a digest of private content asked for through what is public of an upstream", async () => {
  const image = makeImage({ layers: [3_000], seed: "private" });
  const known = makeImage({ layers: [100], seed: "public" });
  await using upstream = await startUpstream();
  upstream.add("library/known", "1", known);
  await using registry = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { access: { open: false } },
  });
  const admin = await adminApi(registry);
  for (const name of ["root", "alice"]) await admin("POST", "/users", { name, password: passwordOf(name) });
  for (const blob of image.blobs.values()) {
    const path = `/v2/alice/app/blobs/uploads/?digest=${blob.digest}`;
    assert.equal((await registry.send("POST", path, basic("alice"), blob.bytes)).status, 201);
  }
  const put = { ...basic("alice"), "content-type": image.mediaType };
  assert.equal((await registry.send("PUT", "/v2/alice/app/manifests/1", put, image.manifest)).status, 201);
  assert.equal((await registry.get("/v2/library/known/manifests/1")).status, 200);
  const layer = image.layers[0] ?? assert.fail();
  for (const method of ["HEAD", "GET"])
    for (const path of [`blobs/${layer.digest}`, `manifests/${image.digest}`, `manifests/1?ns=alice`])
      assert.equal((await registry.send(method, `/v2/library/known/${path}`)).status, 404, `${method} ${path}`);
});

test("who signs up takes no name by which others pull from the default upstream", async () => {
  await using upstream = await startUpstream();
  const config = { access: { open: false, signUp: true, create: { teams: "users" } } };
  for (const upstreams of [{ "docker.io": upstream }, { "hub.example": upstream }]) {
    const isMirror = "docker.io" in upstreams;
    await using registry = await startRegistry({ upstreams, config });
    const admin = await adminApi(registry);
    await admin("POST", "/users", { name: "root", password: passwordOf("root") });
    const json = { "content-type": "application/json" };
    const login = JSON.stringify({ name: "grafana", password: passwordOf("grafana") });
    assert.equal((await registry.send("POST", "/api/v1/sign-up", json, login)).status, 201);
    const post = async (path: string, body: object): Promise<number> =>
      (await registry.send("POST", path, { ...json, ...basic("grafana") }, JSON.stringify(body))).status;
    const made = isMirror ? 403 : 201;
    const push = `/v2/grafana/grafana/blobs/uploads/?digest=${digestOf(EMPTY)}`;
    assert.equal((await registry.send("POST", push, basic("grafana"), EMPTY)).status, made);
    assert.equal(await post("/api/v1/teams", { name: "crew" }), 201);
    assert.equal(await post("/api/v1/namespaces", { name: "bitnami", owner: { kind: "team", name: "crew" } }), made);
    if (!isMirror) continue;
    const own = { kind: "personal", name: "grafana" };
    assert.equal(await post("/api/v1/namespaces", { name: "grafana", owner: own }), 403);
    await admin("POST", "/namespaces", { name: "grafana", owner: own });
    assert.equal((await registry.send("POST", push, basic("grafana"), EMPTY)).status, 201);
  }
});
