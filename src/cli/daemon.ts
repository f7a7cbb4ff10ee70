import { resolve } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { Agent, request } from "undici";
import { loadConfig } from "../config/load.ts";
import { parseListen, type Config } from "../config/schema.ts";
import type { Origin } from "../moving/registry-client.ts";
import { localLogin, remoteLogin, type Login } from "./credentials.ts";
import { UsageError, type CommandIo } from "./io.ts";
import { pinnedTo } from "./pinned.ts";

const ANSWER_WITHIN_MS = 10_000;
/** The daemon tells its progress four times a second. */
const SILENCE_MS = 30_000;

type Change = "POST" | "PUT" | "PATCH" | "DELETE";

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

/** Where a daemon is reached. */
export interface Place {
  /** An http or https URL, or `unix:/path`. */
  address: string;
  /** File of the certificate that it has to show; undefined: one that the system trusts. */
  certificate?: string | undefined;
  /** What is presented there; undefined: nothing. */
  login?: Login | undefined;
}

/** Where requests to a daemon go, and how. @throws UsageError for an address that is none */
export function originOf({ address, certificate, login }: Place): Origin {
  const socketPath = /^unix:(?:\/\/)?(\/.+)$/.exec(address)?.[1];
  if (socketPath === undefined && !(URL.canParse(address) && /^https?:$/.test(new URL(address).protocol))) {
    throw new UsageError(`"${address}" is no address of a daemon: write http://host:port or unix:/path`);
  }
  const timeout = ANSWER_WITHIN_MS;
  if (socketPath !== undefined) return { origin: "http://localhost", connect: { timeout, socketPath }, login };
  const connect = certificate === undefined ? { timeout } : pinnedTo(certificate, timeout);
  return { origin: address.replace(/\/+$/, ""), connect, login };
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
  if (server !== undefined) return new Daemon(remotePlace(server, env));
  return new Daemon(await localPlace((await loadConfig({ file, env })).config, env));
}

/** Where `--server` leads. It may be anybody's: it is never told the secret of this machine's operator. @throws UsageError */
export function remotePlace(server: string, env: NodeJS.ProcessEnv): Place {
  return { address: server, login: remoteLogin(env) };
}

/**
 * Where the daemon of this machine is.
 * @throws UsageError where the configuration does not tell; NoDaemon where none runs: whoever else listens there is not told the secret
 */
export async function localPlace({ server, storage }: Config, env: NodeJS.ProcessEnv): Promise<Place> {
  const [root, place] = [resolve(storage.root), localAddress(server)];
  const { isUnused } = await import("../db/lock.ts");
  if (isUnused(root)) throw noDaemon(place.address, `none has ${root} in use`);
  return { ...place, login: await localLogin(root, env) };
}

/** @throws NoDaemon where nobody answers */
export async function assertAnswers(place: Place): Promise<void> {
  await using daemon = new Daemon(place);
  const { body } = await daemon.ask("GET", "/v2/");
  await body.toArray();
}

function noDaemon(address: string, reason: string, options?: ErrorOptions): NoDaemon {
  return new NoDaemon(
    `no daemon answers at ${address} (${reason}): start it with "entrepot serve", or name another with --server`,
    options,
  );
}

/** The running daemon, as commands talk to it. */
export class Daemon implements AsyncDisposable {
  /** As a person would write it: `http://127.0.0.1:5000` or `unix:/path`. */
  readonly address: string;
  readonly #origin: string;
  readonly #agent: Agent;
  readonly #login: Login | undefined;

  /** @param place an address stands for a place that the system's authorities vouch for. @throws UsageError where it is none */
  constructor(place: Place | string) {
    const { address, certificate, login }: Place = typeof place === "string" ? { address: place } : place;
    const { origin, connect } = originOf({ address, certificate });
    this.#login = login;
    this.address = address.replace(/\/+$/, "");
    this.#origin = origin;
    this.#agent = new Agent(connect ? { connect } : {});
  }

