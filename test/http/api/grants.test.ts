import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../../kit/images.ts";
import { startUpstream } from "../../kit/upstream.ts";
import { basic, startWithPeople, type People } from "./people.ts";

const image = makeImage({ layers: [100] });
const blob = image.blobs.values().next().value ?? assert.fail();

async function push({ registry }: People, user: string): Promise<number> {
  const path = `/v2/apps/one/blobs/uploads/?digest=${blob.digest}`;
  return (await registry.send("POST", path, basic(user), blob.bytes)).status;
}

async function pull({ registry }: People, user: string): Promise<number> {
  return (await registry.get(`/v2/apps/one/blobs/${blob.digest}`, basic(user))).status;
}

test("members of a team that a namespace is granted to have their roles there, up to the granted one", async () => {
  await using people = await startWithPeople(["root", "alice", "carl", "vera"]);
  const { as } = people;
  await as("root", 201, "POST", "/teams", { name: "owners", owner: "alice" });
  await as("root", 201, "POST", "/teams", { name: "guests", owner: "carl" });
  await as("carl", 204, "PUT", "/teams/guests/members/vera", { role: "viewer" });
  await as("alice", 201, "POST", "/namespaces", { name: "apps", owner: { kind: "team", name: "owners" } });
  assert.equal(await push(people, "alice"), 201);
  assert.deepEqual([await pull(people, "carl"), await pull(people, "vera")], [403, 403]);
  const grant = "/namespaces/apps/grants/guests";
  await as("carl", 404, "PUT", grant, { role: "owner" });
  await as("alice", 204, "PUT", grant, { role: "viewer" });
  assert.deepEqual(
    [await pull(people, "carl"), await push(people, "carl"), await pull(people, "vera")],
    [200, 403, 200],
  );
  await as("alice", 204, "PUT", grant, { role: "contributor" });
  assert.deepEqual([await push(people, "carl"), await push(people, "vera")], [201, 403]);
  await as("carl", 403, "PUT", grant, { role: "owner" });
  await as("carl", 403, "DELETE", grant);
  await as("carl", 403, "GET", "/namespaces/apps/grants");
  const { items } = await as("alice", 200, "GET", "/namespaces/apps/grants");
  assert.deepEqual(
    (items as Record<string, unknown>[]).map(({ team, role }) => [team, role]),
    [["guests", "contributor"]],
  );
  await as("alice", 404, "PUT", "/namespaces/apps/grants/nobody", { role: "viewer" });
  await as("alice", 409, "PUT", "/namespaces/apps/grants/owners", { role: "viewer" });
  await as("alice", 204, "DELETE", grant);
  await as("alice", 404, "DELETE", grant);
  assert.deepEqual([await pull(people, "carl"), await pull(people, "vera")], [403, 403]);
  assert.deepEqual((await people.told("namespace:apps")).slice(1), [
    "alice: granted to team guests as viewer",
    "alice: granted to team guests as contributor",
    "alice: grant to team guests revoked",
  ]);
});

test("a private upstream is pulled from by members of teams that it is granted to", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/alpine", "1", image);
  await using people = await startWithPeople(["root", "alice", "bob"], {
    upstreams: { "docker.io": { url: upstream.url, default: true, visibility: "private" } },
  });
  const { as, registry } = people;
  const get = async (user: string): Promise<number> =>
    (await registry.get("/v2/library/alpine/manifests/1", basic(user))).status;
  await as("root", 201, "POST", "/teams", { name: "backend", owner: "alice" });
  assert.deepEqual([await get("root"), await get("alice"), await get("bob")], [200, 403, 403]);
  await as("alice", 403, "PUT", "/upstreams/docker.io/grants/backend");
  await as("root", 404, "PUT", "/upstreams/ghcr.io/grants/backend", {});
  await as("root", 204, "PUT", "/upstreams/docker.io/grants/backend", {});
  assert.deepEqual(await people.names("root", "/upstreams/docker.io/grants"), ["backend"]);
  assert.deepEqual([await get("alice"), await get("bob")], [200, 403]);
  const catalog = async (user: string): Promise<unknown> =>
    JSON.parse((await registry.get("/v2/_catalog", basic(user))).bytes.toString());
  assert.deepEqual(await catalog("alice"), { repositories: ["docker.io/library/alpine"] });
  assert.deepEqual(await catalog("bob"), { repositories: [] });
  await as("root", 204, "DELETE", "/upstreams/docker.io/grants/backend");
  assert.equal(await get("alice"), 403);
  assert.deepEqual(await people.told("upstream:docker.io"), [
    "root: granted to team backend as viewer",
    "root: grant to team backend revoked",
  ]);
});
