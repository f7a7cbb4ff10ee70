import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import type { Digest } from "../oci/digest.ts";

/** A file outside of the store that should be the content of a digest. */
export interface ForeignFile {
  digest: Digest;
  /** Absolute. Its last component must be no symbolic link. */
  path: string;
  sizeBytes: number;
}

/** What a thread is asked for. */
export type FileTask =
  | { verb: "sync"; folder: string }
  | { verb: "prove"; file: ForeignFile }
  /** [from, from + bytes) of the file is written into another that is there, at a place of its own. */
  | { verb: "copy"; file: ForeignFile; from: number; bytes: number; into: string; at: number }
  | {
      verb: "place";
      file: ForeignFile;
      place: string;
      /** Where a copy is written before it is whole. */
      temporary: string;
      /** Bytes that were written before are on the disk; undefined: it is not known of any. */
      syncedAtMs: number | undefined;
    };

/** Why a file is not taken; else whether its bytes had to be copied. */
export type FileOutcome = { copied: boolean } | { reason: string };

/** The disk can't take any more: there is no use in going on with the next file. */
export type FileAnswer = { outcomes: FileOutcome[] } | { message: string; code: string | undefined };

/** So many files a message: one costs as much as a few system calls. */
const FILES_PER_MESSAGE = 32;
/** No more of them: between two messages a run can be ended. */
const BYTES_PER_MESSAGE = 256 * 1024 ** 2;
const MOST_THREADS = 4;

/**
 * Looks at many files in threads of low priority: there, system calls need no promise each, and hashes take none of the event loop's time.
 * The threads begin with the first task.
 */
export class FileThreads implements AsyncDisposable {
  readonly #idle: FileThread[] = [];
  readonly #waiting: ((thread: FileThread) => void)[] = [];
  readonly #all: FileThread[] = [];

  /**
   * @param done is told of each group of tasks that has been done
   * @returns an outcome for each task, in their order
   * @throws Error with `code` where the store's disk is full or fails; the signal's reason, between two groups of files. No thread looks at
   * any of them any more by then: the caller may give up being alone with them.
   */
  async run(
    tasks: readonly FileTask[],
    signal: AbortSignal,
    done: (tasks: readonly FileTask[]) => void = () => undefined,
  ): Promise<FileOutcome[]> {
    const failed = new AbortController();
    const outcomes = await Promise.allSettled(
      groupsOf(tasks).map(async (group) => {
        const thread = await this.#take();
        try {
          signal.throwIfAborted();
          failed.signal.throwIfAborted();
          const outcomes = await thread.ask(group);
          done(group);
          return outcomes;
        } catch (error) {
          failed.abort(error);
          throw error;
        } finally {
          this.#giveBack(thread);
        }
      }),
    );
    failed.signal.throwIfAborted();
    return outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? outcome.value : []));
  }

  #take(): Promise<FileThread> {
    const idle = this.#idle.pop();
    if (idle) return Promise.resolve(idle);
    if (this.#all.length < Math.min(MOST_THREADS, availableParallelism())) {
      const thread = new FileThread();
      this.#all.push(thread);
      return Promise.resolve(thread);
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #giveBack(thread: FileThread): void {
    const next = this.#waiting.shift();
    if (next) next(thread);
    else this.#idle.push(thread);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#all.map((thread) => thread.end()));
  }
}

function groupsOf(tasks: readonly FileTask[]): FileTask[][] {
  const groups: FileTask[][] = [];
  let bytes = Infinity;
  for (const task of tasks) {
    let last = groups.at(-1);
    if (!last || last.length === FILES_PER_MESSAGE || bytes >= BYTES_PER_MESSAGE) {
      groups.push((last = []));
      bytes = 0;
    }
    last.push(task);
    bytes += task.verb === "sync" ? 0 : task.verb === "copy" ? task.bytes : task.file.sizeBytes;
  }
  return groups;
}

class FileThread {
  readonly #worker = new Worker(new URL("./file-worker.ts", import.meta.url));
  readonly #ended = Promise.withResolvers<never>();
  #answered: PromiseWithResolvers<FileOutcome[]> | undefined;

  constructor() {
    // Whoever asks hears of it; nobody may be asking.
    this.#ended.promise.catch(() => undefined);
    this.#worker.on("message", (answer: FileAnswer) => {
      if ("outcomes" in answer) this.#answered?.resolve(answer.outcomes);
      else this.#answered?.reject(Object.assign(new Error(answer.message), { code: answer.code }));
    });
    this.#worker.once("error", (error) => this.#ended.reject(error));
    this.#worker.once("exit", () => this.#ended.reject(new Error("the thread that looks at files has ended")));
  }

  async ask(tasks: readonly FileTask[]): Promise<FileOutcome[]> {
    const answered = Promise.withResolvers<FileOutcome[]>();
    this.#answered = answered;
    this.#worker.postMessage(tasks, []);
    return Promise.race([answered.promise, this.#ended.promise]);
  }

  /** Also in the middle of a file: it is then as after a kill. */
  async end(): Promise<void> {
    await this.#worker.terminate();
  }
}
