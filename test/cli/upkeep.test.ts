import assert from "node:assert/strict";
import { once } from "node:events";
import { truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { stripVTControlCharacters } from "node:util";
import { runGc } from "../../src/cli/gc.ts";
import { runScrub } from "../../src/cli/scrub.ts";
import { hexOf } from "../../src/oci/digest.ts";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { layerOf } from "../registry/clients.ts";
import { aMomentLater, pushBlob, pushImage, select, send } from "../kit/hosted.ts";
import { RegistryFolder } from "../moving/registry-folder.ts";
import { begin, place, run, serve, type Place } from "./processes.ts";

const image = makeImage({ layers: [30_000] });

const CONFIG = { hosted: { namespaces: ["team"] }, gc: { grace: "0s", interval: "0s" }, scrub: { interval: "0s" } };

function start(here?: Place): Promise<TestRegistry> {
  return startRegistry({ config: CONFIG, ...(here ? { root: join(here.path, "data") } : {}) });
}

/** A storage with an image that was pushed, and a blob that nothing needs; nothing runs. */
async function placeWithGarbage(): Promise<Place> {
  const here = await place(CONFIG);
  await using registry = await start(here);
  await pushImage(registry, "team/app", image, "1");
  await pushBlob(registry, "team/app", Buffer.alloc(5000, 1));
  return here;
}

function damage(root: string, { layers: [layer] }: Image): Promise<void> {
  const hex = hexOf(layer?.digest ?? assert.fail());
  return writeFile(join(root, "blobs/sha256", hex.slice(0, 2), hex), "damaged");
}

function linesOf(stdout: string): string[] {
  return stdout.trimEnd().split("\n");
}

function eventsOf(stdout: string): Record<string, unknown>[] {
  return linesOf(stdout).map((line) => JSON.parse(line) as Record<string, unknown>);
}

/** A command in this process, with an output that may be a terminal. */
async function inProcess(
  command: typeof runGc,
  args: string[],
  terminal: { isTTY?: boolean; columns?: number } = {},
): Promise<{ status: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [Object.assign(new PassThrough(), terminal), new PassThrough()];
  const status = await command(args, { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status, stdout: text(stdout), stderr: text(stderr) };
}

test("gc asks the running daemon, and tells what has gone", async () => {
  await using registry = await start();
  await pushImage(registry, "team/app", image, "1");
  await pushBlob(registry, "team/app", Buffer.alloc(5000, 1));
  await aMomentLater();
  const dry = await run(["gc", "--dry-run", "--server", registry.url]);
  assert.equal(dry.status, 0, dry.stderr);
  assert.match(dry.stdout, /^blob sha256:[0-9a-f]{64}, 4\.9 KiB: no manifest needs it$/m);
  const WHAT = "0 manifests, 1 blob, access to 0 blobs, 0 empty repositories: 4.9 KiB, in ";
  assert.ok(linesOf(dry.stdout).at(-1)?.startsWith(`✓ would remove ${WHAT}`), dry.stdout);
  const { status, stdout } = await run(["gc", "--server", registry.url]);
  assert.equal(status, 0);
  assert.ok(linesOf(stdout).at(-1)?.startsWith(`✓ removed ${WHAT}`), stdout);
  assert.equal((await registry.blobFiles()).length, 2);
});

test("without a daemon, gc works on the storage itself, in this process alone", async () => {
  await using here = await placeWithGarbage();
  const { status, stdout, stderr } = await run(["gc", "--json", "--config", here.config]);
  assert.equal(status, 0, stderr);
  const { type, blobs, bytes } = eventsOf(stdout).at(-1) ?? {};
  assert.deepEqual([type, blobs, bytes], ["done", 1, 5000]);
  await using registry = await start(here);
  assert.equal((await registry.blobFiles()).length, 2);
  await registry.pullBlob("team/app", layerOf(image).digest);
  assert.equal(select(registry, "SELECT * FROM schedules WHERE name = 'gc'").length, 1);
});

test("a storage that a daemon uses at another address is left alone, and the message says what to do", async () => {
  await using here = await place(CONFIG);
  await using _daemon = await serve(["--config", here.config]);
  const { status, stderr } = await run(["gc", "--config", here.config]);
  assert.equal(status, 1);
  assert.match(stderr, /is in use by another entrepot[^]*name it with --server/);
});

test("a daemon that was named and does not answer is told, and no storage is touched", async () => {
  await using here = await placeWithGarbage();
  for (const command of ["gc", "scrub"]) {
    const args = [command, "--server", "http://127.0.0.1:1", "--config", here.config];
    const { status, stdout, stderr } = await run(args);
    assert.deepEqual([status, stdout], [1, ""]);
    assert.match(stderr, /no daemon answers at http:\/\/127\.0\.0\.1:1 \(ECONNREFUSED\)/);
  }
});

test("what a person ends by Ctrl-C is cancelled: no daemon goes on with it later", async () => {
  await using here = await place(CONFIG);
  const source = new RegistryFolder(join(here.path, "source"));
  await source.image("team/app", image, "1");
  // It takes a while to find that it is damaged.
  await truncate(source.data(layerOf(image).digest), 1024 ** 3);
  await using running = begin(["import", source.path, "--config", here.config]);
  await once(running.stdout, "data");
  running.kill("SIGINT");
  const { status, stdout } = await running.ended;
  assert.deepEqual([status, linesOf(stdout).at(-1)], [1, "✗ it was cancelled"]);
  const jobs = select({ root: join(here.path, "data") }, "SELECT kind, state FROM jobs");
  assert.deepEqual(jobs, [{ kind: "import", state: "cancelled" }]);
});

test("retention tells why each tag stays or goes, with and without a daemon, and what it refuses with the exit status", async () => {
  const rules = [
    { repositories: ["team/app"], keep: { tags: ["latest"] } },
    { repositories: ["team/*"], keep: { tags: ["v*"] } },
  ];
  const config = { ...CONFIG, retention: { schedule: "never", rules } };
  await using here = await place(config);
  {
    await using registry = await startRegistry({ config, root: join(here.path, "data") });
    for (const tag of ["1", "latest"]) await pushImage(registry, "team/app", image, tag);
    await pushImage(registry, "team/zoo", image, "1");
    const dry = await run(["retention", "--dry-run", "--repository", "team/a*", "--server", registry.url]);
    assert.equal(dry.status, 1, dry.stderr);
    const [refused, ...lines] = linesOf(dry.stdout).filter((line) => !line.startsWith("looking"));
    assert.match(
      refused ?? "",
      /^! retention\.rules\[1\] \(team\/\*\) would remove the only tag that it is about.*--remove-all$/,
    );
    assert.deepEqual(lines.slice(0, -1), [
      "team/app:1 goes: no rule keeps it; pushed just now, never pulled",
      "team/app:latest kept: it matches latest",
    ]);
    assert.match(lines.at(-1) ?? "", /^✓ would remove 1 tag, kept 1, in 1 repository that a rule is about, in /);
    await send(registry, 200, "HEAD", "/v2/team/app/manifests/1");
  }
  const { status, stdout, stderr } = await run(["retention", "--remove-all", "--json", "--config", here.config]);
  assert.equal(status, 0, stderr);
  const { type, removed, refused } = eventsOf(stdout).at(-1) ?? {};
  assert.deepEqual([type, removed, refused], ["done", 2, 0]);
  await using registry = await start(here);
  const tags = select(registry, "SELECT name FROM tags");
  assert.deepEqual(tags, [{ name: "latest" }]);
  assert.equal(select(registry, "SELECT * FROM events WHERE actor = 'retention'").length, 2);
});

test("scrub says that all is right, or names what is wrong and who needs it, with the exit status", async () => {
  await using here = await placeWithGarbage();
  const sound = await run(["scrub", "--config", here.config, "--bandwidth", "100MiB"]);
  assert.equal(sound.status, 0, sound.stderr);
  assert.match(
    linesOf(sound.stdout).at(-1) ?? "",
    /^✓ 3 blobs, 1 manifest, 1 tag: 34\.\d KiB read in .*; nothing is wrong$/,
  );
  await damage(join(here.path, "data"), image);
  const { digest } = layerOf(image);
  {
    await using registry = await start(here);
    const { status, stdout } = await run(["scrub", "--json", "--server", registry.url]);
    assert.equal(status, 1);
    const finding = eventsOf(stdout).find(({ type }) => type === "finding");
    assert.deepEqual([finding?.["kind"], finding?.["digest"], finding?.["repaired"]], ["damaged", digest, false]);
  }
  const { status, stdout } = await run(["scrub", "--config", here.config]);
  assert.equal(status, 1);
  const lines = linesOf(stdout);
  const at = lines.indexOf(`✗ dangling ${digest}`);
  assert.ok(at >= 0, stdout);
  assert.deepEqual(lines.slice(at + 1, at + 3), ["    in team/app", `    of ${image.digest}`]);
  assert.match(lines[at + 3] ?? "", /push it again to repair it$/);
  assert.match(lines.at(-1) ?? "", /^✗ .*; 1 finding, 0 repaired$/);
});

test("scrub repairs what is cached through the daemon, and exits with 0; without one it says that it can't", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using here = await place();
  const root = join(here.path, "data");
  const options = { root, upstreams: { "docker.io": upstream }, config: CONFIG };
  {
    await using registry = await startRegistry(options);
    await send(registry, 200, "GET", "/v2/library/app/manifests/1");
    for (const digest of image.blobs.keys()) await registry.pullBlob("library/app", digest);
    await registry.until(async () => (await registry.metric("entrepot_flights_in_progress")) === 0, "it is stored");
    await damage(root, image);
    const { status, stdout } = await run(["scrub", "--server", registry.url]);
    assert.equal(status, 0, stdout);
    assert.match(
      stdout,
      /^! damaged sha256:.*\n {4}in docker\.io\/library\/app\n[^]*brought again from its upstream$/m,
    );
    assert.match(linesOf(stdout).at(-1) ?? "", /1 finding, 1 repaired$/);
  }
  await damage(root, image);
  const { status, stdout } = await run(["scrub", "--config", here.config]);
  assert.equal(status, 1);
  assert.match(stdout, /the next pull brings it again \(a scrub without the daemon asks no upstream\)/);
});

test("wrong usage is told, and nobody is asked", async () => {
  const wrong: [typeof runGc, string[], RegExp][] = [
    [runGc, ["now"], /Unexpected argument 'now'/],
    [runGc, ["--server", "localhost:5000"], /is no address of a daemon/],
    [runScrub, ["--dry-run"], /Unknown option '--dry-run'/],
    [runScrub, ["--bandwidth", "fast"], /"fast" is no bandwidth: write a whole number and a unit/],
    [runScrub, ["--bandwidth", "0"], /"0" is no bandwidth/],
  ];
  for (const [command, args, told] of wrong) {
    const { status, stderr } = await inProcess(command, args);
    assert.equal(status, 2, args.join(" "));
    assert.match(stderr, told);
    assert.match(stderr, /Usage: entrepot/);
  }
});

test("a second one is told that one is running", async () => {
  await using registry = await start();
  await pushBlob(registry, "team/app", Buffer.alloc(300_000, 1));
  const first = inProcess(runScrub, ["--server", registry.url, "--bandwidth", "100KiB", "--json"]);
  const scrubbed = (): Promise<number> => registry.metric("entrepot_scrub_read_bytes_total");
  await registry.until(async () => (await scrubbed()) > 0, "it has begun");
  await assert.rejects(inProcess(runScrub, ["--server", registry.url]), /answered 409: a scrub is running already/);
  assert.equal((await first).status, 0);
});

test("on a terminal of 40 columns the bar never wraps, and moves; in the end one line is left", async () => {
  await using registry = await start();
  for (let n = 0; n < 6; n++) await pushBlob(registry, "team/app", Buffer.alloc(100_000, n));
  const args = ["--server", registry.url, "--bandwidth", "600KiB"];
  const { status, stdout } = await inProcess(runScrub, args, { isTTY: true, columns: 40 });
  assert.equal(status, 0);
  const bars = stripVTControlCharacters(stdout)
    .split("\n")
    .filter((line) => /[█░]/.test(line));
  for (const bar of bars) assert.ok(bar.length < 40, bar);
  assert.ok(new Set(bars).size >= 3, bars.join("\n"));
  assert.match(stripVTControlCharacters(stdout).trimEnd().split("\n").at(-1) ?? "", /^✓ 6 blobs, .*nothing is wrong$/);
});
