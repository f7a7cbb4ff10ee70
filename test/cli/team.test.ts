import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { runTeam } from "../../src/cli/team.ts";
import { startRegistry } from "../kit/registry.ts";

async function team(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const status = await runTeam(args, { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status, stdout: text(stdout), stderr: text(stderr) };
}

test("teams are added, filled, listed, shown, changed and removed", async () => {
  await using registry = await startRegistry({ config: { access: { open: true } } });
  for (const name of ["alice", "bob"]) {
    const body = JSON.stringify({ name, password: "a long enough password" });
    const json = { "content-type": "application/json" };
    assert.equal((await registry.send("POST", "/api/v1/users", json, body)).status, 201);
  }
  const at = ["--server", registry.url];
  const told = async (...args: string[]): Promise<string> => (await team(...args, ...at)).stdout;
  assert.equal(await told(), "there is none\n");
  assert.equal(
    await told("add", "backend", "--owner", "alice", "--description", "APIs"),
    "team backend is added, alice is its owner\n",
  );
  assert.equal(await told("add", "web"), "team web is added\n");
  assert.equal(await told("join", "backend", "bob", "viewer"), "bob is viewer of backend\n");
  assert.equal(
    await told("list"),
    "TEAM     MEMBERS  NAMESPACES  DESCRIPTION\nbackend  2        0           APIs\nweb      0        0\n",
  );
  assert.match(await told("members", "backend"), /^USER +ROLE +SINCE\nalice +owner +[-0-9: ]{19}\nbob +viewer .*\n$/);
  const members = (await told("members", "backend", "--json")).trim().split("\n");
  assert.deepEqual(
    members.map((line) => (JSON.parse(line) as { role: string }).role),
    ["owner", "viewer"],
  );
  assert.match(await told("show", "backend"), /^team backend: APIs\n {2}members +2\n {2}namespaces +0\n {2}added +\S+/);
  assert.equal(await told("set", "backend", "--description", "all"), "team backend is described anew\n");
  assert.equal((JSON.parse(await told("show", "backend", "--json")) as { description: string }).description, "all");
  assert.equal(await told("leave", "backend", "bob"), "bob is in backend no more\n");
  assert.equal(await told("remove", "web"), "team web is removed\n");
  await assert.rejects(team("show", "web", ...at), /answered 404: there is no team web/);
  await assert.rejects(team("add", "backend", ...at), /answered 409: there is a team backend already/);
});

test("wrong usage is told with the right one", async () => {
  for (const [args, reason] of [
    [["rename", "a"], /there is no "team rename"/],
    [["list", "a"], /list takes no argument/],
    [["join", "a", "b"], /join takes TEAM USER ROLE/],
    [["join", "a", "b", "king"], /"king" is no role: write one of viewer/],
    [["show", "A/b"], /"A\/b" is no name/],
    [["show", "a", "--owner", "b"], /--owner goes with add/],
    [["show", "a", "--description", "b"], /--description goes with add and set/],
    [["set", "a"], /set takes --description/],
  ] as const) {
    const { status, stderr } = await team(...args);
    assert.equal(status, 2);
    assert.match(stderr, reason);
    assert.match(stderr, /Usage: entrepot team/);
  }
});
