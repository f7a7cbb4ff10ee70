import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { test } from "node:test";
import type { Finding } from "../../src/cli/doctor/finding.ts";
import { startSink } from "../kit/sink.ts";
import { startUpstream } from "../kit/upstream.ts";
import { serverCertificate, serverKey } from "../remote/certificates.ts";
import { place, run, serve, type Place } from "./processes.ts";

interface Report {
  ok: boolean;
  faults: number;
  warnings: number;
  findings: Finding[];
}

/** Runs the doctor, and finds what it said about one thing. */
async function examine(here: Place): Promise<Report & { status: number | null; find: (check: string) => Finding }> {
  const { status, stdout } = await run(["doctor", "--json", "--config", here.config]);
  const report = JSON.parse(stdout) as Report;
  const find = (check: string): Finding => {
    const found = report.findings.find((finding) => finding.check === check);
    assert.ok(found, `nothing about ${check} in ${stdout}`);
    return found;
  };
  return { ...report, status, find };
}

function cap(): { cacheMaxSize: string } {
  return { cacheMaxSize: "1MiB" };
}

test("all is well before the first start, and the doctor leaves nothing behind", async () => {
  await using upstream = await startUpstream({ rateLimit: { limit: 100, remaining: 97, windowSeconds: 21_600 } });
  await using here = await place({ storage: cap(), upstreams: { "docker.io": { url: upstream.url } } });
  const { status, stdout } = await run(["doctor", "--config", here.config]);
  assert.equal(status, 0, stdout);
  assert.match(stdout, /^✓ configuration: valid$/m);
  assert.match(stdout, /^[✓!] storage: .*data will be created in /m);
  assert.match(stdout, /^✓ space: .* free; the cache takes 1\.0 MiB at most$/m);
  assert.match(stdout, /^✓ database: there is none yet/m);
  assert.match(stdout, /^✓ address: 127\.0\.0\.1:0 is free$/m);
  assert.match(
    stdout,
    /^✓ upstream docker\.io: 127\.0\.0\.1:\d+ answers without credentials, .*; 97 of 100 pulls in 6 h are left$/m,
  );
  assert.match(stdout, /^✓ clock: agrees/m);
  assert.equal(upstream.rateLimit?.remaining, 97);
  assert.deepEqual(await readdir(here.path), ["entrepot.yaml"]);
});

test("a running daemon is recognised by its lock and its address", async () => {
  await using upstream = await startUpstream();
  await using here = await place();
  const listen = `unix:${join(here.path, "entrepot.sock")}`;
  const config = { storage: cap(), server: { listen }, upstreams: { "docker.io": { url: upstream.url } } };
  await here.write(config);
  {
    await using _daemon = await serve(["--config", here.config]);
    const running = await examine(here);
    assert.equal(running.status, 0);
    assert.match(running.find("database").cause, /^in use by a running entrepot/);
    assert.match(running.find("address").cause, /^an entrepot \d+\.\d+\.\d+ answers on unix:/);

    await here.write({ ...config, storage: { ...cap(), root: join(here.path, "other") } });
    const second = await examine(here);
    assert.equal(second.status, 0);
    assert.equal(second.find("address").verdict, "warning");
    assert.match(second.find("address").cause, /with another storage answers/);
  }
  await here.write(config);
  const killed = await examine(here);
  assert.match(killed.find("database").cause, /^sound, /);
  assert.equal(killed.status, 0);
  assert.match(killed.find("address").cause, /is a socket that an earlier run left behind/);
});

test("a file in the place of the socket is a fault", async () => {
  await using upstream = await startUpstream();
  await using here = await place({ upstreams: { "docker.io": { url: upstream.url } } });
  await here.write({ server: { listen: `unix:${here.config}` }, upstreams: { "docker.io": { url: upstream.url } } });
  const { status, find } = await examine(here);
  assert.equal(status, 1);
  assert.match(find("address").cause, /entrepot\.yaml is a file, and no socket$/);
});

test("another program on the port is a fault", async () => {
  await using upstream = await startUpstream();
  await using sink = await startSink();
  const listen = `127.0.0.1:${sink.port}`;
  await using here = await place({ server: { listen }, upstreams: { "docker.io": { url: upstream.url } } });
  const { status, find } = await examine(here);
  assert.equal(status, 1);
  assert.equal(find("address").cause, `another program listens on ${listen}`);
});

test("a root that is no folder, too little space and a damaged database are faults, a cap beyond the disk a warning", async () => {
  await using upstream = await startUpstream();
  const upstreams = { "docker.io": { url: upstream.url } };
  await using here = await place({ upstreams, storage: { cacheMaxSize: "1000TiB", minFree: "900TiB" } });
  const root = join(here.path, "data");
  await mkdir(root);
  await writeFile(join(root, "entrepot.db"), "this is no database, but long enough to be taken for one".repeat(100));
  const full = await examine(here);
  assert.equal(full.status, 1);
  assert.match(full.find("space").cause, /storage\.minFree wants 900 TiB$/);
  assert.match(full.find("database").cause, /^is damaged: file is not a database$/);

  const file = join(here.path, "file");
  await writeFile(file, "");
  await here.write({ upstreams, storage: { root: file } });
  const blocked = await examine(here);
  assert.equal(blocked.status, 1);
  assert.equal(blocked.find("storage").cause, `${file} is not a folder`);

  await here.write({ upstreams, storage: { cacheMaxSize: "1000TiB", root: join(here.path, "fresh") } });
  const large = await examine(here);
  assert.equal(large.status, 0);
  assert.equal(large.find("space").verdict, "warning");
  assert.match(large.find("space").remedy ?? "", /set storage\.cacheMaxSize/);
});

