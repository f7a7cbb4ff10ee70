import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startSink } from "../kit/sink.ts";
import { startUpstream } from "../kit/upstream.ts";
import { layerOf } from "../registry/clients.ts";

const image = makeImage({ layers: [100_000] });
const { digest } = layerOf(image);

/** Asks for everything, and returns all that anybody could read afterwards. */
async function everythingSaid(mirror: TestRegistry): Promise<string> {
  const said: string[] = [];
  for (const path of [
    "/v2/library/app/manifests/1",
    `/v2/library/app/manifests/${image.digest}`,
    `/v2/library/app/blobs/${digest}`,
    "/v2/library/app/tags/list",
    `/v2/library/app/referrers/${image.digest}`,
    "/v2/library/none/manifests/1",
    "/readyz",
    "/metrics",
    "/",
  ]) {
    for (const method of ["GET", "HEAD"]) {
      const headers = { authorization: "Basic Y2xpZW50OmNsaWVudC1zZWNyZXQ=", cookie: "session=client-secret" };
      const answer = await mirror.send(method, `${path}?token=client-secret`, headers);
      if (!path.includes("/blobs/")) said.push(JSON.stringify(answer.headers), answer.bytes.toString());
    }
  }
  return `${said.join("\n")}\n${mirror.log.map((line) => JSON.stringify(line)).join("\n")}`;
}

for (const [name, fault] of [
  ["all is well", undefined],
  ["upstream fails", { status: 500 }],
  ["upstream refuses", { status: 403 }],
  ["upstream cuts connections", { cutAfter: "request" }],
] as const) {
  test(`no secret is in any answer, metric or line of the log while ${name}`, async () => {
    await using upstream = await startUpstream({
      auth: { kind: "bearer", users: { "the-user": "the-password" } },
    });
    upstream.add("library/app", "1", image);
    if (fault) upstream.fault({ path: (path) => path !== "/token" }, fault);
    await using mirror = await startRegistry({
      upstreams: { "docker.io": { url: upstream.url, auth: { username: "the-user", password: "the-password" } } },
    });
    const said = await everythingSaid(mirror);
    const sent = new Set(upstream.requests.map(({ headers }) => headers.authorization?.split(" ")[1] ?? ""));
    sent.delete("");
    assert.ok(sent.size >= 2, "a password and a token were used");
    for (const secret of [...sent, "the-password", "client-secret", "Y2xpZW50OmNsaWVudC1zZWNyZXQ="]) {
      assert.ok(!said.includes(secret), `${secret} was said`);
    }
  });
}

test("no secret is said when the credentials are wrong, nor those of a proxy or of a signed address", async () => {
  await using upstream = await startUpstream({ auth: { kind: "basic", users: { "the-user": "another" } } });
  await using storage = await startSink({ status: 500, body: "no" });
  await using open = await startUpstream();
  open.add("library/app", "1", image);
  open.fault({ path: digest }, { redirect: `${storage.url}/x?X-Amz-Signature=signed-secret` });
  for (const upstreams of [
    { "docker.io": { url: upstream.url, auth: { username: "the-user", password: "the-password" } } },
    { "docker.io": { url: upstream.url, proxy: "http://the-user:the-password@127.0.0.1:1" } },
    { "docker.io": open },
  ]) {
    await using mirror = await startRegistry({ upstreams });
    const said = await everythingSaid(mirror);
    const basic = Buffer.from("the-user:the-password").toString("base64");
    for (const secret of ["the-password", basic, "signed-secret", "client-secret"]) {
      assert.ok(!said.includes(secret), `${secret} was said`);
    }
  }
});
