import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database } from "../db/database.ts";
import type { UploadSession } from "../remote/target.ts";
import type { UploadMemory } from "./copy-blob.ts";

/** No registry keeps an upload that long. */
const LIFE_MS: Milliseconds = 7 * 86_400_000;
/** Small blobs come and go within it, and are never written down. */
const FLUSH_MS: Milliseconds = 200;

const session = z.object({ location: z.string(), offsetBytes: z.int(), chunkMinBytes: z.int() });

interface Remembered {
  session: UploadSession;
  atMs: Milliseconds;
}

/** How far uploads to targets have come, so that they are gone on with after a restart: kept in memory, and written down a moment later. */
export class UploadSessions implements UploadMemory, AsyncDisposable {
  readonly #db: Database;
  readonly #clock: Clock;
  readonly #onFault: (operation: string, error: unknown) => void;
  readonly #sessions: Map<string, Remembered>;
  /** What the table does not say yet. */
  readonly #changed = new Set<string>();
  readonly #stop = new AbortController();
  #flushing: Promise<void> | undefined;

  private constructor(
    { db, clock, onFault }: { db: Database; clock: Clock; onFault: (operation: string, error: unknown) => void },
    sessions: Map<string, Remembered>,
  ) {
    this.#db = db;
    this.#clock = clock;
    this.#onFault = onFault;
    this.#sessions = sessions;
  }

  /** Reads what an earlier process has left behind. @param deps `onFault` is told of what could not be written down: it is then known to this process only */
  static async open(deps: {
    db: Database;
    clock: Clock;
    onFault: (operation: string, error: unknown) => void;
  }): Promise<UploadSessions> {
    const { db, clock } = deps;
    const rows = await db.all<{ key: string; session: string; at: Milliseconds }>(
      "SELECT key, session, at FROM replication_uploads WHERE at > :since",
      { since: clock.now() - LIFE_MS },
    );
    const known = rows.map(({ key, session: text, at }): [string, Remembered] => [
      key,
      { session: session.parse(JSON.parse(text)), atMs: at },
    ]);
    return new UploadSessions(deps, new Map(known));
  }

  get(key: string): UploadSession | undefined {
    const found = this.#sessions.get(key);
    return found && this.#clock.now() - found.atMs < LIFE_MS ? found.session : undefined;
  }

  set(key: string, given: UploadSession): void {
    this.#sessions.set(key, { session: given, atMs: this.#clock.now() });
    this.#note(key);
  }

  delete(key: string): boolean {
    const was = this.#sessions.delete(key);
    if (was) this.#note(key);
    return was;
  }

  /** Writes down what has changed. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#flushing;
    if (this.#changed.size > 0) await this.#write();
  }

  #note(key: string): void {
    this.#changed.add(key);
    this.#flushing ??= this.#flushLater();
  }

  async #flushLater(): Promise<void> {
    await sleep(FLUSH_MS, undefined, { signal: this.#stop.signal }).catch(() => undefined);
    this.#flushing = undefined;
    await this.#write();
  }

  async #write(): Promise<void> {
    const keys = [...this.#changed];
    this.#changed.clear();
    try {
      await this.#db.transaction("lazy", async (tx) => {
        for (const key of keys) {
          const found = this.#sessions.get(key);
          if (!found) await tx.run("DELETE FROM replication_uploads WHERE key = :key", { key });
          else {
            await tx.run(
              `INSERT INTO replication_uploads (key, session, at) VALUES (:key, :session, :at)
                 ON CONFLICT (key) DO UPDATE SET session = excluded.session, at = excluded.at`,
              { key, session: JSON.stringify(found.session), at: found.atMs },
            );
          }
        }
        await tx.run("DELETE FROM replication_uploads WHERE at <= :since", { since: this.#clock.now() - LIFE_MS });
      });
    } catch (error) {
      for (const key of keys) this.#changed.add(key);
      this.#onFault("remember uploads", error);
    }
  }
}
