import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { ANONYMOUS, type Principal } from "../../src/access/principal.ts";
import { Starts } from "../../src/access/starts.ts";
import { BY, makeWorld, type World } from "./world.ts";

const PRIVATE = { visibility: "private" as const, description: "" };

async function teamOf(world: World, name: string): Promise<number> {
  return (await world.teams.add({ name, description: "", owner: undefined }, BY)).id;
}

function member(...teams: number[]): Principal {
  return {
    kind: "user",
    id: 1000,
    name: "member",
    admin: false,
    limits: undefined,
    teams: new Map(teams.map((team) => [team, "viewer"])),
  };
}

test("a namespace without a row is global and private", async () => {
  await using world = await makeWorld();
  const { visibility, owner, granted } = world.spaces.namespace("nobody");
  assert.deepEqual([visibility, owner, granted.size], ["private", { kind: "global" }, 0]);
  assert.equal(world.spaces.has("nobody"), false);
});

test("an upstream is public, private where it has credentials, and what the configuration says of it", async () => {
  const url = "http://127.0.0.1:1";
  await using world = await makeWorld({
    "docker.io": { url },
    "ghcr.io": { url, auth: { username: "u", password: "p" } },
    "quay.io": { url, auth: { username: "u", password: "p" }, visibility: "protected" },
  });
  const seen = ["docker.io", "ghcr.io", "quay.io", "gone.io"].map((name) => world.spaces.upstream(name).visibility);
  assert.deepEqual(seen, ["public", "private", "protected", "private"]);
});

test("a change is there at once, after a restart, and in the audit", async () => {
  await using world = await makeWorld({ "ghcr.io": { url: "http://127.0.0.1:1", visibility: "private" } }, ["base"]);
  const { spaces } = world;
  const [a, b] = [await teamOf(world, "a"), await teamOf(world, "b")];
  const generation = world.accounts.generation;
  const claims = { namespace: "apps", rivals: undefined };
  await spaces.addNamespace(claims, { ...PRIVATE, owner: { kind: "team", team: a } }, BY);
  await spaces.setNamespace("apps", { visibility: "public", description: "all of them" }, BY);
  await spaces.setNamespace("base", { visibility: "protected" }, BY);
  await spaces.grant({ kind: "namespace", name: "apps" }, "b", "contributor", BY);
  await spaces.grant({ kind: "namespace", name: "base" }, "b", "viewer", BY);
  await spaces.revoke({ kind: "namespace", name: "base" }, "b", BY);
  await spaces.grant({ kind: "upstream", name: "ghcr.io" }, "a", "viewer", BY);
  assert.ok(world.accounts.generation > generation, "what was decided before is decided anew");
  for (const one of [spaces, await world.reopened()]) {
    assert.deepEqual(one.namespace("apps"), {
      kind: "namespace",
      name: "apps",
      visibility: "public",
      owner: { kind: "team", team: a },
      granted: new Map([[b, "contributor"]]),
    });
    assert.equal(one.namespace("base").visibility, "protected");
    assert.equal(one.namespace("base").granted.size, 0);
    assert.deepEqual(one.upstream("ghcr.io").granted, new Map([[a, "viewer"]]));
    assert.deepEqual(one.visibleNamespaces(member(b), "", 10), ["apps", "base"]);
    assert.deepEqual(one.visibleNamespaces(ANONYMOUS.principal, "", 10), ["apps"]);
    assert.deepEqual(one.visibleNamespaces({ kind: "operator" }, "apps", 10), ["base"]);
  }
  assert.deepEqual((await world.told()).slice(2), [
    "namespace:apps: added, of team a, private",
    "namespace:apps: made public",
    "namespace:apps: description changed",
    "namespace:base: made protected",
    "namespace:apps: granted to team b as contributor",
    "namespace:base: granted to team b as viewer",
    "namespace:base: grant to team b revoked",
    "upstream:ghcr.io: granted to team a as viewer",
  ]);
});

