import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";

/** A way to a server that counts what clients send, and lets no more than that through once it is told to. */
export interface Gate extends AsyncDisposable {
  /** `127.0.0.1:40123`, as it stands in an image's name. */
  readonly host: string;
  /** What clients have sent so far, heads of requests included. */
  readonly sentBytes: number;
  /** Lets that many more bytes of clients through, then none. Resolves when they try. */
  shutAfter(bytes: number): Promise<void>;
}

/** @param to the server, `127.0.0.1:5000` */
export async function startGate(to: string): Promise<Gate> {
  const target = new URL(`http://${to}`);
  const sockets = new Set<Socket>();
  let sentBytes = 0;
  let openUntil = Infinity;
  const shut = Promise.withResolvers<void>();
  const server = createServer((client) => {
    const upstream = connect(Number(target.port), target.hostname);
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      sockets.add(socket);
      // Its "close" follows.
      socket.on("error", () => {});
      socket.on("close", () => {
        sockets.delete(socket);
        other.destroy();
      });
    }
    upstream.pipe(client);
    client.on("data", (bytes) => {
      const through = bytes.subarray(0, Math.max(0, openUntil - sentBytes));
      sentBytes += bytes.length;
      if (through.length > 0 && !upstream.write(through)) {
        client.pause();
        upstream.once("drain", () => client.resume());
      }
      if (through.length < bytes.length) {
        client.pause();
        shut.resolve();
      }
    });
    client.on("end", () => upstream.end());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    get sentBytes() {
      return sentBytes;
    },
    shutAfter: (bytes) => {
      openUntil = sentBytes + bytes;
      return shut.promise;
    },
    [Symbol.asyncDispose]: async () => {
      if (!server.listening) return;
      server.close();
      for (const socket of sockets) socket.destroy();
      await once(server, "close");
    },
  };
}
