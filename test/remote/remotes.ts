import type { ServerResponse } from "node:http";
import type { Clock, Milliseconds } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import type { EndpointConfig } from "../../src/config/schema.ts";
import { RemoteError, type RemoteFault } from "../../src/remote/remote-error.ts";
import { createRemote, type Remote, type RemoteKind } from "../../src/remote/remote.ts";
import { LoopbackServer, type LoggedRequest } from "../kit/loopback.ts";

/** Time stands still but for sleeps, which take none, and what a test adds to `nowMs`. */
export class TestClock implements Clock {
  nowMs: Milliseconds = Date.parse("2031-05-01T12:00:00Z");
  readonly slept: Milliseconds[] = [];

  now(): Milliseconds {
    return this.nowMs;
  }

  async sleep(ms: Milliseconds): Promise<void> {
    this.slept.push(ms);
    this.nowMs += ms;
  }
}

export interface OpenedRemote {
  remote: Remote;
  clock: TestClock;
  /** As in `manifest HEAD 200`. */
  seen: string[];
  receivedBytes: () => number;
  [Symbol.asyncDispose]: () => Promise<void>;
}

/** An address as the configuration would have it, with what a test wants otherwise. */
export function endpointOf(url: string, config: Partial<EndpointConfig> = {}): EndpointConfig {
  return {
    url,
    realms: [],
    trustedHosts: [],
    allowPrivate: false,
    connections: 8,
    requests: 0,
    timeouts: { connect: 5000, firstByte: 15_000, progress: 15_000 },
    ...config,
  };
}

export async function openRemote(
  url: string,
  config: Partial<EndpointConfig> = {},
  attempts = 3,
): Promise<OpenedRemote> {
  const clock = new TestClock();
  const seen: string[] = [];
  let bytes = 0;
  const remote = await createRemote(endpointOf(url, config), {
    clock,
    log: await createLog({ level: "silent", format: "json" }),
    observe: {
      request: (kind: RemoteKind, method, code) => void seen.push(`${kind} ${method} ${code}`),
      received: (more) => (bytes += more),
    },
    policy: { attempts, baseMs: 100, maxMs: 1000 },
  });
  return {
    remote,
    clock,
    seen,
    receivedBytes: () => bytes,
    [Symbol.asyncDispose]: async () => await remote[Symbol.asyncDispose](),
  };
}

/** For `assert.rejects`: a RemoteError of that fault whose message says so. */
export function fault(expected: RemoteFault, message: RegExp = /./): (error: unknown) => boolean {
  return (error) => {
    if (error instanceof RemoteError && error.fault === expected && message.test(error.message)) return true;
    throw new Error(`expected RemoteError ${expected} with ${message}`, { cause: error });
  };
}

/** A server whose every answer is the test's own code. To be disposed of. */
export async function startScript(
  script: (request: LoggedRequest, response: ServerResponse) => void,
): Promise<LoopbackServer> {
  const server = new Script(script);
  await server.start();
  return server;
}

class Script extends LoopbackServer {
  readonly #script: (request: LoggedRequest, response: ServerResponse) => void;

  constructor(script: (request: LoggedRequest, response: ServerResponse) => void) {
    super();
    this.#script = script;
  }

  protected override async answer(logged: LoggedRequest, response: ServerResponse): Promise<void> {
    this.#script(logged, response);
    logged.status = response.statusCode;
  }
}

export async function readAll(body: AsyncIterable<Buffer>): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of body) pieces.push(piece);
  return Buffer.concat(pieces);
}
