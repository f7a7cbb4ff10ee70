import assert from "node:assert/strict";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import Sqlite from "better-sqlite3";
import type { Digest } from "../../src/oci/digest.ts";
import { startDaemon } from "../crash/daemon.ts";
import { pushBlob, pushImage, pushManifest, select, send } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { DAY, jsonOf, layerOf, MovingClock } from "../registry/clients.ts";

const image = makeImage({ layers: [1000] });
const MANIFEST = { digest: image.digest, mediaType: image.mediaType, sizeBytes: image.manifest.length };
const AGENT = { "user-agent": "docker/27.0" };

interface Event {
  id: number;
  at: string;
  action: string;
  outcome: string;
  repository: string;
  tag?: string;
  address?: string;
  agent?: string;
  requestId?: string;
  detail?: string;
  [key: string]: unknown;
}

function start(hosted: Record<string, unknown> = {}, more: RegistryOptions = {}): Promise<TestRegistry> {
  return startRegistry({ ...more, config: { ...more.config, hosted: { namespaces: ["team"], ...hosted } } });
}

async function eventsOf(registry: TestRegistry, query = ""): Promise<Event[]> {
  const answer = await send(registry, 200, "GET", `/api/v1/events${query}`);
  return (jsonOf(answer) as { items: Event[] }).items;
}

/** The events there are once there are so many: what is pulled or refused is recorded after the answer. */
async function events(registry: TestRegistry, count: number, query = ""): Promise<Event[]> {
  await registry.until(async () => (await eventsOf(registry, query)).length >= count, `there are ${count} events`);
  const found = await eventsOf(registry, query);
  assert.equal(found.length, count, JSON.stringify(found, undefined, 1));
  return found;
}

/** What a request has left behind, beside what all events of this client share. */
function whatOf({ id, at, address, agent, requestId, ...what }: Event): Record<string, unknown> {
  assert.ok(id > 0 && Math.abs(Date.parse(at) - Date.now()) < 60_000);
  assert.equal(address, "127.0.0.1");
  assert.equal(agent, "docker/27.0");
  assert.match(requestId ?? "", /^[a-z0-9]+-[a-z0-9]+$/);
  return what;
}

test("a push, a mount, a pull and a delete leave one event each: who, what, from where, with what outcome", async () => {
  await using registry = await start();
  for (const { bytes } of image.blobs.values()) await pushBlob(registry, "team/app", bytes);
  assert.deepEqual(await eventsOf(registry), [], "a blob is no push yet");

  const path = "/v2/team/app/manifests/1";
  const pushed = await send(registry, 201, "PUT", path, { ...AGENT, "content-type": image.mediaType }, image.manifest);
  const [push, ...none] = await eventsOf(registry);
  assert.deepEqual(none, []);
  assert.equal(push?.requestId, pushed.headers["x-request-id"]);
  const about = { repository: "team/app", tag: "1", ...MANIFEST };
  assert.deepEqual(whatOf(push ?? assert.fail()), { action: "push", outcome: "done", ...about });

  const { digest, bytes } = layerOf(image);
  await send(registry, 201, "POST", `/v2/team/other/blobs/uploads/?mount=${digest}&from=team/app`, AGENT);
  assert.deepEqual(whatOf((await eventsOf(registry))[0] ?? assert.fail()), {
    action: "mount",
    outcome: "done",
    repository: "team/other",
    digest,
    sizeBytes: bytes.length,
    detail: "team/app",
  });

  await send(registry, 200, "HEAD", path, AGENT);
  await send(registry, 200, "GET", path, AGENT);
  const pulls = await events(registry, 1, "?action=pull");
  assert.deepEqual(pulls.map(whatOf), [{ action: "pull", outcome: "done", ...about }]);

  await send(registry, 202, "DELETE", path, AGENT);
  await send(registry, 202, "DELETE", `/v2/team/app/manifests/${image.digest}`, AGENT);
  await send(registry, 202, "DELETE", `/v2/team/app/blobs/${digest}`, AGENT);
  const deleted = { action: "delete", outcome: "done", repository: "team/app" };
  assert.deepEqual((await events(registry, 3, "?action=delete")).map(whatOf), [
    { ...deleted, digest, sizeBytes: bytes.length, detail: "blob" },
    { ...deleted, ...MANIFEST, detail: "manifest" },
    { ...deleted, ...MANIFEST, tag: "1", detail: "tag" },
  ]);
  assert.equal((await eventsOf(registry)).length, 6);
});

