import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { runEvents } from "../../src/cli/events.ts";
import { pushImage, pushManifest } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";

const image = makeImage({ layers: [1000] });

async function run(...args: string[]): Promise<{ status: number; lines: string[]; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const status = await runEvents(args, { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status, lines: text(stdout).split("\n").slice(0, -1), stderr: text(stderr) };
}

test("events are shown a line each, newest first, as many as wanted", async () => {
  await using registry = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await pushImage(registry, "team/app", image, "0");
  for (let i = 1; i < 10; i++) await pushManifest(registry, "team/app", image, String(i));
  const server = ["--server", registry.url];
  const shown = await run(...server, "--limit", "4");
  assert.equal(shown.status, 0);
  assert.equal(shown.lines.length, 4);
  const line = new RegExp(
    `^\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d {2}push {4}team/app:9 {2}${image.digest.slice(0, 19)} {2}\\S+ \\w+ {2}from 127.0.0.1`,
  );
  assert.match(shown.lines[0] ?? "", line);
  const found = await run(...server, "--repository", "team/app", "--action", "push", "--since", "1h", "--json");
  assert.deepEqual(
    found.lines.map((text) => (JSON.parse(text) as { tag: string }).tag),
    ["9", "8", "7", "6", "5", "4", "3", "2", "1", "0"],
  );
  assert.deepEqual((await run(...server, "--actor", "nobody")).lines, []);
  assert.deepEqual((await run(...server, "--since", "2999-01-01T00:00:00Z")).lines, []);
});

test("an export is all there is, as a program reads it: JSON by the line, or CSV; or as much of it as wanted", async () => {
  await using registry = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await pushImage(registry, "team/app", image, "0");
  for (let i = 1; i < 60; i++) await pushManifest(registry, "team/app", image, String(i));
  const server = ["--server", registry.url];
  const tags = Array.from({ length: 60 }, (_, i) => String(59 - i));
  const json = await run(...server, "--json");
  assert.deepEqual(
    json.lines.map((text) => (JSON.parse(text) as { tag: string }).tag),
    tags,
  );
  const csv = await run(...server, "--csv", "--repository", "team/app");
  assert.equal(csv.status, 0);
  const [head = [], ...records] = csv.lines.map((line) => line.replace(/\r$/, "").split(","));
  assert.deepEqual(
    records.map((record) => record[head.indexOf("tag")]),
    tags,
  );
  assert.equal((await run(...server, "--csv", "--limit", "3")).lines.length, 4);
  assert.deepEqual((await run(...server, "--json", "--until", "1h")).lines, []);
  assert.equal((await run(...server, "--csv", "--subject", "user:alice", "--action", "login")).lines.length, 1);
});

test("what events can't be asked for is told with the way to ask", async () => {
  await using registry = await startRegistry();
  for (const wrong of [
    ["--limit", "0"],
    ["--limit", "x"],
    ["--since", "yesterday"],
    ["--until", "tomorrow"],
    ["--csv", "--json"],
    ["--user", "me"],
  ]) {
    const { status, stderr, lines } = await run("--server", registry.url, ...wrong);
    assert.equal(status, 2, wrong.join(" "));
    assert.match(stderr, /Usage: entrepot events/);
    assert.deepEqual(lines, []);
  }
  await assert.rejects(run("--server", registry.url, "--action", "sing"), /answered 400: action: /);
});
