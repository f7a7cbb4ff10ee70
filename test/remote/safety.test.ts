import assert from "node:assert/strict";
import { lookup } from "node:dns/promises";
import { hostname } from "node:os";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { MAX_MANIFEST_BYTES } from "../../src/oci/manifest.ts";
import { reachOf } from "../../src/remote/guard.ts";
import { makeImage } from "../kit/images.ts";
import { startSink } from "../kit/sink.ts";
import { startUpstream } from "../kit/upstream.ts";
import { fault, openRemote, readAll, startScript } from "./remotes.ts";

const image = makeImage({ layers: [50_000], seed: "safety" });
const [layer] = image.layers;
assert.ok(layer);
const users = { ann: "s3cret" };
const auth = { username: "ann", password: "s3cret" };

test("a token realm elsewhere is not asked, with or without credentials", async () => {
  await using thief = await startSink({ status: 200, body: '{"token":"x"}' });
  for (const realm of [`${thief.url}/token`, "http://169.254.169.254/latest/meta-data", "https://evil.example.net/t"]) {
    await using upstream = await startUpstream({ auth: { kind: "bearer", users, realm } });
    upstream.add("a/one", "v1", image);
    for (const config of [{ auth }, {}]) {
      await using opened = await openRemote(upstream.url, config);
      await assert.rejects(opened.remote.getManifest("a/one", "v1"), fault("refused", /add ".*" to realms/));
    }
  }
  assert.equal(thief.hits(), 0);
});

test("a listed realm gets the credentials", async () => {
  await using realm = await startSink({ status: 401 });
  await using upstream = await startUpstream({ auth: { kind: "bearer", users, realm: `${realm.url}/token` } });
  await using opened = await openRemote(upstream.url, { auth, realms: [`127.0.0.1:${realm.port}`] });
  await assert.rejects(opened.remote.getManifest("a/one", "v1"), fault("unauthorized", /refuses the credentials/));
  assert.equal(realm.requests[0]?.headers.authorization, `Basic ${Buffer.from("ann:s3cret").toString("base64")}`);
});

test("the metadata service is not asked as a listed realm either", async () => {
  const realm = "http://169.254.169.254/token";
  await using upstream = await startUpstream({ auth: { kind: "bearer", users, realm } });
  await using opened = await openRemote(upstream.url, { realms: ["169.254.169.254"] });
  await assert.rejects(opened.remote.getManifest("a/one", "v1"), fault("refused", /metadata/));
});

test("one upstream cannot have another's credentials asked for", async () => {
  await using a = await startUpstream({ auth: { kind: "bearer", users } });
  await using b = await startUpstream({ auth: { kind: "bearer", users, realm: `${a.url}/token` } });
  await using opened = await openRemote(b.url, { auth });
  await assert.rejects(opened.remote.getManifest("a/one", "v1"), fault("refused"));
  assert.equal(a.hits(), 0);
});

test("a token realm's redirect to elsewhere is not followed", async () => {
  await using thief = await startSink({ status: 200, body: '{"token":"x"}' });
  await using upstream = await startUpstream({ auth: { kind: "bearer", users } });
  upstream.fault({ path: "/token" }, { redirect: `${thief.url}/token` });
  await using opened = await openRemote(upstream.url, { auth });
  await assert.rejects(opened.remote.getManifest("a/one", "v1"), fault("refused"));
  assert.equal(thief.hits(), 0);
});

test("a redirect elsewhere is followed without credentials, within the origin with them", async () => {
  for (const kind of ["bearer", "basic"] as const) {
    await using storage = await startSink({ status: 200, body: layer.bytes });
    await using upstream = await startUpstream({ auth: { kind, users } });
    upstream.add("a/one", "v1", image);
    upstream.fault(
      { path: layer.digest, times: 1 },
      { redirect: (path) => `http://x:y@127.0.0.1:${storage.port}${path}?sig=1#f` },
    );
    upstream.fault({ path: "moved" }, { redirect: "/v2/a/one/manifests/v1" });
    await using opened = await openRemote(upstream.url, { auth });
    const blob = await opened.remote.openBlob("a/one", layer.digest);
    assert.ok(blob && layer.bytes.equals(await readAll(blob.body)));
    assert.equal(storage.requests[0]?.headers.authorization, undefined);
    assert.equal(storage.requests[0]?.query.get("sig"), "1");
    assert.deepEqual((await opened.remote.getManifest("a/one", "moved"))?.bytes, image.manifest);
    assert.notEqual(upstream.requests.at(-1)?.headers.authorization, undefined);
  }
});

