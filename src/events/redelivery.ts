import type { JobQueue } from "../jobs/queue.ts";
import { exponential, Hopeless, type JobContext, type JobRunner } from "../jobs/runner.ts";
import type { Endpoint } from "./endpoint.ts";
import type { ImageEvent } from "./event.ts";
import type { Journal } from "./journal.ts";
import type { WebhookRows } from "./webhook-rows.ts";

const KIND = "webhook-redelivery";
const PAGE_EVENTS = 500;

export interface RedeliveryDeps {
  journal: Journal;
  queue: JobQueue;
  runner: JobRunner;
  rows: WebhookRows;
  endpoints: ReadonlyMap<string, Endpoint>;
}

/** Events from `first` to `last`, both included. */
export interface Asked {
  endpoint: string;
  first: number;
  last: number;
  /** The failure that this is about. */
  failure?: number | undefined;
}

interface Progress {
  delivered: number;
  /** The last event that was. */
  at: number;
}

/** Sends events of the past once more, because somebody asks for it: a job of one attempt, beside what the endpoint is told meanwhile. */
export class Redelivery {
  readonly #deps: RedeliveryDeps;

  constructor(deps: RedeliveryDeps) {
    this.#deps = deps;
    deps.runner.register<Asked, Progress, { delivered: number }>({
      kind: KIND,
      parse: (payload) => payload as Asked,
      concurrency: 4,
      attempts: 1,
      backoffMs: exponential(1_000, 60_000),
      run: (asked, context) => this.#run(asked, context),
    });
  }

  /** @returns the id of the job */
  async add(asked: Asked): Promise<number> {
    const { queue, runner } = this.#deps;
    const dedupe = [asked.endpoint, asked.first, asked.last, asked.failure].join(" ");
    const { id } = await queue.add({ kind: KIND, payload: asked, dedupe });
    runner.wake(KIND);
    return id;
  }

  async #run(
    { endpoint: name, first, last, failure }: Asked,
    context: JobContext<Progress>,
  ): Promise<{ delivered: number }> {
    const { journal, rows, endpoints } = this.#deps;
    const endpoint = endpoints.get(name);
    if (!endpoint) throw new Hopeless(`the webhook ${name} is configured no more`);
    let delivered = 0;
    for (let at = first - 1; at < last;) {
      const page = await journal.after(at, PAGE_EVENTS);
      const wanted = page.filter(({ id }) => id <= last).filter((event) => endpoint.wants(event));
      while (wanted.length > 0) {
        const batch = endpoint.pack(wanted);
        await endpoint.post(batch, context.signal);
        wanted.splice(0, batch.events.length);
        delivered += batch.events.length;
        await context.progress({ delivered, at: (batch.events.at(-1) as ImageEvent).id });
      }
      at = page.at(-1)?.id ?? last;
    }
    if (failure !== undefined) await rows.redelivered(failure);
    return { delivered };
  }
}
