import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const DRIVER = fileURLToPath(new URL("driver.ts", import.meta.url));

async function drive(...args: string[]): Promise<{ status: number | null; output: string }> {
  const child = spawn(process.execPath, [DRIVER, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => (output += text));
  }
  const status = await new Promise<number | null>((resolve) => child.once("close", resolve));
  return { status, output };
}

test("killed again and again under load: what was acknowledged is kept, and nothing else stays", async (t) => {
  const { status, output } = await drive("--rounds", "6");
  assert.equal(status, 0, output);
  for (const line of output.trimEnd().split("\n")) t.diagnostic(line);
});

test("the driver refuses rounds that are no number", async () => {
  const { status, output } = await drive("--rounds", "many");
  assert.equal(status, 2);
  assert.match(output, /--rounds many is no whole number of rounds/);
});
