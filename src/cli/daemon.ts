import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { Agent, request } from "undici";
import { loadConfig } from "../config/load.ts";
import { parseListen } from "../config/schema.ts";
import { UsageError, type CommandIo } from "./io.ts";

const ANSWER_WITHIN_MS = 10_000;
/** The daemon tells its progress four times a second. */
const SILENCE_MS = 30_000;

/** Nobody answers at the address of a daemon. */
export class NoDaemon extends Error {
  override readonly name = "NoDaemon";
}

/** It went away before its work was done. */
export class LostDaemon extends Error {
  override readonly name = "LostDaemon";

  constructor(address: string, reason = "it ended its answer early", options?: ErrorOptions) {
    super(`lost the daemon at ${address} (${reason}): what it has done is kept, so run this again`, options);
  }
}

/** Where requests to a daemon go. @param address an http or https URL, or `unix:/path`. @throws UsageError for anything else */
export function originOf(address: string): { origin: string; socketPath: string | undefined } {
  const socketPath = /^unix:(?:\/\/)?(\/.+)$/.exec(address)?.[1];
  if (socketPath === undefined && !(URL.canParse(address) && /^https?:$/.test(new URL(address).protocol))) {
    throw new UsageError(`"${address}" is no address of a daemon: write http://host:port or unix:/path`);
  }
  return { origin: socketPath === undefined ? address.replace(/\/+$/, "") : "http://localhost", socketPath };
}

/**
 * The daemon that a command is about.
 * @param server `--server`; undefined: where the configuration says that it listens
 * @throws ConfigError; UsageError where that is no address
 */
export async function findDaemon(
  { server, config: file }: { server?: string | undefined; config?: string | undefined },
  { env }: CommandIo,
): Promise<Daemon> {
  return new Daemon(server ?? localAddress((await loadConfig({ file, env })).config.server.listen));
}

/** The running daemon, as commands talk to it. */
export class Daemon implements AsyncDisposable {
  /** As a person would write it: `http://127.0.0.1:5000` or `unix:/path`. */
  readonly address: string;
  readonly #origin: string;
  readonly #agent: Agent;

  /** @param address an http or https URL, or `unix:/path`. @throws UsageError for anything else */
  constructor(address: string) {
    const { origin, socketPath } = originOf(address);
    this.address = address.replace(/\/+$/, "");
    this.#origin = origin;
    this.#agent = new Agent({
      connect: { timeout: ANSWER_WITHIN_MS, ...(socketPath === undefined ? {} : { socketPath }) },
      headersTimeout: ANSWER_WITHIN_MS,
      bodyTimeout: SILENCE_MS,
    });
  }

  /**
   * Asks with a JSON body, or without one.
   * @throws NoDaemon that names cause and remedy, where nobody answers
   */
  async ask(method: "GET" | "POST", path: string, body?: object): Promise<{ status: number; body: Readable }> {
    try {
      const answer = await request(`${this.#origin}${path}`, {
        method,
        dispatcher: this.#agent,
        headers: { accept: "text/plain, */*", ...(body === undefined ? {} : { "content-type": "application/json" }) },
        body: body === undefined ? null : JSON.stringify(body),
      });
      return { status: answer.statusCode, body: answer.body };
    } catch (cause) {
      throw new NoDaemon(
        `no daemon answers at ${this.address} (${reasonOf(cause)}): start it with "entrepot serve", or name another with --server`,
        { cause },
      );
    }
  }

  /**
   * Asks for work that tells its events, one JSON object a line.
   * @throws NoDaemon; Error with what it says where it refuses
   */
  async events<Event>(path: string, body: object): Promise<AsyncIterable<Event>> {
    const answer = await this.ask("POST", path, body);
    if (answer.status === 200) return this.#eventsOf<Event>(answer.body);
    throw this.#refusal(answer.status, await textOf(answer.body));
  }

  /** Reads JSON. @throws NoDaemon; Error with what it says where it refuses */
  async read<Answer>(path: string): Promise<Answer> {
    const { status, body } = await this.ask("GET", path);
    const text = await textOf(body);
    if (status === 200) return JSON.parse(text) as Answer;
    throw this.#refusal(status, text);
  }

  /** The items of a list, page by page. @throws as {@link read} */
  async *list<Item>(path: string, filter: Record<string, string | undefined> = {}): AsyncGenerator<Item> {
    const query = new URLSearchParams({ limit: "1000" });
    for (const [name, value] of Object.entries(filter)) if (value !== undefined) query.set(name, value);
    for (;;) {
      const page = await this.read<{ items: Item[]; next?: string }>(`${path}?${query.toString()}`);
      yield* page.items;
      if (page.next === undefined) return;
      query.set("cursor", page.next);
    }
  }

  /** Asks for a change that answers with JSON. @throws NoDaemon; Error with what it says where it refuses */
  async change<Answer>(path: string, input: object = {}): Promise<Answer> {
    const { status, body } = await this.ask("POST", path, input);
    const text = await textOf(body);
    if (status >= 200 && status < 300) return JSON.parse(text) as Answer;
    throw this.#refusal(status, text);
  }

  #refusal(status: number, text: string): Error {
    return new Error(`${this.address} answered ${status}: ${detailOf(text) ?? "is it an entrepot?"}`);
  }

  async *#eventsOf<Event>(body: Readable): AsyncGenerator<Event> {
    try {
      for await (const line of createInterface({ input: body })) yield JSON.parse(line) as Event;
    } catch (cause) {
      throw new LostDaemon(this.address, reasonOf(cause), { cause });
    }
  }

  /** @returns the version of the entrepot that answers; undefined for another program */
  async version(): Promise<string | undefined> {
    const { status, body } = await this.ask("GET", "/");
    for await (const chunk of body as AsyncIterable<Buffer>) {
      return status === 200 ? /^Entrepot ([0-9][^\s:]*)/.exec(chunk.toString())?.[1] : undefined;
    }
    return undefined;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#agent.destroy();
  }
}

/**
 * Where a daemon with this `server.listen` is reached from its own machine.
 * @throws UsageError where the configuration does not tell
 */
export function localAddress(listen: string): string {
  const address = parseListen(listen);
  if (address && "path" in address) return listen;
  if (!address || address.port === 0) {
    throw new UsageError(`server.listen is ${listen}, which does not tell the daemon's port: name it with --server`);
  }
  const { host = "127.0.0.1", port } = address;
  if (host === "0.0.0.0") return `http://127.0.0.1:${port}`;
  return `http://${host === "::" ? "[::1]" : host.includes(":") ? `[${host}]` : host}:${port}`;
}

async function textOf(body: Readable): Promise<string> {
  return Buffer.concat(await body.toArray()).toString();
}

/** What a problem (RFC 9457) says; undefined for anything else. */
function detailOf(text: string): string | undefined {
  try {
    const { detail } = JSON.parse(text) as { detail?: unknown };
    return typeof detail === "string" ? detail : undefined;
  } catch {
    return undefined;
  }
}

/** The shortest that says what went wrong with a connection. */
export function reasonOf(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return code ?? message;
}
