import assert from "node:assert/strict";
import { createServer, type IncomingHttpHeaders } from "node:http";
import { mkdir, mkdtempDisposable, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { readOperatorSecret } from "../../src/access/operator.ts";
import { localLogin, remoteLogin } from "../../src/cli/credentials.ts";
import { runExport } from "../../src/cli/export.ts";
import { runGc } from "../../src/cli/gc.ts";
import { runImport } from "../../src/cli/import.ts";
import { runStatus } from "../../src/cli/status.ts";
import type { CommandIo } from "../../src/cli/io.ts";
import { send } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";

type Command = (args: string[], io: CommandIo) => Promise<number>;

async function run(command: Command, args: string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const status = await command(args, { stdout, stderr, env });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  assert.equal(status, 0, text(stderr));
  return text(stdout);
}

/** A configuration of this machine whose daemon is that one, and whose storage is at `root`. */
async function configOf(
  registry: TestRegistry,
  root = registry.root,
): Promise<AsyncDisposable & { file: string; path: string }> {
  const folder = await mkdtempDisposable(join(tmpdir(), "entrepot-cli-"));
  const file = join(folder.path, "entrepot.yaml");
  const listen = new URL(registry.url).host;
  await writeFile(file, JSON.stringify({ server: { listen }, storage: { root, minFree: 0 } }));
  return { file, path: folder.path, [Symbol.asyncDispose]: () => folder.remove() };
}

const CLOSED = { config: { access: { open: false }, hosted: { namespaces: ["team"] } } };

/** Answers as if it had nothing, and remembers what it was told. */
async function startListener(): Promise<AsyncDisposable & { url: string; heard: IncomingHttpHeaders[] }> {
  const heard: IncomingHttpHeaders[] = [];
  const server = createServer((request, response) => {
    heard.push(request.headers);
    response.writeHead(401, { "content-type": "application/json" }).end("{}");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    heard,
    [Symbol.asyncDispose]: () => new Promise((resolve) => void server.close(() => resolve())),
  };
}

test("commands on the daemon's machine are its operator's, by the secret in the storage folder", async () => {
  await using registry = await startRegistry(CLOSED);
  await using config = await configOf(registry);
  assert.match(await run(runStatus, ["--config", config.file]), /running for/);
  assert.match(await run(runGc, ["--config", config.file, "--json"]), /"type":"done"/);
});

test("images are exported and imported with it, too", async () => {
  await using registry = await startRegistry(CLOSED);
  await using config = await configOf(registry);
  const authorization = `Bearer ${await readOperatorSecret(registry.root)}`;
  const image = makeImage({ layers: [100_000], seed: "credentials" });
  for (const { digest, bytes } of image.blobs.values())
    await send(registry, 201, "POST", `/v2/team/app/blobs/uploads/?digest=${digest}`, { authorization }, bytes);
  const headers = { authorization, "content-type": image.mediaType };
  await send(registry, 201, "PUT", "/v2/team/app/manifests/1", headers, image.manifest);
  const archive = join(config.path, "app.tar");
  await run(runExport, ["team/app:1", archive, "--config", config.file]);
  await run(runImport, [archive, "--as", "team/copy:2", "--config", config.file]);
  await send(registry, 200, "GET", "/v2/team/copy/manifests/2", { authorization });
  await assert.rejects(
    run(runExport, ["team/app:1", join(config.path, "other.tar"), "--server", registry.url]),
    /set ENTREPOT_TOKEN/,
  );
});

test("a daemon that --server names is told the token in the environment, and never the operator's secret", async () => {
  await using registry = await startRegistry(CLOSED);
  await using config = await configOf(registry);
  await using listener = await startListener();
  const at = ["--config", config.file, "--server", listener.url];
  await assert.rejects(run(runStatus, at), /answered 401: .*; set ENTREPOT_TOKEN to a token/);
  await assert.rejects(run(runGc, at), /set ENTREPOT_TOKEN/);
  await assert.rejects(run(runExport, ["team/app:1", join(config.path, "a.tar"), ...at]), /set ENTREPOT_TOKEN/);
  assert.ok(listener.heard.length >= 3);
  assert.ok(listener.heard.every(({ authorization }) => authorization === undefined));

  const ENTREPOT_TOKEN = `entrepot_${"t".repeat(43)}`;
  await assert.rejects(run(runStatus, at, { ENTREPOT_TOKEN }), /ENTREPOT_TOKEN holds no token that is good there/);
  assert.equal(listener.heard.at(-1)?.authorization, `Bearer ${ENTREPOT_TOKEN}`);

  const own = { ENTREPOT_TOKEN: `${await readOperatorSecret(registry.root)}\n` };
  assert.match(await run(runStatus, ["--server", registry.url], own), /running for/);
});

test("where the secret can't be read, the command goes on without, and says what helps if that is not enough", async () => {
  await using registry = await startRegistry(CLOSED);
  await using other = await mkdtempDisposable(join(tmpdir(), "entrepot-"));
  const root = other.path;
  await using config = await configOf(registry, root);
  await assert.rejects(
    run(runStatus, ["--config", config.file]),
    /answered 401: .*operator-secret can't be read \(ENOENT\): name its configuration with --config, or set ENTREPOT_TOKEN/,
  );
  // As it is for a user who is not the daemon's.
  await mkdir(join(root, "operator-secret"));
  await assert.rejects(
    run(runStatus, ["--config", config.file]),
    /operator-secret can't be read \(EISDIR\): run this as the daemon's user, or set ENTREPOT_TOKEN/,
  );
  const ENTREPOT_TOKEN = await readOperatorSecret(registry.root);
  assert.match(await run(runStatus, ["--config", config.file], { ENTREPOT_TOKEN }), /running for/);
});

test("where access is open nothing has to be presented", async () => {
  await using registry = await startRegistry({ config: { access: { open: true } } });
  await using other = await mkdtempDisposable(join(tmpdir(), "entrepot-"));
  await using config = await configOf(registry, other.path);
  assert.match(await run(runStatus, ["--config", config.file]), /running for/);
  assert.match(await run(runStatus, ["--server", registry.url]), /running for/);
});

test("what can be no token is refused before it is sent", async () => {
  assert.throws(() => remoteLogin({ ENTREPOT_TOKEN: "a b" }), /ENTREPOT_TOKEN holds no token/);
  assert.throws(() => remoteLogin({ ENTREPOT_TOKEN: "a\r\nx-injected: 1" }), /ENTREPOT_TOKEN holds no token/);
  assert.equal(remoteLogin({ ENTREPOT_TOKEN: " " }).authorization, undefined);
  assert.equal((await localLogin("/nonexistent", {})).authorization, undefined);
});

test("who listens where the daemon would, while it does not run, is told no secret", async () => {
  await using registry = await startRegistry(CLOSED);
  await registry.stop();
  await using listener = await startListener();
  await using config = await configOf({ ...registry, url: listener.url });
  await assert.rejects(run(runStatus, ["--config", config.file]), /no daemon answers .* has .* in use/);
  await run(runGc, ["--dry-run", "--config", config.file]);
  assert.deepEqual(listener.heard, []);
});
