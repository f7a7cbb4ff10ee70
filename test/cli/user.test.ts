import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { Passwords } from "../../src/access/passwords.ts";
import { runUser } from "../../src/cli/user.ts";
import { select } from "../kit/hosted.ts";
import { startRegistry } from "../kit/registry.ts";
import { place, run, serve } from "./processes.ts";

const PASSWORD = "a long enough password";
const MAIN = join(import.meta.dirname, "../../src/main.ts");

async function user(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const status = await runUser(args, { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status, stdout: text(stdout), stderr: text(stderr) };
}

test("users are added, listed, shown, changed and removed", async () => {
  await using registry = await startRegistry({ config: { access: { open: true } } });
  await using folder = await place();
  const file = join(folder.path, "password");
  await writeFile(file, `${PASSWORD}\n`);
  const at = ["--server", registry.url];
  const add = ["--password-file", file, ...at];
  assert.equal((await user("add", "alice", ...add)).stdout, "alice is added as an administrator\n");
  assert.equal((await user("add", "bob", ...add)).stdout, "bob is added\n");
  const added = JSON.parse((await user("add", "carol", "--admin", "--json", ...add)).stdout) as { admin: boolean };
  assert.equal(added.admin, true);
  assert.equal((await user("disable", "carol", ...at)).stdout, "carol can't log in any more\n");
  assert.equal((await user("admin", "bob", ...at)).stdout, "bob is an administrator\n");
  assert.match(
    (await user(...at)).stdout,
    /^NAME +MAY +LOGGED IN LAST +ADDED\nalice +administrator +never +[-0-9: ]{19}\nbob +administrator .*\ncarol +disabled .*\n$/,
  );
  assert.match(
    (await user("show", "carol", ...at)).stdout,
    /^carol: an administrator, disabled\n {2}added +[-0-9: ]{19}\n/,
  );
  const lines = (await user("list", "--json", ...at)).stdout.trim().split("\n");
  assert.deepEqual(
    lines.map((line) => (JSON.parse(line) as { name: string }).name),
    ["alice", "bob", "carol"],
  );
  assert.equal((await user("no-admin", "alice", ...at)).stdout, "alice is no administrator\n");
  await assert.rejects(user("no-admin", "bob", ...at), /answered 409: bob is the last administrator that is enabled/);
  assert.equal((await user("enable", "carol", ...at)).stdout, "carol can log in\n");
  const [{ password: before } = {}] = select(registry, "SELECT password FROM users WHERE name = 'bob'");
  assert.equal((await user("passwd", "bob", ...add)).stdout, "bob has a new password\n");
  assert.notEqual(select(registry, "SELECT password FROM users WHERE name = 'bob'")[0]?.["password"], before);
  assert.equal((await user("remove", "alice", ...at)).stdout, "alice is removed\n");
  await assert.rejects(user("show", "alice", ...at), /answered 404: there is no user alice/);
  await writeFile(file, "short");
  await assert.rejects(user("add", "dave", ...add), /answered 400: password: is shorter than 12 characters/);
});

test("wrong usage is told with the right one", async () => {
  for (const args of [
    ["frobnicate"],
    ["add"],
    ["list", "alice"],
    ["add", "Not A Name", "--password-stdin"],
    ["add", "alice", "--password-stdin", "--password-file", "x"],
    ["disable", "alice", "--password-stdin"],
    ["passwd", "alice", "--admin", "--password-file", "x"],
    ["add", "alice", "--password", "in plain sight"],
  ]) {
    const { status, stderr } = await user(...args, "--server", "http://127.0.0.1:1");
    assert.equal(status, 2, args.join(" "));
    assert.match(stderr, /Usage: entrepot user/);
  }
});

test("without a terminal, the password has to come from standard input or a file", async () => {
  const { status, stderr } = await run(["user", "add", "alice", "--server", "http://127.0.0.1:1"]);
  assert.equal(status, 2);
  assert.match(stderr, /there is no terminal to ask for the password: write --password-stdin or --password-file FILE/);
});

test("a password from standard input ends before the line break of echo", async () => {
  await using registry = await startRegistry({ config: { access: { open: true } } });
  const args = ["user", "add", "alice", "--password-stdin", "--server", registry.url];
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ["pipe", "ignore", "inherit"] });
  child.stdin.end(`${PASSWORD}\n`);
  assert.equal(await new Promise((resolve) => child.once("close", resolve)), 0);
  const [{ password } = {}] = select(registry, "SELECT password FROM users");
  await using passwords = new Passwords();
  assert.equal(await passwords.matches(PASSWORD, String(password)), true);
});

