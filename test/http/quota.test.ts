import assert from "node:assert/strict";
import { readdir, stat } from "node:fs/promises";
import { request as connectHttp, type ClientRequest } from "node:http";
import { join } from "node:path";
import { test } from "node:test";
import { parseConfig } from "../../src/config/load.ts";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { change, has, job, pushBlob, pushImage, pushManifest, select, send } from "../kit/hosted.ts";
import { makeImage, virtualBlob, type Content } from "../kit/images.ts";
import { startRegistry, until, type Answer, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { run } from "../cli/processes.ts";
import { errorOf, jsonOf } from "../registry/clients.ts";

const KIB = 1024;

function startHosted(quotas: Record<string, number | string>, options: RegistryOptions = {}): Promise<TestRegistry> {
  return startRegistry({
    ...options,
    config: {
      hosted: { namespaces: ["team", "other"], quotas },
      gc: { grace: "0s", interval: "0s" },
      ...options.config,
    },
  });
}

/** What the daemon counts. */
function used(registry: TestRegistry, namespace = "team"): number {
  return Number(
    select(registry, "SELECT bytes FROM namespace_usage WHERE namespace = ?", namespace)[0]?.["bytes"] ?? 0,
  );
}

/** Files and rows of uploads that have not ended. */
async function sessions(registry: TestRegistry): Promise<number> {
  const files = await readdir(join(registry.root, "uploads"));
  return Math.max(files.length, select(registry, "SELECT id FROM uploads").length);
}

async function start(registry: TestRegistry, repository: string): Promise<string> {
  const answer = await send(registry, 202, "POST", `/v2/${repository}/blobs/uploads/`);
  return String(answer.headers["location"]);
}

function ending(location: string, digest: Digest): string {
  return `${location}${location.includes("?") ? "&" : "?"}digest=${digest}`;
}

/** A request whose body the test sends as it likes. */
class Sending {
  readonly request: ClientRequest;
  readonly answer: Promise<Answer>;

  constructor(registry: TestRegistry, method: string, path: string, headers: Record<string, string | number> = {}) {
    this.request = connectHttp(`${registry.url}${path}`, { method, headers });
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    this.answer = promise;
    this.answer.catch(() => undefined);
    this.request.on("error", reject);
    this.request.on("response", (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, bytes: Buffer.concat(chunks) }),
      );
    });
    this.request.flushHeaders();
  }

  write(bytes: Buffer): void {
    this.request.write(bytes);
  }

  end(bytes?: Buffer): Promise<Answer> {
    this.request.end(bytes);
    return this.answer;
  }

  cut(): void {
    this.request.destroy();
  }
}

function assertRefused(answer: Answer): void {
  assert.equal(answer.status, 403, answer.bytes.toString());
  assert.equal(errorOf(answer).code, "DENIED");
  assert.match(
    errorOf(answer).message,
    /^namespace team may hold .*B \(hosted\.quotas\) and holds .*: this push needs .*B at least\. Delete/,
  );
}

/** Nothing is left of what was refused. */
async function assertCleared(registry: TestRegistry, bytes: number, files: number): Promise<void> {
  await until(async () => (await sessions(registry)) === 0, "the session is gone");
  assert.equal(used(registry), bytes);
  assert.equal((await registry.blobFiles()).length, files);
}

const [one, two] = [virtualBlob(60 * KIB, "one"), virtualBlob(60 * KIB, "two")];

test("a whole blob whose length is known is refused before its bytes flow, and what fits to the byte is taken", async () => {
  await using registry = await startHosted({ team: 100 * KIB });
  await pushBlob(registry, "team/app", one.bytes);
  // Its head alone: no byte of the body is waited for.
  const refused = new Sending(registry, "POST", `/v2/team/app/blobs/uploads/?digest=${two.digest}`, {
    "content-length": two.sizeBytes,
  });
  assertRefused(await refused.answer);
  refused.cut();
  await assertCleared(registry, 60 * KIB, 1);
  await pushBlob(registry, "team/app", virtualBlob(40 * KIB, "fits").bytes);
  assert.equal(used(registry), 100 * KIB);
  const [byte] = [Buffer.from("x")];
  assertRefused(await registry.send("POST", `/v2/team/app/blobs/uploads/?digest=${digestOf(byte)}`, {}, byte));
  // Other namespaces have no quota.
  await pushBlob(registry, "other/app", two.bytes);
});