test("a push of several tags is an event each, and so is each tag that a deleted manifest takes with it", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", image);
  const [byDigest] = await events(registry, 1);
  assert.equal(byDigest?.tag, undefined);
  const headers = { "content-type": image.mediaType };
  await send(registry, 201, "PUT", "/v2/team/app/manifests/1?tag=2&tag=3&tag=1", headers, image.manifest);
  const pushes = (await events(registry, 4)).slice(0, 3);
  assert.deepEqual(pushes.map(({ tag }) => `${tag}`).toSorted(), ["1", "2", "3"]);
  await send(registry, 202, "DELETE", `/v2/team/app/manifests/${image.digest}`);
  const gone = await events(registry, 4, "?action=delete");
  assert.deepEqual(gone.map(({ tag, detail }) => `${detail} ${tag}`).toSorted(), [
    "manifest undefined",
    "tag 1",
    "tag 2",
    "tag 3",
  ]);
});

test("a pull of what is cached is an event by the full name of its repository", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  await send(mirror, 200, "GET", "/v2/library/app/manifests/1", AGENT);
  await send(mirror, 200, "GET", `/v2/library/app/manifests/${image.digest}`, AGENT);
  await send(mirror, 404, "GET", "/v2/library/app/manifests/none", AGENT);
  const about = { action: "pull", outcome: "done", repository: "docker.io/library/app", ...MANIFEST };
  assert.deepEqual((await events(mirror, 2)).map(whatOf), [about, { ...about, tag: "1" }]);
});

test("what is refused is an event with its reason, and leaves no other; a mistake of the client's own leaves none", async () => {
  await using upstream = await startUpstream();
  await using registry = await start(
    { immutableTags: { team: ["v*"] }, delete: true },
    { upstreams: { "docker.io": upstream } },
  );
  await pushImage(registry, "team/app", image, "v1");
  const headers = { ...AGENT, "content-type": image.mediaType };
  const other = makeImage({ layers: [1000], seed: "other" });
  // Its blobs are not there, its digest is wrong, its condition does not hold.
  await send(registry, 404, "PUT", "/v2/team/app/manifests/2", headers, other.manifest);
  await send(registry, 400, "PUT", `/v2/team/app/manifests/${image.digest}`, headers, other.manifest);
  await send(registry, 412, "PUT", "/v2/team/app/manifests/v1", { ...headers, "if-none-match": "*" }, image.manifest);
  await send(registry, 404, "DELETE", "/v2/team/app/manifests/none", AGENT);
  for (const { bytes } of other.blobs.values()) await pushBlob(registry, "team/app", bytes);
  await send(registry, 403, "PUT", "/v2/team/app/manifests/v1", headers, other.manifest);
  await send(registry, 403, "DELETE", "/v2/team/app/manifests/v1", AGENT);
  await send(registry, 405, "POST", "/v2/docker.io/library/app/blobs/uploads/", AGENT);
  await send(registry, 405, "DELETE", `/v2/team/app/blobs/${layerOf(image).digest}`, AGENT);
  const refused = await events(registry, 4, "?outcome=denied");
  assert.deepEqual(
    refused.map(({ action, repository, tag, digest }) => ({ action, repository, tag, digest })).reverse(),
    [
      { action: "push", repository: "team/app", tag: "v1", digest: undefined },
      { action: "delete", repository: "team/app", tag: "v1", digest: undefined },
      { action: "push", repository: "docker.io/library/app", tag: undefined, digest: undefined },
      { action: "delete", repository: "team/app", tag: undefined, digest: layerOf(image).digest },
    ],
  );
  for (const { detail } of refused) assert.match(detail ?? "", /immutable|cached copy|belongs to manifest/);
  refused.forEach(whatOf);
  assert.equal((await eventsOf(registry)).length, 5, "beside them there is the first push alone");
});

