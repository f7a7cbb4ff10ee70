/**
 * Tells endpoints what happens. There is no row for a delivery: an endpoint has a cursor in the journal, and, while something lies behind it
 * that is for the endpoint, one job (kind `webhook`, its name the dedupe key) that posts it in batches, in order, until nothing is left.
 *
 * Invariants
 * - An event is behind the cursor of an endpoint that wants it until the endpoint has answered 2xx, or the batch was set aside as a failure
 *   after `attempts` tries. So a kill or power loss loses nothing; it may tell the last batch twice.
 * - An endpoint has one request under way, besides pings and what is redelivered by hand: events arrive in the order of their ids.
 * - A batch that has failed is tried again as it was, under the same delivery id, and nothing after it is told before.
 * - Pushes do nothing for endpoints. The journal says that there is something; a moment later one read finds out for whom.
 *
 * A failing endpoint is asked again after 1 s to 1 h, by how often in a row it has failed, also when its next batch has its turn.
 */
import { backoffMs, type RetryPolicy } from "../base/retry.ts";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import type { WebhookConfig } from "../config/schema.ts";
import type { Database } from "../db/database.ts";
import type { JobQueue } from "../jobs/queue.ts";
import { exponential, Later, type JobContext, type JobRunner, type Outcome } from "../jobs/runner.ts";
import { DeliveryError } from "./deliver.ts";
import { Endpoint } from "./endpoint.ts";
import type { Batch, Origin } from "./envelope.ts";
import type { StoredEvent } from "./event.ts";
import type { Journal } from "./journal.ts";
import { Redelivery } from "./redelivery.ts";
import { WebhookRows, type Cursor, type Failure } from "./webhook-rows.ts";

export interface WebhooksDeps {
  db: Database;
  journal: Journal;
  queue: JobQueue;
  runner: JobRunner;
  clock: Clock;
  log: Logger;
  metrics: Metrics;
  config: readonly WebhookConfig[];
  origin: Origin;
  onFault: (operation: string, error: unknown) => void;
}

/** An endpoint as it is now. */
export interface WebhookState {
  config: WebhookConfig;
  cursor: Cursor;
  /** Events that were recorded since the last one that it has been told or does not want. */
  pending: number;
}

/** What is posted again by hand, in order: events from `first` to `last` (undefined: the newest) that the endpoint wants. */
export type Range = { first: number; last: number | undefined } | { sinceMs: Milliseconds };

const DELIVER = "webhook";

/** How long events gather: a thousand pushes a second are a few requests. */
const GATHER_MS: Milliseconds = 200;
/** While events keep coming, they gather for longer: ten endpoints are ten requests a second, not fifty. */
const BETWEEN_LOOKS_MS: Milliseconds = 1_000;
/** How long a job that has nothing left waits for more: under steady load it is one job, not five a second. */
const LINGER_MS: Milliseconds = 2_000;
const LOOK_AGAIN_MS: Milliseconds = 5_000;
/** About 2 ms of the event loop. */
const PAGE_EVENTS = 500;
/** An idle endpoint's cursor is written when it lies so far back: what it does not want is looked at again after a restart. */
const MOST_BEHIND = 10_000;
const PAUSES: RetryPolicy = { attempts: Infinity, baseMs: 2_000, maxMs: 3_600_000 };

interface Payload {
  endpoint: string;
}

export class Webhooks implements AsyncDisposable {
  readonly #deps: WebhooksDeps;
  readonly #rows: WebhookRows;
  readonly #endpoints = new Map<string, Endpoint>();
  readonly #redelivery: Redelivery;
  readonly #stop = new AbortController();
  readonly #unsubscribe: () => void;
  /** Pages that endpoints have read since the last look: all of them are at the same place, mostly. */
  readonly #pages = new Map<number, StoredEvent[]>();
  #timer: NodeJS.Timeout | undefined;
  /** Monotonic. */
  #lookedAtMs: Milliseconds = -Infinity;
  #looking: Promise<void> = Promise.resolve();

