import assert from "node:assert/strict";
import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import { Agent, get as httpsGet, request as httpsRequest } from "node:https";
import { connect, createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { test } from "node:test";
import { connect as connectTls, type ConnectionOptions } from "node:tls";
import { makeCertificate } from "../../src/access/certificate.ts";
import { systemClock, type Clock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { Metrics } from "../../src/base/metrics.ts";
import { certificateNameOf, ServedCertificate, TlsServer, type TlsFiles } from "../../src/http/tls.ts";
import { run, place, serve as serveConfig } from "../cli/processes.ts";
import { Api } from "../kit/api.ts";
import { pushImage } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, until } from "../kit/registry.ts";
import { authority, serverCertificate, serverKey } from "../remote/certificates.ts";

const DAY_MS = 86_400_000;

/** Its files are looked at a hundred times as often. */
const quick: Clock = { ...systemClock, sleep: (ms, signal) => systemClock.sleep(ms / 100, signal) };

interface Pair {
  certificate: string;
  key: string;
}

interface Authority extends Pair {
  name: string;
  privateKey: KeyObject;
}

function newKey(): { publicKey: KeyObject; privateKey: KeyObject; pem: string } {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  return { publicKey, privateKey, pem: privateKey.export({ type: "pkcs8", format: "pem" }) as string };
}

function makeAuthority(name: string): Authority {
  const { publicKey, privateKey, pem } = newKey();
  const now = Date.now();
  const certificate = makeCertificate({
    subject: name,
    issuer: name,
    publicKey,
    issuerKey: privateKey,
    isAuthority: true,
    notBeforeMs: now - 400 * DAY_MS,
    notAfterMs: now + 400 * DAY_MS,
  });
  return { name, certificate, key: pem, privateKey };
}

const ENCRYPTED = newKey().privateKey.export({
  type: "pkcs8",
  format: "pem",
  cipher: "aes-256-cbc",
  passphrase: "x",
}) as string;
const AUTHORITY = makeAuthority("test authority");

function issue(subject: string, { days = 90, from = -200, by = AUTHORITY } = {}): Pair {
  const { publicKey, pem } = newKey();
  const now = Date.now();
  const certificate = makeCertificate({
    subject,
    issuer: by.name,
    publicKey,
    issuerKey: by.privateKey,
    isAuthority: false,
    notBeforeMs: now + from * DAY_MS,
    notAfterMs: now + days * DAY_MS,
  });
  return { certificate, key: pem };
}

interface Served extends AsyncDisposable {
  readonly port: number;
  readonly files: TlsFiles;
  readonly served: ServedCertificate;
  readonly tls: TlsServer;
  readonly log: Record<string, unknown>[];
  readonly metrics: Metrics;
  put(pair: Partial<Pair>): Promise<void>;
}

/** A server that answers with the name in the client's certificate, and holds what asks for /slow until `release`. */
async function serve(
  pair: Pair,
  { clients, clock = systemClock, onSlow }: { clients?: string; clock?: Clock; onSlow?: () => Promise<void> } = {},
): Promise<Served> {
  const folder = await mkdtemp(join(tmpdir(), "entrepot-tls-"));
  const files: TlsFiles = {
    certificate: join(folder, "server.crt"),
    key: join(folder, "server.key"),
    ...(clients === undefined ? {} : { clientAuthority: join(folder, "clients.pem") }),
  };
  const put = async ({ certificate, key }: Partial<Pair>): Promise<void> => {
    if (certificate !== undefined) await writeFile(files.certificate, certificate);
    if (key !== undefined) await writeFile(files.key, key);
  };
  await put(pair);
  if (files.clientAuthority !== undefined) await writeFile(files.clientAuthority, clients ?? "");
  const lines: Record<string, unknown>[] = [];
  const log = await createLog({
    level: "debug",
    format: "json",
    destination: { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) },
  });
  const metrics = new Metrics();
  let served: ServedCertificate;
  try {
    served = await ServedCertificate.open(files, { clock, log, metrics });
  } catch (error) {
    await rm(folder, { recursive: true });
    throw error;
  }
  const tls = new TlsServer(served, { log }, (request, response) => {
    const answer = (): void => void response.end(certificateNameOf(request) ?? "nobody");
    if (request.url === "/slow") void onSlow?.().then(answer);
    else answer();
  });
  tls.server.listen(0, "127.0.0.1");
  await once(tls.server, "listening");
  return {
    port: (tls.server.address() as AddressInfo).port,
    files,
    served,
    tls,
    log: lines,
    metrics,
    put,
    [Symbol.asyncDispose]: async () => {
      tls.server.close();
      tls.server.closeAllConnections();
      tls.cutHandshakes();
      await served[Symbol.asyncDispose]();
      await rm(folder, { recursive: true });
    },
  };
}

