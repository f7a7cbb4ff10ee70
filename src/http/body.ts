import type { IncomingMessage } from "node:http";
import type { RegistryError } from "../oci/errors.ts";
import { ClientGone, type ProgressRule } from "./send.ts";

/** So much of a body waits in memory for its reader; then the client waits. */
const QUEUE_BYTES = 1024 * 1024;
/** The reader is woken for so much, or for the end: for each chunk of 32 KiB it would cost a tenth of a large push. */
const WAKE_BYTES = 128 * 1024;

/**
 * The body of a request at the reader's pace. A client that sends less than the rule wants, while the reader waits for it, is cut.
 * To be read once; leaving early stops the reading and keeps the connection, so that the client can still be answered.
 * @param taken is told, each time, how many bytes the reader has been given so far
 * @throws ClientGone where the body breaks off
 */
export async function* bodyOf(
  request: IncomingMessage,
  rule: ProgressRule,
  taken: (bytes: number) => void,
): AsyncGenerator<Buffer, void, undefined> {
  // Not the stream's own iterator: it would join what has gathered into one buffer, which copies every byte once more.
  let queue: Buffer[] = [];
  let queued = 0;
  let ended = false;
  let failure: ClientGone | undefined;
  let wake: (() => void) | undefined;
  let received = 0;
  let given = 0;
  let waited = false;
  const gone = (error?: unknown): void => {
    // What the stream still holds has arrived, too: it is not lost with the connection.
    request.off("data", onData);
    for (let rest: unknown; (rest = request.read()) !== null;) onData(rest as Buffer);
    if (!ended) failure ??= new ClientGone("the client broke the body off", { cause: error });
    wake?.();
  };
  const onData = (chunk: Buffer): void => {
    queue.push(chunk);
    queued += chunk.length;
    received += chunk.length;
    if (queued >= QUEUE_BYTES) request.pause();
    if (queued >= WAKE_BYTES) wake?.();
  };
  const onEnd = (): void => {
    ended = true;
    wake?.();
  };
  request.on("data", onData).once("end", onEnd).once("error", gone).once("close", gone);
  if (request.destroyed) gone();
  // Only a whole interval of waiting counts: a disk that is slow is no fault of the client.
  const timer = setInterval(() => {
    if (waited && wake && received < rule.minBytes) request.destroy(new ClientGone("the client sent too little"));
    received = 0;
    waited = wake !== undefined;
  }, rule.interval);
  timer.unref();
  try {
    for (;;) {
      while (queue.length > 0) {
        const chunks = queue;
        queue = [];
        queued = 0;
        for (const chunk of chunks) {
          taken((given += chunk.length));
          yield chunk;
        }
      }
      if (ended) return;
      if (failure) throw failure;
      const { promise, resolve } = Promise.withResolvers<void>();
      wake = resolve;
      request.resume();
      await promise;
      wake = undefined;
    }
  } finally {
    clearInterval(timer);
    request.off("data", onData).off("end", onEnd).off("error", gone).off("close", gone);
  }
}

/** A whole body in memory. @throws RegistryError with status 413 where it is larger; ClientGone */
export async function readBody(
  request: IncomingMessage,
  maxBytes: number,
  rule: ProgressRule,
  tooLarge: () => RegistryError,
  taken: (bytes: number) => void = () => undefined,
): Promise<Buffer> {
  if (Number(request.headers["content-length"] ?? 0) > maxBytes) throw tooLarge();
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of bodyOf(request, rule, taken)) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw tooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, bytes);
}
