/** Attacks of one tenant on another, each of which has happened to a registry. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { adminApi, basic, operatorOf, passwordOf, tokenFor } from "../kit/people.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";

const image = makeImage({ layers: [5_000], seed: "secret plans" });
const layer = image.layers[0] ?? assert.fail();

type Headers = Record<string, string>;

async function push(registry: TestRegistry, repository: string, headers: Headers, tag = "1"): Promise<void> {
  for (const blob of image.blobs.values()) {
    const path = `/v2/${repository}/blobs/uploads/?digest=${blob.digest}`;
    assert.equal((await registry.send("POST", path, headers, blob.bytes)).status, 201);
  }
  const path = `/v2/${repository}/manifests/${tag}`;
  const sent = { ...headers, "content-type": image.mediaType };
  assert.equal((await registry.send("PUT", path, sent, image.manifest)).status, 201);
}

/** Two users with a personal namespace each; alice has pushed. */
async function twoTenants(
  config: Record<string, unknown> = {},
  upstreams: Record<string, { url: string }> = {},
): Promise<TestRegistry> {
  const registry = await startRegistry({ upstreams, config: { access: { open: false }, ...config } });
  const admin = await adminApi(registry);
  for (const name of ["root", "alice", "mallory"]) await admin("POST", "/users", { name, password: passwordOf(name) });
  await push(registry, "alice/app", basic("alice"));
  return registry;
}

test("a known private digest asked for through another repository, HEAD and mount included (CVE-2024-39897)", async () => {
  await using registry = await twoTenants();
  const mallory = basic("mallory");
  // A repository of her own, so that there is something to ask through.
  assert.equal((await registry.send("POST", "/v2/mallory/app/blobs/uploads/", mallory)).status, 202);
  for (const [method, path] of [
    ["GET", `blobs/${layer.digest}`],
    ["HEAD", `blobs/${layer.digest}`],
    ["GET", `manifests/${image.digest}`],
    ["HEAD", `manifests/${image.digest}`],
  ] as const) {
    assert.equal((await registry.send(method, `/v2/mallory/app/${path}`, mallory)).status, 404, `${method} ${path}`);
    assert.equal((await registry.send(method, `/v2/alice/app/${path}`, mallory)).status, 403, `${method} ${path}`);
  }
  for (const from of ["&from=alice%2Fapp", "", "&from=alice%2Fnone"]) {
    const path = `/v2/mallory/app/blobs/uploads/?mount=${layer.digest}${from}`;
    for (const headers of [
      mallory,
      await tokenFor(registry, mallory, "repository:mallory/app:pull,push", "repository:alice/app:pull"),
    ])
      assert.equal((await registry.send("POST", path, headers)).status, 202, from);
  }
  assert.equal((await registry.send("HEAD", `/v2/mallory/app/blobs/${layer.digest}`, mallory)).status, 404);
  // A manifest that names what others have brought is one with holes.
  const path = "/v2/mallory/app/manifests/1";
  const put = await registry.send("PUT", path, { ...mallory, "content-type": image.mediaType }, image.manifest);
  assert.equal(put.status, 404);
  const own = `/v2/alice/other/blobs/uploads/?mount=${layer.digest}&from=alice%2Fapp`;
  assert.equal((await registry.send("POST", own, basic("alice"))).status, 201, "whose it is may mount it");
});

test("A warms a private upstream image, B pulls", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/secret", "1", image);
  await using registry = await startRegistry({
    upstreams: { "hub.example": { url: upstream.url, auth: { username: "u", password: "p" } } },
    config: { access: { open: false } },
  });
  const admin = await adminApi(registry);
  for (const name of ["root", "alice", "mallory"]) await admin("POST", "/users", { name, password: passwordOf(name) });
  await admin("POST", "/teams", { name: "crew" });
  await admin("PUT", "/teams/crew/members/alice", { role: "viewer" });
  await admin("PUT", "/upstreams/hub.example/grants/crew", {});
  const manifest = "/v2/hub.example/library/secret/manifests/1";
  const blob = `/v2/hub.example/library/secret/blobs/${layer.digest}`;
  for (const path of [manifest, blob]) assert.equal((await registry.get(path, basic("alice"))).status, 200);
  for (const path of [manifest, blob, `/v2/library/secret/manifests/1?ns=hub.example`]) {
    assert.equal((await registry.get(path, basic("mallory"))).status, 403, path);
    assert.equal((await registry.get(path)).status, 401, path);
    const scope = "repository:hub.example/library/secret:pull";
    assert.equal((await registry.get(path, await tokenFor(registry, basic("mallory"), scope))).status, 403, path);
  }
  const mount = `/v2/mallory/app/blobs/uploads/?mount=${layer.digest}`;
  assert.equal((await registry.send("POST", mount, basic("mallory"))).status, 202);
  const { repositories } = JSON.parse((await registry.get("/v2/_catalog", basic("mallory"))).bytes.toString()) as {
    repositories: string[];
  };
  assert.deepEqual(repositories, []);
});

