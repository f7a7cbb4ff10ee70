import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempDisposable } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import Koa from "koa";
import { parseConfig } from "../../src/config/load.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import type { NewEvent } from "../../src/events/event.ts";
import { toClientError, writeError } from "../../src/http/errors.ts";
import type { RequestState } from "../../src/http/exchange.ts";
import { notificationRoutes } from "../../src/http/notifications.ts";
import { MovingClock } from "../registry/clients.ts";

interface Stage extends AsyncDisposable {
  post: (
    registry: string,
    body: unknown,
    options?: { headers?: Record<string, string>; query?: string; method?: string },
  ) => Promise<{ status: number; text: string; headers: Headers }>;
  /** What was handed on: `hub team/app:latest`. */
  pushes: string[];
  woken: string[];
  denied: NewEvent[];
  clock: MovingClock;
}

const SECRET = "se:cr&t+1";
const CONFIG = parseConfig({
  access: { brakes: { failures: 5, interval: "1m" } },
  replication: {
    registries: {
      hub: { url: "https://registry-1.docker.io", notifications: { secret: SECRET } },
      mute: { url: "https://mute.example" },
    },
  },
});

async function stage(): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(await mkdtempDisposable(join(tmpdir(), "entrepot-notifications-")));
  const db = stack.use(await openSqlite(join(folder.path, "entrepot.db")));
  const [pushes, woken, denied]: [string[], string[], NewEvent[]] = [[], [], []];
  const clock = new MovingClock();
  const app = new Koa();
  app.use(async (ctx, next) => {
    const by = { actor: undefined, address: "192.0.2.7", agent: undefined, requestId: "r-1" };
    const state: Pick<RequestState, "requester" | "note"> = { requester: () => by, note: () => undefined };
    Object.assign(ctx.state, state);
    try {
      await next();
    } catch (error) {
      ctx.respond = false;
      writeError(ctx.res, ctx.path, ctx.method, toClientError(error, "r-1"));
    }
  });
  app.use(
    notificationRoutes({
      config: () => CONFIG,
      db,
      clock,
      progress: CONFIG.server.progress,
      journal: { note: (event) => void denied.push(event) },
      wake: (kind) => void woken.push(kind),
      pushedWithin: async (_, { registry, repository, tag }, trigger) => {
        pushes.push(`${trigger} ${registry} ${repository}:${tag}`);
        return repository === "team/app" ? ["copy:dr", "copy:far"] : [];
      },
    }),
  );
  const server = app.listen(0, "127.0.0.1");
  stack.defer(() => {
    server.close();
    server.closeAllConnections();
  });
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const post: Stage["post"] = async (registry, body, { headers = {}, query = "", method = "POST" } = {}) => {
    const url = `http://127.0.0.1:${port}/api/v1/replication/registries/${registry}/notifications${query}`;
    const text = typeof body === "string" ? body : JSON.stringify(body);
    const answer = await fetch(url, { method, headers, ...(method === "POST" ? { body: text } : {}) });
    return { status: answer.status, text: await answer.text(), headers: answer.headers };
  };
  const owned = stack.move();
  return { post, pushes, woken, denied, clock, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

const PUSH = { push_data: { tag: "latest" }, repository: { repo_name: "team/app" } };
const bearer = (secret: string) => ({ authorization: `Bearer ${secret}` });
const basic = (secret: string) => ({ authorization: `Basic ${Buffer.from(`anyone:${secret}`).toString("base64")}` });
const inQuery = (secret: string) => `?secret=${encodeURIComponent(secret)}`;

test("a push that another registry tells of begins copies, with the secret in any of its places and any type of body", async () => {
  await using s = await stage();
  const ways = [
    { headers: basic(SECRET) },
    { headers: bearer(SECRET) },
    // As Harbor sends what it was given.
    { headers: { authorization: SECRET } },
    { query: inQuery(SECRET) },
    { headers: { ...basic(SECRET), "content-type": "application/cloudevents+json" } },
  ];
  for (const way of ways) {
    const { status, text } = await s.post("hub", PUSH, way);
    assert.equal(status, 202);
    assert.deepEqual(JSON.parse(text), { pushes: 1, begun: 1 });
  }
  assert.deepEqual(
    s.pushes,
    ways.map(() => "webhook hub team/app:latest"),
  );
  assert.deepEqual(
    s.woken,
    ways.flatMap(() => ["copy:dr", "copy:far"]),
  );
  const other = await s.post("hub", { ...PUSH, repository: { repo_name: "team/other" } }, { headers: basic(SECRET) });
  assert.deepEqual([other.status, JSON.parse(other.text)], [202, { pushes: 1, begun: 0 }]);
});

test("without the secret nothing begins, whatever registry is named; it is told and never repeated", async () => {
  await using s = await stage();
  const wrong = [
    await s.post("hub", PUSH),
    await s.post("hub", PUSH, { headers: bearer("guess") }),
    await s.post("mute", PUSH, { query: "?secret=" }),
    await s.post("constructor", PUSH, { query: inQuery("guess") }),
  ];
  for (const { status, text } of wrong) {
    assert.equal(status, 401);
    assert.doesNotMatch(text, /guess/);
  }
  assert.equal(new Set(wrong.map(({ text }) => text)).size, 1);
  assert.deepEqual(s.pushes, []);
  assert.equal(s.denied.length, 4);
  assert.doesNotMatch(JSON.stringify(s.denied), /guess/);
});

test("an address with too many wrong secrets has to wait, with the right one too; then it goes on", async () => {
  await using s = await stage();
  for (let i = 0; i < 5; i++) assert.equal((await s.post("hub", PUSH, { query: inQuery(`guess ${i}`) })).status, 401);
  const slowed = await s.post("hub", PUSH, { query: inQuery(SECRET) });
  assert.equal(slowed.status, 429);
  assert.ok(Number(slowed.headers.get("retry-after")) > 0);
  s.clock.offsetMs += 61_000;
  assert.equal((await s.post("hub", PUSH, { query: inQuery(SECRET) })).status, 202);
});

test("what cannot be read is refused with what can, and nothing begins", async () => {
  await using s = await stage();
  const headers = basic(SECRET);
  for (const [body, detail] of [
    ["{", /not JSON/],
    [{ hello: "world" }, /Docker Hub, Harbor, Quay/],
    [{ ...PUSH, repository: { repo_name: "UPPER" } }, /not a repository's name/],
  ] as const) {
    const { status, text } = await s.post("hub", body, { headers });
    assert.equal(status, 400);
    assert.match((JSON.parse(text) as { detail: string }).detail, detail);
  }
  const large = await s.post("hub", "x".repeat(1024 * 1024 + 1), { headers });
  assert.equal(large.status, 413);
  const got = await s.post("hub", PUSH, { headers, method: "GET" });
  assert.deepEqual([got.status, got.headers.get("allow")], [405, "POST"]);
  assert.deepEqual(s.pushes, []);
});
