import assert from "node:assert/strict";
import { test } from "node:test";
import { BY, makeWorld, type World } from "./world.ts";

async function withUsers(world: World): Promise<Record<"root" | "alice" | "bob", number>> {
  const { accounts } = world;
  const [root, alice, bob] = await Promise.all(
    ["root", "alice", "bob"].map(async (name) => (await accounts.addUser({ name, admin: name === "root" }, BY)).id),
  );
  return { root: root ?? 0, alice: alice ?? 0, bob: bob ?? 0 };
}

async function refused(work: Promise<unknown>, status: number, reason: RegExp): Promise<void> {
  await assert.rejects(work, (error: Error & { status?: number }) => {
    assert.match(error.message, reason);
    assert.equal(error.status, status);
    return true;
  });
}

test("who is in a team, and as what, counts from the moment it is said", async () => {
  await using world = await makeWorld();
  const { teams, accounts } = world;
  const { alice, bob } = await withUsers(world);
  const { id } = await teams.add({ name: "backend", description: "APIs", owner: alice }, BY);
  const rolesOf = async (user: number): Promise<unknown> => (await accounts.userPrincipal(user))?.teams;
  assert.deepEqual(await rolesOf(alice), new Map([[id, "owner"]]));
  assert.deepEqual(await rolesOf(bob), new Map());
  await teams.setMember("backend", "bob", "viewer", false, BY);
  assert.deepEqual(await rolesOf(bob), new Map([[id, "viewer"]]));
  await teams.setMember("backend", "bob", "contributor", false, BY);
  assert.deepEqual(await rolesOf(bob), new Map([[id, "contributor"]]));
  assert.deepEqual(
    (await teams.members(id, "", 10)).map(({ user, role }) => [user, role]),
    [
      ["alice", "owner"],
      ["bob", "contributor"],
    ],
  );
  assert.equal((await teams.find("backend"))?.members, 2);
  assert.deepEqual(
    (await teams.list("", 10, bob)).map(({ name }) => name),
    ["backend"],
  );
  await teams.removeMember("backend", "bob", false, BY);
  assert.deepEqual(await rolesOf(bob), new Map());
  assert.deepEqual(await teams.list("", 10, bob), []);
  assert.deepEqual((await world.told()).slice(3), [
    "team:backend: added, alice is owner",
    "team:backend: bob joined as viewer",
    "team:backend: bob is contributor, was viewer",
    "team:backend: bob left, was contributor",
  ]);
});

test("a team keeps an owner, unless an administrator wants it otherwise", async () => {
  await using world = await makeWorld();
  const { teams } = world;
  const { alice } = await withUsers(world);
  const { id } = await teams.add({ name: "backend", description: "", owner: alice }, BY);
  await refused(teams.setMember("backend", "alice", "viewer", false, BY), 409, /no other owner/);
  await refused(teams.removeMember("backend", "alice", false, BY), 409, /no other owner/);
  await teams.setMember("backend", "bob", "owner", false, BY);
  await teams.removeMember("backend", "alice", false, BY);
  await refused(teams.removeMember("backend", "bob", false, BY), 409, /no other owner/);
  await teams.removeMember("backend", "bob", true, BY);
  assert.deepEqual(await teams.members(id, "", 10), []);
});

test("a team that has namespaces stays; one that goes takes what it was granted", async () => {
  await using world = await makeWorld({ "ghcr.io": { url: "http://127.0.0.1:1" } });
  const { teams, spaces } = world;
  const [a] = [await teams.add({ name: "a", description: "", owner: undefined }, BY)];
  await teams.add({ name: "b", description: "", owner: undefined }, BY);
  const owner = { kind: "team" as const, team: a.id };
  await spaces.addNamespace(
    { namespace: "apps", rivals: undefined },
    { owner, visibility: "private", description: "" },
    BY,
  );
  await spaces.grant({ kind: "namespace", name: "apps" }, "b", "owner", BY);
  await spaces.grant({ kind: "upstream", name: "ghcr.io" }, "b", "viewer", BY);
  await refused(teams.remove("a", BY), 409, /namespace apps is the team a's own/);
  await teams.remove("b", BY);
  assert.equal(spaces.namespace("apps").granted.size, 0);
  assert.equal(spaces.upstream("ghcr.io").granted.size, 0);
  assert.deepEqual(await spaces.grants({ kind: "namespace", name: "apps" }, "", 10), []);
  await spaces.setNamespace("apps", { owner: { kind: "global" } }, BY);
  await teams.remove("a", BY);
  assert.deepEqual(await teams.list("", 10), []);
});

test("names that are taken or none, and what is not there, are refused with their reason", async () => {
  await using world = await makeWorld();
  const { teams } = world;
  await withUsers(world);
  const add = (name: string): Promise<unknown> => teams.add({ name, description: "", owner: undefined }, BY);
  await add("backend");
  const before = await world.told();
  await refused(add("backend"), 409, /already/);
  for (const name of ["", "Back", "a/b", "-a", "a--b", "x".repeat(65)])
    await refused(add(name), 400, /no name of a team/);
  await refused(teams.describe("gone", "", BY), 404, /no team gone/);
  await refused(teams.remove("gone", BY), 404, /no team gone/);
  await refused(teams.setMember("backend", "nobody", "viewer", true, BY), 404, /no user nobody/);
  await refused(teams.removeMember("backend", "bob", true, BY), 404, /bob is not in the team/);
  assert.deepEqual(await world.told(), before);
});
