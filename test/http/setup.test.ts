import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { firstLoginOf } from "../../src/access/setup.ts";
import { Api } from "../kit/api.ts";
import { select } from "../kit/hosted.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";

const LOGGED = "nobody can log in yet: open the link to make the first administrator, or run entrepot user add";
const PASSWORD = "a long enough password";

/** As in a container: it listens on all addresses, so access is not open. */
function start(config: RegistryOptions["config"] = {}, root?: string): Promise<TestRegistry> {
  return startRegistry({
    config: { ...config, server: { listen: "0.0.0.0:0", ...config.server } },
    ...(root === undefined ? {} : { root }),
  });
}

function linkOf(registry: TestRegistry): URL | undefined {
  const link = registry.log.find(({ msg }) => msg === LOGGED)?.["link"];
  return typeof link === "string" ? new URL(link) : undefined;
}

function tokenOf(registry: TestRegistry): string {
  const token = linkOf(registry)?.hash.slice(1) ?? "";
  assert.match(token, /^[A-Za-z0-9_-]{43}$/);
  return token;
}

function basic(name: string, password: string): Record<string, string> {
  return { authorization: `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}` };
}

test("where nobody can log in, the log holds a link that makes one administrator, once", async () => {
  await using registry = await start();
  const api = await Api.of(registry);
  const token = tokenOf(registry);
  assert.equal(String(linkOf(registry)), `http://localhost:${new URL(registry.url).port}/setup#${token}`);
  assert.equal((await registry.get("/setup")).status, 200);
  const login = { name: "alice", password: PASSWORD };
  const { body } = await api.expect(201, "POST", "/setup", { token, ...login });
  assert.equal(body["name"], "alice");
  assert.equal(body["admin"], true);
  const again = await api.expect(404, "POST", "/setup", { token, name: "mallory", password: PASSWORD });
  assert.match(String(again.body["detail"]), /there is no set-up link any more/);
  assert.equal((await registry.get("/setup")).status, 404);
  assert.deepEqual(
    select(registry, "SELECT name, admin FROM users").map(({ name, admin }) => [name, admin]),
    [["alice", 1]],
  );
  const me = await api.expect(200, "GET", "/whoami", undefined, basic("alice", PASSWORD));
  assert.deepEqual(me.body, { kind: "user", name: "alice", admin: true, teams: [] });
  const stored = JSON.stringify([select(registry, "SELECT * FROM users"), select(registry, "SELECT * FROM events")]);
  assert.ok(!stored.includes(PASSWORD) && !stored.includes(token));
  const lines = registry.log.filter(({ msg }) => msg !== LOGGED);
  assert.ok(!JSON.stringify(lines).includes(PASSWORD) && !JSON.stringify(lines).includes(token));
});

test("two who use the link at once make one administrator", async () => {
  await using registry = await start();
  const api = await Api.of(registry);
  const token = tokenOf(registry);
  const ends = await Promise.all(
    ["alice", "bob"].map((name) => api.send("POST", "/setup", { token, name, password: PASSWORD })),
  );
  assert.deepEqual(new Set(ends.map(({ status }) => status)), new Set([201, 404]));
  assert.equal(select(registry, "SELECT name FROM users").length, 1);
});

test("a name or a password that is refused leaves the link good", async () => {
  await using registry = await start();
  const api = await Api.of(registry);
  const token = tokenOf(registry);
  for (const password of ["short", "x".repeat(73), "password1234"]) {
    const { body } = await api.expect(400, "POST", "/setup", { token, name: "alice", password });
    assert.match(String(body["detail"]), /^password: (?:is|has) /);
  }
  await api.expect(400, "POST", "/setup", { token, name: "Not A Name", password: PASSWORD });
  await api.expect(409, "POST", "/setup", { token, name: "operator", password: PASSWORD });
  await api.expect(201, "POST", "/setup", { token, name: "alice", password: PASSWORD });
});

test("five wrong tokens end the link", async () => {
  await using registry = await start();
  const api = await Api.of(registry);
  const token = tokenOf(registry);
  const login = { name: "mallory", password: PASSWORD };
  for (const wrong of ["", "a", token.slice(1), `${token}a`, "a".repeat(43)]) {
    assert.equal((await registry.get("/setup")).status, 200);
    await api.expect(403, "POST", "/setup", { token: wrong, ...login });
  }
  assert.equal((await registry.get("/setup")).status, 404);
  await api.expect(404, "POST", "/setup", { token, ...login });
  assert.deepEqual(select(registry, "SELECT name FROM users"), []);
  assert.ok(registry.log.some(({ msg }) => /wrong set-up tokens were tried/.test(String(msg))));
});