test("credentials stay away when a redirect leads back, too", async () => {
  await using storage = await startSink();
  await using upstream = await startUpstream({ auth: { kind: "basic", users } });
  storage.answerWith({ status: 307, headers: { location: `${upstream.url}/elsewhere` } });
  upstream.fault({ path: layer.digest }, { redirect: `${storage.url}/x` });
  await using opened = await openRemote(upstream.url, { auth });
  await assert.rejects(opened.remote.openBlob("a/one", layer.digest), fault("protocol", /401/));
  assert.equal(upstream.requests.at(-1)?.path, "/elsewhere");
  assert.equal(upstream.requests.at(-1)?.headers.authorization, undefined);
});

test("redirects to what is inside, or is no web address, or without end, are refused", async () => {
  await using upstream = await startUpstream();
  upstream.add("a/one", "v1", image);
  await using opened = await openRemote(upstream.url);
  const cases: [string, Parameters<typeof fault>[0]][] = [
    ["http://10.0.0.1/x", "refused"],
    ["http://169.254.169.254/latest/meta-data", "refused"],
    ["http://[::ffff:127.0.0.2]/x", "refused"],
    [`http://localhost:${upstream.port}/v2/`, "refused"],
    ["file:///etc/passwd", "protocol"],
    ["http://[", "protocol"],
    [`${upstream.url}/v2/a/one/blobs/${layer.digest}`, "protocol"],
  ];
  for (const [target, expected] of cases) {
    upstream.clearFaults();
    upstream.fault({ path: layer.digest }, { redirect: target });
    upstream.resetCounters();
    await assert.rejects(opened.remote.openBlob("a/one", layer.digest), fault(expected), target);
    await assert.rejects(opened.remote.headBlob("a/one", layer.digest), fault(expected), target);
    assert.ok(upstream.hits() <= 12);
  }
});

test("a redirect to a name inside is refused when it is dialled", async () => {
  const name = hostname();
  const found = await lookup(name).catch(() => undefined);
  await using storage = await startSink();
  await using upstream = await startUpstream();
  upstream.fault({ path: layer.digest }, { redirect: `http://${name}:${storage.port}/` });
  await using opened = await openRemote(upstream.url, {}, 1);
  // A machine whose own name is unknown to it, or public, shows the other outcome.
  const expected = found && reachOf(found.address) !== "public" ? "refused" : "unreachable";
  await assert.rejects(opened.remote.openBlob("a/one", layer.digest), fault(expected));
  assert.equal(storage.hits(), 0);
  await using trusting = await openRemote(upstream.url, { trustedHosts: [name.toLowerCase()] }, 1);
  const outcome = await trusting.remote.openBlob("a/one", layer.digest).catch((error: unknown) => error);
  if (outcome instanceof Error) fault("unreachable")(outcome);
  else assert.equal(storage.hits(), 1);
});

test("a next page on another host is refused", async () => {
  await using thief = await startSink({ status: 200, body: '{"tags":["x"]}' });
  await using upstream = await startUpstream({ auth: { kind: "bearer", users } });
  upstream.add("a/one", "v1", image);
  await using opened = await openRemote(upstream.url, { auth });
  upstream.fault({ path: "/tags/list" }, { headers: { link: `<${thief.url}/v2/a/one/tags/list?last=x>; rel="next"` } });
  await assert.rejects(opened.remote.listTags("a/one"), fault("refused", /another host/));
  upstream.fault({ path: "/referrers/" }, { headers: { link: `<${thief.url}/x>; rel=next` } });
  await assert.rejects(opened.remote.referrers("a/one", image.digest), fault("refused", /another host/));
  assert.equal(thief.hits(), 0);
});

test("a list without end is given up", async () => {
  await using endless = await startSink({
    status: 200,
    headers: { link: '</v2/a/tags/list?n=1>; rel="next"' },
    body: '{"tags":[]}',
  });
  await using opened = await openRemote(endless.url);
  await assert.rejects(opened.remote.listTags("a"), fault("protocol", /100 pages/));
  assert.equal(endless.hits(), 100);
  endless.answerWith({
    status: 200,
    headers: { link: '</v2/a/tags/list?n=1>; rel="next"' },
    body: JSON.stringify({ tags: ["x".repeat(5 * 2 ** 20)] }),
  });
  endless.resetCounters();
  await assert.rejects(opened.remote.listTags("a"), fault("protocol", /more than/));
  assert.equal(endless.hits(), 4);
});

