import assert from "node:assert/strict";
import { test } from "node:test";
import { Api } from "../../kit/api.ts";
import { pushBlob, select, send } from "../../kit/hosted.ts";
import { startRegistry, type TestRegistry } from "../../kit/registry.ts";

const ADMIN_PASSWORD = "the first one's password";
const PASSWORD = "a long enough password";

function basic(name: string, password: string): Record<string, string> {
  return { authorization: `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}` };
}

const ALICE = basic("alice", ADMIN_PASSWORD);

/** A registry that alice looks after, and bob may use. */
async function start(access: Record<string, unknown> = {}): Promise<{ registry: TestRegistry; api: Api }> {
  const registry = await startRegistry({ config: { access, hosted: { namespaces: ["team"] } } });
  const api = await Api.of(registry);
  // Access is open to this machine as long as nobody can log in.
  await api.expect(201, "POST", "/users", { name: "alice", password: ADMIN_PASSWORD });
  await api.expect(201, "POST", "/users", { name: "bob", password: PASSWORD }, ALICE);
  return { registry, api };
}

test("an administrator adds, lists, changes and removes users; the first one added is one", async () => {
  const { registry, api } = await start();
  await using _ = registry;
  const { body, headers } = await api.expect(200, "GET", "/users/alice", undefined, ALICE);
  assert.equal(body["admin"], true);
  assert.equal(body["hasPassword"], true);
  assert.match(String(headers["etag"]), /^"[\w-]{22}"$/);
  const names: unknown[] = [];
  for (let cursor = ""; ;) {
    const page = await api.expect(200, "GET", `/users?limit=1${cursor}`, undefined, ALICE);
    names.push(...(page.body["items"] as { name: string }[]).map(({ name }) => name));
    const { next } = page.body;
    if (typeof next !== "string") break;
    cursor = `&cursor=${next}`;
  }
  assert.deepEqual(names, ["alice", "bob"]);
  const made = await api.expect(201, "POST", "/users", { name: "carol", password: PASSWORD, admin: true }, ALICE);
  assert.equal(made.headers["location"], "/api/v1/users/carol");
  const changed = await api.expect(200, "PATCH", "/users/carol", { admin: false, disabled: true }, ALICE);
  assert.deepEqual([changed.body["admin"], changed.body["disabled"]], [false, true]);
  await api.expect(401, "GET", "/users/carol", undefined, basic("carol", PASSWORD));
  await api.expect(200, "PATCH", "/users/carol", { disabled: false }, ALICE);
  await api.expect(200, "GET", "/users/carol", undefined, basic("carol", PASSWORD));
  await api.expect(204, "DELETE", "/users/carol", undefined, ALICE);
  await api.expect(401, "GET", "/users/carol", undefined, basic("carol", PASSWORD));
  for (const [method, given] of [
    ["GET", undefined],
    ["PATCH", { admin: true }],
    ["DELETE", undefined],
  ] as const)
    await api.expect(404, method, "/users/carol", given, ALICE);
  assert.deepEqual(
    select(
      registry,
      "SELECT actor, subject, detail FROM events WHERE action = 'access' AND subject = 'user:carol'",
    ).map(({ actor, detail }) => [actor, detail]),
    [
      ["alice", "added as an administrator"],
      ["alice", "no administrator any more"],
      ["alice", "disabled"],
      ["alice", "enabled"],
      ["alice", "removed"],
    ],
  );
});

test("a user reads itself, and nothing else of the users", async () => {
  const { registry, api } = await start();
  await using _ = registry;
  const bob = basic("bob", PASSWORD);
  assert.equal((await api.expect(200, "GET", "/users/bob", undefined, bob)).body["name"], "bob");
  await api.expect(403, "GET", "/users/alice", undefined, bob);
  await api.expect(403, "GET", "/users/nobody", undefined, bob);
  await api.expect(403, "GET", "/users", undefined, bob);
  await api.expect(403, "POST", "/users", { name: "dave", password: PASSWORD }, bob);
  await api.expect(403, "PATCH", "/users/bob", { admin: true }, bob);
  await api.expect(403, "DELETE", "/users/bob", undefined, bob);
  await api.expect(401, "GET", "/users/bob");
  await api.expect(401, "GET", "/users");
  assert.deepEqual((await api.expect(200, "GET", "/whoami")).body, { kind: "anonymous", admin: false });
  assert.deepEqual((await api.expect(200, "GET", "/whoami", undefined, bob)).body, {
    kind: "user",
    name: "bob",
    admin: false,
    teams: [],
  });
});

test("a user changes its own password by presenting the present one, and then that one is no good", async () => {
  const { registry, api } = await start();
  await using _ = registry;
  const bob = basic("bob", PASSWORD);
  const next = "quite another password";
  const wrong = await api.expect(403, "POST", "/whoami/password", { present: "not that one", password: next }, bob);
  assert.match(String(wrong.body["detail"]), /that is not the present password/);
  const short = await api.expect(400, "POST", "/whoami/password", { present: PASSWORD, password: "short" }, bob);
  assert.match(String(short.body["detail"]), /password: is shorter than 12 characters/);
  await api.expect(204, "POST", "/whoami/password", { present: PASSWORD, password: next }, bob);
  await api.expect(401, "GET", "/users/bob", undefined, bob);
  await api.expect(200, "GET", "/users/bob", undefined, basic("bob", next));
  // An administrator sets anybody's but its own without the present one.
  await api.expect(403, "PATCH", "/users/alice", { password: next }, ALICE);
  await api.expect(200, "PATCH", "/users/bob", { password: PASSWORD }, ALICE);
  await api.expect(401, "GET", "/users/bob", undefined, basic("bob", next));
  await api.expect(200, "GET", "/users/bob", undefined, bob);
  await api.expect(401, "POST", "/whoami/password", { present: PASSWORD, password: next });
});

