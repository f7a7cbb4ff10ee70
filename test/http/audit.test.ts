import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import Sqlite from "better-sqlite3";
import { Api } from "../kit/api.ts";
import { pushImage, send } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { jsonOf } from "../registry/clients.ts";
import { connectTo } from "./raw.ts";

const image = makeImage({ layers: [1000] });
const PASSWORD = "correct horse battery";

function as(name: string, password = PASSWORD): Record<string, string> {
  return { authorization: `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}` };
}

const ROOT = as("root");

/** A registry that root looks after, and alice may use; team/app:1 is there, and private. */
async function start(options: RegistryOptions = {}): Promise<TestRegistry> {
  const registry = await startRegistry({
    ...options,
    config: { ...options.config, hosted: { namespaces: ["team"], immutableTags: { team: ["v*"] } } },
  });
  const api = await Api.of(registry);
  await pushImage(registry, "team/app", image, "1");
  // Access is open to this machine as long as nobody can log in.
  await api.expect(201, "POST", "/users", { name: "root", password: PASSWORD });
  await api.expect(201, "POST", "/users", { name: "alice", password: PASSWORD }, ROOT);
  return registry;
}

type Event = Record<string, unknown>;

async function list(registry: TestRegistry, query: string): Promise<Event[]> {
  return (jsonOf(await send(registry, 200, "GET", `/api/v1/events?${query}`, ROOT)) as { items: Event[] }).items;
}

/** Events once there are so many: what is refused is recorded after the answer. */
async function events(registry: TestRegistry, count: number, query: string): Promise<Event[]> {
  await registry.until(async () => (await list(registry, query)).length >= count, `there are ${count} events`);
  const found = await list(registry, query);
  assert.equal(found.length, count, JSON.stringify(found, undefined, 1));
  return found;
}

/** Inserted as they are, while the daemon runs. */
function insert(registry: TestRegistry, count: number): void {
  const db = new Sqlite(join(registry.root, "entrepot.db"));
  const add = db.prepare(
    "INSERT INTO events (at, action, outcome, repository, tag, agent) VALUES (?, 'pull', 'done', 'team/much', ?, ?)",
  );
  db.transaction(() => {
    for (let i = 0; i < count; i++) add.run(1000 + i, `t${i}`, "x".repeat(200));
  })();
  db.close();
}

test("a login is recorded, a failed one with its reason: who, from where, in which request", async () => {
  await using registry = await start();
  const right = await registry.get("/v2/", as("alice"));
  const wrong = await registry.get("/v2/", as("alice", "wrong"));
  const nobody = await registry.get("/v2/", as("mallory", "wrong"));
  assert.deepEqual([right.status, wrong.status, nobody.status], [200, 401, 401]);
  const [login] = await events(registry, 1, "action=login&outcome=done&subject=user:alice");
  assert.equal(login?.["actor"], "alice");
  assert.equal(login["address"], "127.0.0.1");
  assert.equal(login["requestId"], right.headers["x-request-id"]);
  assert.equal(login["repository"], undefined);
  const denied = await events(registry, 2, "action=login&outcome=denied");
  assert.deepEqual(
    denied.map(({ subject, actor, requestId }) => [subject, actor, requestId]),
    [
      ["user:mallory", undefined, nobody.headers["x-request-id"]],
      ["user:alice", undefined, wrong.headers["x-request-id"]],
    ],
  );
  for (const { detail } of denied) assert.equal(typeof detail, "string");
  assert.ok(!JSON.stringify(await list(registry, "")).includes(PASSWORD));
});

test("a pull, a push and a delete that somebody may not are recorded; who is only asked to log in leaves nothing", async () => {
  await using registry = await start();
  const path = "/v2/team/app/manifests/1";
  await send(registry, 401, "GET", path);
  await send(registry, 403, "GET", path, as("alice"));
  await send(registry, 403, "POST", "/v2/team/app/blobs/uploads/", as("alice"));
  await send(registry, 403, "DELETE", path, as("alice"));
  await send(registry, 403, "DELETE", "/api/v1/repositories/team%2Fapp", as("alice"));
  const denied = await events(registry, 4, "outcome=denied&repository=team/app");
  assert.deepEqual(denied.map(({ action }) => String(action)).toSorted(), ["delete", "delete", "pull", "push"]);
  for (const { actor, address, requestId, detail } of denied) {
    assert.equal(actor, "alice");
    assert.equal(address, "127.0.0.1");
    assert.ok(requestId && detail);
  }
  assert.equal((await list(registry, "outcome=denied")).length, 4);
});

test("who asks for a hundred repositories that are not for it has an event for some, and a number for the rest", async () => {
  await using registry = await start();
  for (let i = 0; i < 100; i++) await send(registry, 403, "GET", `/v2/team/app-${i}/manifests/1`, as("alice"));
  for (let i = 0; i < 100; i++) await send(registry, 403, "GET", `/v2/team/app-1/manifests/${i}`, as("alice"));
  await registry.stop();
  const db = new Sqlite(join(registry.root, "entrepot.db"), { readonly: true });
  const rows = db.prepare("SELECT repository, detail FROM events WHERE outcome = 'denied' ORDER BY id").all() as {
    repository: string | null;
    detail: string;
  }[];
  db.close();
  assert.equal(rows.length, 22);
  const sums = rows.filter(({ detail }) => / more /.test(detail));
  assert.deepEqual(sums.map(({ repository }) => String(repository)).toSorted(), ["null", "team/app-1"]);
  const counted = sums.reduce((sum, { detail }) => sum + Number(/(\d+) more/.exec(detail)?.[1]), 0);
  assert.equal(20 + counted, 200);
});

