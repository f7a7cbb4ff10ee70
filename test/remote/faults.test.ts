import assert from "node:assert/strict";
import { createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import { test } from "node:test";
import { RemoteError } from "../../src/remote/remote-error.ts";
import { makeImage, virtualBlob } from "../kit/images.ts";
import { startUpstream } from "../kit/upstream.ts";
import { fault, openRemote, readAll, startScript } from "./remotes.ts";

const image = makeImage({ layers: [200_000], seed: "faults" });
const [layer] = image.layers;
assert.ok(layer);

async function startImage() {
  const upstream = await startUpstream();
  upstream.add("a/one", "v1", image);
  return upstream;
}

test("what may succeed the next time is repeated, with a pause", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(upstream.url);
  upstream.fault({ nth: 1 }, { status: 503 });
  upstream.fault({ nth: 2 }, { cutAfter: "request" });
  assert.ok(await opened.remote.headManifest("a/one", "v1"));
  assert.deepEqual(opened.seen, ["manifest HEAD 503", "manifest HEAD error", "manifest HEAD 200"]);
  assert.equal(opened.clock.slept.length, 2);

  upstream.fault({ method: "GET", path: "v1", times: 1 }, { cutAfter: 10 });
  assert.deepEqual((await opened.remote.getManifest("a/one", "v1"))?.bytes, image.manifest);

  upstream.clearFaults();
  upstream.fault({}, { status: 502, body: { errors: [{ code: "UNKNOWN" }] } });
  upstream.resetCounters();
  await assert.rejects(opened.remote.headManifest("a/one", "v1"), fault("server", /502/));
  assert.equal(upstream.hits(), 3);
});

test("what will not is not: 400, 403, 501", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(upstream.url);
  for (const [status, expected] of [
    [400, "protocol"],
    [403, "denied"],
    [501, "protocol"],
    [204, "protocol"],
  ] as const) {
    upstream.clearFaults();
    upstream.fault({}, { status });
    upstream.resetCounters();
    await assert.rejects(opened.remote.getManifest("a/one", "v1"), fault(expected, new RegExp(String(status))));
    await assert.rejects(opened.remote.openBlob("a/one", layer.digest), fault(expected));
    assert.equal(upstream.hits(), 2);
  }
});

test("with a stale copy at hand there is one try", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(upstream.url, { timeouts: { connect: 5000, firstByte: 200, progress: 5000 } });
  upstream.fault({ times: 1 }, { status: 503 });
  await assert.rejects(opened.remote.headManifest("a/one", "v1", { urgent: true }), fault("server"));
  assert.equal(upstream.hits(), 1);
  const gate = upstream.hold({ path: "v1", times: 1 });
  await assert.rejects(opened.remote.headManifest("a/one", "v1", { urgent: true }), fault("timeout"));
  gate.release();
  assert.deepEqual(opened.clock.slept, []);
  // The deadline is for the answer's head: a body may take longer.
  const slow = upstream.hold({ path: layer.digest }, 1000);
  const opening = await opened.remote.openBlob("a/one", layer.digest, { urgent: true });
  await slow.reached;
  await new Promise((resolve) => setTimeout(resolve, 250));
  slow.release();
  assert.ok(opening && layer.bytes.equals(await readAll(opening.body)));
});

