import { Worker } from "node:worker_threads";
import type { Milliseconds } from "../base/clock.ts";
import type { Params, Reader, Writer } from "./database.ts";

/** A thread costs 16 MiB: it ends once it has had nothing to do for so long. A transaction asks more often than that. */
const IDLE_MS: Milliseconds = 5_000;

/** What the thread is asked for; it answers in the same order. */
export type Question =
  | { verb: "get" | "all" | "run"; by: "reader" | "writer"; sql: string; params: Params }
  | { verb: "exec"; sql: string };
export type Answer = { value: unknown } | { message: string; code: string | undefined };

/** A connection that transactions begin and end on. */
export interface TransactionWriter extends Writer {
  exec(sql: string): Promise<void>;
}

/**
 * The database through a thread of low priority: a statement takes tens of microseconds longer to come back, and none of the event loop's
 * time. For work over many rows that nobody waits for. The thread begins with the first statement.
 */
export class Background implements Reader {
  readonly #file: string;
  #thread: Thread | undefined;

  constructor(file: string) {
    this.#file = file;
  }

  get<Row>(sql: string, params: Params = {}): Promise<Row | undefined> {
    return this.#current().ask({ verb: "get", by: "reader", sql, params });
  }

  all<Row>(sql: string, params: Params = {}): Promise<Row[]> {
    return this.#current().ask({ verb: "all", by: "reader", sql, params });
  }

  /** For one transaction: should the thread die in its middle, the rest of it fails instead of being done outside of it. */
  writer(): TransactionWriter {
    const thread = this.#current();
    return {
      get: (sql, params = {}) => thread.ask({ verb: "get", by: "writer", sql, params }),
      all: (sql, params = {}) => thread.ask({ verb: "all", by: "writer", sql, params }),
      run: (sql, params = {}) => thread.ask({ verb: "run", by: "writer", sql, params }),
      exec: (sql) => thread.ask({ verb: "exec", sql }),
    };
  }

  #current(): Thread {
    if (!this.#thread || this.#thread.ended) this.#thread = new Thread(this.#file);
    return this.#thread;
  }

  async close(): Promise<void> {
    await this.#thread?.end();
  }
}

class Thread {
  ended = false;
  readonly #worker: Worker;
  readonly #asked: PromiseWithResolvers<unknown>[] = [];
  readonly #exit = Promise.withResolvers<void>();
  readonly #idle: NodeJS.Timeout;

  constructor(file: string) {
    this.#worker = new Worker(new URL("./background-worker.ts", import.meta.url), { workerData: { file } });
    this.#worker.on("message", (answer: Answer) => this.#answered(answer));
    this.#worker.once("error", (error) => this.#died(error));
    this.#worker.once("exit", () => {
      this.#died(new Error("the database's background thread has ended"));
      this.#exit.resolve();
    });
    this.#idle = setTimeout(() => void this.end(), IDLE_MS).unref();
  }

  ask<T>(question: Question): Promise<T> {
    if (this.ended) return Promise.reject(new Error("the database's background thread has ended"));
    const asked = Promise.withResolvers<unknown>();
    this.#asked.push(asked);
    this.#idle.refresh();
    this.#worker.postMessage(question, []);
    return asked.promise as Promise<T>;
  }

  #answered(answer: Answer): void {
    const asked = this.#asked.shift();
    if ("value" in answer) asked?.resolve(answer.value);
    else asked?.reject(Object.assign(new Error(answer.message), { code: answer.code }));
  }

  #died(error: Error): void {
    this.ended = true;
    clearTimeout(this.#idle);
    for (const asked of this.#asked.splice(0)) asked.reject(error);
  }

  /** After what it has been asked for. */
  async end(): Promise<void> {
    if (!this.ended) this.#worker.postMessage(undefined, []);
    this.ended = true;
    clearTimeout(this.#idle);
    await this.#exit.promise;
  }
}