test("what is too large, packed or broken is a protocol error, and is not read to its end", async () => {
  let answer: { headers: Record<string, string>; body: Buffer | "endless" } = { headers: {}, body: Buffer.alloc(0) };
  await using server = await startScript((_request, response) => {
    response.writeHead(200, answer.headers);
    const piece = Buffer.alloc(2 ** 20, " ");
    const more = (): void => {
      if (!response.destroyed) response.write(piece, () => setImmediate(more));
    };
    if (answer.body === "endless") more();
    else response.end(answer.body);
  });
  await using opened = await openRemote(server.url);
  const { remote } = opened;

  answer = { headers: {}, body: "endless" };
  await assert.rejects(remote.getManifest("a", "v1"), fault("protocol", /more than 4194304/));
  assert.ok(opened.receivedBytes() < MAX_MANIFEST_BYTES + 2 ** 20);
  await assert.rejects(remote.listTags("a"), fault("protocol", /more than 16777216/));
  await server.waitFor(() => server.requests.every(({ state }) => state === "cut"));

  answer = { headers: { "content-encoding": "gzip" }, body: gzipSync(Buffer.alloc(2 ** 20, " ")) };
  await assert.rejects(remote.referrers("a", image.digest), fault("protocol", /not JSON/));
  for (const body of ["<html>", '{"tags":"all"}', "[]", '"x"']) {
    answer = { headers: {}, body: Buffer.from(body) };
    await assert.rejects(remote.listTags("a"), fault("protocol"), body);
  }
  for (const body of [`{"token":"${"x".repeat(70_000)}"}`, "{}", '{"token":7}', '{"token":"a\\r\\nb: c"}', "<html>"]) {
    await using realm = await startSink({ status: 200, body });
    await using challenging = await startSink({
      status: 401,
      headers: { "www-authenticate": `Bearer realm="${realm.url}"` },
    });
    await using other = await openRemote(challenging.url, { realms: [`127.0.0.1:${realm.port}`] });
    await assert.rejects(other.remote.ping(), fault("protocol"), body.slice(0, 50));
  }
});

test("errors and redirects tell no query strings", async () => {
  await using storage = await startSink({ status: 403 });
  await using upstream = await startUpstream();
  upstream.fault({ path: layer.digest }, { redirect: `${storage.url}/x?X-Amz-Signature=abc123` });
  await using opened = await openRemote(upstream.url);
  await assert.rejects(opened.remote.openBlob("a/one", layer.digest), (error) => {
    // The storage never saw the credentials: its 403 says nothing about them.
    assert.ok(fault("protocol", /403/)(error));
    assert.ok(error instanceof Error && !error.message.includes("abc123"));
    return true;
  });
});

test("further ranges of a blob go straight to where it was, for a minute, until it is refused there", async () => {
  await using storage = await startUpstream();
  await using upstream = await startUpstream();
  for (const one of [storage, upstream]) one.add("a/one", "v1", image);
  upstream.fault({ method: "GET", path: layer.digest }, { redirect: (path) => `${storage.url}${path}?sig=1` });
  await using opened = await openRemote(upstream.url);
  const read = async (firstByte: number): Promise<void> => {
    const part = await opened.remote.openBlob("a/one", layer.digest, { firstByte, lastByte: firstByte + 9 });
    assert.ok(part);
    assert.deepEqual(await readAll(part.body), layer.bytes.subarray(firstByte, firstByte + 10));
    assert.equal(part.sizeBytes, layer.sizeBytes);
  };
  await read(0);
  await read(100);
  await read(200);
  assert.deepEqual([upstream.hits(), storage.hits()], [1, 3]);
  storage.fault({ times: 1 }, { status: 403 });
  await read(300);
  assert.deepEqual([upstream.hits(), storage.hits()], [2, 5]);
  opened.clock.nowMs += 60_000;
  await read(400);
  assert.deepEqual([upstream.hits(), storage.hits()], [3, 6]);
});
