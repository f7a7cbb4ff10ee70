import { setImmediate as turn } from "node:timers/promises";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import type { Config } from "../config/schema.ts";
import type { Database, SqlValue, Writer } from "../db/database.ts";
import { Denials } from "./denials.ts";
import type { NewEvent, Requester, StoredEvent } from "./event.ts";
import {
  COLUMNS,
  eventOf,
  searchEvents,
  walkEvents,
  type EventFilter,
  type EventPage,
  type EventPosition,
  type EventRow,
} from "./search.ts";

export interface JournalDeps {
  db: Database;
  clock: Clock;
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Config["events"];
  log: Logger;
  metrics: Metrics;
  onFault: (operation: string, error: unknown) => void;
}

const WRITE_MS: Milliseconds = 1_000;
const SUM_UP_MS: Milliseconds = 60_000;
/** Rows of a statement: 3 to 10 ms of the thread in the background, and half a millisecond of the event loop to put them into words. */
const BATCH = 500;
/** What may wait: 100,000 events, about 50 MiB. */
const MAX_BATCHES = 200;
/** Less than a batch is written by the event loop, so many at a time, within half a millisecond: the thread, which costs 16 MiB, is for more. */
const FEW = 40;
const EXPIRED_PER_STEP = 500;

/** In the order of {@link INSERT}. */
type NewRow = (SqlValue | undefined)[];

const INSERT = `
  INSERT INTO events (at, action, outcome, repository, subject, tag, digest, media_type, size, actor, address, agent, request_id, detail)
  SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8,
    value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13 FROM jsonb_each(:rows)`;
const EXPIRE = "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < :beforeMs ORDER BY at LIMIT :limit)";

/**
 * The record of what happens to repositories, and of who logs in and who changes what may be done.
 *
 * A change is recorded in its own transaction: there is no push without its event, and no event without its push. Pulls and refusals gather
 * in memory and are written after about a second: a crash takes the last of them. Should they come faster than they can be written, the
 * oldest are dropped, and counted. What is denied over and over is summed up (`denials.ts`).
 */
export class Journal implements AsyncDisposable {
  readonly #deps: JournalDeps;
  readonly #stop = new AbortController();
  readonly #listeners = new Set<() => void>();
  /** Batches; only the last one is still being filled. */
  readonly #waiting: NewRow[][] = [];
  #writing: Promise<void> | undefined;
  readonly #denials = new Denials();
  #summing: Promise<void> | undefined;
  /** Told once, not every second. */
  #dropping = false;
  #failing = false;

  constructor(deps: JournalDeps) {
    this.#deps = deps;
  }

  // ---- writing ----

  /** Records what the transaction does. Once it is committed, {@link recorded} is to be called. */
  async recordWithin(tx: Writer, events: readonly NewEvent[]): Promise<void> {
    const nowMs = this.#deps.clock.now();
    await tx.run(INSERT, { rows: JSON.stringify(events.map((event) => rowOf(event, nowMs))) });
  }

