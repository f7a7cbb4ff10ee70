import { Cron } from "croner";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Database, Writer } from "../db/database.ts";
import type { JobQueue, NewJob } from "./queue.ts";
import type { JobRunner } from "./runner.ts";

/** Cron is in UTC. `everyMs` counts from the end of one run to the next: whoever runs them tells by {@link JobSchedule.ended}. */
export type When = { everyMs: Milliseconds } | { cron: string };

export interface Scheduled {
  name: string;
  /** Read whenever it is needed; undefined: never. */
  when: () => When | undefined;
  /** What is added when it is time. It needs a dedupe key: while one is unfinished, no other is added. */
  job: () => NewJob & { dedupe: string };
  /** The first time from then on that it may be added: it is put off until then. Undefined: it may always. */
  opensAtMs?: ((atMs: Milliseconds) => Milliseconds) | undefined;
}

export interface JobScheduleDeps {
  db: Database;
  queue: JobQueue;
  runner: JobRunner;
  clock: Clock;
  log: Logger;
  /** Is called now and then, at least once a minute. */
  look: () => void;
}

/** Timers reach no further than 24 days, a clock may jump, and a configuration may change: so it is looked at once in a while. */
const LOOK_EVERY_MS: Milliseconds = 60_000;

/**
 * Adds jobs again and again, counted over restarts: the first time an interval after the storage was first used. What a stopped daemon has
 * missed is made up for once.
 */
export class JobSchedule {
  readonly #deps: JobScheduleDeps;
  readonly #lists: (() => readonly Scheduled[])[] = [];
  readonly #stop = new AbortController();
  /** Ends the wait for the next look. */
  #wake = new AbortController();
  #looking: Promise<void> | undefined;

  constructor(deps: JobScheduleDeps) {
    this.#deps = deps;
  }

  /** Before the start. */
  add(scheduled: Scheduled): void {
    this.addAll(() => [scheduled]);
  }

  /** Before the start. @param list read at every look: what it names may change */
  addAll(list: () => readonly Scheduled[]): void {
    this.#lists.push(list);
  }

  /** Looks at once: a list has changed. */
  changed(): void {
    this.#wake.abort();
  }

  start(): void {
    this.#looking ??= this.#look();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#wake.abort();
    await this.#looking;
  }

  /** Notes that a run came to its end: the next one is an interval away. */
  ended(name: string): Promise<void> {
    return this.#deps.db.transaction("lazy", (tx) => this.#noteWithin(tx, name));
  }

  async #look(): Promise<void> {
    const { clock, log, look } = this.#deps;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      this.#wake = new AbortController();
      look();
      let waitMs = LOOK_EVERY_MS;
      for (const scheduled of this.#lists.flatMap((list) => list())) {
        try {
          waitMs = Math.min(waitMs, await this.#addIfDue(scheduled));
        } catch (error) {
          log.warn({ operation: `schedule ${scheduled.name}`, err: error }, "upkeep failed in part");
        }
      }
      // Not a signal of both: the one that lasts would remember every sleep.
      if (!signal.aborted) await clock.sleep(waitMs, this.#wake.signal).catch(() => undefined);
    }
  }

  /** When it is added next, as far as is known now: in the past, if it is about to be. @returns undefined: never */
  async dueAtMs(
    { name, when, opensAtMs }: Scheduled,
    nowMs = this.#deps.clock.now(),
  ): Promise<Milliseconds | undefined> {
    const rule = when();
    if (!rule) return undefined;
    const dueAtMs = nextAtMs(rule, (await this.#sinceMs(keyOf(name, rule), nowMs)) ?? nowMs);
    if (dueAtMs === undefined || !opensAtMs) return dueAtMs;
    return opensAtMs(Math.max(dueAtMs, nowMs));
  }

  /** From when on it counts. @returns undefined: from now on */
  async #sinceMs(key: string, nowMs: Milliseconds): Promise<Milliseconds | undefined> {
    const row = await this.#deps.db.get<{ atMs: Milliseconds }>(
      `SELECT ended_at AS "atMs" FROM schedules WHERE name = :key`,
      { key },
    );
    // In the future: the clock was set back, and it would wait for as long.
    return row !== undefined && row.atMs <= nowMs ? row.atMs : undefined;
  }

  /** @returns how long it has to wait */
  async #addIfDue(scheduled: Scheduled): Promise<Milliseconds> {
    const { db, queue, runner, clock } = this.#deps;
    const { name, when, job } = scheduled;
    const rule = when();
    if (!rule) return LOOK_EVERY_MS;
    const nowMs = clock.now();
    const key = keyOf(name, rule);
    if ((await this.#sinceMs(key, nowMs)) === undefined) await this.ended(key);
    const dueAtMs = await this.dueAtMs(scheduled, nowMs);
    if (dueAtMs === undefined) return LOOK_EVERY_MS;
    if (dueAtMs > nowMs) return dueAtMs - nowMs;
    const added = job();
    await db.transaction("durable", async (tx) => {
      await queue.addWithin(tx, added);
      if ("cron" in rule) await this.#noteWithin(tx, key);
    });
    runner.wake(added.kind);
    return LOOK_EVERY_MS;
  }

  async #noteWithin(tx: Writer, name: string): Promise<void> {
    await tx.run(
      `INSERT INTO schedules (name, ended_at) VALUES (:name, :nowMs)
       ON CONFLICT (name) DO UPDATE SET ended_at = excluded.ended_at`,
      { name, nowMs: this.#deps.clock.now() },
    );
  }
}

/** With its expression: a changed one counts from now, not from what the old one has missed by it. */
function keyOf(name: string, rule: When): string {
  return "cron" in rule ? `${name} ${rule.cron}` : name;
}

/** The first time after `sinceMs`. */
function nextAtMs(rule: When, sinceMs: Milliseconds): Milliseconds | undefined {
  if ("everyMs" in rule) return sinceMs + rule.everyMs;
  return new Cron(rule.cron, { timezone: "UTC" }).nextRun(new Date(sinceMs))?.getTime();
}