test("a push that is refused leaves an event with the address that a trusted proxy tells", async () => {
  await using upstream = await startUpstream();
  await using registry = await start(
    {},
    { upstreams: { "docker.io": upstream }, config: { server: { trustedProxies: ["127.0.0.1"] } } },
  );
  const agent = "x".repeat(1000);
  const headers = { "x-forwarded-for": "203.0.113.9", "user-agent": agent };
  await send(registry, 405, "POST", "/v2/docker.io/library/app/blobs/uploads/", headers);
  const [event] = await events(registry, 1);
  assert.equal(event?.action, "push");
  assert.equal(event?.outcome, "denied");
  assert.equal(event?.address, "203.0.113.9");
  assert.equal(event?.agent, agent.slice(0, 256));
});

test("a push that fails here leaves an event that says so, and none that it was done", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", image);
  const other = new Sqlite(join(registry.root, "entrepot.db"));
  other.exec("BEGIN IMMEDIATE");
  const headers = { ...AGENT, "content-type": image.mediaType };
  await send(registry, 500, "PUT", "/v2/team/app/manifests/1", headers, image.manifest);
  other.exec("ROLLBACK");
  other.close();
  const [failed, pushed] = await events(registry, 2);
  const about = { action: "push", outcome: "failed", repository: "team/app", tag: "1", detail: "internal error" };
  assert.deepEqual(whatOf(failed ?? assert.fail()), about);
  assert.equal(pushed?.tag, undefined);
});

test("without events.pulls, pulls leave no event", async () => {
  await using registry = await start({ immutableTags: { team: ["*"] } }, { config: { events: { pulls: false } } });
  await pushImage(registry, "team/app", image, "1");
  await send(registry, 200, "GET", "/v2/team/app/manifests/1");
  // Noted after the pull, and so written after it would have been.
  await send(registry, 403, "DELETE", "/v2/team/app/manifests/1");
  const [refused, pushed] = await events(registry, 2);
  assert.deepEqual([refused?.action, pushed?.action], ["delete", "push"]);
});

test("a clock that jumps ahead takes no events with it", async () => {
  let days = 0;
  let next = Promise.withResolvers<void>();
  /** Its daily looks come when the test says so. */
  class Calendar extends MovingClock {
    override sleep(ms: number, signal?: AbortSignal): Promise<void> {
      if (ms !== DAY) return super.sleep(ms, signal);
      days++;
      return Promise.race([next.promise, super.sleep(ms, signal)]);
    }
  }
  const clock = new Calendar();
  await using registry = await start({}, { clock });
  await registry.until(() => days === 1, "the daemon has tidied up");
  await pushImage(registry, "team/app", image, "1");
  clock.offsetMs = 365 * DAY;
  const { resolve } = next;
  next = Promise.withResolvers();
  resolve();
  await registry.until(() => days === 2, "it has tidied up again");
  assert.equal((await eventsOf(registry, "?repository=team/app")).length, 1);
});

