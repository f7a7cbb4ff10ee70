import assert from "node:assert/strict";
import { once } from "node:events";
import { createHash, type Hash } from "node:crypto";
import { request, type IncomingHttpHeaders, type IncomingMessage } from "node:http";
import { algorithmOf, type Digest } from "../../src/oci/digest.ts";

/** How a GET ended. */
export interface Outcome {
  status: number;
  headers: IncomingHttpHeaders;
  sizeBytes: number;
  /** Of what came. */
  digest: Digest;
  /** Whether the answer ended as it should; false: the connection was cut. */
  whole: boolean;
  /** The first KiB of the body, for texts of errors. */
  start: Buffer;
}

/** One GET over a connection of its own, as a client with its own pace. */
export class Client {
  readonly #response = Promise.withResolvers<IncomingMessage>();
  readonly #algorithm: "sha256" | "sha512";
  readonly #request;
  #received = 0;
  /** How the answer ended; rejects where there was none. */
  readonly outcome: Promise<Outcome>;

  constructor(url: string, headers: Record<string, string> = {}) {
    const digest = /sha(?:256|512):[0-9a-f]+/.exec(url)?.[0];
    this.#algorithm = digest === undefined ? "sha256" : algorithmOf(digest as Digest);
    this.#request = request(url, { agent: false, headers });
    this.#request.on("response", (response) => this.#response.resolve(response));
    this.#request.on("error", (error) => this.#response.reject(error));
    this.#request.end();
    this.outcome = this.#run();
    this.outcome.catch(() => undefined);
  }

  /** Bytes of the body so far. */
  get received(): number {
    return this.#received;
  }

  /** Resolves with the head of the answer. */
  get head(): Promise<IncomingMessage> {
    return this.#response.promise;
  }

  /** Stops reading, as a client does that is stuck. */
  async pause(): Promise<void> {
    (await this.head).pause();
  }

  async resume(): Promise<void> {
    (await this.head).resume();
  }

  /** Vanishes. */
  leave(): void {
    this.#request.destroy();
  }

  async #run(): Promise<Outcome> {
    const response = await this.#response.promise;
    const hash: Hash = createHash(this.#algorithm);
    const start: Buffer[] = [];
    response.on("data", (chunk: Buffer) => {
      if (this.#received < 1024) start.push(chunk.subarray(0, 1024));
      this.#received += chunk.length;
      hash.update(chunk);
    });
    response.on("error", () => undefined);
    if (!response.closed) await once(response, "close").catch(() => undefined);
    return {
      status: response.statusCode ?? 0,
      headers: response.headers,
      sizeBytes: this.#received,
      digest: `${this.#algorithm}:${hash.digest("hex")}` as Digest,
      whole: response.complete,
      start: Buffer.concat(start),
    };
  }
}

/** The client gets the whole blob, and it is the right one. */
export async function assertWhole(client: Client, blob: { digest: Digest; sizeBytes: number }): Promise<void> {
  const outcome = await client.outcome;
  assert.equal(outcome.status, 200, outcome.start.toString());
  assert.ok(outcome.whole, `cut after ${outcome.sizeBytes} of ${blob.sizeBytes} bytes`);
  assert.equal(outcome.digest, blob.digest);
}
