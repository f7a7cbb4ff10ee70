import assert from "node:assert/strict";
import dns from "node:dns";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { VERSION } from "../../src/base/version.ts";
import { parseConfig } from "../../src/config/load.ts";
import { DeliveryError, Receiver as Target, signatureOf, type Delivery } from "../../src/events/deliver.ts";
import { until } from "../kit/registry.ts";
import { isSigned, ok, startReceiver, status, type Answering } from "./receiver.ts";

const DELIVERY: Delivery = { id: "d-1", contentType: "application/x-test+json", body: '{"events":[{"ü":1}]}' };
const FOREVER = new AbortController().signal;

function target(url: string, more: object = {}): Target {
  const [config] = parseConfig({ webhooks: [{ name: "ci", url, timeout: "300ms", ...more }] }).webhooks;
  assert.ok(config);
  return new Target(config, systemClock);
}

/** Posts once. @returns what went wrong */
async function post(url: string, more: object = {}): Promise<DeliveryError | undefined> {
  await using to = target(url, more);
  try {
    await to.post(DELIVERY, FOREVER);
    return undefined;
  } catch (error) {
    assert.ok(error instanceof DeliveryError, String(error));
    return error;
  }
}

async function postTo(answering: Answering, more: object = {}): Promise<DeliveryError | undefined> {
  await using receiver = await startReceiver(answering);
  return await post(receiver.url, more);
}

/** A server below HTTP. */
async function startSockets(serve: (socket: Socket) => void): Promise<{ url: string } & AsyncDisposable> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.on("error", () => undefined));
    serve(socket);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** What DNS says of every name: the test's machine has no server of names that could be asked for it. */
function resolveTo(address: string): Disposable {
  const { lookup } = dns;
  const told = (_name: string, _options: object, callback: (error: null, found: dns.LookupAddress[]) => void): void =>
    setImmediate(callback, null, [{ address, family: 4 }]) as unknown as void;
  dns.lookup = told as unknown as typeof dns.lookup;
  syncBuiltinESMExports();
  return {
    [Symbol.dispose]: () => {
      dns.lookup = lookup;
      syncBuiltinESMExports();
    },
  };
}

test("a delivery is signed over its time and body, so that neither can be another one's", async () => {
  await using receiver = await startReceiver();
  assert.equal(await post(receiver.url, { secret: "s3cret ü" }), undefined);
  const [received] = receiver.received;
  assert.ok(received);
  assert.equal(received.body, DELIVERY.body);
  assert.ok(isSigned(received, "s3cret ü"));
  assert.ok(!isSigned(received, "another"));
  assert.ok(!isSigned({ ...received, body: `${received.body} ` }, "s3cret ü"));
  const later = {
    ...received.headers,
    "x-entrepot-timestamp": String(Number(received.headers["x-entrepot-timestamp"]) + 1),
  };
  assert.ok(!isSigned({ ...received, headers: later }, "s3cret ü"));
  assert.equal(received.headers["content-type"], DELIVERY.contentType);
  assert.equal(received.headers["x-entrepot-delivery"], "d-1");
  assert.equal(received.headers["user-agent"], `entrepot/${VERSION}`);
});

test("without a secret nothing is signed, and the time is told all the same", async () => {
  await using receiver = await startReceiver();
  await post(receiver.url);
  assert.ok(!("x-entrepot-signature-256" in (receiver.received[0]?.headers ?? {})));
  assert.match(String(receiver.received[0]?.headers["x-entrepot-timestamp"]), /^\d{10}$/);
});

test("any 2xx is a yes, whatever comes with it", async () => {
  for (const code of [200, 201, 202, 204]) assert.equal(await postTo(status(code)), undefined);
  assert.equal(await postTo((response) => response.writeHead(200).flushHeaders()), undefined, "a body that never ends");
  const hugely: Answering = (response) => {
    const more = (): void => void (response.destroyed || response.write("x".repeat(65_536), () => setImmediate(more)));
    more();
  };
  const begun = performance.now();
  assert.equal(await postTo(hugely, { timeout: "20s" }), undefined);
  assert.ok(performance.now() - begun < 5_000, "the endless body is cut");
});