test("an upstream, or a fallback, that can't be used is told with the step that fails", async () => {
  await using closed = await startSink();
  await closed.stop();
  await using stranger = await startSink({ status: 404 });
  await using locked = await startUpstream({ auth: { kind: "basic", users: { me: "right" } } });
  const tls = createTlsServer({ cert: serverCertificate, key: serverKey }).listen(0, "127.0.0.1");
  await new Promise((resolve) => tls.once("listening", resolve));
  const auth = (password: string) => ({ auth: { username: "me", password } });
  await using here = await place({
    storage: cap(),
    upstreams: {
      "good.io": { url: locked.url, ...auth("right"), fallbacks: [{ url: locked.url, ...auth("wrong") }] },
      "tcp.io": { url: closed.url },
      "dns.io": { url: "https://registry.invalid" },
      "tls.io": { url: `https://127.0.0.1:${(tls.address() as AddressInfo).port}` },
      "http.io": { url: stranger.url },
      "plain.io": { url: stranger.url.replace("http:", "https:") },
      "proxy.io": { url: "http://registry.invalid", proxy: closed.url },
    },
  });
  const { status, find, faults } = await examine(here);
  tls.close();
  assert.equal(status, 1);
  assert.equal(faults, 7);
  assert.match(find("upstream good.io").cause, /answers and takes the credentials/);
  assert.match(find(`upstream good.io, fallback ${locked.host}`).remedy ?? "", /check its auth/);
  assert.match(find("upstream tcp.io").cause, /^TCP: 127\.0\.0\.1:\d+ can't be reached \(ECONNREFUSED\)$/);
  assert.match(find("upstream dns.io").cause, /^DNS: registry\.invalid has no address/);
  assert.match(find("upstream tls.io").cause, /^TLS: 127\.0\.0\.1:\d+ can't be trusted/);
  assert.match(find("upstream tls.io").remedy ?? "", /tls\.ca/);
  assert.match(find("upstream http.io").cause, /answered GET with 404/);
  assert.equal(find("upstream plain.io").remedy, "check whether its url is http or https");
  assert.match(find("upstream proxy.io").cause, /^TCP: the proxy 127\.0\.0\.1:\d+ can't be reached/);
});

test("a clock that disagrees with the upstreams' is a fault, and so few pulls left a warning", async () => {
  const date = new Date(Date.now() - 3_600_000).toUTCString();
  await using past = await startSink({ status: 200, body: "{}", headers: { date } });
  await using here = await place({ storage: cap(), upstreams: { "past.io": { url: past.url } } });
  const { status, find } = await examine(here);
  assert.equal(status, 1);
  assert.match(find("clock").cause, /^is (?:1:00|59):\d\d ahead of that of the upstreams$/);

  await using hub = await startUpstream({ rateLimit: { limit: 100, remaining: 3, windowSeconds: 3600 } });
  await here.write({ storage: cap(), upstreams: { "docker.io": { url: hub.url } } });
  const limited = await examine(here);
  assert.equal(limited.status, 0);
  assert.equal(limited.find("upstream docker.io").verdict, "warning");
  assert.match(limited.find("upstream docker.io").cause, /3 of 100 pulls in 1 h are left$/);
});

test("a low limit of open files is a warning", async () => {
  await using upstream = await startUpstream();
  await using here = await place({ storage: cap(), upstreams: { "docker.io": { url: upstream.url } } });
  const main = join(import.meta.dirname, "../../src/main.ts");
  const child = spawn("sh", ["-c", 'ulimit -n 1024 && exec "$@"', "sh", process.execPath, main, "doctor"], {
    env: { PATH: process.env["PATH"], ENTREPOT_CONFIG: here.config },
  });
  assert.match(await text(child.stdout), /^! open files: the limit is 1024: [^\n]*\n {4}→ raise it to 4096/m);
});

test("a faulty configuration ends with 2, each fault with its remedy", async () => {
  await using here = await place({ log: { levle: "debug" }, hosted: { namespaces: ["a.b"] } });
  const { status, ok, findings } = await examine(here);
  assert.equal(status, 2);
  assert.equal(ok, false);
  assert.deepEqual(
    findings.map(({ check, verdict }) => `${check} ${verdict}`),
    ["configuration fault", "configuration fault"],
  );
  assert.match(findings[0]?.cause ?? "", /entrepot\.yaml:\d+ log\.levle is not a key$/);
  assert.equal(findings[0]?.remedy, "did you mean level?");
});

test("an address of another machine is a fault", async () => {
  await using upstream = await startUpstream();
  await using here = await place({
    server: { listen: "203.0.113.7:5000" },
    upstreams: { "docker.io": { url: upstream.url } },
  });
  const { status, find } = await examine(here);
  assert.equal(status, 1);
  assert.match(find("address").cause, /203\.0\.113\.7:5000 can't be listened on \(EADDRNOTAVAIL\)/);
});
