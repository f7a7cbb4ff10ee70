import assert from "node:assert/strict";
import { test } from "node:test";
import type { RulePlan } from "../../src/replication/plan.ts";
import { pushImage } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex } from "../kit/images.ts";
import { startRegistry, until } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { begin, place, run, serve } from "./processes.ts";

const amd64 = makeImage({ layers: [40_000, 30_000] });
const arm64 = makeImage({ layers: [50_000], seed: "arm", platform: { os: "linux", architecture: "arm64" } });
const index = makeIndex([
  [{ os: "linux", architecture: "amd64" }, amd64],
  [{ os: "linux", architecture: "arm64" }, arm64],
]);
const other = makeImage({ layers: [1000], seed: "other" });

/** A configuration with one rule `base`, from `hub` to `dr`. */
function ruleOf(hub: { url: string }, dr: { url: string } | undefined, more: object = {}) {
  return {
    replication: {
      registries: { hub: { url: hub.url }, ...(dr ? { dr: { url: dr.url } } : {}) },
      rules: [
        {
          name: "base",
          from: { registry: "hub", repositories: ["library/{node,redis}"] },
          to: [{ registry: dr ? "dr" : "self", repository: "mirror/{{name}}" }],
          ...more,
        },
      ],
    },
  };
}

test("plan shows what would change and how much, and with --verbose why", async () => {
  await using hub = await startUpstream();
  await using dr = await startUpstream();
  for (const tag of ["18.1.0", "18.2.0", "latest"]) hub.add("library/node", tag, amd64);
  hub.add("library/redis", "7.0.0", other);
  dr.add("mirror/node", "18.1.0", amd64);
  dr.add("mirror/node", "18.2.0", other);
  const tags = { semver: ">=18", always: ["latest"] };
  await using here = await place(ruleOf(hub, dr, { tags, write: { backup: "{{tag}}-prev" } }));
  const { status, stdout } = await run(["replicate", "plan", "base", "--sizes", "--config", here.config]);
  const short = amd64.digest.slice(0, 19);
  assert.deepEqual(
    stdout.split("\n").map((line) => line.trimEnd()),
    [
      "hub library/node → dr mirror/node",
      `  replace  18.2.0  ${short}  was ${other.digest.slice(0, 19)}; which stays as 18.2.0-prev`,
      `  copy     latest  ${short}`,
      "",
      "! library/redis: none of its 1 tags is selected: see --verbose",
      "",
      "tags: 1 to copy, 1 to replace, 1 unchanged; 1 left out",
      "dr: 0 manifests and 0 blobs to send, 0 B; 0 blobs to mount, 3 there",
      "requests: 6 to hub, 7 to dr",
      "requests to come: 7 to hub, 10 to dr",
      "",
    ],
  );
  assert.equal(status, 1, "a repository that gives nothing is told");

  const verbose = await run(["replicate", "plan", "base", "--verbose", "--config", here.config]);
  assert.match(verbose.stdout, /^ {2}same +18\.1\.0 +sha256:\w+ +matches \*, a version in >=18$/m);
  assert.match(verbose.stdout, /^ {2}left out +7\.0\.0 +is no version in >=18$/m);
});

test("list names the rules; an unknown one is told with those that are there", async () => {
  await using hub = await startUpstream();
  await using here = await place(ruleOf(hub, hub, { tags: { newest: 5 } }));
  const listed = await run(["replicate", "list", "--config", here.config]);
  assert.match(listed.stdout, /^base {2}hub library\/\{node,redis\} {2}dr mirror\/\{\{name\}\} {2}\*; the 5 newest$/m);
  const unknown = await run(["replicate", "plan", "bass", "--config", here.config]);
  assert.equal(unknown.status, 2);
  assert.match(unknown.stderr, /there is no rule bass; there are base/);
});

