import assert from "node:assert/strict";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { stripVTControlCharacters } from "node:util";
import { runWarm } from "../../src/cli/warm.ts";
import type { WarmEvent } from "../../src/registry/warm.ts";
import { makeImage, makeIndex } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { place, run, serve } from "./processes.ts";

const amd64 = makeImage({ layers: [40_000, 30_000] });
const arm64 = makeImage({ layers: [50_000], seed: "arm", platform: { os: "linux", architecture: "arm64" } });
const index = makeIndex([
  [{ os: "linux", architecture: "amd64" }, amd64],
  [{ os: "linux", architecture: "arm64" }, arm64],
]);

async function upstreamWithIndex() {
  const upstream = await startUpstream();
  upstream.add("library/app", "latest", index);
  return upstream;
}

function eventsOf(stdout: string): WarmEvent[] {
  return stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as WarmEvent);
}

test("warm brings all platforms of an image here, so that a pull asks upstream for nothing", async () => {
  await using upstream = await upstreamWithIndex();
  await using here = await place({ upstreams: { "docker.io": { url: upstream.url } } });
  await using daemon = await serve(["--config", here.config]);
  const { status, stdout } = await run(["warm", "app", "--server", daemon.address]);
  assert.equal(status, 0);
  assert.match(stdout.trim().split("\n").at(-1) ?? "", /^✓ app: 118 KiB in 5 blobs, /);

  await upstream.stop();
  for (const image of [amd64, arm64]) {
    assert.equal((await fetch(`${daemon.address}/v2/library/app/manifests/${image.digest}`)).status, 200);
    for (const digest of image.blobs.keys()) {
      assert.equal((await fetch(`${daemon.address}/v2/library/app/blobs/${digest}`)).status, 200);
    }
  }
});

test("--platform leaves the other platforms upstream, and --json passes the events on", async () => {
  await using upstream = await upstreamWithIndex();
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  const { status, stdout } = await run([
    "warm",
    "app",
    "app",
    "--platform",
    "linux/arm64",
    "--json",
    "--server",
    registry.url,
  ]);
  assert.equal(status, 0);
  const events = eventsOf(stdout);
  assert.deepEqual(
    events.filter(({ type }) => type === "image" || type === "done"),
    [
      { type: "image", image: "app", repository: "docker.io/library/app" },
      { type: "done", image: "app" },
    ],
  );
  const here = events.flatMap((event) => (event.type === "blob" && event.here ? [event.digest] : []));
  assert.deepEqual(new Set(here), new Set(arm64.blobs.keys()));
  assert.equal(upstream.hits("GET", amd64.digest), 0);

  const none = await run(["warm", "app", "--platform", "linux/s390x", "--server", registry.url]);
  assert.equal(none.status, 1);
  assert.match(none.stdout, /^✗ app: app has nothing for linux\/s390x: look at the platforms of its index$/m);
});

test("an image that can't be had is told, the others come, and the exit status is 1", async () => {
  await using upstream = await upstreamWithIndex();
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  const { status, stdout } = await run(["warm", "nosuch:1", "app", "--server", registry.url]);
  assert.equal(status, 1);
  assert.match(stdout, /^✗ nosuch:1: docker\.io\/library\/nosuch has no manifest 1/m);
  assert.match(stdout, /^✓ app: /m);
  const json = await run(["warm", "nosuch:1", "--json", "--server", registry.url]);
  assert.equal(json.status, 1);
  assert.ok(eventsOf(json.stdout).some((event) => event.type === "failed" && event.image === "nosuch:1"));
});

test("the daemon is found by the configuration, on a unix socket too", async () => {
  await using upstream = await upstreamWithIndex();
  await using here = await place();
  const listen = `unix:${join(here.path, "entrepot.sock")}`;
  await here.write({ server: { listen }, upstreams: { "docker.io": { url: upstream.url } } });
  const before = await run(["warm", "app", "--config", here.config]);
  assert.equal(before.status, 1);
  assert.equal(
    before.stderr,
    `entrepot warm: no daemon answers at ${listen} (ENOENT): start it with "entrepot serve", or name another with --server\n`,
  );
  await using _daemon = await serve(["--config", here.config]);
  assert.equal((await run(["warm", "app"], { env: { ENTREPOT_CONFIG: here.config } })).status, 0);
});

