import assert from "node:assert/strict";
import { readdir, rename, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { greeting } from "../../src/cli/greeting.ts";
import { digestOf } from "../../src/oci/digest.ts";
import { makeImage } from "../kit/images.ts";
import { startUpstream } from "../kit/upstream.ts";
import { place, run, serve } from "./processes.ts";

/** A daemon that has begun to answer a pull, whose upstream waits at the gate. */
async function pullUnderWay() {
  await using stack = new AsyncDisposableStack();
  const app = makeImage({ layers: [300_000] });
  const digest = app.layers[0]?.digest;
  assert.ok(digest);
  const upstream = stack.use(await startUpstream());
  upstream.add("library/app", "latest", app);
  const gate = upstream.hold({ method: "GET", path: digest }, 100_000);
  stack.defer(() => gate.release());
  const here = stack.use(await place({ upstreams: { "docker.io": { url: upstream.url } } }));
  const daemon = stack.use(await serve(["--config", here.config]));
  const answer = await fetch(`${daemon.address}/v2/library/app/blobs/${digest}`);
  await gate.reached;
  const owned = stack.move();
  return { daemon, gate, answer, digest, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

test("serve answers until SIGTERM, then ends with 0, its log complete", async () => {
  await using here = await place();
  await using daemon = await serve(["--config", here.config]);
  assert.equal((await fetch(`${daemon.address}/readyz`)).status, 200);
  daemon.kill("SIGTERM");
  assert.equal((await daemon.ended).status, 0);
  assert.deepEqual(
    daemon.log.slice(-2).map(({ msg }) => msg),
    ["stopping: what is under way may end", "stopped"],
  );
});

test("a pull under way at SIGTERM is completed before the daemon ends with 0", async () => {
  await using pull = await pullUnderWay();
  const { daemon, gate, answer } = pull;
  daemon.kill("SIGTERM");
  await daemon.logged("stopping: what is under way may end");
  gate.release();
  assert.equal(digestOf(new Uint8Array(await answer.arrayBuffer())), pull.digest);
  assert.equal((await daemon.ended).status, 0);
  // The client keeps its connection for the next request: that must not hold the daemon until the drain timeout.
  assert.ok(!daemon.log.some(({ msg }) => msg === "cut what had not ended by the drain timeout"));
});

test("a second signal ends the daemon at once, with 1", async () => {
  await using pull = await pullUnderWay();
  const { daemon, answer } = pull;
  daemon.kill("SIGTERM");
  await daemon.logged("stopping: what is under way may end");
  daemon.kill("SIGINT");
  const { status, stderr } = await daemon.ended;
  assert.equal(status, 1);
  assert.equal(stderr, "entrepot: SIGINT again: stopping at once\n");
  await assert.rejects(answer.arrayBuffer());
});

test("a signal that npm passes on a second time does not cut the drain short", async () => {
  await using pull = await pullUnderWay();
  const { daemon, gate, answer } = pull;
  daemon.kill("SIGINT");
  daemon.kill("SIGINT");
  await daemon.logged("stopping: what is under way may end");
  gate.release();
  assert.equal(digestOf(new Uint8Array(await answer.arrayBuffer())), pull.digest);
  assert.equal((await daemon.ended).status, 0);
});

test("what nobody caught is logged, and ends the daemon with 1", async () => {
  await using here = await place();
  const hook = 'data:text/javascript,process.on("SIGUSR2",()=>{throw new Error("nobody caught me")})';
  await using daemon = await serve(["--config", here.config], { node: ["--import", hook] });
  daemon.kill("SIGUSR2");
  assert.equal((await daemon.ended).status, 1);
  const { level, err } = daemon.log.at(-1) ?? {};
  assert.equal(level, 60);
  assert.equal((err as { message?: string } | undefined)?.message, "nobody caught me");
});

test("a second daemon is refused the storage, and another program's port, each with cause and remedy", async () => {
  await using here = await place();
  await using _daemon = await serve(["--config", here.config]);
  const second = await run(["serve", "--config", here.config]);
  assert.equal(second.status, 1);
  assert.match(second.stderr, /^entrepot serve: .*data is in use by another entrepot: stop it, or /);

  await using other = await place();
  await using server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const listen = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  await other.write({ server: { listen } });
  const refused = await run(["serve", "--config", other.config]);
  assert.equal(refused.status, 1);
  assert.equal(
    refused.stderr,
    `entrepot serve: cannot listen on ${listen}: another program listens there: stop it, or set server.listen to another port\n`,
  );
});

test("a socket that a killed daemon left behind does not keep the next one from starting, a file does", async () => {
  await using here = await place();
  await here.write({ server: { listen: `unix:${join(here.path, "entrepot.sock")}` } });
  {
    await using _killed = await serve(["--config", here.config]);
  }
  assert.ok((await readdir(here.path)).includes("entrepot.sock"));
  await using next = await serve(["--config", here.config]);
  next.kill("SIGTERM");
  assert.equal((await next.ended).status, 0);

  await here.write({ server: { listen: `unix:${here.config}` } });
  const { status, stderr } = await run(["serve", "--config", here.config]);
  assert.equal(status, 1);
  assert.match(stderr, /cannot listen on unix:.*entrepot\.yaml: /);
  assert.ok((await readdir(here.path)).includes("entrepot.yaml"));
});

test("a root that is no folder is refused with cause and remedy", async () => {
  await using here = await place();
  const file = join(here.path, "file");
  await writeFile(file, "");
  for (const root of [file, join(file, "below")]) {
    await here.write({ storage: { root } });
    const { status, stderr } = await run(["serve", "--config", here.config]);
    assert.equal(status, 1);
    assert.equal(
      stderr,
      `entrepot serve: storage.root ${root} is not a folder: move away what is there, or set another one\n`,
    );
  }
});

test("a faulty configuration ends with 2 and every fault", async () => {
  await using here = await place({ log: { levle: "debug" }, upstreams: { "docker.io": { tagTtl: "soon" } } });
  const { status, stderr } = await run(["serve", "--config", here.config]);
  assert.equal(status, 2);
  assert.match(stderr, /2 faults/);
  assert.match(stderr, /log\.levle is not a key; did you mean level\?/);
  assert.match(stderr, /tagTtl is not a duration/);
});

test("SIGHUP changes what can change, and names what needs a restart", async () => {
  const app = makeImage({ layers: [1000] });
  await using upstream = await startUpstream();
  upstream.add("library/app", "latest", app);
  const hub = { url: upstream.url };
  await using here = await place({ upstreams: { "docker.io": hub } });
  await using daemon = await serve(["--config", here.config], { env: { ENTREPOT_STORAGE__MEMORYCACHE: "1MiB" } });
  const head = (): Promise<Response> => fetch(`${daemon.address}/v2/library/app/manifests/latest`, { method: "HEAD" });
  assert.equal((await head()).status, 200);

  const config = { server: { drainTimeout: "1s", listen: "127.0.0.1:1" }, log: { requests: false } };
  const policy = { upstreams: { "docker.io": { ...hub, deny: ["library/*"], connections: 3 } } };
  await here.write({ ...config, ...policy });
  daemon.kill("SIGHUP");
  const { changed } = await daemon.logged("configuration reloaded");
  assert.deepEqual(changed, ["server.drainTimeout", "log.requests", "upstreams.docker.io.deny"]);
  const { needRestart } = await daemon.logged("these settings change with a restart only");
  assert.deepEqual(needRestart, ["server.listen", "upstreams.docker.io.connections"]);

  const lines = daemon.log.length;
  assert.equal((await head()).status, 403);
  daemon.kill("SIGTERM");
  await daemon.ended;
  assert.deepEqual(
    daemon.log.slice(lines).filter(({ msg }) => msg === "request"),
    [],
  );
});

test("a changed file is loaded by itself, written in place or replaced", async () => {
  await using here = await place();
  await using daemon = await serve(["--config", here.config]);
  await here.write({ log: { requests: false } });
  assert.deepEqual((await daemon.logged("configuration reloaded"))["changed"], ["log.requests"]);
  await using other = await place({
    log: { requests: false },
    storage: { root: join(here.path, "data"), minFree: "1B" },
  });
  const lines = daemon.log.length;
  await rename(other.config, here.config);
  assert.deepEqual((await daemon.logged("configuration reloaded", lines))["changed"], ["storage.minFree"]);
});

test("a faulty file changes nothing and is reported with all its faults", async () => {
  await using here = await place();
  await using daemon = await serve(["--config", here.config]);
  await here.write({ log: { requests: false, level: "loud" }, storage: { minFree: "much" } });
  daemon.kill("SIGHUP");
  const { level, faults } = await daemon.logged("the configuration can't be used, nothing changes");
  assert.equal(level, 50);
  assert.deepEqual(
    (faults as { path: string }[]).map(({ path }) => path),
    ["log.level", "storage.minFree"],
  );
  assert.equal((await fetch(`${daemon.address}/livez`)).status, 200);
  await daemon.logged("request");
});

test("the greeting on a terminal says how to point docker at the daemon", () => {
  const local = greeting("http://127.0.0.1:5000", undefined, "1.2.3");
  assert.match(local, /^Entrepot 1\.2\.3 listens on http:\/\/127\.0\.0\.1:5000\n/);
  assert.match(local, /\{"registry-mirrors": \["http:\/\/127\.0\.0\.1:5000"\]\}/);
  assert.match(local, /docker pull 127\.0\.0\.1:5000\/docker\.io\/library\/alpine\n$/);
  assert.doesNotMatch(greeting("http://0.0.0.0:5000", undefined, "1").split("\n").slice(1).join("\n"), /0\.0\.0\.0/);
  assert.match(
    greeting("http://[::]:5000", "https://mirror.example.com", "1"),
    /pull mirror\.example\.com\/docker\.io/,
  );
  assert.equal(greeting("unix:/run/entrepot.sock", undefined, "1"), "Entrepot 1 listens on unix:/run/entrepot.sock\n");
});