async function ask(port: number, options: ConnectionOptions & { agent?: Agent; path?: string } = {}): Promise<string> {
  const request = httpsGet({ port, host: "127.0.0.1", rejectUnauthorized: false, agent: new Agent(), ...options });
  const [answer] = (await once(request, "response")) as [IncomingMessage];
  return text(answer);
}

/** The common name of the certificate that a new connection is shown. */
async function shownBy(port: number): Promise<string> {
  const socket = connectTls({ port, host: "127.0.0.1", rejectUnauthorized: false });
  await once(socket, "secureConnect");
  const { CN } = socket.getPeerCertificate().subject;
  socket.destroy();
  return String(CN);
}

test("a renewed certificate is shown to new connections, and what is under way goes on", async () => {
  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  await using it = await serve(issue("first"), { clock: quick, onSlow: () => released });
  using stack = new DisposableStack();
  const agent = stack.adopt(new Agent({ keepAlive: true, maxSockets: 1 }), (one) => one.destroy());
  const slow = ask(it.port, { agent, path: "/slow" });
  assert.equal(await shownBy(it.port), "first");
  await it.put(issue("second"));
  await until(async () => (await shownBy(it.port)) === "second", "the new certificate is shown");
  release();
  assert.equal(await slow, "nobody");
  assert.equal(await ask(it.port, { agent }), "nobody", "the connection of before is still good");
});

test("what cannot be served is refused with the file's name, the one of before is served, and /readyz tells", async () => {
  const first = issue("first");
  await using it = await serve(first);
  const refusals: [name: string, pair: Partial<Pair>, cause: RegExp][] = [
    [
      "a key of another certificate",
      { key: issue("other").key },
      /server\.key is not that of the certificate in .*server\.crt/,
    ],
    [
      "no certificate",
      { certificate: "hello", key: first.key },
      /server\.crt does not begin with a certificate in PEM/,
    ],
    ["no key", { certificate: first.certificate, key: first.certificate }, /server\.key holds no private key in PEM/],
    ["an encrypted key", { key: ENCRYPTED }, /server\.key is encrypted: .*without a passphrase/],
    ["one that has expired", issue("late", { days: -1 }), /server\.crt expired at .*: put a valid one there/],
    ["one of the future", issue("early", { from: 1 }), /server\.crt is not valid before/],
    ["an empty file", { certificate: "" }, /server\.crt does not begin/],
  ];
  for (const [name, pair, cause] of refusals) {
    await it.put({ ...first, ...pair });
    const { length } = it.log;
    await it.served.reload();
    assert.equal(await shownBy(it.port), "first", name);
    const [line = {}] = it.log.slice(length).filter(({ msg }) => String(msg).startsWith("the new certificate can't"));
    assert.match(String(line["reason"]), cause, name);
    const { ok, reason, informative } = it.served.check();
    assert.deepEqual([ok, informative], [false, true], name);
    assert.match(reason, cause, name);
  }
  await rm(it.files.key);
  await it.served.reload();
  assert.match(it.served.check().reason, /cannot read .*server\.key \(ENOENT\)/);
  await it.put(issue("second"));
  await it.served.reload();
  assert.equal(await shownBy(it.port), "second");
  assert.equal(it.served.check().ok, true);
});

test("a certificate and a key that are replaced one after the other are not read half-way", async () => {
  await using it = await serve(issue("first"), { clock: quick });
  for (let round = 0; round < 5; round++) {
    const next = issue(`next${round}`);
    await it.put({ certificate: next.certificate });
    await it.put({ key: next.key });
    await until(async () => (await shownBy(it.port)) === `next${round}`, "it is shown");
  }
  assert.deepEqual(
    it.log.filter(({ level }) => level === "error"),
    [],
  );
});

