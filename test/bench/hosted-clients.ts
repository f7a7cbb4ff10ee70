/** The clients of a private registry, in a process of their own: takes a `HostedTask`, answers with what it measured. */
import { createHash, hash, randomBytes } from "node:crypto";
import { rmSync, statSync, truncateSync } from "node:fs";
import { Agent, request as httpRequest } from "node:http";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { ACCEPT } from "./load.ts";
import { uploadPath, Wire } from "./wire.ts";

/** The server is on 127.0.0.1. */
export type HostedTask =
  /** Makes and hashes new layers for a `layers` to come. */
  | { kind: "make-layers"; count: number; layerBytes: number }
  /** Each client pushes so many of them, one after the other. Byte by byte, files of no more use make way. Answers with `Pushed`. */
  | { kind: "layers"; port: number; clients: number; layersEach: number; spent: string[] }
  /** Each client pushes new images to a repository of its own, for that time or that many. Answers with `Pushed`. */
  | { kind: "images"; port: number; clients: number; blobBytes: number[]; ms?: number; imagesEach?: number }
  /** One client reads these paths, one after the other, by the logins (`user:password`) in turn. Answers with the milliseconds of each. */
  | { kind: "pages"; port: number; paths: string[]; names?: number; basic?: string[] }
  /** Pulls at a pace, each pull of another image that `images` has pushed. Answers with `Paced`. */
  | { kind: "paced"; port: number; clients: number; imagesEach: number; perSecond: number; until: Until }
  /** POSTs a JSON body, and reads what is told as fast as it comes. Answers with `Told`. */
  | { kind: "told"; port: number; path: string; body: object };

/** For that time, or from the sending of a POST of `{}` until its answer has ended. */
type Until = { ms: number } | { post: string };

export interface Pushed {
  /** Layers or images. */
  count: number;
  ms: number;
}

export interface Paced {
  /** Of each pull, from its first request to its last byte. */
  ms: number[];
  /** The last line of the answer to the POST. */
  report: string;
}

export interface Told {
  ms: number;
  /** The last line. */
  last: string;
}

const CHUNK_BYTES = 32 * 1024;
const PIECE_BYTES = 1024 * 1024;
/** Before anything is measured, as the compiler of either side needs some to see. */
const WARM_UP_PULLS = 200;

/** What all layers have in common: it is random, and repeated. */
const BLOCK = randomBytes(PIECE_BYTES);
const FRAMED_BLOCK = framed(BLOCK);

/** As Go's io.Copy makes it of what dockerd sends: chunks of 32 KiB. */
function framed(bytes: Buffer): Buffer {
  const frames = [];
  for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
    const chunk = bytes.subarray(at, at + CHUNK_BYTES);
    frames.push(Buffer.from(`${chunk.length.toString(16)}\r\n`), chunk, Buffer.from("\r\n"));
  }
  return Buffer.concat(frames);
}

interface Layer {
  digest: string;
  /** All but the first piece are shared. */
  firstPiece: Buffer;
  pieces: number;
}

function makeLayer(layerBytes: number): Layer {
  const firstPiece = Buffer.concat([randomBytes(32), BLOCK.subarray(32)]);
  const pieces = layerBytes / PIECE_BYTES;
  const sha256 = createHash("sha256").update(firstPiece);
  for (let i = 1; i < pieces; i++) sha256.update(BLOCK);
  return { digest: `sha256:${sha256.digest("hex")}`, firstPiece: framed(firstPiece), pieces };
}

function* chunkedBody({ firstPiece, pieces }: Layer, onPiece: () => void): Iterable<Buffer> {
  for (let i = 0; i < pieces; i++) {
    onPiece();
    yield i === 0 ? firstPiece : FRAMED_BLOCK;
  }
  yield Buffer.from("0\r\n\r\n");
}

/** Shortens files one after the other, a piece at each call, and removes them in the end. */
function shorten(files: string[]): () => void {
  const pieces = (function* () {
    for (const file of files) {
      for (let left = statSync(file).size; (left -= PIECE_BYTES) > 0;) yield truncateSync(file, left);
      yield rmSync(file);
    }
  })();
  return () => void pieces.next();
}

type LayersTask = Extract<HostedTask, { kind: "layers" }>;

const made: Layer[] = [];

async function makeLayers({ count, layerBytes }: Extract<HostedTask, { kind: "make-layers" }>): Promise<void> {
  while (made.length < count) made.push(makeLayer(layerBytes));
}