test("a short Retry-After is waited for, a longer one silences requests of its kind", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(upstream.url);
  const { remote, clock } = opened;
  upstream.fault({ times: 1 }, { status: 429, headers: { "retry-after": "2" } });
  assert.ok(await remote.getManifest("a/one", "v1"));
  assert.ok((clock.slept[0] ?? 0) >= 2000);

  upstream.fault({ path: "v1", times: 1 }, { status: 429, headers: { "retry-after": "60" } });
  upstream.resetCounters();
  await assert.rejects(remote.headManifest("a/one", "v1"), (error) => {
    assert.ok(fault("rateLimited", /in 60 s/)(error));
    assert.ok(error instanceof RemoteError);
    assert.deepEqual([error.status, error.retryAfterSeconds], [429, 60]);
    return true;
  });
  assert.equal(remote.state.pausedUntilMs, clock.nowMs + 60_000);
  assert.equal(remote.state.up, true);
  clock.nowMs += 20_500;
  await assert.rejects(remote.getManifest("a/one", "v1"), fault("rateLimited", /another 40 s/));
  assert.equal(upstream.hits(), 1, "nothing was sent meanwhile");
  assert.ok(await remote.headBlob("a/one", layer.digest), "layers are not what is limited");
  clock.nowMs += 40_000;
  assert.equal(remote.state.pausedUntilMs, undefined);
  assert.ok(await remote.headManifest("a/one", "v1"));

  const date = new Date(clock.nowMs + 30_000).toUTCString();
  upstream.fault({ path: "v1", times: 1 }, { status: 429, headers: { "retry-after": date } });
  await assert.rejects(remote.headManifest("a/one", "v1"), fault("rateLimited", /in 30 s/));
  clock.nowMs += 30_000;
  upstream.fault({ path: "v1", times: 1 }, { status: 429 });
  await assert.rejects(remote.headManifest("a/one", "v1"), fault("rateLimited", /later/));
  assert.equal(remote.state.pausedUntilMs, undefined);
});

test("the circuit opens after five failures, lets one probe after ten seconds, and closes when that succeeds", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(upstream.url, {}, 1);
  const { remote, clock } = opened;
  const head = () => remote.headManifest("a/one", "v1");
  await upstream.stop();
  for (let n = 0; n < 5; n++) await assert.rejects(head(), fault("unreachable", /ECONNREFUSED.*check its url/));
  assert.equal(remote.state.up, false);
  await upstream.restart();
  await assert.rejects(head(), fault("circuitOpen", /another 10 s.*ECONNREFUSED/));
  assert.equal(upstream.hits(), 0);

  clock.nowMs += 10_000;
  upstream.fault({ times: 1 }, { status: 500 });
  await assert.rejects(head(), fault("server"));
  await assert.rejects(head(), fault("circuitOpen", /another 20 s.*500/));

  clock.nowMs += 20_000;
  const gate = upstream.hold({ path: "v1" });
  const probe = head();
  await gate.reached;
  await assert.rejects(head(), fault("circuitOpen"));
  assert.equal(upstream.hits(), 2);
  gate.release();
  assert.ok(await probe);
  assert.equal(remote.state.up, true);
  assert.ok(await head());
});

test("a probe whose caller leaves makes room for another", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(upstream.url, {}, 1);
  upstream.fault({ times: 5 }, { status: 503 });
  for (let n = 0; n < 5; n++) await assert.rejects(opened.remote.ping(), fault("server"));
  opened.clock.nowMs += 10_000;
  const gate = upstream.hold({ path: "/v2/", times: 1 });
  const abort = new AbortController();
  const probe = opened.remote.ping({ signal: abort.signal });
  await gate.reached;
  abort.abort(new Error("gone"));
  await assert.rejects(probe, /gone/);
  gate.release();
  await opened.remote.ping();
});

test("refusals, absences and limits are no failures to the circuit", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(upstream.url, {}, 1);
  for (const status of [403, 404, 429, 400, 501]) {
    upstream.fault({ times: 4 }, { status });
    for (let n = 0; n < 4; n++) await opened.remote.headManifest("a/one", "v1").catch(() => {});
    upstream.clearFaults();
  }
  assert.ok(await opened.remote.headManifest("a/one", "v1"));
  assert.equal(opened.remote.state.up, true);
});

test("a connection that breaks within a blob is told as interrupted, and the rest can be opened", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(upstream.url);
  upstream.fault({ times: 1 }, { cutAfter: 150_000 });
  const broken = await opened.remote.openBlob("a/one", layer.digest);
  assert.ok(broken);
  const pieces: Buffer[] = [];
  await assert.rejects(async () => {
    for await (const piece of broken.body) pieces.push(piece);
  }, fault("interrupted"));
  const first = Buffer.concat(pieces);
  const rest = await opened.remote.openBlob("a/one", layer.digest, { firstByte: first.byteLength });
  assert.ok(rest && layer.bytes.equals(Buffer.concat([first, await readAll(rest.body)])));
});