  /** Tells the listeners that there are new events. */
  recorded(): void {
    for (const listener of this.#listeners) listener();
  }

  /** @param listener is called after events were committed @returns ends that */
  onRecorded(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Records soon what nobody relies on: pulls, if they are wanted, logins and refusals. */
  note(event: NewEvent): void {
    if (event.action === "pull" && event.outcome === "done" && !this.#deps.config().pulls) return;
    if (event.outcome === "denied") {
      this.#summing ??= this.#sumUp();
      if (!this.#denials.take(event)) return;
    }
    this.#put(event);
  }

  #put(event: NewEvent): void {
    let batch = this.#waiting.at(-1);
    if (!batch || batch.length >= BATCH) {
      batch = [];
      this.#waiting.push(batch);
      if (this.#waiting.length > MAX_BATCHES) this.#drop();
    }
    batch.push(rowOf(event, this.#deps.clock.now()));
    this.#writing ??= this.#writeSoon();
  }

  async #sumUp(): Promise<void> {
    do {
      await this.#deps.clock.sleep(SUM_UP_MS, this.#stop.signal).catch(() => undefined);
      for (const sum of this.#denials.sums()) this.#put(sum);
    } while (!this.#denials.isEmpty && !this.#stop.signal.aborted);
    this.#summing = undefined;
  }

  #drop(): void {
    const { log, metrics } = this.#deps;
    metrics.eventsDropped.inc(this.#waiting.shift()?.length ?? 0);
    if (!this.#dropping)
      log.warn(
        { waiting: MAX_BATCHES * BATCH },
        "events come faster than they can be recorded: the oldest are dropped",
      );
    this.#dropping = true;
  }

  async #writeSoon(): Promise<void> {
    do {
      await this.#deps.clock.sleep(WRITE_MS, this.#stop.signal).catch(() => undefined);
      await this.#writeAll();
    } while (this.#waiting.length > 0 && !this.#stop.signal.aborted);
    this.#writing = undefined;
  }

  async #writeAll(): Promise<void> {
    const { db, onFault } = this.#deps;
    let isMuch = false;
    for (let batch = this.#waiting.shift(); batch; batch = this.#waiting.shift()) {
      isMuch ||= this.#waiting.length > 0;
      const rest = isMuch ? [] : batch.splice(FEW);
      if (rest.length > 0) this.#waiting.unshift(rest);
      const rows = JSON.stringify(batch);
      try {
        await (isMuch ? db.background : db).transaction("lazy", (tx) => tx.run(INSERT, { rows }));
      } catch (error) {
        // The next time, perhaps: a full disk may have room then.
        this.#waiting.unshift(batch);
        if (!this.#failing) onFault("record events", error);
        this.#failing = true;
        return;
      }
      this.#failing = false;
      this.recorded();
      await turn();
    }
    this.#dropping = false;
  }

  // ---- reading ----

  /** As {@link searchEvents}. */
  list(filter: EventFilter, before: EventPosition | undefined, limit: number): Promise<EventPage> {
    return searchEvents(this.#deps.db, filter, before, limit);
  }

  /** All events that a filter lets through, as {@link walkEvents}, read in the background: millions of rows may be. */
  walk(filter: EventFilter): AsyncGenerator<StoredEvent[]> {
    return walkEvents(this.#deps.db.background, filter);
  }

  /** Events in the order of their commits, after that id (exclusive). */
  async after(id: number, limit: number): Promise<StoredEvent[]> {
    const sql = `SELECT ${COLUMNS} FROM events WHERE id > :id ORDER BY id LIMIT :limit`;
    return (await this.#deps.db.all<EventRow>(sql, { id, limit })).map(eventOf);
  }

  /** The newest event's id; 0: there is none. */
  async last(): Promise<number> {
    const row = await this.#deps.db.get<{ id: number | null }>("SELECT MAX(id) AS id FROM events");
    return row?.id ?? 0;
  }

  // ---- expiry ----

  /**
   * Removes what is older than that, in small steps in the background.
   * @param keepMs 0: nothing goes
   * @param signal ends it between two steps
   * @returns how many events went
   */
  async expire(keepMs: Milliseconds, signal: AbortSignal): Promise<number> {
    const { db, clock } = this.#deps;
    if (keepMs === 0) return 0;
    const beforeMs = clock.now() - keepMs;
    // Mostly there is nothing, which is not worth a thread.
    if (!(await db.get("SELECT 1 FROM events WHERE at < :beforeMs LIMIT 1", { beforeMs }))) return 0;
    for (let removed = 0; ;) {
      const step = await db.background.transaction("lazy", (tx) =>
        tx.run(EXPIRE, { beforeMs, limit: EXPIRED_PER_STEP }),
      );
      removed += step;
      if (step < EXPIRED_PER_STEP || signal.aborted) return removed;
    }
  }

  /** Writes what is waiting. Nothing is noted any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#summing;
    await this.#writing;
  }
}

function rowOf(event: NewEvent, atMs: number): NewRow {
  const { action, outcome, repository, subject, tag, digest, mediaType, sizeBytes, detail } = event;
  const { actor, address, agent, requestId }: Partial<Requester> = event.by;
  return [
    atMs,
    action,
    outcome,
    repository,
    subject,
    tag,
    digest,
    mediaType,
    sizeBytes,
    actor,
    address,
    agent,
    requestId,
    detail,
  ];
}