test("delete, then GET (CVE-2026-35172)", async () => {
  await using registry = await twoTenants();
  const alice = await tokenFor(registry, basic("alice"), "repository:alice/app:pull,push,delete");
  assert.equal((await registry.get("/v2/alice/app/manifests/1", alice)).status, 200);
  assert.equal((await registry.send("DELETE", `/v2/alice/app/manifests/${image.digest}`, alice)).status, 202);
  for (const reference of ["1", image.digest])
    assert.equal((await registry.get(`/v2/alice/app/manifests/${reference}`, alice)).status, 404);
  assert.equal((await registry.send("DELETE", `/v2/alice/app/blobs/${layer.digest}`, alice)).status, 202);
  assert.equal((await registry.get(`/v2/alice/app/blobs/${layer.digest}`, alice)).status, 404);
});

test("a push token used to DELETE; create-only overwriting latest", async () => {
  await using registry = await twoTenants();
  const pushing = await tokenFor(registry, basic("alice"), "repository:alice/app:pull,push");
  const refused = await registry.send("DELETE", "/v2/alice/app/manifests/1", pushing);
  assert.equal(refused.status, 401);
  assert.match(
    String(refused.headers["www-authenticate"]),
    /scope="repository:alice\/app:delete",error="insufficient_scope"/,
  );
  const admin = await adminApi(registry);
  const limits = [{ repositories: ["alice/*"], verbs: ["pull", "create"] }];
  const { secret } = await admin("POST", "/robots", { name: "ci", limits, expires: "never" });
  const other = makeImage({ layers: [10], seed: "other" });
  for (const ci of [
    basic("ci", String(secret)),
    await tokenFor(registry, basic("ci", String(secret)), "repository:alice/app:pull,push,delete"),
  ]) {
    const put = (tag: string, query = ""): Promise<{ status: number }> =>
      registry.send(
        "PUT",
        `/v2/alice/app/manifests/${tag}${query}`,
        { ...ci, "content-type": other.mediaType },
        other.manifest,
      );
    for (const blob of other.blobs.values()) {
      const path = `/v2/alice/app/blobs/uploads/?digest=${blob.digest}`;
      assert.equal((await registry.send("POST", path, ci, blob.bytes)).status, 201);
    }
    assert.equal((await put("1")).status, 403);
    assert.equal((await put(other.digest, "?tag=1")).status, 403);
    assert.equal((await put("2")).status, 201);
    assert.equal((await put("2")).status, 201, "what it points to already is no move");
    assert.equal((await registry.send("DELETE", "/v2/alice/app/manifests/2", ci)).status, 403);
  }
  const kept = await registry.send("HEAD", "/v2/alice/app/manifests/1", basic("alice"));
  assert.equal(kept.headers["docker-content-digest"], image.digest);
});

test("a member removed from a team, a robot disabled, a user disabled: denied at once, whatever token they hold", async () => {
  await using registry = await startRegistry({ config: { access: { open: false } } });
  const admin = await adminApi(registry);
  for (const name of ["root", "bob", "carol"]) await admin("POST", "/users", { name, password: passwordOf(name) });
  await admin("POST", "/teams", { name: "crew" });
  for (const name of ["bob", "carol"]) await admin("PUT", `/teams/crew/members/${name}`, { role: "contributor" });
  await admin("POST", "/namespaces", { name: "crew", owner: { kind: "team", name: "crew" } });
  const limits = [{ repositories: ["crew/**"], verbs: ["pull", "push"] }];
  const { secret } = await admin("POST", "/robots", { name: "ci", team: "crew", limits, expires: "never" });
  await push(registry, "crew/app", basic("bob"));
  const path = "/v2/crew/app/manifests/1";
  const scope = "repository:crew/app:pull";
  const ends: [string, Headers, () => Promise<unknown>][] = [
    ["bob", basic("bob"), () => admin("DELETE", "/teams/crew/members/bob")],
    ["carol", basic("carol"), () => admin("PATCH", "/users/carol", { disabled: true })],
    ["ci", basic("ci", String(secret)), () => admin("PATCH", "/robots/ci", { disabled: true })],
  ];
  for (const [name, credentials, end] of ends) {
    const token = await tokenFor(registry, credentials, scope);
    for (const headers of [credentials, token]) assert.equal((await registry.get(path, headers)).status, 200, name);
    await end();
    for (const headers of [credentials, token]) {
      const { status } = await registry.get(path, headers);
      assert.ok(status === 401 || status === 403, `${name} ${status}`);
    }
  }
});