async function pushLayers({ port, clients, layersEach, spent }: LayersTask): Promise<Pushed> {
  const makeWay = shorten(spent);
  const queues = Array.from({ length: clients }, () => made.splice(0, layersEach));
  const startedAt = performance.now();
  await Promise.all(
    queues.map(async (layers, client) => {
      using wire = await Wire.open(port);
      for (const layer of layers) await pushLayer(wire, `bench/layers-${client}`, layer, makeWay);
    }),
  );
  return { count: clients * layersEach, ms: performance.now() - startedAt };
}

/** POST, PATCH with chunked transfer encoding, PUT: as dockerd does. */
async function pushLayer(wire: Wire, repository: string, layer: Layer, onPiece: () => void): Promise<void> {
  const begun = await wire.expect(202, post(repository));
  const sent = await wire.expect(202, {
    method: "PATCH",
    path: uploadPath(begun),
    headers: { "content-type": "application/octet-stream", "transfer-encoding": "chunked" },
    body: chunkedBody(layer, onPiece),
  });
  await wire.expect(201, {
    method: "PUT",
    path: uploadPath(sent, layer.digest),
    headers: { "content-length": 0 },
  });
}

function post(repository: string) {
  return { method: "POST", path: `/v2/${repository}/blobs/uploads/`, headers: { "content-length": 0 } } as const;
}

type ImagesTask = Extract<HostedTask, { kind: "images" }>;

async function pushImages({ port, clients, blobBytes, ms = Infinity, imagesEach = Infinity }: ImagesTask) {
  const startedAt = performance.now();
  const counts = await Promise.all(
    Array.from({ length: clients }, async (_, client) => {
      using wire = await Wire.open(port);
      let count = 0;
      while (count < imagesEach && performance.now() - startedAt < ms) {
        // A number, so that `paced` knows them; a time, so that no second task meets the tags of the first.
        const tag = imagesEach === Infinity ? `t${Date.now()}-${count}` : `t${count}`;
        await pushImage(wire, `bench/images-${client}`, tag, blobBytes);
        count++;
      }
      return count;
    }),
  );
  return { count: counts.reduce((sum, each) => sum + each, 0), ms: performance.now() - startedAt };
}

/** Blobs of those sizes, the first one as the config. Per blob HEAD, POST, PUT, then the manifest by its tag. */
async function pushImage(wire: Wire, repository: string, tag: string, blobBytes: number[]): Promise<void> {
  const descriptors = [];
  for (const size of blobBytes) {
    const blob = Buffer.concat([randomBytes(32), BLOCK.subarray(32, size)]);
    const digest = `sha256:${hash("sha256", blob, "hex")}`;
    await wire.expect(404, { method: "HEAD", path: `/v2/${repository}/blobs/${digest}` });
    const begun = await wire.expect(202, post(repository));
    await wire.expect(201, {
      method: "PUT",
      path: uploadPath(begun, digest),
      headers: { "content-type": "application/octet-stream", "content-length": size },
      body: [blob],
    });
    descriptors.push({ digest, size });
  }
  const [config, ...layers] = descriptors;
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociImage,
      config: { mediaType: "application/vnd.oci.image.config.v1+json", ...config },
      layers: layers.map((layer) => ({ mediaType: "application/vnd.oci.image.layer.v1.tar+gzip", ...layer })),
    }),
  );
  await wire.expect(201, {
    method: "PUT",
    path: `/v2/${repository}/manifests/${tag}`,
    headers: { "content-type": MEDIA_TYPES.ociImage, "content-length": manifest.length },
    body: [manifest],
  });
}

/** @throws Error where a page has not that many names */
async function readPages({
  port,
  paths,
  names,
  basic = [],
}: Extract<HostedTask, { kind: "pages" }>): Promise<number[]> {
  const agent = new Agent({ keepAlive: true });
  const ms = [];
  for (const [nth, path] of paths.entries()) {
    const startedAt = performance.now();
    const body = await read(agent, port, "GET", path, basic[nth % basic.length]);
    ms.push(performance.now() - startedAt);
    const page = JSON.parse(body) as { tags?: string[]; repositories?: string[]; items?: unknown[] };
    const found = (page.tags ?? page.repositories ?? page.items)?.length;
    if (names !== undefined && found !== names) throw new Error(`${path}: ${found} names`);
  }
  agent.destroy();
  return ms;
}

