import { connect, type Socket } from "node:net";

export interface Answer {
  status: number;
  location: string | undefined;
  body: Buffer;
}

export interface Call {
  method: "GET" | "HEAD" | "POST" | "PUT" | "PATCH";
  path: string;
  headers?: Record<string, string | number>;
  /** As it goes over the line: with a length in the headers, or in chunks with their frames. */
  body?: Iterable<Buffer>;
}

interface Waiting {
  bodiless: boolean;
  resolve: (answer: Answer) => void;
  reject: (error: Error) => void;
}

/**
 * One connection that is kept open, one request at a time: a bare socket, since an HTTP client would cost as much as the server that is
 * measured. Understands answers with a Content-Length only.
 */
export class Wire implements Disposable {
  readonly #socket: Socket;
  readonly #host: string;
  #received = Buffer.alloc(0);
  #waiting: Waiting | undefined;

  private constructor(socket: Socket, port: number) {
    this.#socket = socket;
    this.#host = `127.0.0.1:${port}`;
    socket.on("data", (piece) => {
      this.#received = this.#received.length === 0 ? piece : Buffer.concat([this.#received, piece]);
      this.#take();
    });
    socket.on("error", (error) => this.#waiting?.reject(error));
    socket.on("close", () => this.#waiting?.reject(new Error("the server closed the connection")));
  }

  static async open(port: number): Promise<Wire> {
    const socket = connect({ host: "127.0.0.1", port, noDelay: true });
    await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
    return new Wire(socket, port);
  }

  /** @throws Error where the status is not the expected one */
  async expect(status: number, call: Call): Promise<Answer> {
    const answer = await this.request(call);
    if (answer.status === status) return answer;
    throw new Error(`${call.method} ${call.path}: status ${answer.status}: ${answer.body.toString("utf8", 0, 500)}`);
  }

  request({ method, path, headers = {}, body = [] }: Call): Promise<Answer> {
    const fields = Object.entries({ host: this.#host, ...headers }).map(([name, value]) => `${name}: ${value}\r\n`);
    const head = Buffer.from(`${method} ${path} HTTP/1.1\r\n${fields.join("")}\r\n`);
    return new Promise((resolve, reject) => {
      this.#waiting = { bodiless: method === "HEAD", resolve, reject };
      this.#send(head, body).catch(reject);
    });
  }

  /** One piece at a time; the head goes with the first. */
  async #send(head: Buffer, body: Iterable<Buffer>): Promise<void> {
    this.#socket.cork();
    this.#socket.write(head);
    for (const piece of body) {
      const written = new Promise<void>((resolve, reject) => {
        this.#socket.write(piece, (error) => (error ? reject(error) : resolve()));
      });
      this.#socket.uncork();
      await written;
    }
    this.#socket.uncork();
  }

  #take(): void {
    const end = this.#received.indexOf("\r\n\r\n");
    if (end < 0 || !this.#waiting) return;
    const head = this.#received.toString("latin1", 0, end + 2);
    const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(head)?.[1]);
    const length = this.#waiting.bodiless || status === 204 ? "0" : /\r\ncontent-length: (\d+)\r\n/i.exec(head)?.[1];
    if (Number.isNaN(status) || length === undefined) {
      this.#socket.destroy(new Error(`not an answer with a length: ${head.slice(0, 300)}`));
      return;
    }
    const bodyEnd = end + 4 + Number(length);
    if (this.#received.length < bodyEnd) return;
    const body = this.#received.subarray(end + 4, bodyEnd);
    this.#received = this.#received.subarray(bodyEnd);
    const { resolve } = this.#waiting;
    this.#waiting = undefined;
    resolve({ status, location: /\r\nlocation: ([^\r]+)\r\n/i.exec(head)?.[1], body });
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }
}

/** Where the next request of an upload goes: its Location may be absolute, and may have a query. */
export function uploadPath(answer: Answer, digest?: string): string {
  const target = new URL(answer.location ?? "", "http://127.0.0.1");
  if (digest !== undefined) target.searchParams.set("digest", digest);
  return target.pathname + target.search;
}