for (const [how, method] of [
  ["a part of an upload", "PATCH"],
  ["the last part of an upload", "PUT"],
] as const) {
  test(`${how} whose length is known is refused before its bytes flow, together with what came before; the session is over`, async () => {
    await using registry = await startHosted({ team: 100 * KIB });
    const location = await start(registry, "team/app");
    const whole = virtualBlob(101 * KIB, "too large");
    await send(registry, 202, "PATCH", location, {}, whole.bytes.subarray(0, 90 * KIB));
    assert.equal(await sessions(registry), 1);
    const path = method === "PUT" ? ending(location, whole.digest) : location;
    const refused = new Sending(registry, method, path, { "content-length": 11 * KIB });
    assertRefused(await refused.answer);
    refused.cut();
    await assertCleared(registry, 0, 0);
    await send(registry, 404, "GET", location);
  });
}

test("a body of unknown length is cut when more came than is left", async () => {
  await using registry = await startHosted({ team: 100 * KIB });
  await pushBlob(registry, "team/app", one.bytes);
  const location = await start(registry, "team/app");
  const chunked = new Sending(registry, "PATCH", location);
  // The body does not end.
  chunked.write(Buffer.alloc(256 * KIB));
  assertRefused(await chunked.answer);
  chunked.cut();
  await assertCleared(registry, 60 * KIB, 1);
  const fits = virtualBlob(40 * KIB, "fits");
  const next = await start(registry, "team/app");
  assert.equal((await new Sending(registry, "PATCH", next).end(fits.bytes)).status, 202);
  await send(registry, 201, "PUT", ending(next, fits.digest));
  assert.equal(used(registry), 100 * KIB);
});

test("a long body of unknown length is asked about again and again, and what others have pushed meanwhile counts", async () => {
  const MIB = 1024 * KIB;
  for (const meanwhile of [0, 5 * MIB]) {
    await using registry = await startHosted({ team: 20 * MIB });
    const location = await start(registry, "team/app");
    const chunked = new Sending(registry, "PATCH", location);
    const came = async (bytes: number): Promise<boolean> => {
      const [file] = await readdir(join(registry.root, "uploads"));
      return file !== undefined && (await stat(join(registry.root, "uploads", file))).size >= bytes;
    };
    chunked.write(Buffer.alloc(4 * MIB));
    await until(() => came(3 * MIB), "the beginning is here");
    if (meanwhile > 0) change(registry, "INSERT INTO namespace_usage VALUES ('team', ?)", meanwhile);
    chunked.write(Buffer.alloc(15 * MIB - meanwhile));
    await until(() => came(18 * MIB - meanwhile), "what fits is here");
    chunked.write(Buffer.alloc(2 * MIB));
    assertRefused(await chunked.answer);
    chunked.cut();
    await assertCleared(registry, meanwhile, 0);
  }
});

test("a part that is sent twice is told its place, and ends nothing", async () => {
  await using registry = await startHosted({ team: 100 * KIB });
  const location = await start(registry, "team/app");
  const range = { "content-range": `0-${one.sizeBytes - 1}` };
  await send(registry, 202, "PATCH", location, range, one.bytes);
  const again = await send(registry, 416, "PATCH", location, range, one.bytes);
  assert.equal(again.headers["range"], `0-${one.sizeBytes - 1}`);
  await send(registry, 201, "PUT", ending(location, one.digest));
});