test("the page may run its one script and nothing else, and holds no secret", async () => {
  await using registry = await start();
  const { headers, bytes } = await registry.get("/setup");
  const page = bytes.toString();
  const policy = String(headers["content-security-policy"]);
  for (const [element, directive] of [
    ["script", "script-src"],
    ["style", "style-src"],
  ] as const) {
    const found = [...page.matchAll(new RegExp(`<${element}[^>]*>([^]*?)</${element}>`, "g"))].map(([, text]) => text);
    assert.equal(found.length, 1);
    const hash = createHash("sha256").update(String(found[0])).digest("base64");
    assert.ok(policy.includes(`${directive} 'sha256-${hash}'`), element);
  }
  assert.match(
    policy,
    /default-src 'none'.*connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'$/,
  );
  assert.doesNotMatch(page, / on[a-z]+=|style=|javascript:/i);
  assert.ok(!page.includes(tokenOf(registry)));
  assert.equal(headers["cache-control"], "no-store");
  assert.equal(headers["referrer-policy"], "no-referrer");
  const other = await registry.send("POST", "/setup");
  assert.ok(other.status === 404 || other.status === 405, String(other.status));
});

test("there is no link where access is open, where an htpasswd file is, and where somebody can log in", async () => {
  await using first = await start();
  const api = await Api.of(first);
  await api.expect(201, "POST", "/setup", { token: tokenOf(first), name: "alice", password: PASSWORD });
  await first.stop();
  for (const [config, root] of [
    [{ access: { open: "everywhere" } }, undefined],
    [{ server: { listen: "127.0.0.1:0" } }, undefined],
    [{}, first.root],
  ] as const) {
    await using registry = await start(config, root);
    assert.equal(linkOf(registry), undefined, JSON.stringify(config));
    assert.equal((await registry.get("/setup")).status, 404);
    const answer = await registry.send(
      "POST",
      "/api/v1/setup",
      { "content-type": "application/json" },
      JSON.stringify({ token: "", name: "mallory", password: PASSWORD }),
    );
    assert.equal(answer.status, 404);
  }
});

test("the link names server.publicUrl where there is one", async () => {
  await using registry = await start({ server: { publicUrl: "https://registry.example.com" } });
  assert.match(String(linkOf(registry)), /^https:\/\/registry\.example\.com\/setup#[A-Za-z0-9_-]{43}$/);
});

test("the environment names the first administrator whole or not at all", async () => {
  const name = { ENTREPOT_ADMIN_USERNAME: "root" };
  assert.equal(await firstLoginOf({}), undefined);
  assert.equal(await firstLoginOf({ ENTREPOT_ADMIN_USERNAME: "" }), undefined);
  assert.deepEqual(await firstLoginOf({ ...name, ENTREPOT_ADMIN_PASSWORD: "secret" }), {
    name: "root",
    password: "secret",
  });
  for (const [env, message] of [
    [name, /ENTREPOT_ADMIN_USERNAME is set: set either ENTREPOT_ADMIN_PASSWORD or ENTREPOT_ADMIN_PASSWORD_FILE, too/],
    [{ ...name, ENTREPOT_ADMIN_PASSWORD: "a", ENTREPOT_ADMIN_PASSWORD_FILE: "/b" }, /set either/],
    [{ ENTREPOT_ADMIN_PASSWORD: "hidden" }, /^(?!.*hidden)set ENTREPOT_ADMIN_USERNAME, too/],
    [{ ENTREPOT_ADMIN_USERNAME: "The Boss", ENTREPOT_ADMIN_PASSWORD: "a" }, /"The Boss" is no name to log in by/],
    [{ ...name, ENTREPOT_ADMIN_PASSWORD_FILE: "/no/such/file" }, /ENTREPOT_ADMIN_PASSWORD_FILE: ENOENT/],
  ] as const)
    await assert.rejects(firstLoginOf(env), ({ message: told }: Error) => message.test(told), JSON.stringify(env));
});
