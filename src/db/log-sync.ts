import { open, type FileHandle } from "node:fs/promises";

/**
 * Puts the write-ahead log on the disk outside of the event loop: a sync takes 0.3 to 3 ms, and more on a busy disk. One sync serves all who
 * wait when it begins. Once one has failed, all do until a restart: the system may call pages clean that it never wrote, so that a later
 * sync succeeds though what it should keep lies behind a gap.
 */
export class LogSync implements AsyncDisposable {
  readonly #log: FileHandle;
  /** Of the sync that began last; never rejects. */
  #ended: Promise<void> = Promise.resolve();
  /** The one that has not begun yet. */
  #next: Promise<void> | undefined;
  #failure: Error | undefined;

  private constructor(log: FileHandle) {
    this.#log = log;
  }

  /** @param file an open database in WAL mode: its log keeps its place until the last connection closes */
  static async open(file: string): Promise<LogSync> {
    return new LogSync(await open(`${file}-wal`, "r+"));
  }

  /** Resolves when all that was committed before the call survives power loss. @throws Error where the disk fails, or has failed before */
  reach(): Promise<void> {
    // The one that is under way began too early.
    this.#next ??= this.#ended.then(() => {
      this.#next = undefined;
      const sync = this.#sync();
      this.#ended = sync.catch(() => undefined);
      return sync;
    });
    return this.#next;
  }

  async #sync(): Promise<void> {
    if (this.#failure) throw this.#failure;
    try {
      await this.#log.datasync();
    } catch (cause) {
      this.#failure = new Error("the database's log did not reach the disk: restart entrepot once the disk is sound", {
        cause,
      });
      throw this.#failure;
    }
  }

  /** After the last call of `reach`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#next?.catch(() => undefined);
    await this.#ended;
    await this.#log.close();
  }
}
