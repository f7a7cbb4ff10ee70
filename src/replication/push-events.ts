/**
 * Starts copies of what is pushed here. A cursor in the journal says how far that has been looked at; a moment after events were recorded,
 * those behind it are read, and what rules are about becomes tasks in the transaction that moves the cursor.
 *
 * Invariants
 * - A push that a rule is about is behind the cursor, or its tasks are in the queue. So a kill or power loss loses nothing, and adds
 *   nothing twice.
 * - While no rule waits for pushes there is no cursor: the first that does begins with what is pushed from then on.
 */
import { givingWay } from "../base/give-way.ts";
import type { Milliseconds } from "../base/clock.ts";
import { SELF } from "../config/replication-checks.ts";
import type { Database, Writer } from "../db/database.ts";
import type { StoredEvent } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import type { RuleBook } from "./rule-book.ts";
import { sourcesOf } from "./rules.ts";
import type { Trigger } from "./tasks.ts";

/** A push to a registry, as rules call it. */
export interface Pushed {
  registry: string;
  repository: RepositoryName;
  /** Undefined: a manifest by its digest. */
  tag: Tag | undefined;
  /** Undefined: it was not told. */
  digest: Digest | undefined;
}

/** Adds the tasks of what was pushed. @returns the kinds of jobs to be woken once it is committed */
export type PushedWithin = (
  tx: Writer,
  pushed: Pushed,
  trigger: Extract<Trigger, "push" | "webhook">,
) => Promise<string[]>;

export interface PushEventsDeps {
  db: Database;
  journal: Journal;
  rules: RuleBook;
  pushedWithin: PushedWithin;
  wake: (kind: string) => void;
  onFault: (operation: string, error: unknown) => void;
}

/** How long events gather: pushes of one image are one look. */
const GATHER_MS: Milliseconds = 20;
const LOOK_AGAIN_MS: Milliseconds = 5_000;
const PAGE_EVENTS = 500;
/** Pushes of a transaction: a millisecond or two of the event loop. */
const MOST_TOGETHER = 20;
/** The cursor is written when it lies so far back, if nothing that it passed was for a rule. */
const MOST_BEHIND = 10_000;

const MOVE = `INSERT INTO replication_cursor (one, event_id) VALUES (1, :eventId)
  ON CONFLICT (one) DO UPDATE SET event_id = excluded.event_id`;

export class PushEvents implements AsyncDisposable {
  readonly #deps: PushEventsDeps;
  readonly #stop = new AbortController();
  #unsubscribe: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #looking: Promise<void> = Promise.resolve();
  /** Events up to this one have been looked at. */
  #seen = 0;
  /** The cursor; undefined: there is none. */
  #written: number | undefined;

  constructor(deps: PushEventsDeps) {
    this.#deps = deps;
  }

  /** Before events are recorded: what was pushed and not looked at before a restart is looked at now. */
  async start(): Promise<void> {
    const { db, journal, rules } = this.#deps;
    const row = await db.get<{ eventId: number }>(`SELECT event_id AS "eventId" FROM replication_cursor`);
    this.#written = row?.eventId;
    const newest = await journal.last();
    // Events that have expired cannot be looked at; a journal that begins anew must not be waited for.
    this.#seen = row && this.#interest() ? Math.min(row.eventId, newest) : newest;
    const unsubscribe = [
      journal.onRecorded(() => this.#lookIn(GATHER_MS)),
      // A rule that is new has a cursor before the first push that it waits for.
      rules.onChanged(() => this.#lookIn(0)),
    ];
    this.#unsubscribe = () => unsubscribe.forEach((end) => end());
    this.#lookIn(0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#unsubscribe?.();
    this.#stop.abort();
    clearTimeout(this.#timer);
    await this.#looking;
    if (this.#written !== undefined && this.#seen > this.#written) await this.#write(this.#seen);
  }

  #lookIn(ms: Milliseconds): void {
    if (this.#timer !== undefined || this.#stop.signal.aborted) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#looking = this.#looking
        .then(() => this.#look())
        .catch((error: unknown) => {
          this.#deps.onFault("look for pushes to be copied", error);
          this.#lookIn(LOOK_AGAIN_MS);
        });
    }, ms);
    this.#timer.unref();
  }

  async #look(): Promise<void> {
    const { db, journal } = this.#deps;
    const interest = this.#interest();
    if (!interest) {
      this.#seen = await journal.last();
      if (this.#written === undefined) return;
      await db.transaction("lazy", (tx) => tx.run("DELETE FROM replication_cursor"));
      this.#written = undefined;
      return;
    }
    for (const giveWay = givingWay(); !this.#stop.signal.aborted; await giveWay()) {
      const page = await journal.after(this.#seen, PAGE_EVENTS);
      const last = page.at(-1);
      if (last === undefined) break;
      const pushes = page.filter(isPush).filter(({ repository }) => interest(repository));
      for (let from = 0; from < pushes.length; from += MOST_TOGETHER) {
        await giveWay();
        await this.#take(pushes.slice(from, from + MOST_TOGETHER));
      }
      this.#seen = last.id;
    }
    if (this.#written === undefined || this.#seen - this.#written >= MOST_BEHIND) await this.#write(this.#seen);
  }

  async #take(pushes: readonly PushEvent[]): Promise<void> {
    const { pushedWithin, wake } = this.#deps;
    const upTo = pushes.at(-1)?.id ?? this.#seen;
    const lanes = await this.#write(upTo, async (tx) => {
      const woken = new Set<string>();
      for (const { repository, tag, digest } of pushes) {
        for (const lane of await pushedWithin(tx, { registry: SELF, repository, tag, digest }, "push")) woken.add(lane);
      }
      return woken;
    });
    this.#seen = upTo;
    for (const lane of lanes ?? []) wake(lane);
  }

  /** Moves the cursor in the transaction of what is done with the events that it passes. */
  async #write<T>(eventId: number, work?: (tx: Writer) => Promise<T>): Promise<T | undefined> {
    // Lazy: what power loss takes of the tasks, it takes of the cursor.
    const result = await this.#deps.db.transaction("lazy", async (tx) => {
      const done = await work?.(tx);
      await tx.run(MOVE, { eventId });
      return done;
    });
    this.#written = eventId;
    return result;
  }

  /** Which repositories some rule waits for; undefined: none does. */
  #interest(): ((repository: RepositoryName) => boolean) | undefined {
    const sets = this.#deps.rules
      .all()
      .filter(({ rule }) => rule.from.registry === SELF && rule.on.push)
      .map(({ rule }) => sourcesOf(rule));
    return sets.length === 0 ? undefined : (repository) => sets.some((set) => set.has(repository));
  }
}

type PushEvent = StoredEvent & { repository: RepositoryName };

function isPush(event: StoredEvent): event is PushEvent {
  return event.action === "push" && event.outcome === "done" && event.repository !== undefined;
}
