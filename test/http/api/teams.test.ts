import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../../kit/images.ts";
import { startUpstream } from "../../kit/upstream.ts";
import { basic, PASSWORD, startWithPeople } from "./people.ts";

test("owners look after their team; others neither change nor see it", async () => {
  await using people = await startWithPeople(["root", "alice", "bob", "eve"]);
  const { as, names } = people;
  await as("alice", 403, "POST", "/teams", { name: "backend" });
  await as("root", 404, "POST", "/teams", { name: "backend", owner: "nobody" });
  const made = await as("root", 201, "POST", "/teams", { name: "backend", description: "APIs", owner: "alice" });
  assert.deepEqual([made["members"], made["namespaces"], made["role"]], [1, 0, undefined]);
  await as("alice", 204, "PUT", "/teams/backend/members/bob", { role: "contributor" });
  assert.equal((await as("bob", 200, "GET", "/teams/backend"))["role"], "contributor");
  await as("bob", 403, "PUT", "/teams/backend/members/eve", { role: "viewer" });
  await as("bob", 403, "PUT", "/teams/backend/members/bob", { role: "owner" });
  await as("bob", 403, "PATCH", "/teams/backend", { description: "mine" });
  await as("bob", 403, "DELETE", "/teams/backend/members/alice");
  await as("alice", 403, "DELETE", "/teams/backend");
  assert.deepEqual(await names("bob", "/teams/backend/members"), ["alice", "bob"]);
  assert.deepEqual(await names("eve", "/teams"), []);
  for (const [method, path, body] of [
    ["GET", "/teams/backend"],
    ["GET", "/teams/backend/members"],
    ["PATCH", "/teams/backend", { description: "" }],
    ["PUT", "/teams/backend/members/eve", { role: "owner" }],
    ["DELETE", "/teams/backend/members/eve"],
    ["DELETE", "/teams/backend"],
  ] as const) {
    const { detail } = await as("eve", 404, method, path, body);
    assert.equal(detail, "there is no team backend");
  }
  await as("bob", 204, "DELETE", "/teams/backend/members/bob");
  await as("bob", 404, "GET", "/teams/backend");
  await as("alice", 409, "DELETE", "/teams/backend/members/alice");
  await as("root", 204, "DELETE", "/teams/backend/members/alice");
  await as("root", 204, "DELETE", "/teams/backend");
  assert.deepEqual(await people.told("team:backend"), [
    "root: added, alice is owner",
    "alice: bob joined as contributor",
    "bob: bob left, was contributor",
    "root: alice left, was owner",
    "root: removed",
  ]);
});

test("where users may make teams, they own what they make", async () => {
  await using people = await startWithPeople(["root", "alice"], { config: { access: { create: { teams: "users" } } } });
  const { as } = people;
  assert.equal((await as("alice", 201, "POST", "/teams", { name: "backend" }))["role"], "owner");
  await as("alice", 403, "POST", "/teams", { name: "other", owner: "root" });
  await as("alice", 204, "DELETE", "/teams/backend");
});

test("a namespace is made by whoever may, and seen by whoever sees it", async () => {
  await using people = await startWithPeople(["root", "alice", "bob", "eve"], {
    config: { hosted: { namespaces: ["base"], quotas: { "team-*": "1MB" } } },
  });
  const { as, names } = people;
  await as("root", 201, "POST", "/teams", { name: "backend", owner: "alice" });
  await as("alice", 204, "PUT", "/teams/backend/members/bob", { role: "contributor" });
  const team = { kind: "team", name: "backend" };
  for (const user of ["bob", "alice"]) {
    await as(user, 403, "POST", "/namespaces", { name: "global" });
    await as(user, 403, "POST", "/namespaces", { name: "other", owner: { kind: "personal", name: user } });
  }
  await as("bob", 403, "POST", "/namespaces", { name: "team-a", owner: team });
  await as("eve", 404, "POST", "/namespaces", { name: "team-a", owner: team });
  await as("alice", 409, "POST", "/namespaces", { name: "eve", owner: team });
  const made = await as("alice", 201, "POST", "/namespaces", { name: "team-a", owner: team, description: "ours" });
  const { createdAt, ...rest } = made;
  assert.equal(typeof createdAt, "string");
  const expected = {
    name: "team-a",
    owner: team,
    visibility: "private",
    description: "ours",
    bytes: 0,
    quota: 1e6,
    share: 0,
  };
  assert.deepEqual(rest, { ...expected, repositories: 0 });
  await as("alice", 409, "POST", "/namespaces", { name: "team-a", owner: team });
  await as("eve", 201, "POST", "/namespaces", { name: "eve", owner: { kind: "personal", name: "eve" } });
  await as("root", 201, "POST", "/namespaces", { name: "open", visibility: "public" });
  assert.deepEqual(await names("root", "/namespaces"), ["base", "eve", "open", "team-a"]);
  assert.deepEqual(await names("bob", "/namespaces"), ["open", "team-a"]);
  assert.deepEqual(await names("eve", "/namespaces"), ["eve", "open"]);
  assert.deepEqual(await names("bob", "/namespaces?limit=1"), ["open"]);
  for (const method of ["GET", "PATCH", "DELETE"]) {
    await as("eve", 404, method, "/namespaces/team-a", method === "PATCH" ? { visibility: "public" } : undefined);
    if (method !== "GET") await as("bob", 403, method, "/namespaces/team-a", method === "PATCH" ? {} : undefined);
  }
  await as("alice", 200, "PATCH", "/namespaces/team-a", { visibility: "protected" });
  await as("eve", 200, "GET", "/namespaces/team-a");
  await as("alice", 403, "PATCH", "/namespaces/team-a", { owner: { kind: "personal", name: "alice" } });
  await as("alice", 404, "PATCH", "/namespaces/team-a", { owner: { kind: "team", name: "gone" } });
  await as("root", 200, "PATCH", "/namespaces/team-a", { owner: { kind: "personal", name: "bob" } });
  assert.deepEqual((await as("bob", 200, "GET", "/namespaces/team-a"))["owner"], { kind: "personal", name: "bob" });
  await as("alice", 403, "DELETE", "/namespaces/team-a");
  await as("bob", 204, "DELETE", "/namespaces/team-a");
  await as("root", 409, "DELETE", "/namespaces/base");
  assert.deepEqual(await people.told("namespace:team-a"), [
    "alice: added, of team backend, private",
    "alice: made protected",
    "root: given away: of user bob",
    "bob: removed",
  ]);
});