function read(agent: Agent | undefined, port: number, method: string, path: string, login?: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const headers = {
      "content-type": "application/json",
      ...(login === undefined ? {} : { authorization: `Basic ${Buffer.from(login).toString("base64")}` }),
    };
    const sent = httpRequest(
      { ...(agent && { agent }), host: "127.0.0.1", port, method, path, headers },
      (response) => {
        const pieces: Buffer[] = [];
        response.on("data", (piece: Buffer) => pieces.push(piece));
        response.once("error", reject);
        response.once("end", () => {
          const body = Buffer.concat(pieces).toString("utf8");
          if (response.statusCode === 200) resolve(body);
          else reject(new Error(`${path}: status ${response.statusCode}: ${body.slice(0, 500)}`));
        });
      },
    );
    sent.once("error", reject);
    sent.end(method === "POST" ? "{}" : undefined);
  });
}

async function hear({ port, path, body }: Extract<HostedTask, { kind: "told" }>): Promise<Told> {
  const startedAt = performance.now();
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`http://127.0.0.1:${port}${path}`, {
    method: "POST",
    headers,
    body: JSON.stringify(body),
  });
  if (!answer.ok || !answer.body) throw new Error(`${path}: status ${answer.status}: ${await answer.text()}`);
  let last = Buffer.alloc(0);
  for await (const piece of answer.body) last = Buffer.concat([last, piece]).subarray(-1000);
  return { ms: performance.now() - startedAt, last: last.toString("utf8").trimEnd().split("\n").at(-1) ?? "" };
}

type PacedTask = Extract<HostedTask, { kind: "paced" }>;

/** A pull that takes long delays no other one: each begins when its time has come, on a connection of its own if need be. */
async function pullPaced({ port, clients, imagesEach, perSecond, until }: PacedTask): Promise<Paced> {
  using idle = new DisposableStack();
  const wires: Wire[] = [];
  const pull = async (nth: number): Promise<number> => {
    const startedAt = performance.now();
    const wire = wires.pop() ?? idle.use(await Wire.open(port));
    const repository = `bench/images-${nth % clients}`;
    await pullImage(wire, repository, `t${Math.floor(nth / clients) % imagesEach}`);
    wires.push(wire);
    return performance.now() - startedAt;
  };
  for (let nth = 0; nth < WARM_UP_PULLS; nth++) await pull(nth);

  const pulls: Promise<number>[] = [];
  const startedAt = performance.now();
  const { promise: failed, reject } = Promise.withResolvers<never>();
  const timer = setInterval(() => {
    const due = ((performance.now() - startedAt) * perSecond) / 1000;
    while (pulls.length < due) {
      const running = pull(pulls.length);
      running.catch(reject);
      pulls.push(running);
    }
  }, 1);
  try {
    const over =
      "ms" in until
        ? new Promise<string>((resolve) => setTimeout(resolve, until.ms, ""))
        : read(undefined, port, "POST", until.post);
    const report = await Promise.race([over, failed]);
    clearInterval(timer);
    return { ms: await Promise.all(pulls), report: report.trimEnd().split("\n").at(-1) ?? "" };
  } finally {
    clearInterval(timer);
  }
}

async function pullImage(wire: Wire, repository: string, tag: string): Promise<void> {
  const path = `/v2/${repository}/manifests/${tag}`;
  const { body } = await wire.expect(200, { method: "GET", path, headers: { accept: ACCEPT } });
  const { config, layers } = JSON.parse(body.toString("utf8")) as {
    config: { digest: string; size: number };
    layers: { digest: string; size: number }[];
  };
  for (const { digest, size } of [config, ...layers]) {
    const blob = await wire.expect(200, { method: "GET", path: `/v2/${repository}/blobs/${digest}` });
    if (blob.body.length !== size) throw new Error(`${digest}: ${blob.body.length} bytes`);
  }
}

function perform(task: HostedTask): Promise<unknown> {
  if (task.kind === "make-layers") return makeLayers(task);
  if (task.kind === "layers") return pushLayers(task);
  if (task.kind === "images") return pushImages(task);
  if (task.kind === "told") return hear(task);
  return task.kind === "pages" ? readPages(task) : pullPaced(task);
}

process.on("message", (task: HostedTask) => {
  perform(task).then(
    (result) => process.send?.({ result }),
    (error: unknown) => process.send?.({ error: (error as Error).message }),
  );
});
process.once("disconnect", () => process.exit());