  /**
   * Asks with a JSON body, or without one.
   * @param silenceMs how long the answer's body may pause; 0: as long as it likes
   * @param answerMs how long its head may take; 0 as above
   * @throws NoDaemon that names cause and remedy, where nobody answers
   */
  async ask(
    method: "GET" | Change,
    path: string,
    body?: object,
    silenceMs = SILENCE_MS,
    answerMs = ANSWER_WITHIN_MS,
  ): Promise<{ status: number; body: Readable }> {
    try {
      const answer = await request(`${this.#origin}${path}`, {
        method,
        dispatcher: this.#agent,
        headers: {
          accept: "text/plain, */*",
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...(this.#login?.authorization === undefined ? {} : { authorization: this.#login.authorization }),
        },
        body: body === undefined ? null : JSON.stringify(body),
        bodyTimeout: silenceMs,
        headersTimeout: answerMs,
      });
      return { status: answer.statusCode, body: answer.body };
    } catch (cause) {
      throw noDaemon(this.address, reasonOf(cause), { cause });
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

  /**
   * Reads a text that may be longer than memory, at the reader's pace. It errors where the daemon goes away before its end.
   * @throws as {@link read}
   */
  async text(path: string): Promise<Readable> {
    // What is looked through may have nothing to tell of for minutes; a daemon that ends closes the connection.
    const { status, body } = await this.ask("GET", path, undefined, 0);
    if (status === 200) return body;
    throw this.#refusal(status, await textOf(body));
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

  /**
   * Watches what the daemon tells for as long as it runs: the data of server-sent events. It may end at any time: look at the state anew then.
   * @param signal ends it
   * @throws as {@link read}, before the first event
   */
  async watch<Event>(path: string, signal: AbortSignal): Promise<AsyncIterable<Event>> {
    const { status, body } = await this.ask("GET", path);
    if (status === 200) return watched<Event>(body, signal);
    throw this.#refusal(status, await textOf(body));
  }

  /**
   * Asks for a change; a DELETE has no body.
   * @param answerMs how long it may take; 0: as long as it likes
   * @returns the JSON of the answer; undefined where it has none
   * @throws NoDaemon; Error with what it says where it refuses
   */
  async change<Answer>(
    path: string,
    input: object = {},
    method: Change = "POST",
    answerMs = ANSWER_WITHIN_MS,
  ): Promise<Answer> {
    const { status, body } = await this.ask(
      method,
      path,
      method === "DELETE" ? undefined : input,
      SILENCE_MS,
      answerMs,
    );
    const text = await textOf(body);
    if (status >= 200 && status < 300) return (text === "" ? undefined : JSON.parse(text)) as Answer;
    throw this.#refusal(status, text);
  }

  #refusal(status: number, text: string): Error {
    const why = detailOf(text) ?? "is it an entrepot?";
    return new Error(
      `${this.address} answered ${status}: ${why}${status === 401 && this.#login ? `; ${this.#login.remedy}` : ""}`,
    );
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
 * Where a daemon of this configuration is reached from its own machine.
 * @throws UsageError where the configuration does not tell
 */
export function localAddress({ listen, tls }: Pick<Config["server"], "listen" | "tls">): Place {
  const address = parseListen(listen);
  if (address && "path" in address) return { address: listen };
  if (!address || address.port === 0) {
    throw new UsageError(`server.listen is ${listen}, which does not tell the daemon's port: name it with --server`);
  }
  const { host = "127.0.0.1", port } = address;
  const name = host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "[::1]" : host.includes(":") ? `[${host}]` : host;
  return { address: `${tls ? "https" : "http"}://${name}:${port}`, certificate: tls?.certificate };
}

async function* watched<Event>(body: Readable, signal: AbortSignal): AsyncGenerator<Event> {
  const leave = (): void => void body.destroy();
  signal.addEventListener("abort", leave);
  // What is left before its end says so.
  body.on("error", () => undefined);
  let text = "";
  try {
    for await (const chunk of body.setEncoding("utf8") as AsyncIterable<string>) {
      const lines = `${text}${chunk}`.split("\n");
      text = lines.pop() ?? "";
      for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6)) as Event;
    }
  } catch (error) {
    // That it ended is all there is to say of a lost connection.
    if (error instanceof SyntaxError) throw error;
  } finally {
    signal.removeEventListener("abort", leave);
    body.destroy();
  }
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
