import type { Milliseconds } from "../base/clock.ts";

/** Work that is done once however many ask for it at the same time: they share its outcome. */
export class Shared<T> {
  readonly #running = new Map<string, Promise<T>>();

  /** Joins the work of that key, or starts it. No caller's leaving stops it. */
  run(key: string, work: () => Promise<T>): Promise<T> {
    const running = this.#running.get(key);
    if (running) return running;
    const started = work().finally(() => this.#running.delete(key));
    this.#running.set(key, started);
    return started;
  }

  /** Resolves when nothing runs. */
  async idle(): Promise<void> {
    while (this.#running.size > 0) await Promise.allSettled(this.#running.values());
  }
}

/** What is believed for a while, by key: what upstream said it does not have, what was looked after. Bounded: the oldest entry goes first. */
export class Beliefs {
  readonly #spans = new Map<string, { fromMs: Milliseconds; untilMs: Milliseconds }>();
  readonly #capacity = 10_000;

  /** Whether it is believed now. A clock that was set back ends it: else it would last for as long as the clock went back. */
  holds(key: string, nowMs: Milliseconds): boolean {
    const span = this.#spans.get(key);
    return span !== undefined && nowMs >= span.fromMs && nowMs < span.untilMs;
  }

  /** @param forMs 0: not at all */
  believe(key: string, nowMs: Milliseconds, forMs: Milliseconds): void {
    this.#spans.delete(key);
    this.#spans.set(key, { fromMs: nowMs, untilMs: nowMs + forMs });
    const [oldest] = this.#spans.keys();
    if (this.#spans.size > this.#capacity && oldest !== undefined) this.#spans.delete(oldest);
  }
}

/** What the cache can't do is reported, and is not the client's trouble. */
export async function attempt<T>(
  onFault: (operation: string, error: unknown) => void,
  operation: string,
  work: () => Promise<T>,
): Promise<T | undefined> {
  try {
    return await work();
  } catch (error) {
    onFault(operation, error);
    return undefined;
  }
}
