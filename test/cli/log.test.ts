import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { until } from "../kit/registry.ts";

const MAIN = join(import.meta.dirname, "../../src/main.ts");

function isAlive(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const asked = request({ socketPath, path: "/livez" }, (answer) => {
      answer.resume();
      answer.once("end", () => resolve(answer.statusCode === 200));
    });
    asked.once("error", () => resolve(false));
    asked.end();
  });
}

test("a log on a full disk ends nobody's pulls: the daemon goes on, and still stops when it is told to", async () => {
  const folder = await mkdtemp(join(tmpdir(), "entrepot-log-"));
  await using full = await open("/dev/full", "w");
  const socketPath = join(folder, "s");
  const config = join(folder, "entrepot.yaml");
  await writeFile(
    config,
    `server: {listen: "unix:${socketPath}"}\nstorage: {root: ${join(folder, "data")}, minFree: 0}\n`,
  );
  const child = spawn(process.execPath, [MAIN, "serve", "--config", config], { stdio: ["ignore", full.fd, "ignore"] });
  const ended = once(child, "exit");
  try {
    await until(() => isAlive(socketPath), "it serves");
    // More than one block of lines, so that writing them fails several times.
    for (let i = 0; i < 300; i++) assert.ok(await isAlive(socketPath), `request ${i}`);
    child.kill("SIGTERM");
    assert.deepEqual(await ended, [0, null]);
  } finally {
    child.kill("SIGKILL");
    await rm(folder, { recursive: true, force: true });
  }
});
