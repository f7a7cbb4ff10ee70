import assert from "node:assert/strict";
import { test } from "node:test";
import { request } from "undici";
import { Api } from "../../kit/api.ts";
import { makeImage } from "../../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../../kit/registry.ts";
import { startUpstream, type Upstream } from "../../kit/upstream.ts";

const image = makeImage({ layers: [3000] });
const other = makeImage({ layers: [1000], seed: "other" });

/** Asked by nobody. */
const NOBODY = { url: "http://127.0.0.1:1" };
const BASE = {
  name: "base",
  from: { registry: "hub", repositories: ["library/app"] },
  to: [{ registry: "dr", repository: "mirror/{{name}}" }],
};
const TEAM = { from: { registry: "hub", repositories: ["team/tool"] }, to: [{ registry: "dr" }] };

function startWith(hub: Upstream, dr: { url: string }, more: object = {}): Promise<TestRegistry> {
  const registries = { hub: { url: hub.url }, dr: { url: dr.url } };
  return startRegistry({ config: { replication: { registries, rules: [{ ...BASE, ...more }] } } });
}

interface Event {
  id: string;
  type: string;
  data: Record<string, unknown>;
}

interface Watching extends AsyncDisposable {
  headers: Record<string, unknown>;
  events: Event[];
  /** Resolves once the daemon has ended it. */
  ended: Promise<void>;
}

/** Reads server-sent events as the standard has them. */
async function watch(registry: TestRegistry, headers: Record<string, string> = {}): Promise<Watching> {
  const { statusCode, headers: given, body } = await request(`${registry.url}/api/v1/replication/stream`, { headers });
  assert.equal(statusCode, 200);
  const events: Event[] = [];
  let text = "";
  const ended = (async () => {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      text += chunk.toString();
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const lines = text.slice(0, end).split("\n");
        text = text.slice(end + 2);
        const field = (name: string): string | undefined =>
          lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
        const [id, type, data] = [field("id"), field("event"), field("data")];
        if (id && type && data) events.push({ id, type, data: JSON.parse(data) as Event["data"] });
      }
    }
  })();
  ended.catch(() => undefined);
  return {
    headers: given,
    events,
    ended,
    [Symbol.asyncDispose]: async () => {
      body.destroy();
      await ended.catch(() => undefined);
    },
  };
}

const isDone = ({ type, data }: Event): boolean => type === "run" && data["state"] === "done";

/** Runs a rule to its end. @returns the run's id */
async function runToEnd(api: Api, rule: string): Promise<number> {
  const { body, headers } = await api.expect(202, "POST", `/replication/rules/${rule}/run`);
  const id = Number(body["run"]);
  assert.equal(headers["location"], `/api/v1/replication/runs/${id}`);
  await until(
    async () => (await api.expect(200, "GET", `/replication/runs/${id}`)).body["state"] === "done",
    "it has run",
  );
  return id;
}

test("a run copies what its plan tells, is told as it happens, and is found with its copies afterwards", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  hub.add("library/app", "1", image);
  hub.add("library/app", "2", other);
  await using registry = await startWith(hub, dr);
  const api = await Api.of(registry);
  await using watching = await watch(registry);
  assert.match(String(watching.headers["content-type"]), /^text\/event-stream/);
  assert.equal(watching.headers["x-accel-buffering"], "no", "nginx passes events on at once");

  const plan = await api.expect(200, "POST", "/replication/rules/base/plan", { sizes: true });
  const [planned] = plan.body["repositories"] as { tags: { tag: string; action: string }[] }[];
  assert.deepEqual(planned?.tags.map(({ tag, action }) => [tag, action]).toSorted(), [
    ["1", "copy"],
    ["2", "copy"],
  ]);
  const id = await runToEnd(api, "base");
  await until(() => watching.events.some(isDone), "its end is told");
  const { events } = watching;
  assert.ok(events.every(({ data }) => data["run"] === id && data["rule"] === "base"));
  const ended = events.filter(({ type, data }) => type === "task" && data["state"] === "done");
  assert.deepEqual(ended.map(({ data }) => String(data["subject"])).toSorted(), ["dr mirror/app:1", "dr mirror/app:2"]);
  const stream = api.operations.find(({ operationId }) => operationId === "watchReplication");
  const schema = api.schema(stream?.responses["200"]?.content?.["text/event-stream"]?.schema ?? {});
  for (const { data } of events) schema.parse(data);

  const run = await api.expect(200, "GET", `/replication/runs/${id}`);
  assert.deepEqual(run.body["tasks"], { done: 2 });
  assert.equal((run.body["result"] as { copied: number }).copied, 2);
  assert.deepEqual(
    (await api.all("/replication/runs?rule=base")).map((one) => one["id"]),
    [id],
  );
  assert.deepEqual(await api.all("/replication/runs?rule=other"), []);
  const tasks = await api.all(`/replication/runs/${id}/tasks?limit=1`);
  assert.deepEqual(tasks.map(({ tag }) => String(tag)).toSorted(), ["1", "2"]);
  assert.deepEqual(await api.all("/replication/tasks?rule=base&registry=dr&state=done"), tasks);
  for (const none of ["rule=other", "registry=hub", "state=dead"])
    assert.deepEqual(await api.all(`/replication/tasks?${none}`), []);
  await api.expect(200, "GET", `/jobs/${String(tasks[0]?.["id"])}`);
  assert.equal((await dr.get("/v2/mirror/app/manifests/2")).status, 200);

  const [status] = await api.all("/replication/rules");
  assert.deepEqual([status?.["name"], status?.["queued"], status?.["lagSeconds"]], ["base", 0, 0]);
  assert.equal((status?.["lastRun"] as { id: number } | undefined)?.id, id);
  assert.equal(await registry.metric("entrepot_replication_images_total", { rule: "base", outcome: "copied" }), 2);
  assert.ok((await registry.metric("entrepot_replication_last_success_timestamp_seconds", { rule: "base" })) > 1e9);
  assert.equal(await registry.metric("entrepot_replication_tasks", { rule: "base" }), 0);
});