  constructor(deps: WebhooksDeps) {
    this.#deps = deps;
    this.#rows = new WebhookRows(deps.db, deps.clock);
    for (const config of deps.config) {
      this.#endpoints.set(config.name, new Endpoint(config, deps));
    }
    // A lane for each: one that answers slowly holds up no other.
    const concurrency = Math.max(1, this.#endpoints.size);
    deps.runner.register<Payload, never, void>({
      kind: DELIVER,
      parse: (payload) => payload as Payload,
      concurrency,
      attempts: 10,
      backoffMs: exponential(1_000, 60_000),
      run: (payload, context) => this.#run(payload, context),
      ended: (payload, outcome) => this.#ended(payload, outcome),
    });
    this.#redelivery = new Redelivery({ ...deps, rows: this.#rows, endpoints: this.#endpoints });
    deps.metrics.onScrape(() => this.#expose());
    this.#unsubscribe = deps.journal.onRecorded(() => {
      if (this.#timer === undefined) {
        this.#lookIn(Math.max(GATHER_MS, this.#lookedAtMs + BETWEEN_LOOKS_MS - performance.now()));
      }
    });
  }

  /** Before events are recorded and jobs run: an endpoint that is new begins here, one that is behind is told at once. */
  async start(): Promise<void> {
    if (this.#endpoints.size === 0) return;
    const newest = await this.#deps.journal.last();
    for (const endpoint of this.#endpoints.values()) {
      const { eventId } = await this.#rows.open(endpoint.name, newest);
      endpoint.seen = eventId;
      endpoint.written = eventId;
    }
    // What waits for its next try waits no longer: a restart may be what repairs it.
    const { queue } = this.#deps;
    for (const job of await queue.list({ kind: DELIVER, state: "queued", limit: 1000 })) await queue.cancel(job.id);
    await this.#look();
  }

  async states(): Promise<WebhookState[]> {
    return Promise.all([...this.#endpoints.values()].map((endpoint) => this.#stateOf(endpoint)));
  }

  /** @returns undefined: no endpoint has this name, as with what follows */
  async state(name: string): Promise<WebhookState | undefined> {
    const endpoint = this.#endpoints.get(name);
    return endpoint && this.#stateOf(endpoint);
  }

  async #stateOf({ name, config, seen }: Endpoint): Promise<WebhookState> {
    const pending = Math.max(0, (await this.#deps.journal.last()) - seen);
    return { config, cursor: await this.#rows.cursor(name), pending };
  }

  /** Newest first. @param before only those with a smaller id */
  async failures(name: string, before: number | undefined, limit: number): Promise<Failure[] | undefined> {
    return this.#endpoints.has(name) ? this.#rows.failures(name, before, limit) : undefined;
  }

  /** @returns the id of the job that posts it again; undefined also where there is no such failure */
  async redeliverFailure(name: string, id: number): Promise<number | undefined> {
    const failure = this.#endpoints.has(name) ? await this.#rows.failure(name, id) : undefined;
    if (!failure) return undefined;
    return this.#redelivery.add({ endpoint: name, first: failure.firstEvent, last: failure.lastEvent, failure: id });
  }

  /** @returns the id of the job that posts these events again; those that are not kept any more are left out */
  async redeliver(name: string, range: Range): Promise<number | undefined> {
    if (!this.#endpoints.has(name)) return undefined;
    const newest = await this.#deps.journal.last();
    if ("first" in range)
      return this.#redelivery.add({ endpoint: name, first: range.first, last: range.last ?? newest });
    const first = (await this.#rows.eventSince(range.sinceMs)) ?? newest + 1;
    return this.#redelivery.add({ endpoint: name, first, last: newest });
  }

  /**
   * Posts an event that tells of nothing, once, and waits 5 s at most.
   * @param id a UUID
   * @returns why it was not taken, if so; undefined: no endpoint has this name
   */
  async ping(name: string, id: string, signal: AbortSignal): Promise<{ error: string | undefined } | undefined> {
    const endpoint = this.#endpoints.get(name);
    if (!endpoint) return undefined;
    try {
      await endpoint.ping(id, AbortSignal.any([signal, this.#stop.signal]));
      return { error: undefined };
    } catch (error) {
      if (!(error instanceof DeliveryError)) throw error;
      return { error: error.message };
    }
  }

  /** To be called when no job runs any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#unsubscribe();
    this.#stop.abort();
    clearTimeout(this.#timer);
    await this.#looking;
    for (const endpoint of this.#endpoints.values()) {
      if (endpoint.seen > endpoint.written) await this.#rows.skip(endpoint.name, endpoint.seen);
      await endpoint[Symbol.asyncDispose]();
    }
  }

  // ---- finding out for whom there is something ----

  #lookIn(ms: Milliseconds): void {
    if (this.#endpoints.size === 0 || this.#timer !== undefined || this.#stop.signal.aborted) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#lookedAtMs = performance.now();
      this.#looking = this.#looking
        .then(() => this.#look())
        .catch((error: unknown) => {
          this.#deps.onFault("look for webhooks", error);
          this.#lookIn(LOOK_AGAIN_MS);
        });
    }, ms);
    this.#timer.unref();
  }

  async #look(): Promise<void> {
    this.#pages.clear();
    for (const endpoint of this.#endpoints.values()) {
      if (!endpoint.working) {
        if (await this.#isBehind(endpoint)) await this.#begin(endpoint);
        continue;
      }
      endpoint.news = true;
      endpoint.wake?.();
    }
  }

  /** Moves on to the first event that the endpoint wants. */
  async #isBehind(endpoint: Endpoint): Promise<boolean> {
    while (!this.#stop.signal.aborted) {
      const page = await this.#pageAfter(endpoint.seen);
      const last = page.at(-1);
      if (last === undefined) return false;
      if (page.some((event) => endpoint.wants(event))) return true;
      await this.#skip(endpoint, last.id);
    }
    return false;
  }

  async #skip(endpoint: Endpoint, eventId: number): Promise<void> {
    endpoint.seen = eventId;
    if (eventId - endpoint.written < MOST_BEHIND) return;
    await this.#rows.skip(endpoint.name, eventId);
    endpoint.written = eventId;
  }

  async #begin(endpoint: Endpoint): Promise<void> {
    endpoint.working = true;
    try {
      await this.#deps.queue.add({ kind: DELIVER, payload: { endpoint: endpoint.name }, dedupe: endpoint.name });
    } catch (error) {
      endpoint.working = false;
      throw error;
    }
    this.#deps.runner.wake(DELIVER);
  }

  async #pageAfter(eventId: number): Promise<StoredEvent[]> {
    const known = this.#pages.get(eventId);
    if (known) return known;
    const page = await this.#deps.journal.after(eventId, PAGE_EVENTS);
    // A page that is not full misses nothing for good: whoever has read it asks for what comes after its last event.
    if (page.length > 0) this.#pages.set(eventId, page);
    if (this.#pages.size > 4) this.#pages.clear();
    return page;
  }

  // ---- jobs ----

  async #run({ endpoint: name }: Payload, { signal }: JobContext<never>): Promise<void> {
    const endpoint = this.#endpoints.get(name);
    // One that is configured no more keeps its cursor.
    if (!endpoint) return;
    endpoint.working = true;
    let cursor = await this.#rows.cursor(name);
    while (!signal.aborted) {
      endpoint.news = false;
      const page = await this.#pageAfter(endpoint.seen);
      const last = page.at(-1);
      if (last === undefined) {
        if (!(await this.#more(endpoint, signal))) return;
        continue;
      }
      const wanted = page.filter((event) => endpoint.wants(event));
      if (wanted.length === 0) await this.#skip(endpoint, last.id);
      while (wanted.length > 0) {
        // Settings may have changed since the batch failed: then there may be nothing of it to try again.
        const again = wanted.filter(({ id }) => cursor.batchEnd !== undefined && id <= cursor.batchEnd);
        const batch = endpoint.pack(again.length > 0 ? again : wanted);
        wanted.splice(0, batch.events.length);
        const before = endpoint.seen;
        const upTo = wanted.length > 0 ? (batch.events.at(-1) as StoredEvent).id : last.id;
        await this.#deliver(endpoint, batch, cursor, { before, upTo }, signal);
        if (cursor.failures > 0) cursor = await this.#rows.cursor(name);
      }
    }
    signal.throwIfAborted();
  }

  /** @throws Later where the endpoint does not take it */
  async #deliver(
    endpoint: Endpoint,
    batch: Batch,
    cursor: Cursor,
    { before, upTo }: { before: number; upTo: number },
    signal: AbortSignal,
  ): Promise<void> {
    const { log } = this.#deps;
    const { name } = endpoint;
    try {
      await endpoint.post(batch, signal);
    } catch (error) {
      if (!(error instanceof DeliveryError)) throw error;
      await this.#failed(endpoint, batch, cursor, { before, upTo }, error);
    }
    await this.#rows.delivered(name, upTo);
    endpoint.seen = upTo;
    endpoint.written = upTo;
    if (cursor.failures > 0) log.info({ endpoint: name, failures: cursor.failures }, "a webhook takes events again");
  }

  async #failed(
    endpoint: Endpoint,
    { events }: Batch,
    cursor: Cursor,
    { before, upTo }: { before: number; upTo: number },
    error: DeliveryError,
  ): Promise<never> {
    const { log, clock, metrics } = this.#deps;
    const { name, config } = endpoint;
    const [first, last] = [events[0] as StoredEvent, events.at(-1) as StoredEvent];
    const pauseMs = backoffMs(PAUSES, cursor.failures + 1, 0.5 + Math.random() / 2);
    const retryAtMs = clock.now() + Math.round(Math.min(PAUSES.maxMs, Math.max(pauseMs, error.retryAfterMs ?? 0)));
    if (cursor.failures === 0) {
      log.warn({ endpoint: name, reason: error.message }, "a webhook does not take events: it is tried again");
    }
    if (cursor.attempts + 1 < config.attempts) {
      await this.#rows.failed(name, { eventId: before, batchEnd: last.id, retryAtMs, error: error.message });
      endpoint.written = before;
    } else {
      const failure = { firstEvent: first.id, lastEvent: last.id, events: events.length, error: error.message };
      await this.#rows.givenUp(name, { ...failure, eventId: upTo, retryAtMs });
      endpoint.seen = upTo;
      endpoint.written = upTo;
      metrics.webhookDeliveries.inc({ endpoint: name, result: "given_up" });
      log.error(
        { endpoint: name, ...failure },
        "a webhook did not take events however often they were sent: they are set aside",
      );
    }
    throw new Later(error.message, retryAtMs, { cause: error });
  }

  /** Waits a while for a look to find more. */
  async #more(endpoint: Endpoint, signal: AbortSignal): Promise<boolean> {
    if (endpoint.news) return true;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, LINGER_MS);
    const end = (): void => resolve();
    signal.addEventListener("abort", end, { once: true });
    endpoint.wake = resolve;
    await promise;
    endpoint.wake = undefined;
    // The job may wait a million times.
    signal.removeEventListener("abort", end);
    clearTimeout(timer);
    return endpoint.news;
  }

  #ended({ endpoint: name }: Payload, { how }: Outcome<void>): void {
    const endpoint = this.#endpoints.get(name);
    if (!endpoint || how === "later" || how === "failed" || how === "stopped" || how === "paused") return;
    endpoint.working = false;
    // What was recorded between its last look and its end.
    if (how === "done") this.#lookIn(0);
    else this.#lookIn(LOOK_AGAIN_MS);
  }

  async #expose(): Promise<void> {
    if (this.#endpoints.size === 0) return;
    const newest = await this.#deps.journal.last();
    for (const { name, seen } of this.#endpoints.values()) {
      this.#deps.metrics.webhookPending.set({ endpoint: name }, Math.max(0, newest - seen));
    }
  }
}
