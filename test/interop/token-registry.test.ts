import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { startEntrepot, UNREACHABLE, type Entrepot } from "./entrepot.ts";
import { eventually, makeFolder, run, startDaemon } from "./machine.ts";
import { makeSamples } from "./samples.ts";
import { copyIn } from "./skopeo.ts";

const SERVICE = "stock.example.com";
const ISSUER = "tokens.example.com";
const PASSWORD = "correct horse battery staple";

/** By the API, as the operator. */
async function call(entrepot: Entrepot, method: string, path: string, body: unknown): Promise<void> {
  const secret = (await readFile(join(entrepot.root, "operator-secret"), "utf8")).trim();
  const headers = { authorization: `Bearer ${secret}`, "content-type": "application/json" };
  const answer = await fetch(`${entrepot.url}/api/v1${path}`, { method, headers, body: JSON.stringify(body) });
  assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${await answer.text()}`);
}

test("a stock registry takes the tokens of our service, by certificate, service and issuer alone, also of a key that came later", async () => {
  await using folder = await makeFolder();
  const access = { open: false, tokens: { service: ISSUER, audiences: [SERVICE] } };
  let entrepot = await startEntrepot(folder.path, { upstreams: UNREACHABLE, access });
  await using stack = new AsyncDisposableStack();
  stack.defer(() => entrepot[Symbol.asyncDispose]());
  for (const name of ["root", "alice", "bob"]) await call(entrepot, "POST", "/users", { name, password: PASSWORD });
  await call(entrepot, "POST", "/teams", { name: "builders" });
  await call(entrepot, "PUT", "/teams/builders/members/alice", { role: "contributor" });
  await call(entrepot, "PUT", "/teams/builders/members/bob", { role: "viewer" });
  await call(entrepot, "POST", "/namespaces", { name: "team", owner: { kind: "team", name: "builders" } });
  await call(entrepot, "POST", "/namespaces", { name: "other" });

  const bundle = join(folder.path, "certificates.pem");
  await writeFile(bundle, await (await fetch(`${entrepot.url}/token/certificates.pem`)).text());
  const config = join(folder.path, "stock.yaml");
  await writeFile(
    config,
    JSON.stringify({
      version: "0.1",
      storage: { filesystem: { rootdirectory: join(folder.path, "stock") }, delete: { enabled: true } },
      http: { addr: "127.0.0.1:0" },
      auth: {
        token: { realm: `${entrepot.url}/token`, service: SERVICE, issuer: ISSUER, rootcertbundle: bundle },
      },
    }),
  );
  const { daemon, match } = await startDaemon("docker-registry", ["serve", config], /listening on (127[.0-9]+:\d+)/);
  stack.use(daemon);
  const stock = match[1] ?? "";
  const { single } = await makeSamples(folder.path);
  const as = (name: string): string[] => ["--dest-creds", `${name}:${PASSWORD}`];
  const read = (image: string, ...options: string[]): Promise<string> =>
    run("skopeo", ["inspect", "--raw", "--tls-verify=false", ...options, `docker://${stock}/${image}`]);

  await copyIn(single.source, `${stock}/team/app:v1`, as("alice"));
  assert.ok(await read("team/app:v1", "--creds", `bob:${PASSWORD}`));
  await assert.rejects(copyIn(single.source, `${stock}/team/app:v2`, as("bob")), /denied|authentication required/);
  await assert.rejects(copyIn(single.source, `${stock}/other/app:v1`, as("alice")), /denied|authentication required/);
  await assert.rejects(
    copyIn(single.source, `${stock}/team/app:v2`, ["--dest-creds", "alice:wrong"]),
    /unauthorized|invalid username/,
  );
  await assert.rejects(read("team/app:v1"), /denied|unauthorized|authentication required/);
  await call(entrepot, "PATCH", "/namespaces/team", { visibility: "public" });
  assert.ok(await read("team/app:v1"), "anybody may pull what is public");

  // Only an administrator may list all that another registry has.
  const list = async (name: string): Promise<number> => {
    const query = `service=${SERVICE}&scope=registry:catalog:*`;
    const authorization = `Basic ${Buffer.from(`${name}:${PASSWORD}`).toString("base64")}`;
    const asked = await fetch(`${entrepot.url}/token?${query}`, { headers: { authorization } });
    const { token } = (await asked.json()) as { token: string };
    return (await fetch(`http://${stock}/v2/_catalog`, { headers: { authorization: `Bearer ${token}` } })).status;
  };
  assert.equal(await list("root"), 200);
  assert.equal(await list("alice"), 401);

  const kidOf = async (): Promise<unknown> => {
    const answer = await fetch(`${entrepot.url}/token/jwks.json`);
    return ((await answer.json()) as { keys: { kid: string }[] }).keys[0]?.kid;
  };
  const firstKey = await kidOf();
  const { host } = entrepot;
  await entrepot.stop();
  entrepot = await startEntrepot(folder.path, {
    upstreams: UNREACHABLE,
    server: { listen: host },
    access: { ...access, tokens: { ...access.tokens, rotate: "1ms" } },
  });
  await eventually("another key signs", async () => (await kidOf()) !== firstKey);
  await copyIn(single.source, `${stock}/team/app:v3`, as("alice"));
  assert.equal(await (await fetch(`${entrepot.url}/token/certificates.pem`)).text(), await readFile(bundle, "utf8"));
});
