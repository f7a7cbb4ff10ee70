import { Readable } from "node:stream";
import { setImmediate as turn, setTimeout as sleep } from "node:timers/promises";
import { RemoteError } from "../../src/remote/remote-error.ts";
import type { RemoteBody } from "../../src/remote/remote.ts";
import type { BlobSource } from "../../src/transfer/source.ts";

/** How one answer of a source goes. */
export interface Script {
  /** Breaks after so many bytes of the answer. */
  cutAfter?: number;
  /** Sends all, whatever range was asked for. */
  ignoresRange?: boolean;
  /** Tells no length. */
  hidesSize?: boolean;
  /** Turns of the event loop between two pieces. */
  slowness?: number;
  pieceBytes?: number;
  /** Milliseconds before each piece. */
  napMs?: number;
}

/** A source that serves `content`, each answer by the next script; without one, whole and at once. */
export class ScriptedSource implements BlobSource {
  readonly name: string;
  readonly #content: Buffer;
  readonly #scripts: Script[];
  /** Bytes sent so far. */
  sent = 0;
  /** The most answers that were under way at a time. */
  most = 0;
  #underWay = 0;

  constructor(name: string, content: Buffer, scripts: readonly Script[] = []) {
    this.name = name;
    this.#content = content;
    this.#scripts = [...scripts];
  }

  async open(firstByte: number, lastByte: number | undefined, signal: AbortSignal): Promise<RemoteBody> {
    const script = this.#scripts.shift() ?? {};
    await turn();
    signal.throwIfAborted();
    const size = this.#content.length;
    const partial = (firstByte > 0 || lastByte !== undefined) && script.ignoresRange !== true;
    if (partial && firstByte >= size) throw new RemoteError("protocol", this.name, "has no such byte (416)");
    const from = partial ? firstByte : 0;
    const to = partial ? Math.min(size, (lastByte ?? size - 1) + 1) : size;
    const body = Readable.from(this.#pieces(from, to, script), { objectMode: true, highWaterMark: 1 });
    // As the remote does it: nobody may be listening any more when it breaks.
    body.on("error", () => undefined);
    const abort = (): void => void body.destroy(signal.reason as Error);
    signal.addEventListener("abort", abort);
    this.most = Math.max(this.most, ++this.#underWay);
    body.once("close", () => {
      this.#underWay--;
      signal.removeEventListener("abort", abort);
    });
    return {
      body: body as RemoteBody["body"],
      firstByte: from,
      partial,
      sizeBytes: script.hidesSize === true ? undefined : size,
    };
  }

  async *#pieces(from: number, to: number, script: Script): AsyncGenerator<Buffer> {
    const { cutAfter = Infinity, slowness = 0, napMs = 0, pieceBytes = 64 * 1024 } = script;
    for (let at = from; at < to;) {
      for (let i = 0; i < slowness; i++) await turn();
      if (napMs > 0) await sleep(napMs);
      const end = Math.min(to, at + pieceBytes, from + cutAfter);
      if (end > at) {
        this.sent += end - at;
        yield this.#content.subarray(at, end);
      }
      at = end;
      if (at - from >= cutAfter) throw new RemoteError("interrupted", this.name, "broke off within a body");
    }
  }
}
