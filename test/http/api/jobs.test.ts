import assert from "node:assert/strict";
import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { runJobs } from "../../../src/cli/jobs.ts";
import { digestOf } from "../../../src/oci/digest.ts";
import { Api } from "../../kit/api.ts";
import { change, pushBlob } from "../../kit/hosted.ts";
import { startRegistry, type TestRegistry } from "../../kit/registry.ts";
import { connectTo } from "../raw.ts";

const CONFIG = { hosted: { namespaces: ["team"] }, gc: { grace: "0s", interval: "0s" }, scrub: { interval: "0s" } };

/** `entrepot jobs`, in this process. */
async function jobs(
  registry: TestRegistry,
  ...args: string[]
): Promise<{ status: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const status = await runJobs(["--server", registry.url, ...args], { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status, stdout: text(stdout), stderr: text(stderr) };
}

function post(registry: TestRegistry, path: string, body: object): ReturnType<TestRegistry["send"]> {
  return registry.send("POST", path, { "content-type": "application/json" }, JSON.stringify(body));
}

test("jobs are listed page by page, shown, cancelled and retried; each refusal says why", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  await pushBlob(registry, "team/app", Buffer.alloc(300_000, 1));
  const api = await Api.of(registry);
  for (let n = 0; n < 2; n++) await post(registry, "/api/v1/gc", { dryRun: true });
  const items = await api.all("/jobs?limit=1&kind=gc");
  assert.deepEqual(
    items.map(({ id, kind, state, payload }) => [id, kind, state, payload]),
    [2, 1].map((id) => [id, "gc", "done", { dryRun: true }]),
  );
  assert.deepEqual(await api.all("/jobs?state=dead"), []);
  const asking = post(registry, "/api/v1/scrub", { bandwidth: 50_000 });
  const running = async (): Promise<Record<string, unknown>> => (await api.expect(200, "GET", "/jobs/3")).body;
  await registry.until(async () => (await api.all("/jobs?state=running")).length === 1, "it runs");
  await registry.until(async () => (await running())["progress"] !== undefined, "it has told its progress");
  assert.deepEqual([(await running())["kind"], (await running())["state"]], ["scrub", "running"]);
  assert.equal(await registry.metric("entrepot_jobs", { kind: "scrub", state: "running" }), 1);
  await api.expect(202, "POST", "/jobs/3/cancel", {});
  assert.match((await asking).bytes.toString(), /\{"type":"failed","message":"it was cancelled"\}\n$/);
  assert.equal((await running())["state"], "cancelled");
  assert.equal(await registry.metric("entrepot_job_runs_total", { kind: "scrub", result: "cancelled" }), 1);
  assert.match(
    String((await api.expect(409, "POST", "/jobs/3/cancel", {})).body["detail"]),
    /has ended: it is cancelled/,
  );
  await api.expect(200, "POST", "/jobs/3/retry", {});
  await api.expect(409, "POST", "/jobs/3/retry", {});
  await registry.until(async () => (await running())["state"] === "running", "it runs again");
  await api.expect(202, "POST", "/jobs/3/cancel", {});
  assert.match(
    String((await api.expect(409, "POST", "/jobs/1/retry", {})).body["detail"]),
    /it is done: only what is dead/,
  );
  for (const [method, path] of [
    ["GET", ""],
    ["GET", "/lines"],
    ["POST", "/cancel"],
    ["POST", "/pause"],
    ["POST", "/resume"],
    ["POST", "/prioritise"],
    ["POST", "/retry"],
  ] as const)
    await api.expect(404, method, `/jobs/99${path}`, method === "POST" ? {} : undefined);
  await api.expect(400, "GET", "/jobs/x");
});

test("what runs is paused with the end of its run and goes on when it is resumed; what waits is prioritised; each refusal says why", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  await pushBlob(registry, "team/app", Buffer.alloc(300_000, 1));
  const api = await Api.of(registry);
  const detail = async (status: number, path: string, body: object = {}): Promise<string> =>
    String((await api.expect(status, "POST", path, body)).body["detail"]);
  const state = async (): Promise<unknown> => (await api.expect(200, "GET", "/jobs/1")).body["state"];
  const asking = post(registry, "/api/v1/scrub", { bandwidth: 50_000 });
  await registry.until(async () => (await api.all("/jobs?state=running")).length === 1, "it runs");
  assert.match(await detail(409, "/jobs/1/prioritise"), /it is running, and only what is queued or paused waits/);
  assert.match(await detail(409, "/jobs/1/resume"), /it is running, and not paused/);
  await api.expect(202, "POST", "/jobs/1/pause", {});
  await registry.until(async () => (await state()) === "paused", "it is paused");
  assert.equal(await registry.metric("entrepot_jobs", { kind: "scrub", state: "paused" }), 1);
  assert.equal(await registry.metric("entrepot_job_runs_total", { kind: "scrub", result: "paused" }), 1);
  assert.match(await detail(409, "/jobs/1/pause"), /job 1 can't be paused: it is paused/);
  assert.equal((await api.expect(200, "POST", "/jobs/1/prioritise", { priority: -3 })).body["priority"], -3);
  await api.expect(400, "POST", "/jobs/1/prioritise", { priority: 1.5 });
  assert.equal((await api.expect(200, "POST", "/jobs/1/resume", {})).body["state"], "queued");
  await registry.until(async () => (await state()) === "running", "it runs again");
  await api.expect(202, "POST", "/jobs/1/cancel", {});
  assert.match((await asking).bytes.toString(), /\{"type":"failed","message":"it was cancelled"\}\n$/);
  assert.match(await detail(409, "/jobs/1/pause"), /it is cancelled/);
});

