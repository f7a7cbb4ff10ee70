/** The clients of a benchmark, in a process of their own: takes a `Task`, answers with its `Work`. */
import { createHash } from "node:crypto";
import { Agent, get, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { ACCEPT, type Task, type Work } from "./load.ts";

/** What docker's copying asks the kernel for at a time (Go, io.Copy). */
const DRAIN_BUFFER_BYTES = 32 * 1024;

async function perform(task: Task): Promise<Work> {
  const startedAt = performance.now();
  const bytes = await (task.kind === "drain"
    ? drain(task)
    : together(task.clients, () => (task.kind === "pull" ? pull(task) : readPath(task))));
  return { bytes, ms: performance.now() - startedAt };
}

async function together(clients: number, client: () => Promise<number>): Promise<number> {
  const bytes = await Promise.all(Array.from({ length: clients }, client));
  return bytes.reduce((sum, each) => sum + each, 0);
}

async function pull({ port, repository, tag, lanes }: Extract<Task, { kind: "pull" }>): Promise<number> {
  const agent = new Agent({ keepAlive: true });
  try {
    const { body } = await readManifest(agent, port, `/v2/${repository}/manifests/${tag}`);
    const { config, layers } = JSON.parse(body.toString("utf8")) as {
      config: { digest: string };
      layers: { digest: string }[];
    };
    const queue = [config, ...layers].map(({ digest }) => `/v2/${repository}/blobs/${digest}`);
    let bytes = body.length;
    const lane = async (): Promise<void> => {
      for (let path = queue.shift(); path !== undefined; path = queue.shift())
        bytes += await readBlob(agent, port, path);
    };
    await Promise.all(Array.from({ length: lanes }, lane));
    return bytes;
  } finally {
    agent.destroy();
  }
}

async function readPath({ port, path, bytesPerSecond }: Extract<Task, { kind: "read" }>): Promise<number> {
  const agent = new Agent();
  try {
    return await readBlob(agent, port, path, bytesPerSecond);
  } finally {
    agent.destroy();
  }
}

async function readManifest(agent: Agent, port: number, path: string): Promise<{ body: Buffer }> {
  const pieces: Buffer[] = [];
  for await (const piece of await request(agent, port, path)) pieces.push(piece as Buffer);
  return { body: Buffer.concat(pieces) };
}

/** @throws Error where the bytes are not what the path's digest says */
async function readBlob(agent: Agent, port: number, path: string, bytesPerSecond = Infinity): Promise<number> {
  const response = await request(agent, port, path);
  const hash = createHash("sha256");
  const startedAt = performance.now();
  let bytes = 0;
  for await (const piece of response) {
    hash.update(piece as Buffer);
    bytes += (piece as Buffer).length;
    const earlyMs = (bytes / bytesPerSecond) * 1000 - (performance.now() - startedAt);
    if (earlyMs > 0) await delay(earlyMs);
  }
  if (!path.endsWith(`sha256:${hash.digest("hex")}`)) throw new Error(`${path}: ${bytes} bytes that are not it`);
  return bytes;
}

function request(agent: Agent, port: number, path: string): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    get({ agent, host: "127.0.0.1", port, path, headers: { accept: ACCEPT } }, (response) => {
      if (response.statusCode === 200) resolve(response);
      else reject(new Error(`${path}: status ${response.statusCode}`));
    }).once("error", reject);
  });
}

/** Bytes received until the time is up; what is under way then is dropped. */
async function drain({ port, path, connections, ms }: Extract<Task, { kind: "drain" }>): Promise<number> {
  const signal = AbortSignal.timeout(ms);
  return together(connections, () => drainConnection(port, path, signal));
}

/** A bare socket with one buffer: an HTTP client would cost as much as the server that is measured. */
function drainConnection(port: number, path: string, signal: AbortSignal): Promise<number> {
  return new Promise((resolve, reject) => {
    let bytes = 0;
    let head = "";
    let missing = 0;
    const take = (length: number, buffer: Buffer): boolean => {
      let body = length;
      if (missing === 0) {
        head += buffer.toString("latin1", 0, length);
        const end = head.indexOf("\r\n\r\n");
        if (end < 0) return true;
        missing = Number(/^HTTP\/1\.1 200 [^]*\r\ncontent-length: (\d+)\r\n/i.exec(head)?.[1]);
        if (Number.isNaN(missing))
          socket.destroy(new Error(`${path}: not an answer with a length: ${head.slice(0, 200)}`));
        body = head.length - end - 4;
        head = "";
      }
      bytes += body;
      missing -= body;
      if (missing === 0) ask();
      return true;
    };
    const buffer = Buffer.allocUnsafeSlow(DRAIN_BUFFER_BYTES);
    const socket = connect({
      host: "127.0.0.1",
      port,
      onread: { buffer, callback: (length, view) => take(length, view as Buffer) },
    });
    const ask = (): boolean => socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n\r\n`);
    socket.once("error", reject);
    socket.once("end", () => reject(new Error(`${path}: the server closed the connection`)));
    signal.addEventListener("abort", () => {
      socket.destroy();
      resolve(bytes);
    });
    ask();
  });
}

process.on("message", (task: Task) => {
  perform(task).then(
    (result) => process.send?.({ result }),
    (error: unknown) => process.send?.({ error: (error as Error).message }),
  );
});
process.once("disconnect", () => process.exit());
