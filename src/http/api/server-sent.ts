/** Server-sent events, as browsers read them with EventSource. Source: WHATWG HTML, "Server-sent events" */
import type { Milliseconds } from "../../base/clock.ts";

export const EVENT_STREAM = "text/event-stream";

/** Proxies cut what says nothing for a minute. */
const HEARTBEAT_MS: Milliseconds = 15_000;
/** A client that has lost the connection comes back after that. */
const RETRY_MS: Milliseconds = 1000;

export interface ServerSent {
  /** What its client names when it comes back. */
  id: string | number;
  /** Its kind. */
  event: string;
  data: object;
}

/**
 * The events as their text, with a comment in between wherever there is none for a while.
 * @param events ends by itself when its reader has left
 */
export async function* serverSentTexts(
  events: AsyncGenerator<ServerSent, void, void>,
  heartbeatMs: Milliseconds = HEARTBEAT_MS,
): AsyncGenerator<string, void, void> {
  // The head goes out with it.
  yield `retry: ${RETRY_MS}\n\n`;
  for (let next = events.next(); ;) {
    const told = await within(next, heartbeatMs);
    if (!told) {
      yield ":\n\n";
      continue;
    }
    if (told.done) return;
    const { id, event, data } = told.value;
    yield `id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
    next = events.next();
  }
}

/** @returns undefined where it takes longer */
async function within<T>(work: Promise<T>, ms: Milliseconds): Promise<T | undefined> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(resolve, ms, undefined);
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
