import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import type { Bytes } from "../../base/clock.ts";
import { digestOf, isDigest, type Digest } from "../../oci/digest.ts";
import { MEDIA_TYPES } from "../../oci/manifest.ts";
import { parseRange } from "../../oci/range.ts";
import { parseRoute } from "../../oci/route.ts";

export interface DemoImage {
  digest: Digest;
  manifest: Buffer;
  /** The config and the layers. */
  blobs: ReadonlyMap<Digest, Buffer>;
  /** Of all that a pull of it brings. */
  sizeBytes: Bytes;
}

/** An image of these layers; the label makes its config its own. */
export function makeImage(label: string, layers: readonly Buffer[]): DemoImage {
  const config = Buffer.from(
    JSON.stringify({ os: "linux", architecture: "amd64", config: { Labels: { label } }, rootfs: { type: "layers" } }),
  );
  const blobs = new Map([config, ...layers].map((bytes) => [digestOf(bytes), bytes]));
  const [first, ...rest] = [...blobs].map(([digest, { length }]) => ({ digest, size: length }));
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociImage,
      config: { mediaType: "application/vnd.oci.image.config.v1+json", ...first },
      layers: rest.map((layer) => ({ mediaType: "application/vnd.oci.image.layer.v1.tar", ...layer })),
    }),
  );
  const sizeBytes = [manifest, ...blobs.values()].reduce((sum, { length }) => sum + length, 0);
  return { digest: digestOf(manifest), manifest, blobs, sizeBytes };
}

/** What goes wrong with a blob, once. */
export interface Mishap {
  digest: Digest;
  /** After so many of its bytes went out. */
  afterBytes: Bytes;
  what: "break" | "lie";
}

const STEP_MS = 20;

/** A registry on loopback that is as slow for each connection as one far away, and that goes wrong when told to. */
export class DemoUpstream implements AsyncDisposable {
  /** Of bodies, since the start. */
  sentBytes = 0;
  mishap: Mishap | undefined;
  readonly #bytesPerSecond: number;
  readonly #tags = new Map<string, DemoImage>();
  readonly #contents = new Map<Digest, Buffer>();
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer((request, response) => {
    this.#serve(request, response).catch(() => response.destroy());
  });
  #port = 0;

  constructor(bytesPerSecondPerConnection: number) {
    this.#bytesPerSecond = bytesPerSecondPerConnection;
    this.#server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
    });
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  publish(tag: string, image: DemoImage): void {
    this.#tags.set(tag, image);
    for (const [digest, bytes] of [[image.digest, image.manifest] as const, ...image.blobs]) {
      this.#contents.set(digest, bytes);
    }
  }

  /** Listens, on the port of before if there was one. */
  start(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(this.#port, "127.0.0.1", () => {
        this.#port = (this.#server.address() as AddressInfo).port;
        resolve();
      });
    });
  }

  /** Breaks all connections off and refuses new ones. */
  async stop(): Promise<void> {
    if (!this.#server.listening) return;
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#breakOff();
    await closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  #breakOff(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const route = parseRoute(request.url ?? "/");
    if (route?.kind === "base") return void response.end("{}");
    const reference = route?.kind === "manifest" ? route.reference : route?.kind === "blob" ? route.digest : "";
    const digest = isDigest(reference) ? reference : this.#tags.get(reference)?.digest;
    const content = digest && this.#contents.get(digest);
    if (!digest || !content) return void response.writeHead(404).end();
    const range = route?.kind === "blob" ? parseRange(request.headers.range, content.length) : undefined;
    const { firstByte, lastByte } = typeof range === "object" ? range : { firstByte: 0, lastByte: content.length - 1 };
    response.writeHead(range ? 206 : 200, {
      "content-type": route?.kind === "manifest" ? MEDIA_TYPES.ociImage : "application/octet-stream",
      "content-length": lastByte - firstByte + 1,
      "docker-content-digest": digest,
      ...(range ? { "content-range": `bytes ${firstByte}-${lastByte}/${content.length}` } : {}),
    });
    if (request.method !== "HEAD") await this.#send(response, digest, content.subarray(0, lastByte + 1), firstByte);
    response.end();
  }

  async #send(response: ServerResponse, digest: Digest, content: Buffer, firstByte: number): Promise<void> {
    const stepBytes = Math.ceil((this.#bytesPerSecond * STEP_MS) / 1000);
    const startedMs = performance.now();
    for (let at = firstByte; at < content.length && !response.destroyed; at += stepBytes) {
      const piece = content.subarray(at, at + stepBytes);
      this.sentBytes += piece.length;
      response.write(this.#spoil(digest, piece));
      const dueMs = startedMs + ((at + piece.length - firstByte) * 1000) / this.#bytesPerSecond;
      if (dueMs > performance.now()) await delay(dueMs - performance.now());
    }
  }

  #spoil(digest: Digest, piece: Buffer): Buffer {
    const { mishap } = this;
    if (mishap?.digest !== digest) return piece;
    mishap.afterBytes -= piece.length;
    if (mishap.afterBytes > 0) return piece;
    this.mishap = undefined;
    if (mishap.what === "break") {
      this.#breakOff();
      return piece;
    }
    const lie = Buffer.from(piece);
    lie[0] = (lie[0] ?? 0) ^ 1;
    return lie;
  }
}