test("without a daemon, the command opens the storage itself; the next daemon knows the user", async () => {
  await using folder = await place();
  const file = join(folder.path, "password");
  await writeFile(file, PASSWORD);
  const at = ["--config", folder.config];
  const first = await run(["user", "add", "alice", "--password-file", file, ...at]);
  assert.equal(first.stdout, "alice is added as an administrator\n", first.stderr);
  await using daemon = await serve(at);
  const listed = await run(["user", "--server", daemon.address]);
  assert.equal(listed.status, 1);
  assert.match(listed.stderr, /answered 401: /);
  const ask = async (path: string): Promise<unknown> => {
    const authorization = `Basic ${Buffer.from(`alice:${PASSWORD}`).toString("base64")}`;
    return (await fetch(`${daemon.address}/api/v1${path}`, { headers: { authorization } })).json();
  };
  assert.deepEqual(await ask("/whoami"), { kind: "user", name: "alice", admin: true, teams: [] });
  const { items } = (await ask("/events?action=access")) as { items: { actor?: string; subject: string }[] };
  assert.deepEqual(
    items.map(({ actor, subject }) => [actor, subject]),
    [["operator", "user:alice"]],
  );
});

test("on the daemon's machine, the command may look after users without logging in", async () => {
  await using folder = await place();
  await folder.write({ server: { listen: `unix:${join(folder.path, "socket")}` } });
  const file = join(folder.path, "password");
  await writeFile(file, PASSWORD);
  const at = ["--config", folder.config];
  await using _ = await serve(at);
  for (const name of ["alice", "bob"]) {
    const { stderr, status } = await run(["user", "add", name, "--password-file", file, ...at]);
    assert.equal(status, 0, stderr);
  }
  assert.match((await run(["user", ...at])).stdout, /\nalice +administrator .*\nbob +user /);
});

test("the environment makes the first administrator, as long as there is no user, and is told nowhere", async () => {
  await using folder = await place();
  const file = join(folder.path, "password");
  await writeFile(file, `${PASSWORD}\n`);
  const env = { ENTREPOT_ADMIN_USERNAME: "root", ENTREPOT_ADMIN_PASSWORD_FILE: file };
  const login = (address: string, name: string, password: string): Promise<Response> =>
    fetch(`${address}/api/v1/users/${name}`, {
      headers: { authorization: `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}` },
    });
  {
    await using daemon = await serve(["--config", folder.config], { env });
    assert.equal((await login(daemon.address, "root", PASSWORD)).status, 200);
    assert.ok(!JSON.stringify(daemon.log).includes(PASSWORD));
    daemon.kill("SIGTERM");
    assert.equal((await daemon.ended).status, 0);
  }
  const later = { ENTREPOT_ADMIN_USERNAME: "other", ENTREPOT_ADMIN_PASSWORD: "something else altogether" };
  await using daemon = await serve(["--config", folder.config], { env: later });
  assert.equal((await login(daemon.address, "other", "something else altogether")).status, 401);
  assert.equal((await login(daemon.address, "root", PASSWORD)).status, 200);
  assert.ok(!JSON.stringify(daemon.log).includes("something else"));
  const { stdout } = await run(["config", "print", "--config", folder.config], { env: later });
  assert.doesNotMatch(stdout, /something else|ENTREPOT_ADMIN/);
});

test("an environment that says half, or a password that breaks a rule, keeps the daemon from starting", async () => {
  await using folder = await place();
  for (const [env, message] of [
    [{ ENTREPOT_ADMIN_USERNAME: "root" }, /set either ENTREPOT_ADMIN_PASSWORD or ENTREPOT_ADMIN_PASSWORD_FILE/],
    [{ ENTREPOT_ADMIN_USERNAME: "root", ENTREPOT_ADMIN_PASSWORD: "changeme1234" }, /password: is one of the commonest/],
  ] as const) {
    const { status, stderr } = await run(["serve", "--config", folder.config], { env });
    assert.equal(status, 1);
    assert.match(stderr, message);
    assert.ok(!stderr.includes("changeme1234"));
  }
});

test("a terminal is asked twice, and shows nothing of what is typed", async (t) => {
  await using registry = await startRegistry({ config: { access: { open: true } } });
  const command = [process.execPath, MAIN, "user", "add", "alice", "--server", registry.url].join(" ");
  const child = spawn("script", ["-qec", command, "/dev/null"], { stdio: ["pipe", "pipe", "inherit"] });
  const started = await new Promise<boolean>((resolve) => {
    child.once("spawn", () => resolve(true)).once("error", () => resolve(false));
  });
  if (!started) {
    t.skip("there is no script(1) to make a terminal");
    return;
  }
  let shown = "";
  const answers = new Map([
    ["password of alice: ", "a long enough passwort\u007fd\r"],
    ["the same again: ", `${PASSWORD}\r`],
  ]);
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    shown += text;
    for (const [prompt, answer] of answers) {
      if (!shown.includes(prompt)) continue;
      answers.delete(prompt);
      child.stdin.write(answer);
    }
  });
  const status = await new Promise((resolve) => child.once("close", resolve));
  assert.equal(status, 0, shown);
  assert.match(shown, /^password of alice: \r?\nthe same again: \r?\nalice is added as an administrator\r?\n$/);
  assert.equal(select(registry, "SELECT name FROM users").length, 1);
});