test("after a run, the next plan is empty: images, platforms, signatures, referrers and backups are at the target", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  const signature = `${index.digest.replace(":", "-")}.sig`;
  const sbom = makeArtifact({ subject: amd64, artifactType: "application/spdx+json", payload: "sbom" });
  hub.add("library/node", "18", index);
  hub.add("library/node", "latest", index);
  hub.add("library/node", signature, other);
  hub.add("library/redis", "7", amd64);
  hub.add("library/redis", undefined, sbom);
  await pushImage(dr, "mirror/node", other, "latest");
  const rule = { attached: { referrers: true }, write: { backup: "{{tag}}-prev" } };
  await using here = await place(ruleOf(hub, dr, rule));

  const ran = await run(["replicate", "run", "base", "--config", here.config]);
  assert.equal(ran.status, 0, ran.stdout + ran.stderr);
  assert.match(ran.stdout, /^✓ dr mirror\/node:18: copied, /m);
  const digestAt = async (path: string) => (await dr.get(`/v2/mirror/${path}`)).headers["docker-content-digest"];
  assert.equal(await digestAt("node/manifests/18"), index.digest);
  assert.equal(await digestAt("node/manifests/latest"), index.digest);
  assert.equal(await digestAt("node/manifests/latest-prev"), other.digest);
  assert.equal(await digestAt(`node/manifests/${signature}`), other.digest);
  assert.equal(await digestAt(`redis/manifests/${sbom.digest}`), sbom.digest);
  for (const digest of arm64.blobs.keys()) await dr.pullBlob("mirror/node", digest);

  const again = await run(["replicate", "plan", "base", "--json", "--config", here.config]);
  const { repositories } = JSON.parse(again.stdout) as RulePlan;
  for (const { action, referrers } of repositories.flatMap(({ tags }) => tags)) {
    assert.deepEqual([action, referrers], ["same", []]);
  }
  assert.equal(again.status, 0);
  const blobs = hub.hits("GET", "/blobs/");
  assert.equal((await run(["replicate", "run", "base", "--config", here.config])).status, 0);
  assert.equal(hub.hits("GET", "/blobs/"), blobs, "a run with nothing to do reads nothing");
});

test("an image that fails is told with its cause, its tag stays, and the others are copied", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  hub.add("library/node", "18", amd64);
  hub.add("library/redis", "7", other);
  hub.remove("library/node", [...amd64.blobs.keys()][1] ?? "");
  await using here = await place(ruleOf(hub, dr));
  const { status, stdout } = await run(["replicate", "run", "base", "--json", "--config", here.config]);
  assert.equal(status, 1);
  const told = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { name: string; outcome: string; notes: string[] });
  assert.deepEqual(Object.fromEntries(told.map(({ name, outcome }) => [name, outcome])), {
    "mirror/node:18": "failed",
    "mirror/redis:7": "copied",
  });
  assert.notEqual(told.find(({ outcome }) => outcome === "failed")?.notes[0], undefined);
  assert.equal((await dr.get("/v2/mirror/node/manifests/18")).status, 404);
  assert.equal((await dr.get("/v2/mirror/redis/manifests/7")).status, 200);
});

test("self is the daemon of this machine, also where people have to log in", async () => {
  await using hub = await startUpstream();
  hub.add("library/node", "18", amd64);
  hub.add("library/redis", "7", other);
  const config = {
    ...ruleOf(hub, undefined),
    hosted: { namespaces: ["mirror"] },
    access: { open: false },
  };
  await using here = await place(config);
  await using daemon = await serve(["--config", here.config]);
  await here.write({ ...config, server: { listen: new URL(daemon.address).host } });
  const { status, stdout, stderr } = await run(["replicate", "run", "base", "--config", here.config]);
  assert.equal(status, 0, stdout + stderr);
  assert.equal((await fetch(`${daemon.address}/v2/mirror/node/manifests/18`)).status, 401);
  const again = await run(["replicate", "plan", "base", "--config", here.config]);
  assert.match(again.stdout, /^tags: 2 unchanged; 0 left out$/m);
});

