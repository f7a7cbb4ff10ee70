import { setImmediate as turn } from "node:timers/promises";
import type { Params, Reader } from "../db/database.ts";
import type { Action, Outcome, StoredEvent } from "./event.ts";

/** All of it has to hold; what is undefined holds always. */
export interface EventFilter {
  repository?: string | undefined;
  subject?: string | undefined;
  actor?: string | undefined;
  action?: Action | undefined;
  outcome?: Outcome | undefined;
  tag?: string | undefined;
  digest?: string | undefined;
  /** Inclusive. */
  sinceMs?: number | undefined;
  /** Exclusive. */
  untilMs?: number | undefined;
}

/** A place in the order of events, newest first: older ones come after it. */
export interface EventPosition {
  atMs: number;
  id: number;
}

export interface EventPage {
  /** Newest first. */
  items: StoredEvent[];
  /** Where to go on. A page that has it may be short, even empty: the journal was looked through as far as that. */
  next: EventPosition | undefined;
}

export type EventRow = {
  [Key in keyof StoredEvent]: undefined extends StoredEvent[Key]
    ? Exclude<StoredEvent[Key], undefined> | null
    : StoredEvent[Key];
};

export const COLUMNS = `id, at AS "atMs", action, outcome, repository, subject, tag, digest, media_type AS "mediaType", size AS "sizeBytes",
  actor, address, agent, request_id AS "requestId", detail`;

/** They lie all over the table: those that the disk has to bring take 0.05 ms each, which requests wait for. */
const LOOKED_AT_PER_TURN = 50;
/** Of a walk: what the event loop copies and words in less than a millisecond. */
const LOOKED_AT_PER_STEP = 100;
const LOOKED_AT_PER_PAGE = 1_500;
/** And for so long: on a busy machine fewer rows do. */
const LOOKING_MS = 5;
const COMPARED = ["repository", "subject", "actor", "action", "outcome", "tag", "digest"] as const;

function newestFirst(which: string): string {
  return `SELECT ${COLUMNS} FROM events WHERE ${which} at >= :sinceMs AND (at, id) < (:beforeMs, :beforeId)
    ORDER BY at DESC, id DESC LIMIT :limit`;
}

// One for each index. What changes something has its own, since there are so many more pulls.
const BY_TIME = newestFirst("");
const BY_REPOSITORY = newestFirst("repository = :repository AND");
const BY_SUBJECT = newestFirst("subject = :subject AND");
const BY_DIGEST = newestFirst("digest = :digest AND substr(digest, 8, 16) = substr(:digest, 8, 16) AND");
const BY_ACTOR = newestFirst("actor = :actor AND");
const NOT_DONE = newestFirst("outcome <> 'done' AND");
const CHANGES_NOT_DONE = newestFirst("action = :action AND action <> 'pull' AND outcome <> 'done' AND");
const CHANGES = newestFirst("action = :action AND action <> 'pull' AND");
const CHANGES_OF_REPOSITORY = newestFirst("repository = :repository AND action <> 'pull' AND");

/**
 * Events that a filter lets through, newest first. Looks at 1,500 rows at most, so that a page takes as long whatever the filter.
 * @param before where the page begins (exclusive); undefined: with the newest event
 * @param limit how many events the page has at most
 */
export async function searchEvents(
  db: Reader,
  filter: EventFilter,
  before: EventPosition | undefined,
  limit: number,
): Promise<EventPage> {
  const { sql, params, exact } = queryFor(filter);
  let place = beginningOf(filter);
  if (before && before.atMs < place.atMs) place = before;
  const items: StoredEvent[] = [];
  const endMs = performance.now() + LOOKING_MS;
  for (let lookedAt = 0; lookedAt < LOOKED_AT_PER_PAGE && (lookedAt === 0 || performance.now() < endMs);) {
    const asked = exact ? Math.min(limit - items.length, LOOKED_AT_PER_TURN) : LOOKED_AT_PER_TURN;
    const bounds = { sinceMs: filter.sinceMs ?? 0, beforeMs: place.atMs, beforeId: place.id, limit: asked };
    const rows = await db.all<EventRow>(sql, { ...params, ...bounds });
    for (const row of rows) {
      place = { atMs: row.atMs, id: row.id };
      if (letsThrough(filter, row)) items.push(eventOf(row));
      if (items.length === limit) return { items, next: place };
    }
    if (rows.length < asked) return { items, next: undefined };
    lookedAt += rows.length;
    // SQLite answers within the same turn: let requests have theirs.
    await turn();
  }
  return { items, next: place };
}

/**
 * All events that a filter lets through, newest first, some at a time, perhaps none. Nothing is held between two steps: what is recorded
 * meanwhile is not among them, what expires meanwhile may be missing.
 */
export async function* walkEvents(db: Reader, filter: EventFilter): AsyncGenerator<StoredEvent[]> {
  const { sql, params } = queryFor(filter);
  for (let place = beginningOf(filter); ;) {
    const bounds = {
      sinceMs: filter.sinceMs ?? 0,
      beforeMs: place.atMs,
      beforeId: place.id,
      limit: LOOKED_AT_PER_STEP,
    };
    const rows = await db.all<EventRow>(sql, { ...params, ...bounds });
    yield rows.filter((row) => letsThrough(filter, row)).map(eventOf);
    const last = rows.at(-1);
    if (!last || rows.length < LOOKED_AT_PER_STEP) return;
    place = { atMs: last.atMs, id: last.id };
  }
}

function beginningOf({ untilMs }: EventFilter): EventPosition {
  return { atMs: untilMs ?? Number.MAX_SAFE_INTEGER, id: 0 };
}

function letsThrough(filter: EventFilter, row: EventRow): boolean {
  return COMPARED.every((key) => filter[key] === undefined || filter[key] === row[key]);
}

export function eventOf(row: EventRow): StoredEvent {
  return {
    ...row,
    repository: row.repository ?? undefined,
    subject: row.subject ?? undefined,
    tag: row.tag ?? undefined,
    digest: row.digest ?? undefined,
    mediaType: row.mediaType ?? undefined,
    sizeBytes: row.sizeBytes ?? undefined,
    actor: row.actor ?? undefined,
    address: row.address ?? undefined,
    agent: row.agent ?? undefined,
    requestId: row.requestId ?? undefined,
    detail: row.detail ?? undefined,
  };
}

interface Query {
  sql: string;
  params: Params;
  /** Every row of it is one that the filter lets through. */
  exact: boolean;
}

/** By the index that leads past the fewest other rows. */
function queryFor(filter: EventFilter): Query {
  const { repository, subject, actor, action, outcome, digest } = filter;
  const exact = COMPARED.filter((key) => filter[key] !== undefined).length <= 1;
  const changes = action !== undefined && action !== "pull";
  if (digest !== undefined) return { sql: BY_DIGEST, params: { digest }, exact };
  if (subject !== undefined) return { sql: BY_SUBJECT, params: { subject }, exact };
  if (actor !== undefined) return { sql: BY_ACTOR, params: { actor }, exact };
  if (outcome === "denied" || outcome === "failed") {
    if (changes) return { sql: CHANGES_NOT_DONE, params: { action }, exact: false };
    return { sql: NOT_DONE, params: {}, exact: false };
  }
  if (repository !== undefined && changes) return { sql: CHANGES_OF_REPOSITORY, params: { repository }, exact: false };
  if (repository !== undefined) return { sql: BY_REPOSITORY, params: { repository }, exact };
  if (changes) return { sql: CHANGES, params: { action }, exact };
  return { sql: BY_TIME, params: {}, exact: COMPARED.every((key) => filter[key] === undefined) };
}