test("anything else is a no that names the status and how the answer begins", async () => {
  const refused = await postTo(status(500, { "content-type": "text/plain" }, "out\nof \u0000 order\u001b[31m"));
  assert.match(refused?.message ?? "", /^127\.0\.0\.1:\d+ answered 500 \(out of order \[31m\)$/);
  assert.ok(((await postTo(status(400, {}, "y".repeat(100_000))))?.message.length ?? 0) < 300);
  assert.match((await postTo(status(404)))?.message ?? "", /answered 404$/);
});

test("a redirect is not followed, and its target is named without its query", async () => {
  await using elsewhere = await startReceiver();
  const refused = await postTo(status(302, { location: `${elsewhere.url}/x?token=geheim` }));
  assert.ok(refused);
  assert.ok(refused.message.includes(`redirects (302) to ${elsewhere.url}/x: `), refused.message);
  assert.ok(!refused.message.includes("geheim"));
  assert.equal(elsewhere.received.length, 0);
  const relative = await postTo(status(307, { location: "/there" }));
  assert.match(relative?.message ?? "", /redirects \(307\) to http:\/\/127\.0\.0\.1:\d+\/there: /);
});

test("Retry-After is read as seconds and as a date", async () => {
  assert.equal((await postTo(status(503, { "retry-after": "17" })))?.retryAfterMs, 17_000);
  const atMs = (await postTo(status(429, { "retry-after": new Date(Date.now() + 60_000).toUTCString() })))
    ?.retryAfterMs;
  assert.ok(atMs !== undefined && atMs > 55_000 && atMs <= 61_000, String(atMs));
  assert.equal((await postTo(status(503, { "retry-after": "soon" })))?.retryAfterMs, undefined);
});

test("an endpoint that answers slowly is cut at the deadline of the whole exchange", async () => {
  const begun = performance.now();
  assert.match((await postTo(() => undefined))?.message ?? "", /did not answer within 300 ms/);
  // A byte of the head every 50 ms resets no clock.
  await using dripping = await startSockets((socket) => {
    const drip = setInterval(() => socket.write("H"), 50);
    socket.on("close", () => clearInterval(drip));
  });
  await post(dripping.url);
  assert.ok(performance.now() - begun < 3_000);
});

test("garbage, a closed socket and a refused port are failures with a reason", async () => {
  await using garbage = await startSockets((socket) => void socket.end("SSH-2.0-OpenSSH\r\n\r\n"));
  assert.match((await post(garbage.url))?.message ?? "", /does not speak proper HTTP/);
  await using closing = await startSockets((socket) => socket.destroy());
  assert.match((await post(closing.url))?.message ?? "", /cannot be reached, or broke off \(.+\)/);
  await using receiver = await startReceiver();
  await receiver.stop();
  assert.match((await post(receiver.url))?.message ?? "", /cannot be reached, or broke off \(.*ECONNREFUSED/);
  assert.match((await post(receiver.url.replace("http:", "https:")))?.message ?? "", /cannot be reached/);
});

test("TLS to something that has none is a failure", async () => {
  await using receiver = await startReceiver();
  const { port } = new URL(receiver.url);
  assert.match((await post(`https://127.0.0.1:${port}/`))?.message ?? "", /cannot be reached, or broke off \(.+\)/);
  assert.equal(receiver.received.length, 0);
});

test("the metadata service is never told anything, though its address is configured", async () => {
  for (const url of [
    "http://169.254.169.254/latest",
    "http://[fd00:ec2::254]/",
    "http://2852039166/",
    "http://[::ffff:a9fe:a9fe]/",
  ]) {
    assert.match((await post(url, { allowPrivate: true }))?.message ?? "", /metadata service .* never asked/, url);
  }
});

test("a public-looking name that leads inside is refused at the connect, unless that is allowed", async () => {
  await using receiver = await startReceiver();
  using _resolver = resolveTo("127.0.0.1");
  const url = receiver.url.replace("127.0.0.1", "hooks.example.com");
  assert.match(
    (await post(url))?.message ?? "",
    /hooks\.example\.com is at the private address 127\.0\.0\.1.*allowPrivate/,
  );
  assert.equal(receiver.connections, 0);
  assert.equal(await post(url, { allowPrivate: true }), undefined);
  // What the administrator wrote literally is what he meant.
  for (const own of [receiver.url, receiver.url.replace("127.0.0.1", "hooks.corp.lan")])
    assert.equal(await post(own), undefined);
});

test("a name that leads to the metadata service is refused, even where private addresses are allowed", async () => {
  using _resolver = resolveTo("169.254.169.254");
  assert.match(
    (await post("http://hooks.corp.lan/", { allowPrivate: true }))?.message ?? "",
    /metadata service .* never asked/,
  );
});

test("whoever stops the daemon does not wait for an endpoint", async () => {
  await using receiver = await startReceiver(() => undefined);
  await using to = target(receiver.url, { timeout: "1m" });
  const stopping = new AbortController();
  const posted = to.post(DELIVERY, stopping.signal);
  await until(() => receiver.received.length === 1, "the request has come");
  stopping.abort(new Error("stopping"));
  await assert.rejects(posted, /^Error: stopping$/);
});

test("connections are used again", async () => {
  await using receiver = await startReceiver(ok);
  await using to = target(receiver.url);
  for (let count = 0; count < 5; count++) await to.post(DELIVERY, FOREVER);
  assert.ok(receiver.connections <= 2, String(receiver.connections));
});

test("what is sent by hand takes no connection from what happens, however slow the endpoint is", async () => {
  const open: (() => void)[] = [];
  await using receiver = await startReceiver((response, received, count) => {
    open.push(() => ok(response, received, count));
  });
  await using to = target(receiver.url, { timeout: "20s" });
  const posted = Array.from({ length: 5 }, () => to.post(DELIVERY, FOREVER));
  await receiver.arrived(5);
  for (const answer of open) answer();
  await Promise.all(posted);
});

test("the example of the documents takes what is sent, and nothing else", async () => {
  const page = await readFile(join(import.meta.dirname, "../../docs/operations.md"), "utf8");
  const [, example] = /^```js\n(.*?)^```/ms.exec(page) ?? [];
  assert.ok(example);
  const { isGenuine } = (await import(`data:text/javascript,${encodeURIComponent(example)}`)) as {
    isGenuine: (headers: object, body: Buffer, secret: string) => boolean;
  };
  await using receiver = await startReceiver();
  await post(receiver.url, { secret: "s3cret" });
  const { headers, body } = receiver.received[0] ?? assert.fail();
  assert.equal(isGenuine(headers, Buffer.from(body), "s3cret"), true);
  assert.equal(isGenuine(headers, Buffer.from(body), "another"), false);
  assert.equal(isGenuine(headers, Buffer.from(`${body} `), "s3cret"), false);
  const old = String(Number(headers["x-entrepot-timestamp"]) - 301);
  const signature = signatureOf("s3cret", old, body);
  const replayed = { "x-entrepot-timestamp": old, "x-entrepot-signature-256": signature };
  assert.equal(isGenuine(replayed, Buffer.from(body), "s3cret"), false);
  for (const missing of [{}, { ...headers, "x-entrepot-timestamp": undefined }]) {
    assert.equal(isGenuine(missing, Buffer.from(body), "s3cret"), false);
  }
});
