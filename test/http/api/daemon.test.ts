import assert from "node:assert/strict";
import { test } from "node:test";
import { parseConfig } from "../../../src/config/load.ts";
import { VERSION } from "../../../src/base/version.ts";
import { Api } from "../../kit/api.ts";
import { startRegistry, type TestRegistry } from "../../kit/registry.ts";
import { jsonOf } from "../../registry/clients.ts";

function reload(registry: TestRegistry, access: object): void {
  registry.app.reload(
    parseConfig({ server: { listen: "127.0.0.1:0" }, storage: { root: registry.root, minFree: 0 }, access }),
  );
}

test("the status tells version, age, storage and what is checked", async () => {
  await using registry = await startRegistry();
  const api = await Api.of(registry);
  const { body } = await api.expect(200, "GET", "/status");
  assert.deepEqual([body["version"], body["ready"], body["flights"]], [VERSION, true, 0]);
  assert.equal((body["storage"] as Record<string, unknown>)["root"], registry.root);
  assert.ok(Math.abs(Date.now() - Date.parse(String(body["startedAt"]))) < 60_000);
});

test("the configuration in force is told without its secrets", async () => {
  const auth = { username: "u", password: "hidden-word" };
  await using registry = await startRegistry({
    upstreams: { "docker.io": { url: "http://127.0.0.1:1", auth } },
    config: { webhooks: [{ name: "ci", url: "http://127.0.0.1:1/hook", secret: "hidden-word" }] },
  });
  const answer = await registry.get("/api/v1/config");
  const text = answer.bytes.toString();
  assert.equal(answer.status, 200, text);
  assert.ok(!text.includes("hidden-word"), text);
  const { config } = jsonOf(answer) as { config: { storage: { root: string }; webhooks: { secret: string }[] } };
  assert.equal(config.storage.root, registry.root);
  assert.equal(config.webhooks[0]?.secret, "[redacted]");
});

test("while it is for this machine, no page that lets its own name lead here may use the API, or push", async () => {
  await using registry = await startRegistry({
    config: { server: { publicUrl: "https://registry.example.com" }, hosted: { namespaces: ["team"] } },
  });
  const { port } = new URL(registry.url);
  const status = async (host: string): Promise<number> =>
    (await registry.send("GET", "/api/v1/status", { host })).status;
  for (const host of ["127.0.0.1", "[::1]", "192.0.2.7", "localhost", "LOCALHOST.", "hub.localhost"])
    assert.equal(await status(`${host}:${port}`), 200, host);
  assert.equal(await status("registry.example.com"), 200);
  for (const host of ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "1.2.3.4.5", "example.com"])
    assert.equal(await status(`${host}:${port}`), 403, host);
  const refused = jsonOf(await registry.send("GET", "/api/v1/status", { host: "evil.example" }));
  assert.equal(refused["type"], "/problems/forbidden");
  assert.match(String(refused["detail"]), /evil\.example.* localhost, or make that name its server\.publicUrl/);

  const begin = async (headers: Record<string, string>): Promise<number> =>
    (await registry.send("POST", "/v2/team/app/blobs/uploads/", headers)).status;
  for (const origin of [`http://evil.example:${port}`, "https://evil.example", "null"])
    assert.equal(await begin({ origin, host: "evil.example" }), 403, origin);
  assert.equal(await begin({ origin: registry.url }), 202);
  assert.equal(await begin({ host: `name-in-etc-hosts:${port}` }), 202, "docker is no browser");

  reload(registry, { open: false });
  assert.equal(await status("evil.example"), 401, "there it is a password that counts, which no page knows");
});

test("what goes wrong is told as a problem that names the request", async () => {
  await using registry = await startRegistry();
  const api = await Api.of(registry);
  const wrong = async (status: number, kind: string, ...request: Parameters<Api["send"]>): Promise<string> => {
    const { body, headers } = await api.expect(status, ...request);
    assert.equal(headers["content-type"], "application/problem+json");
    assert.deepEqual([body["type"], body["status"]], [`/problems/${kind}`, status]);
    assert.equal(body["instance"], headers["x-request-id"]);
    return String(body["detail"]);
  };
  await wrong(404, "not-found", "GET", "/nothing");
  await wrong(404, "not-found", "GET", "/repositories/team%2Fnone");
  const { headers } = await api.expect(405, "PUT", "/repositories");
  assert.equal(headers["allow"], "GET, HEAD");
  assert.equal(
    await wrong(400, "invalid-input", "GET", "/repositories?limit=0"),
    "limit: Too small: expected number to be >=1",
  );
  assert.match(
    await wrong(400, "invalid-input", "GET", "/repositories?limit=1x"),
    /expected a whole number from 1 to 1000/,
  );
  assert.match(
    await wrong(400, "invalid-input", "GET", "/repositories?colour=red"),
    /colour: is no parameter of this operation: it takes limit, cursor, prefix, q, kind/,
  );
  assert.match(await wrong(400, "invalid-input", "GET", "/repositories?limit=1&limit=2"), /limit: is given twice/);
  assert.match(
    await wrong(400, "invalid-input", "GET", "/repositories?cursor=xyz"),
    /cursor: is none that this list has given/,
  );
  assert.match(await wrong(400, "invalid-input", "GET", "/status?x=1"), /it takes none/);
  assert.match(await wrong(404, "not-found", "GET", "/repositories/team/app"), /one segment, its slashes written %2F/);
  await wrong(400, "invalid-input", "GET", "/repositories/Team");
  await wrong(400, "malformed-request", "GET", "/repositories/%ff");
  await wrong(400, "invalid-input", "POST", "/gc", { dry: true });
  await wrong(415, "unsupported-media-type", "POST", "/gc", {}, { "content-type": "text/plain" });
});

test("HEAD answers as GET does, without a body", async () => {
  await using registry = await startRegistry();
  const [read, head] = [await registry.get("/api/v1/cache"), await registry.send("HEAD", "/api/v1/cache")];
  assert.deepEqual([head.status, head.bytes.length], [200, 0]);
  assert.equal(head.headers["content-length"], String(read.bytes.length));
  assert.equal((await registry.send("HEAD", "/api/v1/repositories/none")).status, 404);
});