test("content that the namespace holds is never refused, wherever in it it is pushed once more, also beyond a quota that was lowered", async () => {
  await using registry = await startHosted({ team: 61 * KIB });
  await pushBlob(registry, "team/app", one.bytes);
  const lower = (quota: number): void => {
    registry.app.reload(
      parseConfig({
        server: { listen: "127.0.0.1:0", drainTimeout: "2s" },
        storage: { root: registry.root, minFree: 0 },
        hosted: { namespaces: ["team", "other"], quotas: { team: quota } },
        gc: { grace: "0s", interval: "0s" },
        upstreams: {},
      }),
    );
  };
  for (const quota of [60 * KIB, 10]) {
    lower(quota);
    await pushBlob(registry, `team/again-${quota}`, one.bytes);
    const location = await start(registry, `team/session-${quota}`);
    await send(registry, 201, "PUT", ending(location, one.digest), {}, one.bytes);
    await send(registry, 201, "POST", `/v2/team/mounted-${quota}/blobs/uploads/?mount=${one.digest}&from=team/app`);
    assert.equal(used(registry), 60 * KIB);
    assertRefused(await registry.send("POST", `/v2/team/app/blobs/uploads/?digest=${two.digest}`, {}, two.bytes));
  }
  // Below its usage: pulls and deletes go on.
  await registry.pullBlob("team/app", one.digest);
  await send(registry, 202, "DELETE", `/v2/team/app/blobs/${one.digest}`);
  assert.equal(used(registry), 60 * KIB, "others have it");
});

test("a mount costs what is new to the namespace", async () => {
  await using registry = await startHosted({ team: 100 * KIB });
  await pushBlob(registry, "other/base", one.bytes);
  await pushBlob(registry, "other/base", two.bytes);
  const mount = (content: Content, repository: string): Promise<Answer> =>
    registry.send("POST", `/v2/${repository}/blobs/uploads/?mount=${content.digest}&from=other/base`);
  assert.equal((await mount(one, "team/app")).status, 201);
  assert.equal(used(registry), 60 * KIB);
  assertRefused(await mount(two, "team/app"));
  assert.equal((await mount(one, "team/app2")).status, 201);
  await assertCleared(registry, 60 * KIB, 2);
  assert.equal(used(registry, "other"), 120 * KIB);
});

test("a manifest that does not fit moves no tag; the blobs that it was to need go with the next collection", async () => {
  const [image, next] = [1, 2].map((seed) => makeImage({ layers: [40 * KIB], seed }));
  assert.ok(image && next);
  const bytes = (...contents: (typeof image)[]): number =>
    contents.reduce(
      (sum, { manifest, blobs }) =>
        sum + manifest.length + [...blobs.values()].reduce((all, blob) => all + blob.sizeBytes, 0),
      0,
    );
  // One byte is missing.
  await using registry = await startHosted({ team: bytes(image, next) - 1 });
  await pushImage(registry, "team/app", image, "1");
  assert.equal(used(registry), bytes(image));
  for (const blob of next.blobs.values()) await pushBlob(registry, "team/app", blob.bytes);
  const headers = { "content-type": next.mediaType };
  assertRefused(await registry.send("PUT", "/v2/team/app/manifests/1", headers, next.manifest));
  assert.equal(used(registry), bytes(image, next) - next.manifest.length);
  const head = await send(registry, 200, "HEAD", "/v2/team/app/manifests/1");
  assert.equal(head.headers["docker-content-digest"], image.digest);
  // What is here already is pushed again and tagged.
  await pushManifest(registry, "team/app", image, "2");
  await job(registry, "gc");
  assert.equal(used(registry), bytes(image));
  assert.equal(await has(registry, "team/app", next.config), false);
});

test("a delete gives back the manifest at once, and its blobs with the next collection", async () => {
  const image = makeImage({ layers: [40 * KIB] });
  await using registry = await startHosted({ team: "1MiB" });
  await pushImage(registry, "team/app", image, "1");
  const all = used(registry);
  await send(registry, 202, "DELETE", `/v2/team/app/manifests/${image.digest}`);
  assert.equal(used(registry), all - image.manifest.length);
  await job(registry, "gc");
  assert.equal(used(registry), 0);
});