test("what can't be is refused with its reason, and leaves nothing behind", async () => {
  await using world = await makeWorld({}, ["base"]);
  const { spaces, db } = world;
  const a = await teamOf(world, "a");
  const owner = { kind: "team" as const, team: a };
  const add = (namespace: string, rivals?: { repository: string; prefix: string }): Promise<void> =>
    spaces.addNamespace({ namespace, rivals }, { ...PRIVATE, owner }, BY);
  await add("apps");
  await db.transaction("durable", async (tx) => {
    await tx.run(
      "INSERT INTO repositories (name, upstream, created_at) VALUES ('docker.io/taken/app', 'docker.io', 0)",
    );
    await tx.run("INSERT INTO repositories (id, name, created_at) VALUES (77, 'full/app', 0)");
    await tx.run("INSERT INTO namespaces (name, created_at) VALUES ('full', 0)");
    await tx.run("INSERT INTO repository_content (repository_id, digest, linked_at) VALUES (77, 'sha256:00', 0)");
  });
  await spaces.hosted("full");
  const before = await world.told();
  const refused = async (work: Promise<unknown>, status: number, reason: RegExp): Promise<void> =>
    assert.rejects(work, (error: Error & { status?: number }) => {
      assert.match(error.message, reason);
      assert.equal(error.status, status);
      return true;
    });
  await refused(add("apps"), 409, /there is a namespace apps already/);
  await refused(add("base"), 409, /there is a namespace base already/);
  await refused(
    add("taken", { repository: "docker.io/library/taken", prefix: "docker.io/taken" }),
    409,
    /holds docker.io\/taken\/app/,
  );
  await refused(spaces.removeNamespace("full", BY), 409, /holds content/);
  await refused(spaces.removeNamespace("base", BY), 409, /configuration/);
  await refused(spaces.removeNamespace("gone", BY), 404, /no namespace gone/);
  await refused(spaces.setNamespace("gone", { visibility: "public" }, BY), 404, /no namespace gone/);
  await refused(spaces.grant({ kind: "namespace", name: "apps" }, "a", "viewer", BY), 409, /own/);
  await refused(spaces.grant({ kind: "namespace", name: "apps" }, "nobody", "viewer", BY), 404, /no team nobody/);
  await refused(spaces.grant({ kind: "namespace", name: "gone" }, "a", "viewer", BY), 404, /no namespace gone/);
  await refused(spaces.revoke({ kind: "namespace", name: "apps" }, "a", BY), 404, /not granted/);
  assert.deepEqual(await world.told(), before, "nothing of it is in the audit");
  assert.equal(spaces.has("taken"), false);
});

test("a namespace that a push or the removal of a user changed is read again", async () => {
  await using world = await makeWorld();
  const { spaces, accounts, db } = world;
  await accounts.addUser({ name: "root", admin: true }, BY);
  const { id } = await accounts.addUser({ name: "alice", admin: false }, BY);
  await db.transaction("durable", (tx) =>
    tx.run("INSERT INTO namespaces (name, user_id, created_at) VALUES ('alice', :id, 0)", { id }),
  );
  await spaces.hosted("alice");
  assert.deepEqual(spaces.namespace("alice").owner, { kind: "personal", user: id });
  assert.deepEqual(spaces.ownNamespaces(id), ["alice"]);
  await accounts.removeUser("alice", BY);
  await spaces.hosted("alice");
  assert.equal(spaces.has("alice"), false);
});

test("an empty namespace goes with its grants", async () => {
  await using world = await makeWorld();
  const { spaces } = world;
  const [a, b] = [await teamOf(world, "a"), await teamOf(world, "b")];
  const add = (): Promise<void> =>
    spaces.addNamespace({ namespace: "apps", rivals: undefined }, { ...PRIVATE, owner: { kind: "team", team: a } }, BY);
  await add();
  await spaces.grant({ kind: "namespace", name: "apps" }, "b", "owner", BY);
  await spaces.removeNamespace("apps", BY);
  assert.deepEqual(spaces.visibleNamespaces(member(a, b), "", 10), []);
  await add();
  assert.equal(spaces.namespace("apps").granted.size, 0);
});

test("lists of what somebody sees hold after any changes what is in the rows", () => {
  const names = ["a", "a-b", "a.c", "ab", "b", "b-x", "c"];
  fc.assert(
    fc.property(
      fc.array(fc.record({ name: fc.constantFrom(...names), add: fc.boolean() }), { maxLength: 30 }),
      fc.constantFrom(...names, ""),
      fc.constantFrom("", "/", "/x", " ", "-", "0"),
      (steps, from, end) => {
        const starts = new Starts([]);
        const left = new Set<string>();
        for (const { name, add } of steps) {
          starts[add ? "add" : "delete"](name);
          left[add ? "add" : "delete"](name);
        }
        assert.deepEqual(
          starts.after(from, 3),
          [...left]
            .sort()
            .filter((name) => name > from)
            .slice(0, 3),
        );
        assert.equal(starts.isEmpty, left.size === 0);
        const at = from + end;
        const inside = [...left].some((name) => at.startsWith(`${name}/`));
        const [next] = [...left]
          .flatMap((name) => [name, `${name}/`])
          .filter((start) => start >= at)
          .sort();
        assert.equal(starts.ahead(at), inside ? at : next);
      },
    ),
    { numRuns: 500 },
  );
});