test("the server does not start with files that cannot be served, and says why", async () => {
  const pair = issue("first");
  const broken = { certificate: pair.certificate, key: issue("other").key };
  await assert.rejects(serve(broken), /^Error: server\.tls: the key in .*server\.key is not that of the certificate/);
  await assert.rejects(serve(pair, { clients: "none" }), /clients\.pem does not begin with a certificate/);
});

test("it starts with a certificate that has expired, warns, and says so in /readyz until it is renewed", async () => {
  await using it = await serve(issue("late", { days: -1 }));
  assert.equal(
    it.log.filter(({ msg }) => /the certificate expired at .*: clients refuse it/.test(String(msg))).length,
    1,
  );
  assert.match(it.served.check().reason, /the certificate expired at .*: renew .*server\.crt/);
});

test("from a fortnight before its end on, /readyz asks for another one, and the metric knows when that is", async () => {
  await using it = await serve(issue("first", { days: 15 }));
  assert.deepEqual([it.served.check().ok, it.served.check().informative], [true, true]);
  await it.put(issue("second", { days: 13 }));
  await it.served.reload();
  const { ok, reason } = it.served.check();
  assert.equal(ok, false);
  assert.match(reason, /expires at .*: renew .*server\.crt/);
  const { body } = await it.metrics.render();
  const [, file, seconds] = /^entrepot_tls_certificate_expires_seconds\{file="(.*)"\} (\d+)$/m.exec(body) ?? [];
  assert.equal(file, it.files.certificate);
  assert.ok(Math.abs(Number(seconds) * 1000 - Date.now() - 13 * DAY_MS) < 60_000, String(seconds));
});

test("TLS before 1.2 is not spoken", async () => {
  await using it = await serve(issue("first"));
  for (const maxVersion of ["TLSv1.1", "TLSv1.2", "TLSv1.3"] as const) {
    const asked = ask(it.port, { maxVersion, minVersion: "TLSv1", ciphers: "ALL@SECLEVEL=0" });
    if (maxVersion === "TLSv1.1") await assert.rejects(asked);
    else assert.equal(await asked, "nobody", maxVersion);
  }
  await it.put(issue("second"));
  await it.served.reload();
  await assert.rejects(ask(it.port, { maxVersion: "TLSv1.1", minVersion: "TLSv1", ciphers: "ALL@SECLEVEL=0" }));
});

test("whoever comes without a certificate is nobody; one of the authority gives a name, one of another does not", async () => {
  await using it = await serve(issue("server"), { clients: AUTHORITY.certificate });
  const as = ({ certificate: cert, key }: Pair) => ask(it.port, { cert, key });
  assert.equal(await ask(it.port), "nobody");
  assert.equal(await as(issue("ci")), "ci");
  assert.equal(await as(issue("ci", { by: makeAuthority("another authority") })), "nobody");
  assert.equal(await as(issue("ci", { by: makeAuthority(AUTHORITY.name) })), "nobody", "the same name, another key");
  assert.equal(await as(issue("ci", { days: -1 })), "nobody", "it has expired");
  assert.equal(await as(issue("ci", { from: 1 })), "nobody", "it is not valid yet");
  assert.equal(await as(issue("")), "nobody", "it has no name");
});

test("a name is given anew on every connection of a session, and never to one that came without a certificate", async () => {
  await using it = await serve(issue("server"), { clients: AUTHORITY.certificate });
  const { certificate: cert, key } = issue("ci");
  for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
    for (const [own, name] of [
      [{ cert, key }, "ci"],
      [{}, "nobody"],
    ] as const) {
      using stack = new DisposableStack();
      // Keeps sessions, not connections.
      const agent = stack.adopt(new Agent({ maxCachedSessions: 10 }), (one) => one.destroy());
      const answers = [];
      for (let round = 0; round < 3; round++) answers.push(await ask(it.port, { ...own, maxVersion, agent }));
      assert.deepEqual(answers, [name, name, name], maxVersion);
    }
  }
});

test("without an authority, clients are asked for no certificate, and none gives a name", async () => {
  await using it = await serve(issue("server"));
  const { certificate: cert, key } = issue("ci");
  assert.equal(await ask(it.port, { cert, key }), "nobody");
});