test("a change with If-Match is refused where somebody else was faster", async () => {
  const { registry, api } = await start();
  await using _ = registry;
  const { headers } = await api.expect(200, "GET", "/users/bob", undefined, ALICE);
  const old = { ...ALICE, "if-match": String(headers["etag"]) };
  const { headers: after } = await api.expect(200, "PATCH", "/users/bob", { admin: true }, old);
  assert.notEqual(after["etag"], headers["etag"]);
  await api.expect(412, "PATCH", "/users/bob", { disabled: true }, old);
  await api.expect(412, "DELETE", "/users/bob", undefined, old);
  await api.expect(304, "GET", "/users/bob", undefined, { ...ALICE, "if-none-match": String(after["etag"]) });
  await api.expect(204, "DELETE", "/users/bob", undefined, { ...ALICE, "if-match": String(after["etag"]) });
});

test("the last administrator stays", async () => {
  const { registry, api } = await start();
  await using _ = registry;
  for (const [method, given] of [
    ["PATCH", { admin: false }],
    ["PATCH", { disabled: true }],
    ["DELETE", undefined],
  ] as const) {
    const { body } = await api.expect(409, method, "/users/alice", given, ALICE);
    assert.match(String(body["detail"]), /alice is the last administrator that is enabled/);
  }
});

test("a user stays while its namespace holds anything; then the next one of the name begins anew", async () => {
  const { registry, api } = await start();
  await using _ = registry;
  const asBob: TestRegistry = {
    ...registry,
    send: (method, path, headers, body) => registry.send(method, path, { ...headers, ...basic("bob", PASSWORD) }, body),
  };
  const digest = await pushBlob(asBob, "bob/app", Buffer.from("something"));
  const { body } = await api.expect(409, "DELETE", "/users/bob", undefined, ALICE);
  assert.match(String(body["detail"]), /the namespace bob of the user bob holds content: delete its repositories/);
  await send(asBob, 202, "DELETE", `/v2/bob/app/blobs/${digest}`);
  await api.expect(204, "DELETE", "/users/bob", undefined, ALICE);
  assert.deepEqual(select(registry, "SELECT name FROM namespaces WHERE name = 'bob'"), []);
  await api.expect(201, "POST", "/users", { name: "bob", password: PASSWORD }, ALICE);
  await pushBlob(asBob, "bob/app", Buffer.from("something else"));
});

test("a password that breaks a rule is refused with the rule, and is told nowhere", async () => {
  const { registry, api } = await start({ passwordMinLength: 20 });
  await using _ = registry;
  const given = ["nineteen characters", "x".repeat(73), "a line break\nand twenty characters"];
  for (const password of given) {
    for (const [method, path, body] of [
      ["POST", "/users", { name: "carol", password }],
      ["PATCH", "/users/bob", { password }],
    ] as const) {
      const refused = await api.expect(400, method, path, body, ALICE);
      assert.match(String(refused.body["detail"]), /^password: (?:is|has|holds) /);
    }
  }
  await api.expect(400, "POST", "/users", { name: "carol", password: "y".repeat(1025) }, ALICE);
  await api.expect(400, "POST", "/users", { name: "carol" }, ALICE);
  const { body } = await api.expect(400, "PATCH", "/users/bob", { passwort: "a" }, ALICE);
  assert.match(String(body["detail"]), /passwort/);
  const everything = JSON.stringify([registry.log, select(registry, "SELECT * FROM events")]);
  for (const secret of [...given, PASSWORD, ADMIN_PASSWORD, "$2b$"])
    assert.ok(!everything.includes(JSON.stringify(secret).slice(1, -1)));
  const list = await registry.get("/api/v1/users", ALICE);
  assert.doesNotMatch(list.bytes.toString(), /\$2b\$|"password"/);
});

test("whoever likes signs up where that is on, as a plain user, so often an address", async () => {
  const { registry, api } = await start({ signUp: true, brakes: { failures: 3, interval: "1h" } });
  await using _ = registry;
  const { body } = await api.expect(201, "POST", "/sign-up", { name: "carol", password: PASSWORD });
  assert.equal(body["admin"], false);
  await api.expect(200, "GET", "/users/carol", undefined, basic("carol", PASSWORD));
  await api.expect(400, "POST", "/sign-up", { name: "dave", password: PASSWORD, admin: true });
  await api.expect(409, "POST", "/sign-up", { name: "carol", password: PASSWORD });
  await api.expect(400, "POST", "/sign-up", { name: "dave", password: "short" });
  const { headers } = await api.expect(429, "POST", "/sign-up", { name: "dave", password: PASSWORD });
  assert.ok(Number(headers["retry-after"]) > 3500);
  assert.deepEqual(
    select(registry, "SELECT actor FROM events WHERE subject = 'user:carol' AND action = 'access'").map(
      ({ actor }) => actor,
    ),
    ["carol"],
  );
});

test("nobody signs up where that is off, nor before there is an administrator", async () => {
  const { registry, api } = await start();
  await using _ = registry;
  const off = await api.expect(403, "POST", "/sign-up", { name: "carol", password: PASSWORD });
  assert.match(String(off.body["detail"]), /access\.signUp is off/);
  await using empty = await startRegistry({ config: { access: { signUp: true } } });
  const early = await (await Api.of(empty)).expect(409, "POST", "/sign-up", { name: "carol", password: PASSWORD });
  assert.match(String(early.body["detail"]), /nobody looks after this registry yet/);
});
