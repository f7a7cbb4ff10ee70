import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database } from "../db/database.ts";

/** How far an endpoint has been told, and what keeps it from being told more. */
export interface Cursor {
  /** What came up to this event has been told, set aside, or is not for it. */
  eventId: number;
  /** Of the last success. */
  deliveredAtMs: Milliseconds | undefined;
  /** The last event of the batch that is being tried again; undefined: none is. */
  batchEnd: number | undefined;
  /** How often that batch has failed. */
  attempts: number;
  /** How often in a row the endpoint has failed, whatever it was told. */
  failures: number;
  failingSinceMs: Milliseconds | undefined;
  retryAtMs: Milliseconds | undefined;
  /** Of the last failure, until a success. */
  error: string | undefined;
}

/** A batch that an endpoint did not take however often it was tried. */
export interface Failure {
  id: number;
  firstEvent: number;
  lastEvent: number;
  /** How many of the events in between were for it. */
  events: number;
  error: string;
  atMs: Milliseconds;
  redeliveredAtMs: Milliseconds | undefined;
}

type Nullable<T> = { [Key in keyof T]: Exclude<T[Key], undefined> | (undefined extends T[Key] ? null : never) };

const CURSOR = `SELECT event_id AS "eventId", delivered_at AS "deliveredAtMs", batch_end AS "batchEnd", attempts, failures,
  failing_since AS "failingSinceMs", retry_at AS "retryAtMs", error FROM webhook_cursors WHERE endpoint = :endpoint`;
const FAILURE = `SELECT id, first_event AS "firstEvent", last_event AS "lastEvent", events, error, at AS "atMs",
  redelivered_at AS "redeliveredAtMs" FROM webhook_failures`;

/**
 * What is kept of endpoints. A cursor moves lazily: what power loss takes of that is told once more, which receivers have to stand anyway.
 */
export class WebhookRows {
  readonly #db: Database;
  readonly #clock: Clock;

  constructor(db: Database, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** @param newest where an endpoint begins that is new */
  async open(endpoint: string, newest: number): Promise<Cursor> {
    const known = await this.#find(endpoint);
    if (known) return known;
    // Durable: begun anew after power loss, it would never be told what has happened since.
    await this.#db.transaction("durable", (tx) =>
      tx.run("INSERT INTO webhook_cursors (endpoint, event_id) VALUES (:endpoint, :newest)", { endpoint, newest }),
    );
    return this.cursor(endpoint);
  }

  /** @param endpoint one that has been opened */
  async cursor(endpoint: string): Promise<Cursor> {
    const cursor = await this.#find(endpoint);
    if (!cursor) throw new Error(`the webhook ${endpoint} has no cursor`);
    return cursor;
  }

  async #find(endpoint: string): Promise<Cursor | undefined> {
    const row = await this.#db.get<Nullable<Cursor>>(CURSOR, { endpoint });
    return row && withoutNulls<Cursor>(row);
  }

  /** What came up to this event was not for the endpoint. */
  async skip(endpoint: string, eventId: number): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run("UPDATE webhook_cursors SET event_id = :eventId WHERE endpoint = :endpoint", { endpoint, eventId }),
    );
  }

  /** The endpoint has taken what came up to this event. */
  async delivered(endpoint: string, eventId: number): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `UPDATE webhook_cursors SET event_id = :eventId, delivered_at = :nowMs, batch_end = NULL, attempts = 0, failures = 0,
          failing_since = NULL, retry_at = NULL, error = NULL WHERE endpoint = :endpoint`,
        { endpoint, eventId, nowMs: this.#clock.now() },
      ),
    );
  }

  /** The endpoint did not take the batch after `eventId` that ends with `batchEnd`. */
  async failed(
    endpoint: string,
    failed: { eventId: number; batchEnd: number; retryAtMs: Milliseconds; error: string },
  ): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `UPDATE webhook_cursors SET event_id = :eventId, batch_end = :batchEnd, attempts = attempts + 1, failures = failures + 1,
          failing_since = COALESCE(failing_since, :nowMs), retry_at = :retryAtMs, error = :error WHERE endpoint = :endpoint`,
        { endpoint, ...failed, nowMs: this.#clock.now() },
      ),
    );
  }

  /** The endpoint did not take the batch for the last time: it is set aside, and the next one is its turn. */
  async givenUp(
    endpoint: string,
    given: { eventId: number; retryAtMs: Milliseconds } & Pick<
      Failure,
      "firstEvent" | "lastEvent" | "events" | "error"
    >,
  ): Promise<void> {
    const nowMs = this.#clock.now();
    const { eventId, retryAtMs, firstEvent, lastEvent, events, error } = given;
    await this.#db.transaction("durable", async (tx) => {
      await tx.run(
        `INSERT INTO webhook_failures (endpoint, first_event, last_event, events, error, at)
          VALUES (:endpoint, :firstEvent, :lastEvent, :events, :error, :nowMs)`,
        { endpoint, firstEvent, lastEvent, events, error, nowMs },
      );
      await tx.run(
        `UPDATE webhook_cursors SET event_id = :eventId, batch_end = NULL, attempts = 0, failures = failures + 1,
          failing_since = COALESCE(failing_since, :nowMs), retry_at = :retryAtMs, error = :error WHERE endpoint = :endpoint`,
        { endpoint, eventId, retryAtMs, error, nowMs },
      );
    });
  }

  /** Newest first. @param before only those with a smaller id */
  async failures(endpoint: string, before: number | undefined, limit: number): Promise<Failure[]> {
    const rows = await this.#db.all<Nullable<Failure>>(
      `${FAILURE} WHERE endpoint = :endpoint AND id < :before ORDER BY id DESC LIMIT :limit`,
      { endpoint, before: before ?? Number.MAX_SAFE_INTEGER, limit },
    );
    return rows.map(withoutNulls<Failure>);
  }

  async failure(endpoint: string, id: number): Promise<Failure | undefined> {
    const row = await this.#db.get<Nullable<Failure>>(`${FAILURE} WHERE endpoint = :endpoint AND id = :id`, {
      endpoint,
      id,
    });
    return row && withoutNulls<Failure>(row);
  }

  async redelivered(id: number): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run("UPDATE webhook_failures SET redelivered_at = :nowMs WHERE id = :id", { id, nowMs: this.#clock.now() }),
    );
  }

  /** The first event that happened then or later; undefined: there is none. */
  async eventSince(atMs: Milliseconds): Promise<number | undefined> {
    // Pulls are recorded up to some seconds late: the first by time need not be the first by id.
    const row = await this.#db.get<{ id: number | null }>(
      "SELECT MIN(id) AS id FROM (SELECT id FROM events WHERE at >= :atMs ORDER BY at LIMIT 1000) AS early",
      { atMs },
    );
    return row?.id ?? undefined;
  }
}

function withoutNulls<T extends object>(row: Nullable<T>): T {
  return Object.fromEntries(Object.entries(row).map(([key, value]) => [key, value ?? undefined])) as T;
}