test("a change of rights is recorded with who made it, and outlives whom it is about", async () => {
  await using registry = await start();
  const api = await Api.of(registry);
  await api.expect(200, "PATCH", "/users/alice", { admin: true }, ROOT);
  await api.expect(204, "DELETE", "/users/alice", undefined, ROOT);
  const changes = await events(registry, 3, "action=access&subject=user:alice");
  for (const { actor, outcome, detail, requestId } of changes) {
    assert.deepEqual([actor, outcome], ["root", "done"]);
    assert.ok(detail && requestId);
  }
});

test("what somebody may not change is recorded, too", async () => {
  await using registry = await start();
  const api = await Api.of(registry);
  await api.expect(403, "PATCH", "/users/alice", { admin: true }, as("alice"));
  await api.expect(403, "GET", "/events/export", undefined, as("alice"));
  await api.expect(401, "GET", "/events/export");
  const denied = await events(registry, 2, "action=access&outcome=denied&actor=alice");
  assert.deepEqual(
    denied.map(({ detail }) => String(detail).split(":", 1)[0]),
    ["GET /api/v1/events/export", "PATCH /api/v1/users/alice"],
  );
});

// ---- export ----

test("an export has what the list has, in either format, by the same filters", async () => {
  await using registry = await start();
  await registry.get("/v2/", as("alice", "wrong"));
  await events(registry, 1, "action=login&outcome=denied");
  const agent = { ...as("root"), "user-agent": '=cmd|"/c calc"!A1' };
  await send(registry, 202, "DELETE", "/v2/team/app/manifests/1", agent);
  await events(registry, 1, "action=delete");
  for (const query of ["", "action=login", "subject=user:alice", "repository=team/app&action=delete", "actor=nobody"]) {
    const listed = await list(registry, query);
    const json = await send(registry, 200, "GET", `/api/v1/events/export?format=json&${query}`, ROOT);
    assert.equal(json.headers["content-type"], "application/x-ndjson");
    const lines = json.bytes.toString().split("\n").slice(0, -1);
    assert.deepEqual(
      lines.map((line) => JSON.parse(line) as Event),
      listed,
      query,
    );
    const csv = await send(registry, 200, "GET", `/api/v1/events/export?format=csv&${query}`, ROOT);
    assert.match(String(csv.headers["content-type"]), /^text\/csv; charset=utf-8/);
    assert.equal(csv.headers["content-disposition"], 'attachment; filename="events.csv"');
    const [head, ...records] = csv.bytes.toString().split("\r\n").slice(0, -1);
    assert.match(head ?? "", /^id,at,action,outcome,repository,/);
    assert.deepEqual(
      records.map((record) => Number(record.split(",", 1)[0])),
      listed.map(({ id }) => id),
      query,
    );
  }
  const csv = await send(registry, 200, "GET", "/api/v1/events/export?format=csv&action=delete", ROOT);
  assert.ok(csv.bytes.toString().includes(`,"'=cmd|""/c calc""!A1",`), csv.bytes.toString());
});

test("an export takes no more than it was asked for, a HEAD nothing, and what is no format is refused", async () => {
  await using registry = await start();
  insert(registry, 1000);
  const most = await send(registry, 200, "GET", "/api/v1/events/export?repository=team/much&limit=250", ROOT);
  const tags = most.bytes
    .toString()
    .trimEnd()
    .split("\n")
    .map((line) => (JSON.parse(line) as Event)["tag"]);
  assert.deepEqual(
    tags,
    Array.from({ length: 250 }, (_, i) => `t${999 - i}`),
  );
  const head = await send(registry, 200, "HEAD", "/api/v1/events/export?format=csv", ROOT);
  assert.match(String(head.headers["content-type"]), /^text\/csv/);
  assert.equal(head.bytes.length, 0);
  for (const query of ["format=xml", "limit=0", "cursor=abc", "since=yesterday"])
    await send(registry, 400, "GET", `/api/v1/events/export?${query}`, ROOT);
});

test("a client that takes its time is given no more than it takes, one that takes nothing is cut, and the daemon goes on", async () => {
  await using registry = await start({ config: { server: { progress: { minBytes: "16KiB", interval: "300ms" } } } });
  insert(registry, 60_000);
  using stuck = await connectTo(registry.url);
  stuck.socket.pause();
  const { authorization } = ROOT;
  stuck.send("GET /api/v1/events/export HTTP/1.1", "Host: localhost", `Authorization: ${authorization}`);
  const whole = await send(registry, 200, "GET", "/api/v1/events/export?repository=team/much", ROOT);
  assert.equal(whole.bytes.toString().trimEnd().split("\n").length, 60_000);
  await registry.until(() => registry.log.some(({ code, handler }) => code === 499 && handler === "api"), "it was cut");
  stuck.socket.resume();
  await stuck.closed;
  assert.ok(stuck.received.length < whole.bytes.length, `${stuck.received.length} bytes came`);
});