test("a body shorter than its length is interrupted; garbage between chunks is a protocol error", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(upstream.url);
  upstream.fault({ times: 1 }, { bodyBytes: 1000, contentLength: 200_000 });
  const short = await opened.remote.openBlob("a/one", layer.digest);
  assert.equal(short?.sizeBytes, 200_000);
  await assert.rejects(readAll(short?.body ?? assert.fail()), fault("interrupted"));

  upstream.fault({ times: 1 }, { cutAfter: 1000, contentLength: "none" });
  const unframed = await opened.remote.openBlob("a/one", layer.digest);
  await assert.rejects(readAll(unframed?.body ?? assert.fail()), fault("interrupted"));

  await using server = await startScript((_request, response) => {
    response.socket?.end("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nno chunk\r\n");
  });
  await using other = await openRemote(server.url, {}, 1);
  const garbled = await other.remote.openBlob("a/one", layer.digest);
  await assert.rejects(readAll(garbled?.body ?? assert.fail()), fault("protocol", /HTTP/));
  await using nonsense = await startScript((_request, response) => void response.socket?.end("SSH-2.0-OpenSSH_9\r\n"));
  await using third = await openRemote(nonsense.url, {}, 1);
  await assert.rejects(third.remote.ping(), fault("protocol"));
});

test("deadlines: for the first byte, and for progress", async () => {
  await using upstream = await startImage();
  await using opened = await openRemote(
    upstream.url,
    { timeouts: { connect: 5000, firstByte: 150, progress: 150 } },
    1,
  );
  const { remote } = opened;
  const silent = upstream.hold({ path: "v1" });
  await assert.rejects(remote.headManifest("a/one", "v1"), fault("timeout", /150 ms/));
  silent.release();
  const stalled = upstream.hold({ path: layer.digest, times: 1 }, 100_000);
  const opening = await remote.openBlob("a/one", layer.digest);
  await assert.rejects(readAll(opening?.body ?? assert.fail()), fault("timeout", /150 ms/));
  stalled.release();
  // A reader who takes his time is not upstream's fault.
  const patient = await remote.openBlob("a/one", layer.digest);
  await new Promise((resolve) => setTimeout(resolve, 400));
  assert.ok(patient && layer.bytes.equals(await readAll(patient.body)));
});

test("a body that trickles byte by byte is cut", async () => {
  await using upstream = await startUpstream({ bytesPerSecondPerConnection: 500 });
  upstream.add("a/one", "v1", image);
  await using opened = await openRemote(upstream.url, { timeouts: { connect: 5000, firstByte: 5000, progress: 200 } });
  const opening = await opened.remote.openBlob("a/one", layer.digest);
  await assert.rejects(readAll(opening?.body ?? assert.fail()), fault("timeout"));
});

test("a reader slower than the progress deadline is waited for, also with a full buffer", async () => {
  const big = virtualBlob(2 ** 20, "slow reader");
  await using upstream = await startUpstream();
  upstream.add("a/one", "v1", makeImage({ layers: [big] }));
  await using opened = await openRemote(upstream.url, { timeouts: { connect: 5000, firstByte: 5000, progress: 100 } });
  const opening = await opened.remote.openBlob("a/one", big.digest);
  assert.ok(opening);
  await new Promise((resolve) => setTimeout(resolve, 350));
  assert.equal((await readAll(opening.body)).byteLength, 2 ** 20);
});

test("a connection that never stands is given up after the connect deadline", async () => {
  const sockets: Socket[] = [];
  const mute = createServer((socket) => void sockets.push(socket.on("error", () => {})));
  await new Promise<void>((resolve) => mute.listen(0, "127.0.0.1", resolve));
  try {
    const { port } = mute.address() as AddressInfo;
    const timeouts = { connect: 100, firstByte: 5000, progress: 5000 };
    await using opened = await openRemote(`https://127.0.0.1:${port}`, { timeouts }, 1);
    await assert.rejects(opened.remote.ping(), fault("timeout", /in time/));
  } finally {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => mute.close(resolve));
  }
});

test("a name that does not resolve is told as such", async () => {
  await using opened = await openRemote("https://registry.invalid", {}, 1);
  await assert.rejects(opened.remote.ping(), fault("unreachable", /registry\.invalid cannot be reached/));
});