test("a daemon that is killed after it has acknowledged a push has recorded it", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-events-"));
  const root = join(folder.path, "data");
  const config = { hosted: { namespaces: ["team"] } };
  await using daemon = await startDaemon({ root, config });
  const put = (path: string, body: Buffer, type: string): Promise<Response> =>
    fetch(`${daemon.url}${path}`, { method: "PUT", body: Uint8Array.from(body), headers: { "content-type": type } });
  for (const { bytes, digest } of image.blobs.values()) {
    const path = `/v2/team/app/blobs/uploads/?digest=${digest}`;
    const answer = await fetch(`${daemon.url}${path}`, { method: "POST", body: Uint8Array.from(bytes) });
    assert.equal(answer.status, 201);
  }
  const answer = await put("/v2/team/app/manifests/1", image.manifest, image.mediaType);
  await daemon.kill();
  assert.equal(answer.status, 201);
  const db = new Sqlite(join(root, "entrepot.db"), { readonly: true });
  const rows = db.prepare("SELECT action, outcome, repository, tag, digest FROM events").all();
  db.close();
  assert.deepEqual(rows, [{ action: "push", outcome: "done", repository: "team/app", tag: "1", digest: image.digest }]);
});

test("a hosted tag knows when it was last pulled, and not by a look at it", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", image, "pulled");
  await pushManifest(registry, "team/app", image, "looked-at");
  const beforeMs = Date.now();
  await send(registry, 200, "GET", "/v2/team/app/manifests/pulled");
  await send(registry, 200, "HEAD", "/v2/team/app/manifests/looked-at");
  await send(registry, 200, "GET", `/v2/team/app/manifests/${image.digest}`);
  const afterMs = Date.now();
  await registry.stop();
  const [lookedAt, pulled] = select(registry, "SELECT name, pulled_at FROM tags ORDER BY name");
  assert.deepEqual(lookedAt, { name: "looked-at", pulled_at: null });
  const pulledAtMs = Number(pulled?.["pulled_at"]);
  assert.ok(pulledAtMs >= beforeMs && pulledAtMs <= afterMs);
});

// ---- the list ----

test("the list of events takes filters, goes on by its cursor, and refuses what it does not know", async () => {
  await using registry = await start();
  for (const repository of ["team/one", "team/two"]) await pushImage(registry, repository, image, "1");
  for (const tag of ["2", "3", "4"]) await pushManifest(registry, "team/one", image, tag);
  await send(registry, 202, "DELETE", "/v2/team/one/manifests/4");
  const all = await eventsOf(registry);
  assert.equal(all.length, 6);
  const since = encodeURIComponent(all[2]?.at ?? "");
  const wanted: [string, (event: Event) => boolean][] = [
    ["repository=team/one", ({ repository }) => repository === "team/one"],
    ["repository=team/one&action=push", ({ repository, action }) => repository === "team/one" && action === "push"],
    ["tag=4", ({ tag }) => tag === "4"],
    [`digest=${image.digest satisfies Digest}&tag=1`, ({ tag }) => tag === "1"],
    ["outcome=failed", () => false],
    ["actor=nobody", () => false],
    [`since=${since}`, ({ at }) => at >= (all[2]?.at ?? "")],
    [`until=${since}`, ({ at }) => at < (all[2]?.at ?? "")],
  ];
  for (const [query, matches] of wanted) {
    assert.deepEqual(await eventsOf(registry, `?${query}`), all.filter(matches), query);
  }

  const paged: Event[] = [];
  for (let cursor: string | undefined = ""; cursor !== undefined;) {
    const answer = await send(registry, 200, "GET", `/api/v1/events?limit=4${cursor && `&cursor=${cursor}`}`);
    const page = jsonOf(answer) as { items: Event[]; next?: string };
    assert.ok(page.items.length <= 4);
    paged.push(...page.items);
    cursor = page.next;
  }
  assert.deepEqual(paged, all);

  for (const query of [
    "user=me",
    "action=sing",
    "outcome=perhaps",
    "digest=sha256:1",
    "tag=a%20b",
    "repository=A",
    "since=yesterday",
    "since=2026-13-01T00:00:00Z",
    "limit=0",
    "cursor=abc",
    "actor=",
  ]) {
    const answer = await send(registry, 400, "GET", `/api/v1/events?${query}`);
    const { type, detail } = jsonOf(answer) as { type: string; detail: string };
    assert.equal(type, "/problems/invalid-input", query);
    assert.ok(detail.startsWith(`${query.split("=", 1)[0]}: `), detail);
  }
});
