import assert from "node:assert/strict";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { request, Agent } from "undici";
import { open, type App } from "../../src/app.ts";
import { createLog } from "../../src/base/log.ts";
import type { Clock } from "../../src/base/clock.ts";
import { parseConfig } from "../../src/config/load.ts";
import { digestOf, type Digest } from "../../src/oci/digest.ts";

type Tree = { [key: string]: unknown };

export interface RegistryOptions {
  /** Upstreams by name: a test upstream (or anything with a url), or that with further keys of its configuration. */
  upstreams?: Record<string, { url: string } | (Tree & { url: string })>;
  /** Further configuration, merged over the kit's. */
  config?: {
    server?: Tree;
    storage?: Tree;
    hosted?: Tree;
    access?: Tree;
    gc?: Tree;
    scrub?: Tree;
    events?: Tree;
    webhooks?: Tree[];
    retention?: Tree;
    replication?: Tree;
  };
  /** A folder that outlives this registry, for a restart. */
  root?: string;
  clock?: Clock;
  /** The authority, in PEM, whose certificate it shows. */
  trust?: string;
  /** The test leaves partial files behind on purpose. */
  leavesPartials?: boolean;
}

export interface Answer {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  bytes: Buffer;
}

/** A whole daemon in this process, on a free port and a folder of its own. */
export interface TestRegistry extends AsyncDisposable {
  readonly url: string;
  readonly root: string;
  readonly app: App;
  /** Every log line so far, parsed. */
  readonly log: Record<string, unknown>[];
  get(path: string, headers?: Record<string, string>): Promise<Answer>;
  send(method: string, path: string, headers?: Record<string, string>, body?: string | Buffer): Promise<Answer>;
  /** GETs a blob and checks that it is what its digest says. */
  pullBlob(repository: string, digest: Digest): Promise<Buffer>;
  /** A metric's value: `metric('entrepot_cache_requests_total', { result: 'hit' })` sums over the other labels. */
  metric(name: string, labels?: Record<string, string>): Promise<number>;
  /** Files in staging/. */
  partials(): Promise<string[]>;
  /** Files under blobs/, as paths. */
  blobFiles(): Promise<string[]>;
  /** Resolves once the condition holds; polls, and fails after ten seconds. */
  until(condition: () => boolean | Promise<boolean>, what: string): Promise<void>;
  /** Stops the daemon and keeps the folder. */
  stop(): Promise<void>;
}

/** Resolves once the condition holds. @throws AssertionError after ten seconds */
export async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const deadline = performance.now() + 10_000;
  while (!(await condition())) {
    assert.ok(performance.now() < deadline, `timed out waiting until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export async function startRegistry(options: RegistryOptions = {}): Promise<TestRegistry> {
  const root = options.root ?? (await mkdtemp(join(tmpdir(), "entrepot-")));
  const upstreams = Object.fromEntries(
    Object.entries(options.upstreams ?? {}).map(([name, upstream]) => {
      const given =
        Object.getPrototypeOf(upstream) === Object.prototype && !(Symbol.asyncDispose in upstream) ? upstream : {};
      return [
        name,
        { ...(name === "docker.io" ? { default: true } : {}), prefetch: false, ...given, url: upstream.url },
      ];
    }),
  );
  const config = parseConfig({
    server: { listen: "127.0.0.1:0", drainTimeout: "2s", ...options.config?.server },
    storage: { root, minFree: 0, ...options.config?.storage },
    hosted: { ...options.config?.hosted },
    access: { ...options.config?.access },
    gc: { ...options.config?.gc },
    scrub: { ...options.config?.scrub },
    events: { ...options.config?.events },
    webhooks: options.config?.webhooks ?? [],
    retention: { ...options.config?.retention },
    replication: { ...options.config?.replication },
    upstreams,
  });
  const lines: Record<string, unknown>[] = [];
  const log = await createLog({
    level: "debug",
    format: "json",
    destination: { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) },
  });
  const app = await open(config, { log, ...(options.clock ? { clock: options.clock } : {}) });
  const agent = new Agent({
    pipelining: 1,
    bodyTimeout: 20_000,
    headersTimeout: 20_000,
    ...(options.trust === undefined ? {} : { connect: { ca: options.trust } }),
  });
  let stopped = false;
  const stop = async (): Promise<void> => {
    if (stopped) return;
    stopped = true;
    await agent.close();
    await app[Symbol.asyncDispose]();
  };
  const send: TestRegistry["send"] = async (method, path, headers = {}, body) => {
    const answer = await request(`${app.address}${path}`, {
      method: method as "GET",
      headers,
      dispatcher: agent,
      ...(body === undefined ? {} : { body }),
    });
    const { statusCode: status, headers: given } = answer;
    // Server-sent events have no end: their head is all there is to wait for.
    if (given["content-type"] === "text/event-stream") {
      answer.body.on("error", () => undefined).destroy();
      return { status, headers: given, bytes: Buffer.alloc(0) };
    }
    return { status, headers: given, bytes: Buffer.from(await answer.body.arrayBuffer()) };
  };
  const partials = (): Promise<string[]> => readdir(join(root, "staging"));
  return {
    url: app.address,
    root,
    app,
    log: lines,
    get: (path, headers) => send("GET", path, headers),
    send,
    pullBlob: async (repository, digest) => {
      const { status, bytes } = await send("GET", `/v2/${repository}/blobs/${digest}`);
      // Only the answer of an error is text, and only its start is worth reading.
      if (status !== 200) assert.fail(`${status}: ${bytes.subarray(0, 500).toString("utf8")}`);
      assert.equal(digestOf(bytes, digest.startsWith("sha512") ? "sha512" : "sha256"), digest);
      return bytes;
    },
    metric: async (name, labels = {}) => {
      const { body } = await app.metrics.render();
      let sum = 0;
      for (const line of body.split("\n")) {
        const [, found, inner = "", value] = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
        if (found !== name) continue;
        if (Object.entries(labels).every(([key, wanted]) => inner.includes(`${key}="${wanted}"`))) sum += Number(value);
      }
      return sum;
    },
    partials,
    blobFiles: async () => {
      const found = await readdir(join(root, "blobs"), { recursive: true, withFileTypes: true });
      return found.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
    },
    until,
    stop,
    [Symbol.asyncDispose]: async () => {
      await stop();
      const left = await partials();
      if (options.root === undefined) await rm(root, { recursive: true, force: true });
      if (!options.leavesPartials) assert.deepEqual(left, [], "the test left partial files in staging");
    },
  };
}
