import assert from "node:assert/strict";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { after, before, test } from "node:test";
import { createCredentialSource } from "../../src/remote/credentials.ts";
import { makeImage } from "../kit/images.ts";
import { startUpstream } from "../kit/upstream.ts";
import { fault, openRemote, startScript, TestClock } from "./remotes.ts";

const searchPath = process.env["PATH"] ?? "";
let folder = "";

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "entrepot-credentials-"));
  process.env["PATH"] = `${folder}${delimiter}${searchPath}`;
});

after(async () => {
  process.env["PATH"] = searchPath;
  await rm(folder, { recursive: true });
});

/** A helper that notes whom it was asked for and prints the file `name.json`. */
async function writeHelper(name: string, answer: string, status = 0): Promise<{ asked: () => Promise<string[]> }> {
  const log = join(folder, `${name}.log`);
  const program = join(folder, `docker-credential-${name}`);
  await writeFile(join(folder, `${name}.json`), answer);
  await writeFile(log, "");
  await writeFile(program, `#!/bin/sh\necho "$1 $(cat)" >> "${log}"\ncat "${folder}/${name}.json"\nexit ${status}\n`);
  await chmod(program, 0o755);
  return { asked: async () => (await readFile(log, "utf8")).split("\n").slice(0, -1) };
}

async function writeConfig(name: string, config: unknown): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, typeof config === "string" ? config : JSON.stringify(config));
  return path;
}

test("a helper is asked once, and after a refusal again, at most every five minutes", async () => {
  const users: Record<string, string> = { AWS: "first" };
  await using upstream = await startUpstream({ auth: { kind: "basic", users } });
  const image = makeImage({ layers: [10] });
  upstream.add("a/one", "v1", image);
  const helper = await writeHelper("rotating", '{"ServerURL":"x","Username":"AWS","Secret":"first"}');
  await using opened = await openRemote(upstream.url, { auth: { credentialHelper: "rotating" } });
  const { remote, clock } = opened;
  await Promise.all([remote.ping(), remote.headManifest("a/one", "v1"), remote.headManifest("a/one", "v1")]);
  assert.deepEqual(await helper.asked(), [`get ${upstream.host}`]);

  users["AWS"] = "second";
  await writeFile(join(folder, "rotating.json"), '{"Username":"AWS","Secret":"second"}');
  clock.nowMs += 299_000;
  await assert.rejects(remote.ping(), fault("unauthorized"));
  assert.equal((await helper.asked()).length, 1);
  clock.nowMs += 1000;
  await remote.ping();
  assert.equal((await helper.asked()).length, 2);
  clock.nowMs += 86_400_000;
  await remote.ping();
  assert.equal((await helper.asked()).length, 2);
});

test("credentials that a token realm refuses are asked for anew", async () => {
  const users: Record<string, string> = { ann: "old" };
  await using upstream = await startUpstream({ auth: { kind: "bearer", users } });
  upstream.add("a/one", "v1", makeImage({ layers: [10] }));
  await writeHelper("realm", '{"Username":"ann","Secret":"old"}');
  await using opened = await openRemote(upstream.url, { auth: { credentialHelper: "realm" } });
  assert.ok(await opened.remote.headManifest("a/one", "v1"));
  users["ann"] = "new";
  await writeFile(join(folder, "realm.json"), '{"Username":"ann","Secret":"new"}');
  upstream.revokeTokens();
  opened.clock.nowMs += 301_000;
  assert.ok(await opened.remote.headManifest("a/one", "v1"));
});

test("a helper that knows nothing, fails, is missing or prints nonsense", async () => {
  const clock = new TestClock();
  await writeHelper("empty", "credentials not found in native keychain", 1);
  assert.equal(await createCredentialSource({ credentialHelper: "empty" }, "r.example.com", clock).get(), undefined);
  await writeHelper("broken", "internal secret", 3);
  await writeHelper("chatty", '{"Secret":"internal secret"}');
  for (const [name, message] of [
    ["broken", /docker-credential-broken failed \(3\)/],
    ["chatty", /Username and Secret/],
    ["nowhere", /not on the PATH/],
  ] as const) {
    const source = createCredentialSource({ credentialHelper: name }, "r.example.com", clock);
    await assert.rejects(source.get(), (error) => {
      assert.ok(fault("unauthorized", message)(error));
      assert.ok(!String(error).includes("internal secret"));
      return true;
    });
  }
  const source = createCredentialSource({ credentialHelper: "late" }, "r.example.com", clock);
  await assert.rejects(source.get(), fault("unauthorized"));
  await writeHelper("late", '{"Username":"a","Secret":"b"}');
  await assert.rejects(source.get(), fault("unauthorized"), "not at once");
  clock.nowMs += 10_000;
  assert.deepEqual(await source.get(), { username: "a", password: "b" });
});