test("plain HTTP is answered with a hint, and what is no TLS at all with nothing", async () => {
  await using it = await serve(issue("server"));
  const answer = await send(it.port, "GET /v2/ HTTP/1.1\r\nHost: here\r\n\r\n");
  assert.match(answer, /^HTTP\/1\.1 400 Bad Request\r\n[^]*\r\n\r\nThis port speaks https/);
  // An alert of TLS, or nothing.
  assert.doesNotMatch(await send(it.port, "\0\0\0\0 what is this\r\n"), /HTTP/);
  assert.equal(it.log.filter(({ msg }) => String(msg).includes("did not get through")).length, 2);
});

test("whoever has not got through the handshake is cut when the server closes", async () => {
  await using it = await serve(issue("server"));
  const accepted = once(it.tls.server, "connection");
  const socket = connect(it.port, "127.0.0.1");
  socket.on("error", () => undefined);
  const gone = once(socket, "close");
  await accepted;
  const closed = new Promise((resolve) => it.tls.server.close(resolve));
  it.tls.server.closeAllConnections();
  it.tls.cutHandshakes();
  await Promise.all([closed, gone]);
});

test("a daemon serves TLS itself: pushes, pulls, checks, and its own commands, whatever name the certificate is for", async () => {
  await using here = await place();
  const tls = { certificate: join(here.path, "server.crt"), key: join(here.path, "server.key") };
  const put = async (pair: Pair): Promise<void> => {
    await writeFile(tls.certificate, pair.certificate);
    await writeFile(tls.key, pair.key);
  };
  await put(issue("registry.example.com"));
  const port = await freePort();
  await here.write({ server: { listen: `127.0.0.1:${port}`, tls } });
  await using daemon = await serveConfig(["--config", here.config]);
  assert.equal(daemon.address, `https://127.0.0.1:${port}`);
  const { checks } = JSON.parse(await ask(port, { path: "/readyz" })) as { checks: { name: string; ok: boolean }[] };
  assert.equal(checks.find(({ name }) => name === "certificate")?.ok, true);
  const page = await ask(port, { path: "/" });
  assert.match(page, new RegExp(`"https://127\\.0\\.0\\.1:${port}"`));

  const status = await run(["status", "--config", here.config]);
  assert.equal(status.status, 0, status.stderr);
  // Whoever answers with another certificate than the configuration's is not known.
  await using there = await place();
  const other = { certificate: join(there.path, "other.crt"), key: tls.key };
  await writeFile(other.certificate, issue("registry.example.com").certificate);
  await there.write({ server: { listen: `127.0.0.1:${port}`, tls: other } });
  const foreign = await run(["status", "--config", there.config]);
  assert.equal(foreign.status, 1);
  assert.match(foreign.stderr, /no daemon answers .*it shows another certificate than the one in .*other\.crt/);
  await put(issue("another.example.com"));
  daemon.kill("SIGHUP");
  await daemon.logged("the certificate was read anew");
  assert.equal(await shownBy(port), "another.example.com");
  const renewed = await run(["status", "--config", here.config]);
  assert.equal(renewed.status, 0, renewed.stderr);
  const doctor = await run(["doctor", "--config", here.config]);
  assert.match(doctor.stdout, new RegExp(`an entrepot \\S+ answers on 127\\.0\\.0\\.1:${port}`));
});

test("a daemon with TLS ends at SIGTERM, whoever keeps a connection or has only begun one", async () => {
  await using here = await place();
  const tls = { certificate: join(here.path, "server.crt"), key: join(here.path, "server.key") };
  const { certificate, key } = issue("registry.example.com");
  await writeFile(tls.certificate, certificate);
  await writeFile(tls.key, key);
  await here.write({ server: { tls } });
  await using daemon = await serveConfig(["--config", here.config]);
  const port = Number(new URL(daemon.address).port);
  using stack = new DisposableStack();
  const agent = stack.adopt(new Agent({ keepAlive: true }), (one) => one.destroy());
  await ask(port, { agent, path: "/livez" });
  const begun = connect(port, "127.0.0.1");
  begun.on("error", () => undefined);
  stack.defer(() => begun.destroy());
  await once(begun, "connect");
  daemon.kill("SIGTERM");
  assert.equal((await daemon.ended).status, 0);
  assert.ok(!daemon.log.some(({ msg }) => msg === "cut what had not ended by the drain timeout"));
});