test("what is no image, no platform or no address is wrong usage, and nobody is asked", async () => {
  const wrong: [string[], RegExp][] = [
    [[], /an image is missing/],
    [["App:latest", "app:.x"], /App:latest: .* is not a repository name[^]*app:\.x: .* is not a tag/],
    [["app", "--platform", "arm"], /"arm" is no platform: write one such as linux\/amd64/],
    [["app", "--server", "localhost:5000"], /"localhost:5000" is no address of a daemon/],
  ];
  for (const [args, told] of wrong) {
    const { status, stderr } = await inProcess(args);
    assert.equal(status, 2, args.join(" "));
    assert.match(stderr, told);
    assert.match(stderr, /Usage: entrepot warm IMAGE/);
  }
});

test("a server that is no entrepot, and a daemon that goes away, are told as such", async () => {
  await using upstream = await startUpstream();
  const { stderr } = await run(["warm", "app", "--server", upstream.url]);
  assert.match(stderr, /^entrepot warm: http:\/\/127\.0\.0\.1:\d+ answered 405: is it an entrepot\?\n$/);

  upstream.add("library/app", "latest", amd64);
  const gate = upstream.hold({ method: "GET", path: amd64.layers[0]?.digest ?? "" });
  await using here = await place({ upstreams: { "docker.io": { url: upstream.url } } });
  await using daemon = await serve(["--config", here.config]);
  const warming = run(["warm", "app", "--server", daemon.address]);
  await gate.reached;
  daemon.kill("SIGKILL");
  const { status, stderr: lost } = await warming;
  gate.release();
  assert.equal(status, 1);
  assert.match(lost, /^entrepot warm: lost the daemon at http:.*run this again\n$/);
});

/** The command in this process, with an output that may be a terminal. */
async function inProcess(args: string[], terminal: { isTTY?: boolean; columns?: number } = {}) {
  const [stdout, stderr] = [Object.assign(new PassThrough(), terminal), new PassThrough()];
  const status = await runWarm(args, { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status, stdout: text(stdout), stderr: text(stderr) };
}

/** What a terminal shows in the end: an escape sequence goes up some lines, another erases from there. */
function screen(output: string): string[] {
  const [first = "", ...redrawn] = output.split("\u001B[0J");
  const lines: string[] = [];
  let text = first;
  for (const next of [...redrawn, ""]) {
    const [written = "", up] = text.split(/.\[(\d+)A$/s);
    lines.push(...stripVTControlCharacters(written).split("\n").slice(0, -1));
    lines.splice(lines.length - Number(up ?? 0));
    text = next;
  }
  return lines;
}

test("on a terminal of 40 columns the bar never wraps, moves, and leaves one line an image", async () => {
  const large = makeImage({ layers: [3_000_000], seed: "large" });
  await using upstream = await startUpstream({ bytesPerSecondPerConnection: 2_000_000 });
  upstream.add("library/a-name-that-is-longer-than-the-line", "latest", large);
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  const args = ["a-name-that-is-longer-than-the-line", "nosuch", "--server", registry.url];
  const { status, stdout } = await inProcess(args, { isTTY: true, columns: 40 });
  assert.equal(status, 1);
  const bars = stripVTControlCharacters(stdout)
    .split("\n")
    .filter((line) => /[█░]/.test(line));
  for (const bar of bars) assert.ok(bar.length < 40, bar);
  const percents = new Set(bars.map((bar) => /(\d+)%/.exec(bar)?.[1]));
  assert.ok(percents.size >= 3, [...percents].join(" "));
  assert.ok(
    bars.some((bar) => /\/s .* left$/.test(bar)),
    bars.join("\n"),
  );

  const left = screen(stdout);
  assert.equal(left.length, 2);
  assert.match(left[0] ?? "", /^✓ a-name-that-is-longer-than-the-line: 2\.9 MiB in 2 blobs/);
  assert.match(left[1] ?? "", /^✗ nosuch: /);
});

test("elsewhere progress is a plain line at most once a second", async () => {
  const large = makeImage({ layers: [3_000_000], seed: "large" });
  await using upstream = await startUpstream({ bytesPerSecondPerConnection: 1_200_000 });
  upstream.add("library/app", "latest", large);
  await using registry = await startRegistry({ upstreams: { "docker.io": upstream } });
  const startedMs = performance.now();
  const { status, stdout } = await inProcess(["app", "--server", registry.url]);
  const seconds = (performance.now() - startedMs) / 1000;
  assert.equal(status, 0);
  assert.ok(!stdout.includes("\u001B"));
  const lines = stdout.trim().split("\n");
  const progress = lines.slice(0, -1);
  assert.match(progress.at(-1) ?? "", /^app: [\d.]+ MiB of 2\.9 MiB/);
  assert.ok(progress.length <= 1 + seconds, `${progress.length} lines in ${seconds} s`);
});
