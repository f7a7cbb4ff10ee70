/**
 * What replication does right now, told to those who watch. Memory is bounded whatever they do: nobody has a backlog of his own.
 *
 * The newest runs' and tasks' events are kept once for all; each watcher has his place among them, and may come back to it. Whoever falls
 * behind what is kept is told that he has missed something: what is stored tells the rest. Of a task's progress only the newest counts, so a
 * slow watcher loses that first.
 */
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { FeedEvent } from "./tasks.ts";

type Progress = Extract<FeedEvent, { type: "progress" }>;
type Lasting = Exclude<FeedEvent, Progress>;

export interface Told {
  /** Where the watcher is: all runs' and tasks' events up to this id have been told. Progress has none of its own. */
  id: number;
  /** missed: more has happened than is remembered. Look at the state anew. */
  event: FeedEvent | { type: "missed" };
}

export interface FeedLimits {
  /** Events of runs and tasks that are kept for those who are late or come back. */
  events: number;
  /** Tasks whose progress is known. */
  tasks: number;
  /** A watcher is told of progress so often at most. */
  progressMs: Milliseconds;
}

const LIMITS: FeedLimits = { events: 1000, tasks: 1000, progressMs: 100 };

interface Watcher {
  /** Tasks whose progress has changed since he was told. */
  changed: Set<number>;
  wake: () => void;
}

export class Feed {
  readonly #limits: FeedLimits;
  /** Their ids follow each other; the last is {@link #newest}. */
  readonly #events: Lasting[] = [];
  readonly #progress = new Map<number, Progress>();
  readonly #watchers = new Set<Watcher>();
  #newest: number;
  #ended = false;

  /** @param clock its time begins the ids, so that those of an earlier process are known to be old */
  constructor(clock: Clock, limits: FeedLimits = LIMITS) {
    this.#newest = clock.now() * 1000;
    this.#limits = limits;
  }

  publish(event: FeedEvent): void {
    if (event.type === "progress") this.#keepProgress(event);
    else this.#keep(event);
    for (const { wake } of this.#watchers) wake();
  }

  /**
   * Goes on until the signal fires or the feed ends. A watcher is there from the first `next()` on; then it is told how far each task is.
   * @param after where an earlier watcher was; undefined: from now on
   */
  async *subscribe(signal: AbortSignal, after: number = this.#newest): AsyncGenerator<Told, void, void> {
    const watcher: Watcher = { changed: new Set(this.#progress.keys()), wake: () => undefined };
    this.#watchers.add(watcher);
    const leave = (): void => watcher.wake();
    signal.addEventListener("abort", leave);
    let at = after;
    let progressAtMs = -Infinity;
    try {
      while (!signal.aborted) {
        const oldest = this.#newest - this.#events.length;
        if (at < oldest || at > this.#newest) {
          at = at < oldest ? oldest : this.#newest;
          yield { id: at, event: { type: "missed" } };
          continue;
        }
        const event = this.#events[at - oldest];
        if (event) {
          yield { id: ++at, event };
          continue;
        }
        if (this.#ended) return;
        const waitMs = progressAtMs + this.#limits.progressMs - performance.now();
        if (watcher.changed.size === 0 || waitMs > 0) {
          await woken(watcher, watcher.changed.size === 0 ? undefined : waitMs);
          continue;
        }
        progressAtMs = performance.now();
        const tasks = [...watcher.changed];
        watcher.changed.clear();
        for (const task of tasks) {
          const progress = this.#progress.get(task);
          if (progress) yield { id: at, event: progress };
        }
      }
    } finally {
      signal.removeEventListener("abort", leave);
      this.#watchers.delete(watcher);
    }
  }

  /** Nothing more will be told: who watches gets what there is, and is done. */
  end(): void {
    this.#ended = true;
    for (const { wake } of this.#watchers) wake();
  }

  #keep(event: Lasting): void {
    this.#newest++;
    this.#events.push(event);
    if (this.#events.length > this.#limits.events) this.#events.shift();
    // What it came to is told by its end.
    if (event.type === "task" && event.state !== "running") this.#progress.delete(event.task);
  }

  #keepProgress(event: Progress): void {
    // The one that has moved most lately is the last: the first is forgotten.
    this.#progress.delete(event.task);
    this.#progress.set(event.task, event);
    const [stillest] = this.#progress.keys();
    const forgotten = this.#progress.size > this.#limits.tasks ? stillest : undefined;
    if (forgotten !== undefined) this.#progress.delete(forgotten);
    for (const { changed } of this.#watchers) {
      changed.add(event.task);
      if (forgotten !== undefined) changed.delete(forgotten);
    }
  }
}

/** @param withinMs undefined: however long it takes */
function woken(watcher: Watcher, withinMs: Milliseconds | undefined): Promise<void> {
  return new Promise((resolve) => {
    const timer = withinMs === undefined ? undefined : setTimeout(resolve, withinMs);
    watcher.wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}