test("_catalog?n=1e9, -1, NaN (CVE-2023-2253)", async () => {
  await using registry = await twoTenants();
  for (const n of ["1e9", "-1", "NaN", "", "0x10", "1.5", "9".repeat(40)])
    assert.equal((await registry.get(`/v2/_catalog?n=${n}`, basic("alice"))).status, 400, n);
  assert.equal((await registry.get("/v2/_catalog?n=1000000000", basic("alice"))).status, 200);
});

test("lists tell of nothing that one may not pull", async () => {
  await using registry = await twoTenants();
  const catalog = async (headers: Headers): Promise<string[]> =>
    (JSON.parse((await registry.get("/v2/_catalog", headers)).bytes.toString()) as { repositories: string[] })
      .repositories;
  const found = async (headers: Headers): Promise<number> =>
    (JSON.parse((await registry.get("/v1/search?q=app", headers)).bytes.toString()) as { num_results: number })
      .num_results;
  const listed = async (headers: Headers): Promise<number> =>
    (JSON.parse((await registry.get("/api/v1/repositories", headers)).bytes.toString()) as { items: unknown[] }).items
      .length;
  assert.deepEqual(await catalog(basic("alice")), ["alice/app"]);
  assert.deepEqual(
    await catalog(await tokenFor(registry, basic("alice"), "registry:catalog:*", "repository:alice/app:pull")),
    ["alice/app"],
  );
  assert.deepEqual([await found(basic("alice")), await listed(basic("alice"))], [1, 1]);
  // As clients ask for it: for nothing but the catalog.
  assert.deepEqual(await catalog(await tokenFor(registry, basic("alice"), "registry:catalog:*")), ["alice/app"]);
  const other = await registry.get(
    "/v2/_catalog",
    await tokenFor(registry, basic("alice"), "repository:alice/app:pull"),
  );
  assert.equal(other.status, 401, "a token for one repository lists none");
  assert.match(String(other.headers["www-authenticate"]), /scope="registry:catalog:\*",error="insufficient_scope"$/);
  assert.deepEqual(await catalog(basic("mallory")), []);
  assert.deepEqual(await catalog(await tokenFor(registry, basic("mallory"), "registry:catalog:*")), []);
  assert.deepEqual([await found(basic("mallory")), await listed(basic("mallory")), await listed({})], [0, 0, 0]);
  assert.deepEqual(await catalog(await operatorOf(registry)), ["alice/app"]);
  const hidden = await registry.get("/api/v1/repositories/alice%2Fapp/tags", basic("mallory"));
  const absent = await registry.get("/api/v1/repositories/alice%2Fnone/tags", basic("mallory"));
  assert.deepEqual(
    [hidden.status, absent.status],
    [403, 403],
    "whether it is there is told to nobody who may not see it",
  );
});

test("podman, which searches without its credentials first, is sent to the catalog with them", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await twoTenants({}, { "docker.io": { url: upstream.url } });
  assert.equal((await registry.get("/v2/library/app/manifests/1")).status, 200);
  const search = async (agent: string): Promise<number> =>
    (await registry.get("/v1/search?q=app", { "user-agent": agent })).status;
  assert.equal(await search("docker/28.2.2 go/go1.24.3"), 200, "something public is found");
  for (const agent of ["containers/5.23.1 (github.com/containers/image)", "libpod/5.4.0"])
    assert.equal(await search(agent), 401, agent);
  const catalog = await registry.get("/v2/_catalog", await tokenFor(registry, basic("alice"), "registry:catalog:*"));
  assert.deepEqual(JSON.parse(catalog.bytes.toString()), { repositories: ["alice/app", "docker.io/library/app"] });
  const ofNobody = await registry.get("/v2/_catalog", await tokenFor(registry, {}, "registry:catalog:*"));
  assert.deepEqual(JSON.parse(ofNobody.bytes.toString()), { repositories: ["docker.io/library/app"] });
});

test("a write from a stranger's web page is refused, whatever its browser knows of passwords", async () => {
  await using registry = await twoTenants();
  const origin = "https://evil.example";
  const begun = await registry.send("POST", "/v2/alice/app/blobs/uploads/", { ...basic("alice"), origin });
  assert.equal(begun.status, 403);
  const headers = { ...basic("root"), origin, "content-type": "application/json" };
  assert.equal((await registry.send("POST", "/api/v1/teams", headers, '{"name":"crew"}')).status, 403);
});
