import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { readOperatorSecret } from "../../src/access/operator.ts";
import { parseConfig } from "../../src/config/load.ts";
import { Api } from "../kit/api.ts";
import { has, pushImage, select } from "../kit/hosted.ts";
import { makeImage, makeIndex, virtualBlob } from "../kit/images.ts";
import { startRegistry, until, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { startBetween } from "./between.ts";

const MIB = 1024 * 1024;
const image = makeImage({ layers: [3 * MIB, 40_000] });

function rule(from: string, to: readonly string[], repositories: string[]) {
  return {
    name: "rule",
    from: { registry: from, repositories },
    to: to.map((registry) => ({ registry, repository: "mirror/{{name}}" })),
  };
}

/** A daemon that copies, and what a test needs of it. */
async function startCopying(options: RegistryOptions) {
  const daemon = await startRegistry(options);
  const api = await Api.of(daemon);
  const operator = { authorization: `Bearer ${await readOperatorSecret(daemon.root)}` };
  return {
    daemon,
    api,
    operator,
    start: async (): Promise<number> =>
      (await api.expect(202, "POST", "/replication/rules/rule/run", undefined, operator)).body["run"] as number,
    ended: async (run: number): Promise<Record<string, unknown>> => {
      let body: Record<string, unknown> = {};
      await until(async () => {
        ({ body } = await api.expect(200, "GET", `/replication/runs/${run}`, undefined, operator));
        return body["state"] !== "queued" && body["state"] !== "running";
      }, "the run has ended");
      return body;
    },
    [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose](),
  };
}

type Copying = Awaited<ReturnType<typeof startCopying>>;

/** Runs the rule. @throws AssertionError where anything failed */
async function run({ start, ended, api, operator }: Copying): Promise<Record<string, unknown>> {
  const id = await start();
  const told = await ended(id);
  const { body } = await api.expect(200, "GET", `/replication/runs/${id}/tasks`, undefined, operator);
  assert.equal(told["state"], "done", JSON.stringify([told, body]));
  const result = told["result"] as Record<string, unknown>;
  assert.deepEqual([result["failed"], result["faults"]], [0, []], JSON.stringify([told, body]));
  return result;
}

const startTarget = (): Promise<TestRegistry> => startRegistry({ config: { hosted: { namespaces: ["mirror"] } } });

test("two targets and the cache are fed by one read of an upstream", async () => {
  await using source = await startUpstream();
  source.add("team/app", "1", image);
  await using a = await startTarget();
  await using b = await startTarget();
  await using copying = await startCopying({
    upstreams: { "hub.example": source },
    config: {
      replication: {
        registries: { hub: { url: source.url }, a: { url: a.url }, b: { url: b.url } },
        rules: [rule("hub", ["a", "b"], ["team/app"])],
      },
    },
  });
  assert.equal((await run(copying))["copied"], 2);
  for (const target of [a, b]) {
    const { status, bytes } = await target.get("/v2/mirror/app/manifests/1");
    assert.equal(status, 200);
    assert.deepEqual(bytes, image.manifest);
  }
  const [layer] = image.layers;
  assert.ok(layer);
  assert.equal(source.hits("GET", layer.digest), 1);
  assert.equal(source.hits("GET", `manifests/${image.digest}`), 1);
  source.resetCounters();
  await copying.daemon.pullBlob("hub.example/team/app", layer.digest);
  assert.equal(source.requests.length, 0);
});

test("what is read of a registry that is no upstream is kept where no client can name it", async () => {
  await using source = await startUpstream();
  source.add("team/app", "1", image);
  await using a = await startTarget();
  await using b = await startTarget();
  await using copying = await startCopying({
    config: {
      replication: {
        registries: { other: { url: source.url, requests: 1000 }, a: { url: a.url }, b: { url: b.url } },
        rules: [rule("other", ["a", "b"], ["team/app"])],
      },
    },
  });
  await run(copying);
  const [layer] = image.layers;
  assert.ok(layer);
  assert.equal(source.hits("GET", layer.digest), 1);
  const { daemon } = copying;
  assert.deepEqual(select(daemon, "SELECT name, upstream FROM repositories"), [
    { name: "replication.other/team/app", upstream: "replication.other" },
  ]);
  for (const name of ["replication.other/team/app", "team/app", "other/team/app"]) {
    const { status } = await daemon.get(`/v2/${name}/blobs/${layer.digest}`);
    assert.equal(status, 404, name);
    const ns = await daemon.get(`/v2/team/app/blobs/${layer.digest}?ns=replication.other`);
    assert.equal(ns.status, 404);
  }
});

test("what is hosted here is copied without a pull, a request or a use of its tags", async () => {
  await using target = await startTarget();
  await using copying = await startCopying({
    config: {
      hosted: { namespaces: ["team"] },
      replication: { registries: { dr: { url: target.url } }, rules: [rule("self", ["dr"], ["team/*"])] },
    },
  });
  const { daemon, api } = copying;
  await pushImage(daemon, "team/app", image, "1");
  await run(copying);
  for (const blob of image.blobs.values()) assert.ok(await has(target, "mirror/app", blob));
  assert.deepEqual((await target.get("/v2/mirror/app/manifests/1")).bytes, image.manifest);
  const { body } = await api.expect(200, "GET", "/events?action=pull");
  assert.deepEqual(body["items"], []);
  await daemon.stop();
  assert.deepEqual(select(daemon, "SELECT name, pulled_at FROM tags"), [{ name: "1", pulled_at: null }]);
});

test("what is cached here is copied by its full name, and brought here where it is not", async () => {
  await using source = await startUpstream();
  source.add("team/app", "1", image);
  await using target = await startTarget();
  await using copying = await startCopying({
    upstreams: { "hub.example": source },
    config: {
      replication: {
        registries: { dr: { url: target.url } },
        rules: [rule("self", ["dr"], ["hub.example/team/app"])],
      },
    },
  });
  await run(copying);
  assert.deepEqual((await target.get("/v2/mirror/app/manifests/1")).bytes, image.manifest);
  source.resetCounters();
  await copying.daemon.pullBlob("hub.example/team/app", image.layers[0]?.digest ?? assert.fail());
  assert.equal(source.requests.length, 0);
});

test("copies go on while the disk is full", async () => {
  await using source = await startUpstream();
  source.add("team/app", "1", image);
  await using target = await startTarget();
  await using copying = await startCopying({
    upstreams: { "hub.example": source },
    config: {
      storage: { minFree: "900TiB" },
      replication: {
        registries: { hub: { url: source.url }, dr: { url: target.url } },
        rules: [rule("hub", ["dr"], ["team/app"])],
      },
    },
  });
  await run(copying);
  assert.deepEqual((await target.get("/v2/mirror/app/manifests/1")).bytes, image.manifest);
  for (const blob of image.blobs.values()) await target.pullBlob("mirror/app", blob.digest);
  assert.deepEqual(await copying.daemon.blobFiles(), []);
});

test("this registry is written to as any other, by its operator", async () => {
  await using source = await startUpstream();
  source.add("team/app", "1", image);
  await using copying = await startCopying({
    config: {
      access: { open: false },
      hosted: { namespaces: ["mirror"] },
      replication: { registries: { hub: { url: source.url } }, rules: [rule("hub", ["self"], ["team/app"])] },
    },
  });
  const { daemon, api, operator } = copying;
  assert.equal((await daemon.get("/v2/mirror/app/manifests/1")).status, 401);
  await run(copying);
  assert.deepEqual((await daemon.get("/v2/mirror/app/manifests/1", operator)).bytes, image.manifest);
  const { body } = await api.expect(200, "GET", "/events?action=push&repository=mirror/app", undefined, operator);
  const [{ tag, actor }] = body["items"] as [{ tag: string; actor: string }];
  assert.deepEqual([tag, actor], ["1", "operator"], JSON.stringify(body));
});

test("this registry is written to where it listens, and its operator's secret goes nowhere else, wherever its public name leads", async () => {
  await using source = await startUpstream();
  source.add("team/app", "1", image);
  await using elsewhere = await startBetween(source.url);
  await using copying = await startCopying({
    config: {
      server: { publicUrl: elsewhere.url },
      access: { open: false },
      hosted: { namespaces: ["mirror"] },
      replication: { registries: { hub: { url: source.url } }, rules: [rule("hub", ["self"], ["team/app"])] },
    },
  });
  await run(copying);
  assert.deepEqual((await copying.daemon.get("/v2/mirror/app/manifests/1", copying.operator)).bytes, image.manifest);
  assert.deepEqual(elsewhere.passed, []);
});

test("copies leave the reserve of a rate limit to those who pull, and go on when it has grown", async () => {
  const rateLimit = { limit: 100, remaining: 42, windowSeconds: 60 };
  await using source = await startUpstream({ rateLimit });
  const children = ["amd64", "arm64", "s390x", "riscv64"].map((architecture) => {
    const platform = { os: "linux", architecture };
    return [platform, makeImage({ layers: [1000], seed: architecture, platform })] as const;
  });
  source.add("team/app", "1", makeIndex(children.map(([platform, one]) => [platform, one])));
  await using target = await startTarget();
  await using copying = await startCopying({
    upstreams: { "hub.example": source },
    config: {
      replication: {
        registries: { hub: { url: source.url, quota: { keep: 40 } }, dr: { url: target.url } },
        rules: [rule("hub", ["dr"], ["team/app"])],
      },
    },
  });
  const { start, ended, daemon, api, operator } = copying;
  const id = await start();
  await until(() => source.hits("HEAD", "manifests/1") >= 3, "it has waited more than once");
  assert.equal(source.rateLimit?.remaining, 40);
  const sizes = { sizes: true };
  const { body: plan } = await api.expect(200, "POST", "/replication/rules/rule/plan", sizes, operator);
  assert.match(JSON.stringify(plan["faults"]), /hub has 40 pulls left/);
  assert.equal((await target.get("/v2/mirror/app/manifests/1")).status, 404);
  // The reserve is for clients.
  assert.equal((await daemon.get(`/v2/hub.example/team/app/manifests/${children[3]?.[1].digest}`)).status, 200);
  assert.ok(source.rateLimit);
  source.rateLimit.remaining = 90;
  assert.equal((await ended(id))["state"], "done");
  assert.equal((await target.get("/v2/mirror/app/manifests/1")).status, 200);
});

test("a registry that a reload has changed is opened anew", async () => {
  await using before = await startUpstream();
  await using after = await startUpstream();
  before.add("team/app", "1", image);
  after.add("team/app", "1", makeImage({ layers: [1000], seed: "after" }));
  await using target = await startTarget();
  const replication = (url: string) => ({
    registries: { hub: { url }, dr: { url: target.url } },
    rules: [rule("hub", ["dr"], ["team/app"])],
  });
  await using copying = await startCopying({ config: { replication: replication(before.url) } });
  const { daemon } = copying;
  await run(copying);
  const storage = { root: daemon.root, minFree: 0 };
  const { changed } = daemon.app.reload(parseConfig({ storage, replication: replication(after.url) }));
  assert.ok(changed.includes("replication.registries.hub.url"), changed.join(" "));
  const asked = before.requests.length;
  assert.equal((await run(copying))["copied"], 1);
  assert.equal(before.requests.length, asked);
});

test("a large upload is gone on with after a restart: what has arrived is not sent again", async (t) => {
  await using source = await startUpstream();
  const large = makeImage({ layers: [virtualBlob(104 * MIB, "large")], seed: "large" });
  source.add("team/app", "1", large);
  await using target = await startTarget();
  await using way = await startBetween(target.url);
  const root = await mkdtemp(join(tmpdir(), "entrepot-"));
  t.after(() => rm(root, { recursive: true }));
  const options: RegistryOptions = {
    root,
    upstreams: { "hub.example": source },
    config: {
      replication: {
        registries: { hub: { url: source.url }, dr: { url: way.url } },
        rules: [rule("hub", ["dr"], ["team/app"])],
      },
    },
  };
  const first = await startCopying(options);
  way.trick = ({ firstByte }) => (firstByte > 0 ? { pauseMs: 20 } : undefined);
  const id = await first.start();
  const second = (): number => way.passed.find(({ firstByte }) => firstByte > 0)?.bytes ?? 0;
  await until(() => second() > 5 * MIB, "the second chunk is on its way");
  await first.daemon.stop();
  way.trick = () => undefined;
  const before = way.uploadedBytes();
  await using again = await startCopying(options);
  assert.equal((await again.ended(id))["state"], "done");
  const { sizeBytes } = large.layers[0] ?? assert.fail();
  const rest = way.uploadedBytes() - before;
  assert.ok(rest < sizeBytes - 64 * MIB, `${rest} bytes were sent after the restart`);
  assert.equal((await target.get("/v2/mirror/app/manifests/1")).status, 200);
});
