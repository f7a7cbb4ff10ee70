/** Who may do everything without logging in, and until when. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { parseConfig } from "../../src/config/load.ts";
import { makeImage } from "../kit/images.ts";
import { adminApi, basic, passwordOf } from "../kit/people.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";

const image = makeImage({ layers: [100] });

async function pushes(registry: TestRegistry, headers: Record<string, string> = {}): Promise<number> {
  return (await registry.send("POST", "/v2/team/app/blobs/uploads/", headers)).status;
}

test("a new daemon on this machine asks nobody to log in, and knows no challenge", async () => {
  await using registry = await startRegistry();
  for (const path of ["/v2/", "/v2/_catalog", "/api/v1/status"]) {
    const answer = await registry.get(path);
    assert.equal(answer.status, 200, path);
    assert.equal(answer.headers["www-authenticate"], undefined);
  }
  assert.equal(await pushes(registry), 202);
  assert.equal(
    await pushes(registry, basic("whoever", "whatever")),
    202,
    "docker sends what it has kept of another day",
  );
});

test("what a proxy has passed on does not come from this machine", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  for (const server of [{}, { trustedProxies: ["127.0.0.1"] }]) {
    await using registry = await startRegistry({ upstreams: { "docker.io": upstream }, config: { server } });
    for (const header of ["x-forwarded-for", "x-forward-for", "x-real-ip", "via", "forwarded"]) {
      const headers = { [header]: "127.0.0.1" };
      assert.equal(await pushes(registry, headers), 401, header);
      assert.equal((await registry.get("/api/v1/status", headers)).status, 401, header);
      assert.equal(
        (await registry.get("/v2/library/app/manifests/1", headers)).status,
        200,
        "a public image is for everybody",
      );
    }
    assert.equal(await pushes(registry), 202);
  }
});

test("it ends with the first user, at once, and does not come back", async () => {
  await using registry = await startRegistry();
  assert.equal(await pushes(registry), 202);
  const admin = await adminApi(registry);
  await admin("POST", "/users", { name: "alice", password: passwordOf("alice") });
  assert.equal(await pushes(registry), 401);
  assert.equal((await registry.get("/api/v1/status")).status, 401);
  assert.equal(await pushes(registry, basic("alice")), 202, "the first one is the administrator");
  await registry.stop();
  await using again = await startRegistry({ root: registry.root });
  assert.equal(await pushes(again), 401);
  assert.equal(await pushes(again, basic("alice")), 202);
});

test("access.open is what the configuration says, and is reloaded", async () => {
  await using registry = await startRegistry({ config: { access: { open: false } } });
  assert.equal(await pushes(registry), 401);
  const reload = (open: boolean | string): unknown =>
    registry.app.reload(
      parseConfig({
        server: { listen: "127.0.0.1:0" },
        storage: { root: registry.root, minFree: 0 },
        access: { open },
      }),
    );
  reload(true);
  assert.equal(await pushes(registry), 202);
  assert.equal(await pushes(registry, { "x-forwarded-for": "203.0.113.9" }), 202);
  reload("everywhere");
  assert.equal(await pushes(registry), 202);
  assert.equal((await registry.get("/v2/")).headers["www-authenticate"], undefined);
  reload(false);
  assert.equal(await pushes(registry), 401);
});

test("open access on an address of others has to be said twice", () => {
  const verify = (listen: string, open: boolean | string) => (): unknown =>
    parseConfig({ server: { listen }, access: { open } });
  for (const listen of [":5000", "0.0.0.0:5000", "192.0.2.1:5000", "registry.example.com:5000"]) {
    assert.throws(verify(listen, true), /everywhere/, listen);
    assert.doesNotThrow(verify(listen, "everywhere"), listen);
    assert.doesNotThrow(verify(listen, false), listen);
  }
  for (const listen of ["127.0.0.1:5000", "localhost:5000", "[::1]:5000", "unix:/run/entrepot.sock"])
    assert.doesNotThrow(verify(listen, true), listen);
});

test("on an address of others a new daemon mirrors for everybody, and takes pushes from nobody yet", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { server: { listen: "0.0.0.0:0" } },
  });
  const at = registry.url.replace("0.0.0.0", "127.0.0.1");
  const status = async (path: string, method = "GET"): Promise<number> =>
    (await fetch(`${at}${path}`, { method })).status;
  assert.equal(await status("/v2/library/app/manifests/1"), 200);
  assert.equal(await status("/v2/"), 401);
  assert.equal(await status("/v2/team/app/blobs/uploads/", "POST"), 401);
  assert.equal(await status("/api/v1/status"), 401);
});
