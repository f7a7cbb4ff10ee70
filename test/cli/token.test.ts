import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { runToken } from "../../src/cli/token.ts";
import { startRegistry } from "../kit/registry.ts";

async function token(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const status = await runToken(args, { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status, stdout: text(stdout), stderr: text(stderr) };
}

test("tokens of a user are added, listed and removed", async () => {
  await using registry = await startRegistry({ config: { access: { open: true } } });
  const user = JSON.stringify({ name: "alice", password: "a long enough password" });
  const made = await registry.send("POST", "/api/v1/users", { "content-type": "application/json" }, user);
  assert.equal(made.status, 201);
  const at = ["--server", registry.url];
  assert.equal((await token(...at)).stdout, "there are no tokens\n");
  const added = await token("add", "laptop", "--user", "alice", "--expires", "90d", ...at);
  assert.match(added.stdout, /^entrepot_[A-Za-z0-9_-]{43}\n$/);
  assert.match(added.stderr, /docker login --username alice --password-stdin 127\.0\.0\.1:\d+\n$/);
  const limited = ["--create", "team/app", "--user", "alice", "--expires", "never", "--json"];
  const ci = JSON.parse((await token("add", "ci", ...limited, ...at)).stdout) as Record<string, unknown>;
  assert.deepEqual([ci["user"], ci["limits"]], ["alice", [{ repositories: ["team/app"], verbs: ["pull", "create"] }]]);

  const [head, ...rows] = (await token("list", "--user", "alice", ...at)).stdout.split("\n");
  assert.match(head ?? "", /^USER +NAME +MAY +EXPIRES +LAST USED$/);
  assert.match(rows[0] ?? "", /^alice +laptop +pull, create, push, delete of \*\* +\d{4}-\d\d-\d\d \d\d:\d\d +never$/);
  assert.match(rows[1] ?? "", /^alice +ci +pull, create of team\/app +never +never$/);
  assert.equal((await token("--json", ...at)).stdout.split("\n").length, 3);

  const removed = await token("remove", "laptop", "--user", "alice", ...at);
  assert.equal(removed.stdout, "the token laptop of alice is removed\n");
  await assert.rejects(token("remove", "laptop", "--user", "alice", ...at), /answered 404: alice has no token laptop/);
  await assert.rejects(
    token("add", "a", "--user", "bob", "--expires", "1d", ...at),
    /answered 404: there is no user bob/,
  );
});

test("what makes no sense of a token is told with the right usage", async () => {
  for (const wrong of [
    ["nonsense"],
    ["add"],
    ["list", "laptop"],
    ["add", "laptop", "--expires", "1d"],
    ["add", "laptop", "--user", "alice"],
    ["remove", "laptop"],
    ["list", "--pull", "**"],
    ["remove", "laptop", "--user", "alice", "--expires", "1d"],
  ]) {
    const { status, stderr } = await token(...wrong);
    assert.equal(status, 2, wrong.join(" "));
    assert.match(stderr, /^entrepot: .+\n\nUsage: entrepot token /);
  }
});