test("the command pauses, prioritises and resumes, and lists by what jobs are about and what they are parts of", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-jobs-"));
  const options = { config: CONFIG, root: join(folder.path, "data") };
  {
    await using _first = await startRegistry(options);
  }
  for (const [subject, parent] of [
    [null, null],
    ["dr app:1", 1],
    ["dr app:2", 1],
  ])
    change(
      options,
      `INSERT INTO jobs (kind, subject, parent, payload, priority, state, run_at, created_at)
       VALUES ('unknown', ?, ?, '{}', 0, 'queued', 0, 0)`,
      subject,
      parent,
    );
  await using registry = await startRegistry(options);
  const told = async (...args: string[]): Promise<string> => (await jobs(registry, ...args)).stdout.trim();
  assert.equal(await told("pause", "2"), "job 2 is paused");
  assert.equal(await told("prioritise", "2"), "job 2 has priority 1");
  assert.equal(await told("prioritise", "3", "7"), "job 3 has priority 7");
  assert.equal(await told("prioritise", "3", "--", "-7"), "job 3 has priority -7");
  assert.match(await told("--state", "paused"), /^2 {2}unknown +paused +\S+ \S+ {2}dr app:1$/);
  assert.match(await told("--subject", "dr app:2"), /^3 [^\n]*$/);
  assert.match(await told("--parent", "1"), /^3 .*\n +2 .*$/);
  assert.match(await told("show", "2"), /\n {2}subject +dr app:1\n {2}part of +job 1\n {2}priority +1\n/);
  assert.equal(await told("resume", "2"), "job 2 is queued");
  await assert.rejects(
    jobs(registry, "resume", "2"),
    /answered 409: job 2 stays as it is: it is queued, and not paused/,
  );
});

test("a scrub's findings are lines of its job, which the command shows", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  const bytes = Buffer.alloc(1000, 1);
  await pushBlob(registry, "team/app", bytes);
  const [file = ""] = await registry.blobFiles();
  await writeFile(file, "damaged");
  await post(registry, "/api/v1/scrub", {});
  const { status, stdout } = await jobs(registry, "show", "1");
  assert.equal(status, 0);
  assert.match(stdout, /^job 1, scrub: done\n {2}attempts {2}1\n[^]*\n {2}result {4}\{"blobs":1,/);
  assert.match(stdout, new RegExp(`^\\d{4}-.* damaged ${digestOf(bytes)}: `, "m"));
  const list = await jobs(registry);
  assert.match(list.stdout, /^ +1 {2}scrub +done +\d{4}-\d\d-\d\d [0-9:]{8}\n$/);
  const { items } = JSON.parse(`{"items":[${(await jobs(registry, "list", "--json")).stdout.trim()}]}`) as {
    items: { id: number }[];
  };
  assert.deepEqual(
    items.map(({ id }) => id),
    [1],
  );
  assert.equal((await jobs(registry, "--state", "dead")).stdout, "");
});

test("the command cancels and retries, and tells wrong usage and refusals", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  await pushBlob(registry, "team/app", Buffer.alloc(300_000, 1));
  using client = await connectTo(registry.url);
  client.send("POST /api/v1/scrub HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 19");
  client.socket.write('{"bandwidth": 1000}');
  await client.until(/"type":"progress"/);
  assert.match((await jobs(registry, "cancel", "1")).stdout, /^job 1 is (?:told to end|cancelled)\n$/);
  await client.until(/it was cancelled/);
  assert.equal((await jobs(registry, "retry", "1")).stdout, "job 1 is queued once more\n");
  await registry.until(async () => /running/.test((await jobs(registry)).stdout), "it runs again");
  await assert.rejects(jobs(registry, "retry", "1"), /answered 409: job 1 stays as it is: it is running/);
  await assert.rejects(jobs(registry, "show", "7"), /answered 404: there is no job 7/);
  for (const args of [
    ["stop", "1"],
    ["show"],
    ["show", "1", "2"],
    ["prioritise", "1", "first"],
    ["--parent", "x"],
    ["list", "1"],
    ["cancel", "x"],
    ["--state", "lost"],
    ["--limit", "0"],
  ]) {
    const { status, stderr } = await jobs(registry, ...args);
    assert.equal(status, 2, args.join(" "));
    assert.match(stderr, /Usage: entrepot jobs/);
  }
});
