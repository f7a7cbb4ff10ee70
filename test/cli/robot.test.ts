import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { runRobot } from "../../src/cli/robot.ts";
import { startRegistry } from "../kit/registry.ts";
import { place, run } from "./processes.ts";

const SECRET = /^entrepot_[A-Za-z0-9_-]{43}\n$/;

async function robot(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const status = await runRobot(args, { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status, stdout: text(stdout), stderr: text(stderr) };
}

test("robots are added, listed, shown, disabled, rotated and removed", async () => {
  await using registry = await startRegistry({ config: { access: { open: true } } });
  const at = ["--server", registry.url];
  assert.equal((await robot(...at)).stdout, "there are no robots\n");
  const limits = ["--push", "team/app", "--push", "team/lib-*", "--delete", "team/old/**"];
  const added = await robot(
    "add",
    "ci",
    ...limits,
    "--expires",
    "2099-01-31",
    "--description",
    "b\u001b[31muilds",
    ...at,
  );
  assert.match(added.stdout, SECRET, "the secret alone, for a variable of a shell");
  const host = new URL(registry.url).host;
  assert.ok(added.stderr.endsWith(`  docker login --username ci --password-stdin ${host}\n`), added.stderr);
  const other = await robot("add", "mirror", "--pull", "**", "--expires", "never", "--json", ...at);
  assert.match(`${(JSON.parse(other.stdout) as { secret: string }).secret}\n`, SECRET);

  const listed = (await robot("list", ...at)).stdout.split("\n");
  assert.match(listed[0] ?? "", /^NAME +TEAM +STATE +MAY +EXPIRES +LAST USED$/);
  assert.match(
    listed[1] ?? "",
    /^ci +- +enabled +pull, push of team\/app, team\/lib-\*; pull, delete of team\/old\/\*\* +2099-01-3\d \d\d:\d\d +never$/,
  );
  assert.match(listed[2] ?? "", /^mirror +- +enabled +pull of \*\* +never +never$/);
  const lines = (await robot("--json", ...at)).stdout.trimEnd().split("\n");
  assert.deepEqual(lines.map((line) => (JSON.parse(line) as { name: string }).name), ["ci", "mirror"]); // prettier-ignore
  assert.match((await robot("show", "ci", ...at)).stdout, /^name +ci\n(.+\n)+about +b\?\[31muilds\n$/);

  assert.equal((await robot("disable", "ci", ...at)).stdout, "the robot ci is disabled\n");
  assert.match((await robot("show", "ci", "--json", ...at)).stdout, /"disabled": true/);
  assert.equal((await robot("enable", "ci", ...at)).stdout, "the robot ci is enabled\n");
  const rotated = await robot("rotate", "ci", "--expires", "90d", ...at);
  assert.match(rotated.stdout, SECRET);
  assert.notEqual(rotated.stdout, added.stdout);
  assert.equal((await robot("remove", "ci", ...at)).stdout, "the robot ci is removed\n");
  await assert.rejects(robot("show", "ci", ...at), /answered 404: there is no robot ci/);
  await assert.rejects(robot("list", "--team", "Nobody", ...at), /answered 400/);
  await assert.rejects(robot("add", "ci", "--pull", "**", "--expires", "soon", ...at), /answered 400: expires: is not/);
});

test("what makes no sense of a robot is told with the right usage", async () => {
  for (const wrong of [
    ["nonsense"],
    ["add"],
    ["show"],
    ["list", "ci"],
    ["add", "ci", "--expires", "never"],
    ["add", "ci", "--pull", "**"],
    ["rotate", "ci", "--pull", "**"],
    ["remove", "ci", "--expires", "1d"],
    ["show", "ci", "--team", "x"],
    ["disable", "ci", "extra"],
  ]) {
    const { status, stderr } = await robot(...wrong);
    assert.equal(status, 2, wrong.join(" "));
    assert.match(stderr, /^entrepot: .+\n\nUsage: entrepot robot /);
  }
});

test("where no daemon runs, robots are those of its storage", async () => {
  await using here = await place();
  const added = await run(["robot", "add", "ci", "--pull", "team/**", "--expires", "never", "--config", here.config]);
  assert.equal(added.status, 0, added.stderr);
  assert.match(added.stdout, SECRET);
  const listed = await run(["robot", "--config", here.config]);
  assert.match(listed.stdout, /\nci +- +enabled +pull of team\/\*\* +never +never\n$/);
});