test("what others are uploading counts until they end, fail or leave", async () => {
  await using registry = await startHosted({ team: 100 * KIB });
  const path = `/v2/team/app/blobs/uploads/?digest=${one.digest}`;
  const first = new Sending(registry, "POST", path, { "content-length": one.sizeBytes });
  first.write(one.bytes.subarray(0, 1000));
  await until(async () => (await sessions(registry)) === 1, "the first is under way");
  const push = (content: Content): Promise<Answer> =>
    registry.send("POST", `/v2/team/two/blobs/uploads/?digest=${content.digest}`, {}, content.bytes);
  const refused = await push(two);
  assertRefused(refused);
  assert.match(errorOf(refused).message, /holds 0 B, 60\.0 KiB more are being uploaded/);
  // The same content by another client counts once.
  assert.equal((await push(one)).status, 201);
  assert.equal((await first.end(one.bytes.subarray(1000))).status, 201);
  assert.equal(used(registry), 60 * KIB);

  const three = virtualBlob(30 * KIB, "three");
  const leaving = new Sending(registry, "POST", `/v2/team/app/blobs/uploads/?digest=${three.digest}`, {
    "content-length": three.sizeBytes,
  });
  leaving.write(three.bytes.subarray(0, 1000));
  await until(async () => (await sessions(registry)) === 1, "it is under way");
  assertRefused(await push(virtualBlob(40 * KIB, "four")));
  leaving.cut();
  await until(async () => (await sessions(registry)) === 0, "it has left");
  assert.equal((await push(virtualBlob(40 * KIB, "four"))).status, 201);
  assert.equal(used(registry), 100 * KIB);
});

test("parallel pushes at the brim: as many are taken as fit, never more, and nothing of the others stays", async () => {
  for (const chunked of [false, true]) {
    await using registry = await startHosted({ team: 300 * KIB });
    const layers = Array.from({ length: 10 }, (_, index) => virtualBlob(60 * KIB, `layer ${index}`));
    const statuses = await Promise.all(
      layers.map(async (layer, index) => {
        const location = await start(registry, `team/app-${index}`);
        if (!chunked) return (await registry.send("PUT", ending(location, layer.digest), {}, layer.bytes)).status;
        const patched = await new Sending(registry, "PATCH", location).end(layer.bytes);
        if (patched.status !== 202) return patched.status;
        return (await registry.send("PUT", ending(location, layer.digest))).status;
      }),
    );
    const taken = statuses.filter((status) => status === 201).length;
    assert.equal(taken + statuses.filter((status) => status === 403).length, 10, statuses.join(" "));
    assert.ok(taken > 0 && taken <= 5);
    if (!chunked) assert.equal(taken, 5, "what fits is not refused for what others send in vain");
    await assertCleared(registry, taken * 60 * KIB, taken);
  }
});

test("exactly what fits, all at once, is taken", async () => {
  await using registry = await startHosted({ team: 300 * KIB });
  const layers = Array.from({ length: 5 }, (_, index) => virtualBlob(60 * KIB, `layer ${index}`));
  await Promise.all(layers.map((layer, index) => pushBlob(registry, `team/app-${index}`, layer.bytes)));
  assert.equal(used(registry), 300 * KIB);
});

test("nobody overshoots by what is decided only at the end: the transaction refuses, and the file goes", async () => {
  for (const cached of [false, true]) {
    await using upstream = await startUpstream();
    const image = makeImage({ layers: [one] });
    upstream.add("library/app", "1", image);
    await using registry = await startHosted({ team: 100 * KIB }, { upstreams: { "docker.io": upstream } });
    if (cached) {
      await registry.pullBlob("library/app", one.digest);
      await until(() => select(registry, "SELECT 1 FROM blobs").length === 1, "it is stored");
    }
    const sending = new Sending(registry, "POST", `/v2/team/app/blobs/uploads/?digest=${one.digest}`, {
      "content-length": one.sizeBytes,
    });
    sending.write(one.bytes.subarray(0, 1000));
    await until(async () => (await sessions(registry)) === 1, "the bytes are let in");
    // Room that was there then, and is not when they are recorded.
    change(registry, "INSERT INTO namespace_usage (namespace, bytes) VALUES ('team', ?)", 50 * KIB);
    assertRefused(await sending.end(one.bytes.subarray(1000)));
    // What the mirror holds stays.
    await assertCleared(registry, 50 * KIB, cached ? 1 : 0);
    if (cached) await registry.pullBlob("library/app", one.digest);
  }
});

