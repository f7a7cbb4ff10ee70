import { once } from "node:events";
import { connect, type Socket } from "node:net";

/** A connection on which a test says, byte for byte, what it wants, and reads only when it wants. */
export class RawConnection implements Disposable {
  readonly socket: Socket;
  readonly #chunks: Buffer[] = [];
  /** Resolves when the connection has ended, however it did. */
  readonly closed: Promise<void>;

  constructor(socket: Socket) {
    this.socket = socket;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    socket.on("close", () => resolve());
    // A cut connection is what these tests are about; `closed` tells.
    socket.on("error", () => undefined);
    socket.on("data", (chunk) => this.#chunks.push(chunk));
  }

  /** All that came so far. */
  get received(): Buffer {
    return Buffer.concat(this.#chunks);
  }

  get text(): string {
    return this.received.toString("latin1");
  }

  /** @param head lines of a request's head */
  send(...head: string[]): void {
    this.socket.write(`${head.join("\r\n")}\r\n\r\n`);
  }

  /** Resolves when what came matches. @throws Error if the connection ends before */
  async until(pattern: RegExp): Promise<void> {
    while (!pattern.test(this.text)) {
      if (this.socket.destroyed) throw new Error(`closed before ${String(pattern)} came: ${this.text.slice(0, 2000)}`);
      await Promise.race([once(this.socket, "data"), this.closed]);
    }
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

/** @param url as in `http://127.0.0.1:5000` */
export async function connectTo(url: string): Promise<RawConnection> {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  await once(socket, "connect");
  return new RawConnection(socket);
}