test("names that lead to upstreams can't be made hosted", async () => {
  const image = makeImage({ layers: [100] });
  await using upstream = await startUpstream();
  upstream.add("taken/app", "1", image);
  await using people = await startWithPeople(["root"], {
    upstreams: { "docker.io": { url: upstream.url, default: true, aliases: ["hub"] } },
  });
  const { as, registry } = people;
  assert.equal((await registry.get("/v2/taken/app/manifests/1")).status, 200);
  for (const name of ["hub", "docker.io", "a.b", "library"]) await as("root", 409, "POST", "/namespaces", { name });
  assert.match(
    String((await as("root", 409, "POST", "/namespaces", { name: "taken" }))["detail"]),
    /docker.io\/taken\/app/,
  );
  for (const name of ["a/b", "", "Up"]) await as("root", 400, "POST", "/namespaces", { name });
  // What is made is hosted at once, and what is removed is not: nothing, and then the upstream, is asked.
  await as("root", 201, "POST", "/namespaces", { name: "services", visibility: "public" });
  const hits = upstream.hits();
  assert.equal((await registry.get("/v2/services/app/manifests/1")).status, 404);
  assert.equal(upstream.hits(), hits);
  await as("root", 204, "DELETE", "/namespaces/services");
  await registry.get("/v2/services/app/manifests/1");
  assert.ok(upstream.hits() > hits);
});

test("a first push to the namespace of one's own name makes it one's own, and it can be made again after it was removed", async () => {
  await using people = await startWithPeople(["root", "alice", "eve"]);
  const { as, registry, names } = people;
  const push = async (user: string): Promise<number> =>
    (await registry.send("POST", "/v2/alice/app/blobs/uploads/", basic(user))).status;
  const blob =
    makeImage({ layers: [100] })
      .blobs.values()
      .next().value ?? assert.fail();
  const put = async (user: string): Promise<number> =>
    (await registry.send("POST", `/v2/alice/app/blobs/uploads/?digest=${blob.digest}`, basic(user), blob.bytes)).status;
  assert.equal(await put("eve"), 403);
  assert.equal(await put("alice"), 201);
  assert.deepEqual((await as("alice", 200, "GET", "/namespaces/alice"))["owner"], { kind: "personal", name: "alice" });
  assert.deepEqual(await names("eve", "/namespaces"), []);
  assert.equal(await push("eve"), 403);
  await as("alice", 409, "DELETE", "/namespaces/alice");
  assert.equal((await registry.send("DELETE", `/v2/alice/app/blobs/${blob.digest}`, basic("alice"))).status, 202);
  await as("alice", 204, "DELETE", "/namespaces/alice");
  assert.equal(await put("eve"), 403);
  assert.equal(await put("alice"), 201);
  assert.deepEqual(await names("alice", "/namespaces"), ["alice"]);
  // The next user of that name begins anew.
  assert.equal((await registry.send("DELETE", `/v2/alice/app/blobs/${blob.digest}`, basic("alice"))).status, 202);
  await as("root", 204, "DELETE", "/users/alice");
  assert.deepEqual(await names("root", "/namespaces"), []);
  await as("root", 201, "POST", "/users", { name: "alice", password: PASSWORD });
  assert.equal(await put("alice"), 201);
  assert.deepEqual(await names("alice", "/namespaces"), ["alice"]);
});
