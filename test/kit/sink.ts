import type { ServerResponse } from "node:http";
import { LoopbackServer, type LoggedRequest } from "./loopback.ts";

export interface SinkAnswer {
  status: number;
  headers?: Record<string, string>;
  body?: string | Buffer;
}

/** A server that is no registry: where redirects and realms of foreign hosts lead, and whose log shows what leaked. To be disposed of. */
export async function startSink(answer: SinkAnswer = { status: 200 }): Promise<Sink> {
  const sink = new Sink(answer);
  await sink.start();
  return sink;
}

export class Sink extends LoopbackServer {
  #answer: SinkAnswer;

  constructor(answer: SinkAnswer) {
    super();
    this.#answer = answer;
  }

  /** What every request gets from now on. */
  answerWith(answer: SinkAnswer): void {
    this.#answer = answer;
  }

  protected override async answer(logged: LoggedRequest, response: ServerResponse): Promise<void> {
    const { status, headers = {}, body = "" } = this.#answer;
    logged.status = status;
    logged.bytesSent = Buffer.byteLength(body);
    response.writeHead(status, headers).end(body);
  }
}
