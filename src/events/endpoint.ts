import picomatch from "picomatch";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Metrics } from "../base/metrics.ts";
import type { WebhookConfig } from "../config/schema.ts";
import { DeliveryError, Receiver } from "./deliver.ts";
import { deliveryId, packBatch, pingBatch, type Batch, type Origin } from "./envelope.ts";
import { isImageEvent, type ImageEvent, type StoredEvent } from "./event.ts";

/** Somebody waits for the answer. */
const PING_MS: Milliseconds = 5_000;

export interface EndpointDeps {
  clock: Clock;
  metrics: Metrics;
  origin: Origin;
}

/** An address that is told what happens, and how far it has come. */
export class Endpoint implements AsyncDisposable {
  readonly config: WebhookConfig;
  /** As the row's cursor, or further: past events that it does not want. */
  seen = 0;
  /** As of the row. */
  written = 0;
  /** Whether it has an unfinished job. */
  working = false;
  /** Whether a look has found that there may be more, since its job last read. */
  news = false;
  /** Wakes the job that waits for news. */
  wake: (() => void) | undefined;
  readonly #deps: EndpointDeps;
  readonly #receiver: Receiver;
  readonly #matches: (repository: string) => boolean;

  constructor(config: WebhookConfig, deps: EndpointDeps) {
    this.config = config;
    this.#deps = deps;
    this.#receiver = new Receiver(config, deps.clock);
    this.#matches = picomatch([...config.repositories]);
  }

  get name(): string {
    return this.config.name;
  }

  wants(event: StoredEvent): event is ImageEvent {
    if (event.outcome !== "done" || !isImageEvent(event)) return false;
    return this.config.actions.includes(event.action) && this.#matches(event.repository);
  }

  /** @param events not empty @returns as many of them as go into one request */
  pack(events: readonly ImageEvent[]): Batch {
    return packBatch(this.config.format, events, this.#deps.origin);
  }

  /** @throws DeliveryError; the signal's reason */
  async post(batch: Batch, signal: AbortSignal): Promise<void> {
    const { webhookDeliveries } = this.#deps.metrics;
    try {
      await this.#receiver.post({ ...batch, id: deliveryId(this.name, batch.events) }, signal);
    } catch (error) {
      if (error instanceof DeliveryError) webhookDeliveries.inc({ endpoint: this.name, result: "failed" });
      throw error;
    }
    webhookDeliveries.inc({ endpoint: this.name, result: "delivered" });
  }

  /** Posts an event that tells of nothing. @param id a UUID @throws DeliveryError, after 5 s at most; the signal's reason */
  async ping(id: string, signal: AbortSignal): Promise<void> {
    const { clock, origin } = this.#deps;
    const { contentType, body } = pingBatch(this.config.format, id, clock.now(), origin);
    await this.#receiver.post({ id, contentType, body }, signal, Math.min(this.config.timeout, PING_MS));
  }

  /** Cuts its connections. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#receiver[Symbol.asyncDispose]();
  }
}
