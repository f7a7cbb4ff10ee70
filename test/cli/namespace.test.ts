import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { runNamespace } from "../../src/cli/namespace.ts";
import { runTeam } from "../../src/cli/team.ts";
import { startRegistry } from "../kit/registry.ts";

async function namespace(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const status = await runNamespace(args, { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status, stdout: text(stdout), stderr: text(stderr) };
}

test("namespaces are added, listed, shown, changed, granted and removed", async () => {
  await using registry = await startRegistry({
    upstreams: { "ghcr.io": { url: "http://127.0.0.1:1", visibility: "private" } },
    config: { access: { open: true }, hosted: { quotas: { apps: "1GiB" } } },
  });
  const at = ["--server", registry.url];
  const told = async (...args: string[]): Promise<string> => (await namespace(...args, ...at)).stdout;
  for (const name of ["backend", "web"]) {
    await runTeam(["add", name, ...at], { stdout: new PassThrough(), stderr: new PassThrough(), env: {} });
  }
  assert.equal(await told(), "there is none\n");
  assert.equal(await told("add", "base"), "namespace base is added\n");
  assert.equal(
    await told("add", "apps", "--team", "backend", "--visibility", "protected", "--description", "what we run"),
    "namespace apps is added\n",
  );
  assert.equal(
    await told("list"),
    "NAMESPACE  OWNER         VISIBILITY  REPOSITORIES  USED  DESCRIPTION\n" +
      "apps       team backend  protected              0   0 B  what we run\n" +
      "base       global        private                0   0 B\n",
  );
  assert.equal(await told("grant", "apps", "web", "contributor"), "web is granted apps as contributor\n");
  assert.equal(
    await told("show", "apps"),
    "namespace apps: what we run\n  owner        team backend\n  visibility   protected\n" +
      "  holds        0 B of 1.0 GiB in 0 repositories\n  granted      to web as contributor\n",
  );
  assert.equal(await told("revoke", "apps", "web"), "web is granted apps no more\n");
  assert.equal(await told("set", "apps", "--global", "--visibility", "public"), "namespace apps is changed\n");
  const shown = JSON.parse(await told("show", "apps", "--json")) as Record<string, unknown>;
  assert.deepEqual([shown["owner"], shown["visibility"], shown["grants"]], [{ kind: "global" }, "public", []]);
  assert.equal(await told("remove", "apps"), "namespace apps is removed\n");
  await assert.rejects(namespace("show", "apps", ...at), /answered 404: there is no namespace apps/);

  assert.equal(await told("grant", "ghcr.io", "web", "--upstream"), "web may pull from ghcr.io\n");
  assert.equal(await told("show", "ghcr.io", "--upstream"), "upstream ghcr.io\n  granted      to web\n");
  assert.equal(await told("revoke", "ghcr.io", "web", "--upstream"), "web is granted ghcr.io no more\n");
});

test("wrong usage is told with the right one", async () => {
  for (const [args, reason] of [
    [["rename", "a"], /there is no "namespace rename"/],
    [["grant", "a", "b"], /grant takes NAME TEAM ROLE/],
    [["grant", "a", "b", "viewer", "--upstream"], /grant takes NAME TEAM$/m],
    [["grant", "a", "b", "king"], /"king" is no role/],
    [["add", "a", "--upstream"], /--upstream goes with show, grant, revoke/],
    [["add", "a", "--team", "b", "--user", "c"], /exclude each other/],
    [["set", "a"], /set takes one of/],
    [["show", "a", "--visibility", "public"], /go with add and set/],
    [["set", "a", "--visibility", "secret"], /write one of private, protected, public/],
  ] as const) {
    const { status, stderr } = await namespace(...args);
    assert.equal(status, 2);
    assert.match(stderr, reason);
    assert.match(stderr, /Usage: entrepot namespace/);
  }
});
