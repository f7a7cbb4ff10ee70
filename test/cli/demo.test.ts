import assert from "node:assert/strict";
import { mkdtempDisposable, readdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { Story } from "../../src/cli/demo/story.ts";
import { begin, run } from "./processes.ts";

interface Act {
  act: string;
  upstreamBytes: number;
  clientBytes: number;
  results: Record<string, number>;
  promises: { text: string; kept: boolean }[];
}

test("the demo keeps every promise within a minute, and leaves nothing behind", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-demo-test-"));
  const startedMs = performance.now();
  const { status, stdout, stderr } = await run(["demo", "--json"], { env: { TMPDIR: folder.path } });
  assert.equal(status, 0, stdout + stderr);
  assert.ok(performance.now() - startedMs < 60_000);
  const lines = stdout.trim().split("\n");
  const sum = JSON.parse(lines.at(-1) ?? "") as { ok: boolean; keptPromises: number; brokenPromises: number };
  const acts = lines.slice(0, -1).map((line) => JSON.parse(line) as Act);
  assert.equal(acts.length, 5);
  assert.deepEqual([sum.ok, sum.keptPromises, sum.brokenPromises], [true, 11, 0]);
  const [cold, outage] = acts;
  assert.ok(cold && outage);
  assert.ok(cold.clientBytes > 9.9 * cold.upstreamBytes, "ten clients get ten times what upstream sends");
  assert.equal(outage.upstreamBytes, 0);
  assert.deepEqual(outage.results["stale"], 2);
  assert.deepEqual(await readdir(folder.path), []);
});

test("an interrupted demo tidies up and ends with 1", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-demo-test-"));
  await using demo = begin(["demo"], { env: { TMPDIR: folder.path } });
  await new Promise((resolve) => demo.stdout.once("data", resolve));
  assert.equal((await readdir(folder.path)).length, 1);
  demo.kill("SIGINT");
  const { status, stdout, stderr } = await demo.ended;
  assert.equal(status, 1);
  assert.equal(stderr, "entrepot demo: interrupted\n");
  assert.match(stdout, /^1\. Ten clients pull the same image/m);
  assert.deepEqual(await readdir(folder.path), []);
});

test("a broken promise is told, and so is an act that fails", async () => {
  const out = new PassThrough();
  const meters = { upstreamBytes: 10, clientBytes: 100 };
  const story = new Story(
    out,
    false,
    () => meters,
    async () => ({}),
    new AbortController().signal,
  );
  await story.act("One", "intro", meters, async () => [
    [true, "kept"],
    [false, "not kept"],
  ]);
  await story.act("Two", "intro", meters, () => Promise.reject(new Error("no such thing")));
  story.end(1);
  const text = String(out.read());
  assert.match(text, /✓ kept\n {3}✗ BROKEN: not kept\n/);
  assert.match(text, /✗ BROKEN: it failed: no such thing\n/);
  assert.match(text, /2 of 3 promises were BROKEN/);
  assert.equal(story.brokenPromises, 2);
});
