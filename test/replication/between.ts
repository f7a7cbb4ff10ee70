import { createServer, request as ask, type IncomingMessage, type ServerResponse } from "node:http";
import { once } from "node:events";
import type { AddressInfo, Socket } from "node:net";

/** A request as it came through. */
export interface Passed {
  method: string;
  /** With its query. */
  path: string;
  /** Of its body, as far as they came. */
  bytes: number;
  /** Where its body begins in an upload, 0-based. */
  firstByte: number;
  /** How much of an upload its answer says is there. */
  toldBytes?: number;
}

/** What happens to a request instead of passing on. */
export type Trick =
  | { status: number; headers?: Record<string, string>; body?: string }
  /** The connection is cut after so many bytes of its body have been passed on. */
  | { cutAfter: number }
  /** The connection is cut at once. */
  | { gone: true }
  /** It is passed on as another one. */
  | { path: string }
  /** Headers of the answer that are left out. */
  | { without: string[] }
  /** It is passed on and done, and its answer is lost with the connection. */
  | { lost: true }
  /** Its body is not taken, nor is it answered. */
  | { stalls: true }
  /** After each piece of its body it takes so long until the next one. */
  | { pauseMs: number };

/** A way to a registry that counts what comes and plays tricks. To be disposed of. */
export interface Between extends AsyncDisposable {
  readonly url: string;
  readonly passed: Passed[];
  /** Asked for each request, in order of arrival. */
  trick: (request: Passed, headers: IncomingMessage["headers"]) => Trick | undefined;
  /** Requests of that method with `part` in their path. */
  hits(method: string, part?: string): number;
  /** Of bodies of uploads. */
  uploadedBytes(): number;
}

export async function startBetween(to: string): Promise<Between> {
  const target = new URL(to);
  const sockets = new Set<Socket>();
  const passed: Passed[] = [];
  const serve = (incoming: IncomingMessage, response: ServerResponse): void => {
    const firstByte = Number.parseInt(incoming.headers["content-range"] ?? "0", 10);
    const record: Passed = { method: incoming.method ?? "", path: incoming.url ?? "", bytes: 0, firstByte };
    passed.push(record);
    const trick = between.trick(record, incoming.headers);
    if (trick && "gone" in trick) {
      response.destroy();
      return;
    }
    if (trick && "stalls" in trick) {
      incoming.pause();
      return;
    }
    if (trick && "status" in trick) {
      incoming.resume();
      incoming.on("data", (bytes: Buffer) => (record.bytes += bytes.length));
      incoming.on("end", () => response.writeHead(trick.status, trick.headers).end(trick.body));
      return;
    }
    const forward = ask({
      host: target.hostname,
      port: target.port,
      method: record.method,
      path: trick && "path" in trick ? trick.path : record.path,
      headers: incoming.headers,
      agent: false,
    });
    forward.on("response", (answer) => {
      if (trick && "lost" in trick) {
        response.destroy();
        return;
      }
      const headers = { ...answer.headers };
      const last = /^0-(\d+)$/.exec(headers["range"] ?? "")?.[1];
      if (last !== undefined) record.toldBytes = last === "0" ? 0 : Number(last) + 1;
      if (trick && "without" in trick) for (const name of trick.without) delete headers[name];
      response.writeHead(answer.statusCode ?? 500, headers);
      answer.pipe(response);
    });
    const end = (): void => {
      forward.destroy();
      response.destroy();
    };
    forward.on("error", end);
    incoming.on("error", end);
    response.on("close", () => forward.destroy());
    let open = trick && "cutAfter" in trick ? trick.cutAfter : Infinity;
    incoming.on("data", (bytes: Buffer) => {
      const through = bytes.subarray(0, open);
      open -= through.length;
      record.bytes += through.length;
      const flowing = forward.write(through);
      if (open === 0) {
        // What was written is on its way before the connection ends.
        incoming.pause();
        forward.write("", () => setImmediate(end));
      } else if (trick && "pauseMs" in trick) {
        incoming.pause();
        setTimeout(() => incoming.resume(), trick.pauseMs);
      } else if (!flowing) {
        incoming.pause();
        forward.once("drain", () => incoming.resume());
      }
    });
    incoming.on("end", () => forward.end());
  };
  const server = createServer(serve);
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const between: Between = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    passed,
    trick: () => undefined,
    hits: (method, part = "") => passed.filter((one) => one.method === method && one.path.includes(part)).length,
    uploadedBytes: () =>
      passed.filter(({ path }) => path.includes("/blobs/uploads/")).reduce((sum, { bytes }) => sum + bytes, 0),
    [Symbol.asyncDispose]: async () => {
      server.close();
      for (const socket of sockets) socket.destroy();
      await once(server, "close");
    },
  };
  return between;
}