test("who comes back to the stream is told what it missed, or that it missed something", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  hub.add("library/app", "1", image);
  await using registry = await startWith(hub, dr);
  const api = await Api.of(registry);
  let first: Event | undefined;
  {
    await using watching = await watch(registry);
    await runToEnd(api, "base");
    await until(() => watching.events.some(isDone), "its end is told");
    [first] = watching.events;
  }
  await using back = await watch(registry, { "last-event-id": first?.id ?? "" });
  await until(() => back.events.some(isDone), "the rest is told");
  assert.ok(back.events.every(({ id }) => Number(id) >= Number(first?.id)));
  await using stranger = await watch(registry, { "last-event-id": "yesterday" });
  await until(() => stranger.events.length > 0, "something is told");
  assert.deepEqual(stranger.events[0]?.data, { type: "missed" });
});

test("the stream ends when the daemon stops, and does not hold it up", async () => {
  await using hub = await startUpstream();
  await using registry = await startWith(hub, NOBODY);
  await using watching = await watch(registry);
  const begunMs = performance.now();
  await Promise.all([registry.stop(), watching.ended]);
  assert.ok(performance.now() - begunMs < 1500, "the drain timeout of two seconds was not waited for");
});

test("rules are made, replaced and removed under their ETag; a faulty one is refused with what is wrong where", async () => {
  await using hub = await startUpstream();
  await using registry = await startWith(hub, NOBODY);
  const api = await Api.of(registry);
  const path = "/replication/rules/tools";
  const made = await api.expect(201, "PUT", path, TEAM);
  const etag = String(made.headers["etag"]);
  assert.deepEqual((await api.expect(200, "GET", path)).body["origin"], "api");
  assert.equal((await api.send("GET", path, undefined, { "if-none-match": etag })).status, 304);
  await api.expect(412, "PUT", path, TEAM, { "if-match": '"other"' });
  const replaced = await api.expect(200, "PUT", path, { ...TEAM, tags: { newest: 3 } }, { "if-match": etag });
  assert.notEqual(replaced.headers["etag"], etag);
  assert.deepEqual(
    (await api.all("/replication/rules")).map(({ name }) => name),
    ["base", "tools"],
  );

  const refused = await api.expect(400, "PUT", path, { ...TEAM, to: [{ registry: "nowhere" }] });
  assert.match(JSON.stringify(refused.body["errors"]), /to\[0\]\.registry/);
  await api.expect(412, "DELETE", path, undefined, { "if-match": etag });
  await api.expect(204, "DELETE", path);
  const gone = await api.expect(404, "GET", path);
  assert.match(String(gone.body["detail"]), /there are base/);
  const configured = await api.expect(409, "DELETE", "/replication/rules/base");
  assert.match(String(configured.body["detail"]), /in the configuration/);
});

test("a paused rule says why, and goes on when it may", async () => {
  await using hub = await startUpstream();
  await using registry = await startWith(hub, NOBODY);
  const api = await Api.of(registry);
  const paused = async () => (await api.all("/replication/rules"))[0]?.["paused"];
  await api.expect(204, "POST", "/replication/rules/base/pause", { why: "the line is down" });
  assert.equal(await paused(), "the line is down");
  await api.expect(204, "POST", "/replication/rules/base/resume");
  assert.equal(await paused(), undefined);
});

test("a run is taken back, one that moved nothing is not; what is not there is told as that", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  hub.add("library/app", "1", image);
  await using registry = await startWith(hub, dr);
  const api = await Api.of(registry);
  for (const verb of ["plan", "run", "pause", "resume"]) {
    const { body } = await api.expect(404, "POST", `/replication/rules/absent/${verb}`, {});
    assert.match(String(body["detail"]), /there is no rule absent; there are base/);
  }
  await api.expect(404, "GET", "/replication/runs/999");
  await api.expect(404, "POST", "/replication/runs/999/undo");
  const first = await runToEnd(api, "base");
  const idle = await runToEnd(api, "base");
  await api.expect(409, "POST", `/replication/runs/${idle}/undo`);
  const { body } = await api.expect(202, "POST", `/replication/runs/${first}/undo`);
  await until(async () => (await dr.get("/v2/mirror/app/manifests/1")).status === 404, "the tag is gone again");
  const undoing = await api.expect(200, "GET", `/replication/runs/${String(body["run"])}`);
  assert.equal(undoing.body["undo"], first);
});

test("a run that fails tells why, and when it is tried again", async () => {
  await using hub = await startUpstream();
  hub.fault({ path: "/v2/" }, { status: 403 });
  await using registry = await startWith(hub, NOBODY);
  const api = await Api.of(registry);
  await using watching = await watch(registry);
  await api.expect(202, "POST", "/replication/rules/base/run");
  const told = (): Event | undefined => watching.events.find(({ data }) => data["message"] !== undefined);
  await until(() => told() !== undefined, "the failure is told");
  assert.match(JSON.stringify(told()?.data), /"state":"planning".*library\/app: .*; it is tried again at \d{4}-/);
});