test("from 85 % on each answer to a push warns, and the log says it once a crossing", async () => {
  await using registry = await startHosted({ team: 100 * KIB });
  const warned = (): number => registry.log.filter(({ msg }) => msg === "a namespace is nearly full").length;
  const push = (bytes: Buffer): Promise<Answer> =>
    send(registry, 201, "POST", `/v2/team/app/blobs/uploads/?digest=${digestOf(bytes)}`, {}, bytes);
  assert.equal((await push(one.bytes)).headers["warning"], undefined);
  const text = '299 - "namespace team holds 90.0 KiB of the 100 KiB that it may (90 %)"';
  const filling = virtualBlob(30 * KIB, "filling");
  assert.equal((await push(filling.bytes)).headers["warning"], text);
  assert.equal(warned(), 1);
  assert.equal((await push(filling.bytes)).headers["warning"], text);
  const begun = await send(registry, 202, "POST", "/v2/team/app/blobs/uploads/");
  assert.equal(begun.headers["warning"], text);
  const location = String(begun.headers["location"]);
  assert.equal(
    (await send(registry, 202, "PATCH", location, {}, filling.bytes.subarray(0, 10))).headers["warning"],
    text,
  );
  await send(registry, 204, "DELETE", location);
  assert.equal(warned(), 1);
  await send(registry, 202, "DELETE", `/v2/team/app/blobs/${filling.digest}`);
  await push(Buffer.from("little"));
  assert.equal(warned(), 1);
  await push(filling.bytes);
  assert.equal(warned(), 2);
});

test("metrics name the namespaces that have a quota, and what all hosted ones hold", async () => {
  await using registry = await startHosted({ team: 100 * KIB });
  await pushBlob(registry, "team/app", one.bytes);
  await pushBlob(registry, "other/app", two.bytes);
  assert.equal(await registry.metric("entrepot_namespace_bytes", { namespace: "team" }), 60 * KIB);
  assert.equal(await registry.metric("entrepot_namespace_bytes"), 60 * KIB);
  assert.equal(await registry.metric("entrepot_quota_bytes"), 100 * KIB);
  assert.equal(await registry.metric("entrepot_blobs_bytes", { kind: "hosted" }), 120 * KIB);
});

test("a namespace that could not take its first push does not become a hosted one", async () => {
  await using upstream = await startUpstream();
  await using registry = await startHosted({ "*": 10 }, { upstreams: { "docker.io": upstream } });
  const answer = await registry.send("POST", `/v2/newteam/app/blobs/uploads/?digest=${one.digest}`, {}, one.bytes);
  assert.equal(answer.status, 403);
  assert.deepEqual(select(registry, "SELECT name FROM namespaces"), []);
});

test("the API and the command tell what namespaces hold and may hold", async () => {
  await using registry = await startHosted({ team: 100 * KIB });
  await pushBlob(registry, "team/app", one.bytes);
  await pushBlob(registry, "team/other", one.bytes);
  await pushBlob(registry, "other/app", two.bytes);
  const facts = { owner: { kind: "global" }, visibility: "private", description: "" };
  const team = { name: "team", ...facts, bytes: 60 * KIB, quota: 100 * KIB, share: 0.6, repositories: 2 };
  const other = { name: "other", ...facts, bytes: 60 * KIB, repositories: 1 };
  assert.deepEqual(jsonOf(await registry.get("/api/v1/namespaces")), { items: [other, team] });
  const first = jsonOf(await registry.get("/api/v1/namespaces?limit=1"));
  assert.deepEqual(first["items"], [other]);
  assert.deepEqual(jsonOf(await registry.get(`/api/v1/namespaces?limit=1&cursor=${String(first["next"])}`))["items"], [
    team,
  ]);
  assert.deepEqual(jsonOf(await registry.get("/api/v1/namespaces/team")), team);
  const unknown = await registry.get("/api/v1/namespaces/nobody");
  assert.equal(unknown.status, 404);
  assert.equal(jsonOf(unknown)["type"], "/problems/not-found");

  const table = await run(["quota", "--server", registry.url]);
  assert.equal(table.status, 0, table.stderr);
  assert.equal(
    table.stdout,
    "NAMESPACE      USED    QUOTA  SHARE  REPOSITORIES\n" +
      "other      60.0 KiB        -      -             1\n" +
      "team       60.0 KiB  100 KiB   60 %             2\n",
  );
  const lines = await run(["quota", "--json", "--server", registry.url]);
  assert.deepEqual(
    lines.stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as object),
    [other, team],
  );
});