test("the daemon does it where one runs: status, a run as it happens, its log, and a pause", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  hub.add("library/node", "18", amd64);
  hub.add("library/redis", "7", other);
  hub.remove("library/redis", [...other.blobs.keys()][1] ?? "");
  const config = ruleOf(hub, dr, { on: { cron: "0 3 * * *" } });
  await using here = await place(config);
  await using daemon = await serve(["--config", here.config]);
  const replicate = (...args: string[]) => run(["replicate", ...args, "--server", daemon.address]);

  const listed = await replicate("list");
  assert.match(listed.stdout, /^base {2}hub library\/\{node,redis\} {2}dr mirror\/\{\{name\}\} {2}\*$/m);
  const before = await replicate("status");
  assert.match(
    before.stdout,
    /^RULE +LAG +WAITING +RUNNING +FAILED +LAST SUCCESS +NEXT +LAST RUN\nbase +none +0 +0 +0 +never +\S+ \d\d:00:00 +-$/m,
  );
  assert.match((await replicate("plan", "base")).stdout, /^tags: 2 to copy; 0 left out$/m);

  const ran = await replicate("run", "base");
  assert.equal(ran.status, 1, "one image has failed");
  assert.match(ran.stdout, /^✓ dr mirror\/node:18: copied, /m);
  assert.match(ran.stdout, /^✗ dr mirror\/redis:7: .+/m);
  const [, id = ""] =
    /^run (\d+) of base \(hand\): done; 1 copied, 1 failed; /m.exec(ran.stdout) ?? assert.fail(ran.stdout);
  assert.doesNotMatch(ran.stdout, /^!/m, "what was told while it ran is not told again");
  const behind = (await replicate("status")).stdout;
  assert.match(behind, new RegExp(`^base .* 1 +never .* ${id} done$`, "m"));
  assert.match(behind, /^! base: 1 copy failed: entrepot jobs --state dead tells why, .+ run base tries again$/m);
  const log = await replicate("log", id);
  assert.match(log.stdout, /^run \d+ of base \(hand\): done; 1 copied/m);
  assert.match(log.stdout, /^✗ dr mirror\/redis:7 \(\d+\): .+/m);

  hub.add("library/redis", "7", other);
  const again = await replicate("run", "base", "--json");
  assert.deepEqual(
    again.stdout
      .trim()
      .split("\n")
      .map((line) =>
        (({ registry, name, outcome }) => [registry, name, outcome])(JSON.parse(line) as Record<string, string>),
      ),
    [["dr", "mirror/redis:7", "copied"]],
  );
  assert.equal(again.status, 0, again.stdout + again.stderr);

  assert.equal((await replicate("pause", "base", "--why", "moving house")).status, 0);
  assert.match((await replicate("status")).stdout, /^! base is paused: moving house$/m);
  assert.match((await replicate("resume", "base")).stdout, /^base goes on$/m);
  const [, last = ""] = /(\d+) done$/m.exec((await replicate("status")).stdout) ?? assert.fail("no run has ended");
  const undone = await replicate("undo", last);
  assert.match(undone.stdout, new RegExp(`^run \\d+ takes back run ${last} of base: done; 1 taken back$`, "m"));
  assert.equal((await dr.get("/v2/mirror/redis/manifests/7")).status, 404);
  assert.match((await replicate("resume", "base")).stdout, /^base goes on$/m);
  assert.match((await replicate("run", "base", "--detach")).stdout, /^run \d+ is queued: entrepot replicate log \d+/m);
  const absent = await replicate("run", "bass");
  assert.equal(absent.status, 1);
  assert.match(absent.stderr, /there is no rule bass; there are base/);
});

test("Ctrl-C leaves a run going, and says so", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  hub.add("library/node", "18", amd64);
  hub.add("library/redis", "7", other);
  await using here = await place(ruleOf(hub, dr));
  await using daemon = await serve(["--config", here.config]);
  const gate = hub.hold({ path: [...amd64.blobs.keys()][1] ?? "" });
  await using running = begin(["replicate", "run", "base", "--server", daemon.address]);
  await gate.reached;
  running.kill("SIGINT");
  const { status, stderr } = await running.ended;
  assert.equal(status, 1);
  assert.match(stderr, /^run (\d+) goes on: entrepot replicate log \1 tells of it, entrepot jobs cancel \1 ends it$/m);
  gate.release();
  await until(async () => (await dr.get("/v2/mirror/node/manifests/18")).status === 200, "it is copied all the same");
});

test("list, plan and run need no daemon where there has never been one", async () => {
  await using hub = await startUpstream();
  await using dr = await startRegistry();
  hub.add("library/node", "18", amd64);
  hub.add("library/redis", "7", other);
  await using here = await place({ ...ruleOf(hub, dr), server: { listen: "127.0.0.1:5999" } });
  const replicate = (...args: string[]) => run(["replicate", ...args, "--config", here.config]);
  assert.match((await replicate("list")).stdout, /^base /m);
  assert.match((await replicate("plan", "base")).stdout, /^tags: 2 to copy; /m);
  const ran = await replicate("run", "base");
  assert.equal(ran.status, 0, ran.stderr);
  assert.equal((await dr.get("/v2/mirror/node/manifests/18")).status, 200);
});

test("without a daemon, what only a daemon knows is refused with the cause", async () => {
  await using hub = await startUpstream();
  await using here = await place({ ...ruleOf(hub, undefined), server: { listen: "127.0.0.1:5999" } });
  for (const command of [["status"], ["log", "1"], ["run", "base"], ["pause", "base"]]) {
    const { status, stderr } = await run(["replicate", ...command, "--config", here.config]);
    assert.equal(status, 1, command.join(" "));
    assert.match(stderr, /no daemon answers at .*start it with "entrepot serve"/);
  }
  const nameless = await run(["replicate", "log", "--config", here.config]);
  assert.match(nameless.stderr, /log takes ID: status has that of each rule's last run/);
  const wrong = await run(["replicate", "status", "base", "--config", here.config]);
  assert.equal(wrong.status, 2);
});
