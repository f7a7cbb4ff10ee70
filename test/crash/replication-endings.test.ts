import assert from "node:assert/strict";
import { test } from "node:test";
import { request } from "undici";
import { pushImage, send } from "../kit/hosted.ts";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { startBetween, type Between } from "../replication/between.ts";
import { startDaemon, type Daemon, type Tree } from "./daemon.ts";
import { makeStorage } from "./stage.ts";

const TAGS = ["app", "web", "worker"];
const [v1, v2] = ["1", "2"].map((seed) => makeImage({ layers: [3000], seed: `release ${seed}` })) as [Image, Image];

function config(between: Between, rule: Tree): Tree {
  return {
    hosted: { namespaces: ["team"] },
    replication: {
      registries: { dr: { url: between.url, concurrency: 1 } },
      rules: [
        {
          name: "out",
          from: { registry: "self", repositories: ["team/release"] },
          to: [{ registry: "dr", repository: "copy/{{path}}" }],
          ...rule,
        },
      ],
    },
  };
}

async function push({ url }: Daemon, image: Image, tag: string): Promise<void> {
  const put = async (method: "POST" | "PUT", path: string, body: Buffer, type?: string): Promise<void> => {
    const headers = type === undefined ? {} : { "content-type": type };
    const answer = await request(`${url}/v2/team/release/${path}`, { method, body, headers });
    assert.equal(answer.statusCode, 201, await answer.body.text());
  };
  for (const { digest, bytes } of image.blobs.values()) await put("POST", `blobs/uploads/?digest=${digest}`, bytes);
  await put("PUT", `manifests/${tag}`, image.manifest, image.mediaType);
}

/** @returns its id */
async function begin({ url }: Daemon, what: string): Promise<number> {
  const headers = { "content-type": "application/json" };
  const { statusCode, body } = await request(`${url}/api/v1/replication/${what}`, { method: "POST", headers });
  const text = await body.text();
  assert.equal(statusCode, 202, text);
  return (JSON.parse(text) as { run: number }).run;
}

/** What a plan would delete. */
async function planned({ url }: Daemon): Promise<unknown> {
  const headers = { "content-type": "application/json" };
  const { statusCode, body } = await request(`${url}/api/v1/replication/rules/out/plan`, {
    method: "POST",
    headers,
    body: "{}",
  });
  const text = await body.text();
  assert.equal(statusCode, 200, text);
  const { repositories } = JSON.parse(text) as { repositories: { deletions: { remove: object[] } }[] };
  return repositories.flatMap(({ deletions }) => deletions.remove);
}

interface Job {
  state: string;
  result?: { deleted: number; copied: number; failed: number; faults: object[] };
  error?: string;
}

async function ended({ url }: Daemon, run: number): Promise<Job> {
  let job: Job | undefined;
  await until(async () => {
    const { body } = await request(`${url}/api/v1/jobs/${run}`);
    job = (await body.json()) as Job;
    assert.notEqual(job.state, "dead", job.error);
    return job.state === "done";
  }, `run ${run} is done`);
  return job ?? assert.fail();
}

async function leadTo(target: TestRegistry): Promise<unknown[]> {
  return await Promise.all(
    TAGS.map(async (tag) => {
      const { status, headers } = await target.send("HEAD", `/v2/copy/team/release/manifests/${tag}`);
      return status === 404 ? undefined : headers["docker-content-digest"];
    }),
  );
}

test("tags that go together move on where their daemon was killed between them, and all go back", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  await using storage = await makeStorage();
  await pushImage(target, "copy/team/release", v1, "app");
  await send(target, 201, "PUT", "/v2/copy/team/release/manifests/web", { "content-type": v1.mediaType }, v1.manifest);
  const options = { root: storage.root, config: config(between, { write: { together: true } }) };
  let run: number;
  let killed: Promise<void> | undefined;
  {
    await using daemon = await startDaemon(options);
    for (const tag of TAGS) await push(daemon, v2, tag);
    let puts = 0;
    between.trick = ({ method, path }) => {
      const moves = method === "PUT" && TAGS.some((tag) => path.endsWith(`/manifests/${tag}`));
      if (!moves || ++puts < 2) return undefined;
      killed ??= daemon.kill();
      return { gone: true };
    };
    run = await begin(daemon, "rules/out/run");
    await until(() => killed !== undefined, "the second tag is about to move");
    await killed;
  }
  between.trick = () => undefined;
  const half = await leadTo(target);
  assert.equal(half.filter((digest) => digest === v2.digest).length, 1, String(half));

  await using daemon = await startDaemon(options);
  assert.deepEqual((await ended(daemon, run)).result?.faults, []);
  assert.deepEqual(await leadTo(target), [v2.digest, v2.digest, v2.digest]);
  const undo = await begin(daemon, `runs/${run}/undo`);
  assert.deepEqual((await ended(daemon, undo)).result?.faults, []);
  assert.deepEqual(await leadTo(target), [v1.digest, v1.digest, undefined]);
});

test("a tag that is gone at the source goes at the target, though the daemon was killed while it deleted; others stay", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  await using storage = await makeStorage();
  const rule = { delete: { mirror: true, grace: "0s", maxPercent: 50 }, write: { immutable: ["web"] } };
  const options = { root: storage.root, config: config(between, rule) };
  let run: number;
  {
    await using daemon = await startDaemon(options);
    for (const tag of TAGS) await push(daemon, v1, tag);
    await ended(daemon, await begin(daemon, "rules/out/run"));
    await pushImage(target, "copy/team/release", v2, "theirs");
    for (const tag of ["web", "worker"]) {
      const { statusCode } = await request(`${daemon.url}/v2/team/release/manifests/${tag}`, { method: "DELETE" });
      assert.equal(statusCode, 202);
    }
    assert.deepEqual(await planned(daemon), [{ tag: "worker", digest: v1.digest }]);
    let killed: Promise<void> | undefined;
    between.trick = ({ method }) => {
      if (method !== "DELETE") return undefined;
      killed ??= daemon.kill();
      return { gone: true };
    };
    run = await begin(daemon, "rules/out/run");
    await until(() => killed !== undefined, "the tag is about to be deleted");
    await killed;
  }
  between.trick = () => undefined;
  await using daemon = await startDaemon(options);
  assert.equal((await ended(daemon, run)).result?.deleted, 1);
  assert.deepEqual(await leadTo(target), [v1.digest, v1.digest, undefined]);
  await send(target, 200, "HEAD", "/v2/copy/team/release/manifests/theirs");
});
