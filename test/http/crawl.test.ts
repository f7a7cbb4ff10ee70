/** Every route without credentials: what is not on a list written by hand asks for some. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Api } from "../kit/api.ts";
import { digestOf } from "../../src/oci/digest.ts";
import { adminApi, tokenFor } from "../kit/people.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";

/** What strangers may ask for. They see what is public, make a user where access.signUp lets them, or the first one by the link of the log. */
const OPEN_OPERATIONS = ["describe", "listRepositories", "setUp", "signUp", "whoami"];

const OPEN_PATHS = [
  "/",
  "/livez",
  "/readyz",
  "/metrics",
  "/v1/_ping",
  "/token",
  "/token/jwks.json",
  "/token/certificates.pem",
];

async function start(): Promise<TestRegistry> {
  const registry = await startRegistry({ config: { access: { open: false }, hosted: { namespaces: ["team"] } } });
  const admin = await adminApi(registry);
  await admin("POST", "/users", { name: "alice", password: "opens the door wide" });
  return registry;
}

function exampleOf(path: string): string {
  const values: Record<string, string> = {
    repository: "team%2Fapp",
    digest: digestOf(Buffer.from("x")),
    id: "1",
    run: "1",
  };
  return path.replaceAll(/\{([^}]+)\}/g, (_, name: string) => values[name] ?? "team");
}

test("no operation of the API answers a stranger but those on the list", async () => {
  await using registry = await start();
  const { operations } = await Api.of(registry);
  const open: string[] = [];
  for (const { operationId, method, path } of operations) {
    const headers: Record<string, string> = method === "GET" ? {} : { "content-type": "application/json" };
    const answer = await registry.send(
      method,
      `/api/v1${exampleOf(path)}`,
      headers,
      method === "GET" ? undefined : "{}",
    );
    if (answer.status === 401) {
      assert.match(String(answer.headers["www-authenticate"]), /^Bearer realm="/, operationId);
      assert.equal(answer.headers["content-type"], "application/problem+json");
    } else open.push(operationId);
  }
  assert.deepEqual(open.toSorted(), OPEN_OPERATIONS);
});

test("a token of the token service opens nothing of the API beside what its repositories are", async () => {
  await using registry = await start();
  const nobody = await tokenFor(registry, {}, "registry:catalog:*");
  const { operations } = await Api.of(registry);
  for (const { operationId, method, path } of operations) {
    if (OPEN_OPERATIONS.includes(operationId)) continue;
    const headers = { ...nobody, ...(method === "GET" ? {} : { "content-type": "application/json" }) };
    const answer = await registry.send(
      method,
      `/api/v1${exampleOf(path)}`,
      headers,
      method === "GET" ? undefined : "{}",
    );
    assert.equal(answer.status, 401, operationId);
  }
});

test("beside the API, a stranger gets what is on the list, and else a challenge", async () => {
  await using registry = await start();
  for (const path of OPEN_PATHS) assert.equal((await registry.get(path)).status, 200, path);
  const digest = digestOf(Buffer.from("x"));
  const closed: [method: string, path: string][] = [
    ["GET", "/v2/"],
    ["GET", "/v2/_catalog"],
    ["GET", "/v1/search?q=app"],
    ...["GET", "HEAD", "PUT", "DELETE"].map((method): [string, string] => [method, "/v2/team/app/manifests/1"]),
    ...["GET", "HEAD", "DELETE"].map((method): [string, string] => [method, `/v2/team/app/blobs/${digest}`]),
    ...["POST", "PATCH", "PUT", "GET", "HEAD", "DELETE"].map((method): [string, string] => [
      method,
      method === "POST" ? "/v2/team/app/blobs/uploads/" : "/v2/team/app/blobs/uploads/some-id",
    ]),
    ["POST", `/v2/team/app/blobs/uploads/?mount=${digest}&from=team/other`],
    ["GET", "/v2/team/app/tags/list"],
    ["GET", `/v2/team/app/referrers/${digest}`],
  ];
  for (const [method, path] of closed) {
    const answer = await registry.send(method, path);
    assert.equal(answer.status, 401, `${method} ${path}`);
    assert.match(
      String(answer.headers["www-authenticate"]),
      /^Bearer realm="http:\/\/127\.0\.0\.1:\d+\/token",service="entrepot"/,
    );
  }
  for (const path of ["/setup", "/admin", "/v1/", "/api", "/debug/pprof/", "/.git/config"])
    assert.equal((await registry.get(path)).status, 404, path);
});

test("with access.metrics: login, metrics are for those who have logged in", async () => {
  await using registry = await startRegistry({ config: { access: { open: false, metrics: "login" } } });
  assert.equal((await registry.get("/metrics")).status, 401);
});