test("a daemon whose certificate cannot be served does not start, and says which file is wrong", async () => {
  await using here = await place();
  const missing = join(here.path, "absent.crt");
  await here.write({ server: { tls: { certificate: missing, key: missing } } });
  const { status, stderr } = await run(["serve", "--config", here.config]);
  assert.equal(status, 1);
  assert.match(stderr, /server\.tls: cannot read .*absent\.crt \(ENOENT\): check the path/);
});

test("images are pushed and pulled over TLS, whole", async () => {
  const folder = await mkdtemp(join(tmpdir(), "entrepot-"));
  try {
    const tls = { certificate: join(folder, "crt"), key: join(folder, "key") };
    await writeFile(tls.certificate, serverCertificate);
    await writeFile(tls.key, serverKey);
    await using registry = await startRegistry({ config: { server: { tls } }, trust: authority });
    const image = makeImage({ layers: [3_000_000, 100] });
    await pushImage(registry, "team/app", image, "1");
    for (const digest of image.blobs.keys()) await registry.pullBlob("team/app", digest);
    assert.equal((await registry.get("/v2/team/app/manifests/1")).status, 200);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("a client certificate logs in the robot of its name for what that may do, until the robot is disabled", async () => {
  const folder = await mkdtemp(join(tmpdir(), "entrepot-"));
  try {
    const tls = {
      certificate: join(folder, "crt"),
      key: join(folder, "key"),
      clientAuthority: join(folder, "clients"),
    };
    await writeFile(tls.certificate, serverCertificate);
    await writeFile(tls.key, serverKey);
    await writeFile(tls.clientAuthority, AUTHORITY.certificate);
    await using registry = await startRegistry({
      config: { server: { tls }, hosted: { namespaces: ["team", "other"] } },
      trust: authority,
    });
    const port = Number(new URL(registry.url).port);
    const api = await Api.of(registry);
    const limits = [{ repositories: ["team/**"], verbs: ["pull", "push"] }];
    await api.expect(201, "POST", "/robots", { name: "ci", limits, expires: "never" });

    using stack = new DisposableStack();
    const statusAs = async (agent: Agent, method: string, path: string): Promise<number | undefined> => {
      const asked = httpsRequest({ port, host: "127.0.0.1", agent, method, path }).end();
      const [answer] = (await once(asked, "response")) as [IncomingMessage];
      await text(answer);
      return answer.statusCode;
    };
    const agentAs = (pair?: Pair): Agent => {
      const own = pair ? { cert: pair.certificate, key: pair.key } : {};
      return stack.adopt(new Agent({ keepAlive: true, maxSockets: 1, ca: authority, ...own }), (one) => one.destroy());
    };
    const [robot, stranger, nobody] = [agentAs(issue("ci")), agentAs(issue("somebody")), agentAs()];
    assert.equal(await statusAs(robot, "GET", "/v2/"), 200);
    assert.equal(await statusAs(robot, "POST", "/v2/team/app/blobs/uploads/"), 202);
    assert.equal(await statusAs(robot, "POST", "/v2/other/app/blobs/uploads/"), 403);
    for (const agent of [stranger, nobody]) {
      assert.equal(await statusAs(agent, "GET", "/v2/"), 401);
      assert.equal(await statusAs(agent, "POST", "/v2/team/app/blobs/uploads/"), 401);
    }
    const secret = (await readFile(join(registry.root, "operator-secret"), "utf8")).trim();
    const operator = { authorization: `Bearer ${secret}` };
    await api.expect(200, "PATCH", "/robots/ci", { disabled: true }, operator);
    assert.equal(await statusAs(robot, "GET", "/v2/"), 401, "on the connection that was good before");
  } finally {
    await rm(folder, { recursive: true });
  }
});

/** A port that nobody listened on a moment ago. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Sends bytes over plain TCP. @returns all that comes back */
async function send(port: number, bytes: string): Promise<string> {
  const socket = connect(port, "127.0.0.1", () => socket.write(bytes));
  let answer = "";
  socket.setEncoding("utf8").on("data", (more: string) => (answer += more));
  // A cut is an answer, too.
  socket.on("error", () => undefined);
  await once(socket, "close");
  return answer;
}
