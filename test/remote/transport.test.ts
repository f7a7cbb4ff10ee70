import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { connect, type AddressInfo, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { TLSSocket } from "node:tls";
import { makeImage } from "../kit/images.ts";
import { startUpstream } from "../kit/upstream.ts";
import { authority, clientCertificate, clientKey, serverCertificate, serverKey } from "./certificates.ts";
import { fault, openRemote, readAll } from "./remotes.ts";

const image = makeImage({ layers: [1000], seed: "transport" });
const [layer] = image.layers;
assert.ok(layer);
let folder = "";
const file = (name: string): string => join(folder, name);

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "entrepot-tls-"));
  await writeFile(file("ca.pem"), authority);
  await writeFile(file("client.pem"), clientCertificate);
  await writeFile(file("client.key"), clientKey);
});

after(async () => await rm(folder, { recursive: true }));

interface Running {
  port: number;
  sockets: Socket[];
  [Symbol.asyncDispose]: () => Promise<void>;
}

async function listen(server: Server): Promise<Running> {
  const sockets: Socket[] = [];
  server.on("connection", (socket: Socket) => sockets.push(socket));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as AddressInfo).port,
    sockets,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** Answers 200 to all, redirects `/v2/a/blobs/…` once to another origin, and notes whether a client certificate came. */
async function startTls(redirect?: () => string) {
  const seen: string[] = [];
  const options = {
    cert: serverCertificate,
    key: serverKey,
    ca: authority,
    requestCert: true,
    rejectUnauthorized: false,
  };
  const running = await listen(
    createTlsServer(options, (request, response) => {
      const { CN = "nobody" } = (request.socket as TLSSocket).getPeerCertificate().subject ?? {};
      seen.push(`${request.headers.host?.split(":")[0]} ${String(CN)}`);
      if (redirect && request.headers.host?.startsWith("127.")) response.writeHead(307, { location: redirect() }).end();
      else response.end("{}");
    }),
  );
  return { ...running, seen };
}

test("an authority of one's own is trusted beside the system's, and only where it is configured", async () => {
  await using server = await startTls();
  const url = `https://127.0.0.1:${server.port}`;
  await using trusting = await openRemote(url, { tls: { ca: file("ca.pem") } }, 1);
  await trusting.remote.ping();
  await using doubting = await openRemote(url, {}, 1);
  await assert.rejects(doubting.remote.ping(), fault("unreachable", /tls\.ca/));
  await assert.rejects(openRemote(url, { tls: { ca: file("none.pem") } }), fault("unreachable", /none\.pem: ENOENT/));
});

test("a client certificate is shown to the configured host alone", async () => {
  await using server = await startTls(() => `https://localhost:${server.port}/x`);
  const tls = { ca: file("ca.pem"), certificate: file("client.pem"), key: file("client.key") };
  await using opened = await openRemote(`https://127.0.0.1:${server.port}`, { tls, trustedHosts: ["localhost"] }, 1);
  const opening = await opened.remote.openBlob("a", layer.digest);
  assert.ok(opening);
  await readAll(opening.body);
  assert.deepEqual(server.seen, ["127.0.0.1 entrepot test client", "localhost nobody"]);
});

test("a redirect from https to http is not followed", async () => {
  await using plain = await startUpstream();
  await using server = await startTls(() => `${plain.url}/v2/`);
  await using opened = await openRemote(`https://127.0.0.1:${server.port}`, { tls: { ca: file("ca.pem") } }, 1);
  await assert.rejects(opened.remote.openBlob("a", layer.digest), fault("protocol", /https to plain http/));
  assert.equal(plain.hits(), 0);
});

/** A forward proxy that notes what it was asked for. */
async function startProxy() {
  const seen: string[] = [];
  const server = createServer((request, response) => {
    seen.push(`${request.method} ${request.url} ${request.headers["proxy-authorization"] ?? ""}`);
    void fetch(request.url ?? "", { method: request.method ?? "" }).then(async (answer) => {
      response.writeHead(answer.status, { "content-type": answer.headers.get("content-type") ?? "" });
      response.end(Buffer.from(await answer.arrayBuffer()));
    });
  });
  const tunnels: Socket[] = [];
  server.on("connect", (request, client: Socket) => {
    seen.push(`CONNECT ${request.url}`);
    const [host = "", port] = (request.url ?? "").split(":");
    const target = connect(Number(port), host, () => {
      client.write("HTTP/1.1 200 Connection established\r\n\r\n");
      target.pipe(client).pipe(target);
    });
    for (const socket of [client, target]) tunnels.push(socket.on("error", () => {}));
  });
  const running = await listen(server);
  return {
    port: running.port,
    seen,
    [Symbol.asyncDispose]: async () => {
      for (const socket of tunnels) socket.destroy();
      await running[Symbol.asyncDispose]();
    },
  };
}

test("a proxy carries plain requests, tunnels https, and is no way around the guard", async () => {
  await using proxy = await startProxy();
  const through = { proxy: `http://user:pass@127.0.0.1:${proxy.port}` };
  await using upstream = await startUpstream();
  upstream.add("a", "v1", image);
  await using plain = await openRemote(upstream.url, through, 1);
  const manifest = await plain.remote.getManifest("a", "v1");
  assert.deepEqual(manifest?.bytes, image.manifest);
  const credentials = `Basic ${Buffer.from("user:pass").toString("base64")}`;
  assert.deepEqual(proxy.seen, [`GET ${upstream.url}/v2/a/manifests/v1 ${credentials}`]);
  assert.equal(upstream.requests[0]?.headers["proxy-authorization"], undefined);

  proxy.seen.length = 0;
  await using server = await startTls(() => "https://10.0.0.1/secret");
  await using tunnelled = await openRemote(
    `https://127.0.0.1:${server.port}`,
    { ...through, tls: { ca: file("ca.pem"), certificate: file("client.pem"), key: file("client.key") } },
    1,
  );
  await assert.rejects(tunnelled.remote.openBlob("a", layer.digest), fault("refused", /10\.0\.0\.1/));
  assert.deepEqual(proxy.seen, [`CONNECT 127.0.0.1:${server.port}`]);
  assert.deepEqual(server.seen, ["127.0.0.1 entrepot test client"]);
});

test("a proxy that is not there is told as such", async () => {
  await using upstream = await startUpstream();
  const { port } = upstream;
  await upstream.stop();
  await using opened = await openRemote("https://registry.example.com", { proxy: `http://127.0.0.1:${port}` }, 1);
  await assert.rejects(opened.remote.ping(), fault("unreachable", /proxy/));
});