test("docker's config.json: entries, helpers for one host, a helper for all", async () => {
  const clock = new TestClock();
  const encode = (text: string): string => Buffer.from(text).toString("base64");
  await writeHelper("one", '{"Username":"one","Secret":"1"}');
  await writeHelper("all", '{"Username":"<token>","Secret":"refresh"}');
  const path = await writeConfig("config.json", {
    auths: {
      "https://index.docker.io/v1/": { auth: encode("hub:pass:word") },
      "https://ghcr.io": { username: "cat", password: "meow" },
      "registry.example.com:5000": { auth: encode("ann:x"), identitytoken: "idt" },
      "one.example.com": { auth: encode("not:used") },
      "empty.example.com": {},
    },
    credHelpers: { "one.example.com": "one" },
  });
  const get = (host: string, dockerConfig = path) => createCredentialSource({ dockerConfig }, host, clock).get();
  assert.deepEqual(await get("registry-1.docker.io"), { username: "hub", password: "pass:word" });
  assert.deepEqual(await get("ghcr.io"), { username: "cat", password: "meow" });
  assert.deepEqual(await get("registry.example.com:5000"), { identityToken: "idt" });
  assert.deepEqual(await get("one.example.com"), { username: "one", password: "1" });
  for (const host of ["empty.example.com", "registry.example.com", "other.example.com"])
    assert.equal(await get(host), undefined);
  const store = await writeConfig("store.json", { credsStore: "all" });
  assert.deepEqual(await get("registry-1.docker.io", store), { identityToken: "refresh" });
  assert.match(await readFile(join(folder, "all.log"), "utf8"), /^get https:\/\/index\.docker\.io\/v1\/$/m);

  await assert.rejects(get("ghcr.io", join(folder, "none.json")), fault("unauthorized", /none\.json \(ENOENT\)/));
  await assert.rejects(get("ghcr.io", await writeConfig("bad.json", '{"auths": secret')), (error) => {
    assert.ok(fault("unauthorized", /not JSON/)(error));
    assert.ok(!String(error).includes("secret"));
    return true;
  });
  const evil = await writeConfig("evil.json", { credsStore: "../../bin/sh" });
  await assert.rejects(get("ghcr.io", evil), fault("unauthorized", /bad helper/));
});

test("a login after a refusal counts at once", async () => {
  await using upstream = await startUpstream({ auth: { kind: "basic", users: { ann: "right" } } });
  const entry = (password: string) => ({ auths: { [upstream.host]: { username: "ann", password } } });
  const path = await writeConfig("login.json", entry("wrong"));
  await using opened = await openRemote(upstream.url, { auth: { dockerConfig: path } });
  await assert.rejects(opened.remote.ping(), fault("unauthorized"));
  await writeConfig("login.json", entry("right"));
  await opened.remote.ping();
});

test("an identity token is exchanged by POST", async () => {
  let form = "";
  await using server = await startScript((request, response) => {
    if (request.path !== "/token") {
      const challenge = `Bearer realm="${server.url}/token",service="s",scope="repository:a/one:pull"`;
      if (request.headers.authorization === "Bearer granted") response.end("{}");
      else response.writeHead(401, { "www-authenticate": challenge }).end();
      return;
    }
    assert.equal(request.method, "POST");
    assert.equal(request.headers.authorization, undefined);
    response.req.on("data", (piece: Buffer) => (form += piece.toString()));
    response.req.on("end", () => response.end('{"access_token":"granted"}'));
  });
  const { host } = new URL(server.url);
  const path = await writeConfig("identity.json", { auths: { [host]: { identitytoken: "r3fresh" } } });
  await using opened = await openRemote(server.url, { auth: { dockerConfig: path } });
  assert.ok(await opened.remote.getManifest("a/one", "v1"));
  assert.deepEqual(Object.fromEntries(new URLSearchParams(form)), {
    grant_type: "refresh_token",
    client_id: "entrepot",
    refresh_token: "r3fresh",
    scope: "repository:a/one:pull",
    service: "s",
  });
});
