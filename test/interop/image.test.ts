import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { startDocker, type Docker } from "./dockerd.ts";
import { eventually, makeFolder } from "./machine.ts";
import { importNodeBase } from "./node-base.ts";

const PROJECT = join(import.meta.dirname, "../..");
const MAX_STOP_MS = 10_000;
/** As an operator hardens it. */
const CONFINED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];
const HARDENED = [...CONFINED, "--volume", "content:/var/lib/registry"];

test("the image is built, serves as nobody on a read-only root, says that it is healthy, and stops cleanly", async () => {
  await using folder = await makeFolder();
  await using docker = await startDocker(folder.path);
  const dockerfile = await readFile(join(PROJECT, "Dockerfile"), "utf8");
  const nodeVersion = /^ARG NODE_VERSION=(\S+)$/m.exec(dockerfile)?.[1];
  assert.equal(`v${nodeVersion}`, process.version, "the image's Node is the one that the tests run on");
  await importNodeBase(docker, folder.path, `node:${nodeVersion}-bookworm-slim`);
  await docker.run("build", "--network", "host", "--tag", "entrepot", ...proxyArguments(), PROJECT);

  const { Labels, User } = JSON.parse(
    await docker.run("image", "inspect", "--format", "{{json .Config}}", "entrepot"),
  ) as { Labels: Record<string, string>; User: string };
  const { version } = JSON.parse(await readFile(join(PROJECT, "package.json"), "utf8")) as { version: string };
  assert.equal(Labels["org.opencontainers.image.version"], version);
  assert.equal(User, "65532:65532");

  // With a network of its own, so that its port is free: the built-in configuration and check.
  const own = ["--network", "none", "--health-interval", "1s"];
  const first = await docker.run("run", "--detach", ...HARDENED, ...own, "entrepot");
  await eventually("the container is healthy", () => isHealthy(docker, first));
  const seen = JSON.parse(await docker.run("exec", first, "node", "--eval", LOOK_AROUND)) as Record<string, unknown>;
  assert.deepEqual(seen, {
    user: 65_532,
    application: ["node_modules", "package.json", "src"],
    developmentTools: [],
    onEveryInterface: true,
    content: true,
  });
  await assertStopsCleanly(docker, first);

  // On the host's network and the content of before, as seen from outside.
  const elsewhere = ["--network", "host", "--env", "ENTREPOT_SERVER__LISTEN=127.0.0.1:0"];
  const second = await docker.run("run", "--detach", ...HARDENED, ...elsewhere, "entrepot");
  let url = "";
  await eventually("the daemon tells where it listens", async () => {
    url = /"address":"([^"]+)"/.exec(await docker.run("logs", second))?.[1] ?? "";
    return url !== "";
  });
  const ready = await fetch(`${url}/readyz`);
  assert.equal(ready.status, 200, await ready.text());
  await assertStopsCleanly(docker, second);
});

/** Runs in the container, on what is installed there. */
const LOOK_AROUND = `
const { existsSync, readdirSync, readFileSync } = require("node:fs");
const listening = readFileSync("/proc/net/tcp", "utf8");
console.log(JSON.stringify({
  user: process.getuid(),
  application: readdirSync("/app").sort(),
  developmentTools: ["typescript", "oxlint", "node"].filter((name) => existsSync("/app/node_modules/" + name)),
  onEveryInterface: listening.includes(" 00000000:" + (5000).toString(16).toUpperCase()),
  content: existsSync("/var/lib/registry/entrepot.db"),
}));`;

async function isHealthy(docker: Docker, container: string): Promise<boolean> {
  const state = JSON.parse(await docker.run("inspect", "--format", "{{json .State}}", container)) as {
    Running: boolean;
    Health: { Status: string; Log: unknown[] };
  };
  if (!state.Running || state.Health.Status === "unhealthy")
    assert.fail(`${JSON.stringify(state)}\n${await docker.run("logs", container)}`);
  return state.Health.Status === "healthy";
}

/** Ends it by SIGTERM, as an orchestrator does. */
async function assertStopsCleanly(docker: Docker, container: string): Promise<void> {
  const started = performance.now();
  await docker.run("stop", "--time", "30", container);
  const tookMs = performance.now() - started;
  assert.equal(await docker.run("inspect", "--format", "{{.State.ExitCode}}", container), "0");
  assert.ok(tookMs < MAX_STOP_MS, `it took ${tookMs} ms to stop`);
  await docker.run("rm", container);
}

/** The builder passes a proxy on to RUN only where it is told to. */
function proxyArguments(): string[] {
  const names = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];
  return names.filter((name) => process.env[name]).flatMap((name) => ["--build-arg", name]);
}
