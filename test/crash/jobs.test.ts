import assert from "node:assert/strict";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { until } from "../kit/registry.ts";
import { startDaemon, type Daemon } from "./daemon.ts";

interface Job {
  id: number;
  state: string;
  attempts: number;
  progress?: unknown;
  result?: { blobs: number };
}

const HEADERS = { "content-type": "application/json" };

async function pushBlob({ url }: Daemon, bytes: Buffer): Promise<void> {
  const begun = await fetch(`${url}/v2/team/app/blobs/uploads/?digest=${digestOf(bytes)}`, {
    method: "POST",
    headers: { "content-type": "application/octet-stream" },
    body: new Uint8Array(bytes),
  });
  assert.equal(begun.status, 201, await begun.text());
}

async function scrubs({ url }: Daemon): Promise<Job[]> {
  const answer = await fetch(`${url}/api/v1/jobs?kind=scrub`);
  return ((await answer.json()) as { items: Job[] }).items;
}

async function untilScrub(daemon: Daemon, holds: (job: Job) => boolean, what: string): Promise<Job> {
  let job: Job | undefined;
  await until(async () => {
    [job] = await scrubs(daemon);
    return job !== undefined && holds(job);
  }, what);
  return job ?? assert.fail();
}

test("a job that runs when its daemon is killed runs again with the next one, and one that was cancelled does not", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-jobs-"));
  const config = { hosted: { namespaces: ["team"] }, gc: { interval: "0s" }, scrub: { interval: "0s" } };
  const options = { root: join(folder.path, "data"), config };
  const scrub = async ({ url }: Daemon, bandwidth: number): Promise<void> => {
    const body = JSON.stringify({ bandwidth });
    await fetch(`${url}/api/v1/scrub`, { method: "POST", headers: HEADERS, body }).then(
      (answer) => answer.text(),
      () => undefined,
    );
  };
  let id: number;
  {
    await using daemon = await startDaemon(options);
    for (let n = 0; n < 3; n++) await pushBlob(daemon, Buffer.alloc(100_000, n));
    const asking = scrub(daemon, 150_000).catch(() => undefined);
    ({ id } = await untilScrub(
      daemon,
      ({ state, progress }) => state === "running" && progress !== undefined,
      "it runs",
    ));
    await daemon.kill();
    await asking;
  }
  {
    await using daemon = await startDaemon(options);
    assert.ok(daemon.log.every(({ level }) => level !== "error"));
    const job = await untilScrub(daemon, ({ state }) => state === "done", "it has run again");
    assert.deepEqual([job.id, job.attempts, job.result?.blobs], [id, 2, 3]);
    assert.equal((await scrubs(daemon)).length, 1);
    const asking = scrub(daemon, 1000).catch(() => undefined);
    const slow = await untilScrub(daemon, ({ state }) => state === "running", "the slow one runs");
    const cancelled = await fetch(`${daemon.url}/api/v1/jobs/${slow.id}/cancel`, { method: "POST", headers: HEADERS });
    assert.equal(cancelled.status, 202);
    await daemon.kill();
    await asking;
  }
  await using daemon = await startDaemon(options);
  await untilScrub(daemon, ({ state }) => state === "cancelled", "it stays cancelled");
});

test("what was paused stays so over a kill, also where its run had yet to end, until it is resumed", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-jobs-"));
  const config = { hosted: { namespaces: ["team"] }, gc: { interval: "0s" }, scrub: { interval: "0s" } };
  const options = { root: join(folder.path, "data"), config };
  const post = (daemon: Daemon, path: string, body: object = {}): Promise<Response> =>
    fetch(`${daemon.url}/api/v1${path}`, { method: "POST", headers: HEADERS, body: JSON.stringify(body) });
  let id: number;
  {
    await using daemon = await startDaemon(options);
    for (let n = 0; n < 3; n++) await pushBlob(daemon, Buffer.alloc(100_000, n));
    const asking = post(daemon, "/scrub", { bandwidth: 150_000 }).then((answer) => answer.text());
    asking.catch(() => undefined);
    ({ id } = await untilScrub(daemon, ({ state }) => state === "running", "it runs"));
    assert.equal((await post(daemon, `/jobs/${id}/pause`)).status, 202);
    // At once: perhaps before its run has ended.
    await daemon.kill();
    await asking.catch(() => undefined);
  }
  {
    await using daemon = await startDaemon(options);
    const [job] = await scrubs(daemon);
    assert.deepEqual([job?.id, job?.state], [id, "paused"]);
    assert.equal((await post(daemon, `/jobs/${id}/prioritise`)).status, 200);
    await daemon.kill();
  }
  await using daemon = await startDaemon(options);
  assert.equal((await scrubs(daemon))[0]?.state, "paused");
  assert.equal((await post(daemon, `/jobs/${id}/resume`)).status, 200);
  const job = await untilScrub(daemon, ({ state }) => state === "done", "it has run");
  assert.deepEqual([job.id, job.result?.blobs], [id, 3]);
});
