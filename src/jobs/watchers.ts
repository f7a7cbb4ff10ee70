import type { Outcome } from "./kind.ts";

/** Takes an event; the job waits for it. It comes back at once when the watcher's signal fires. */
export type Tell = (event: unknown) => Promise<void>;

interface Watcher {
  tell: Tell;
  ended: PromiseWithResolvers<Outcome<unknown>>;
}

/** Those who watch jobs, by the jobs' ids. */
export class Watchers {
  readonly #watchers = new Map<number, Set<Watcher>>();

  /**
   * Watches until the job is settled.
   * @param already how it ended before; undefined: it goes on. Asked once nothing can be missed any more
   * @throws what `already` or `tell` throws; the signal's reason
   */
  async watch(
    id: number,
    tell: Tell,
    signal: AbortSignal,
    already: () => Promise<Outcome<unknown> | undefined>,
  ): Promise<Outcome<unknown>> {
    signal.throwIfAborted();
    const ended = Promise.withResolvers<Outcome<unknown>>();
    const watcher = { tell, ended };
    const others = this.#watchers.get(id) ?? new Set();
    this.#watchers.set(id, others.add(watcher));
    const leave = (): void => ended.reject(signal.reason as Error);
    signal.addEventListener("abort", leave, { once: true });
    already().then((outcome) => outcome && ended.resolve(outcome), ended.reject);
    try {
      return await ended.promise;
    } finally {
      signal.removeEventListener("abort", leave);
      others.delete(watcher);
      if (others.size === 0) this.#watchers.delete(id);
    }
  }

  /** Resolves once all have taken it, or the signal fires; whoever throws watches no more. */
  async tell(id: number, event: unknown, signal: AbortSignal): Promise<void> {
    const watchers = this.#watchers.get(id);
    if (!watchers || signal.aborted) return;
    const { promise: aborted, resolve } = Promise.withResolvers<void>();
    const end = (): void => resolve();
    signal.addEventListener("abort", end, { once: true });
    const told = Promise.all(Array.from(watchers, ({ tell, ended }) => tell(event).catch(ended.reject)));
    await Promise.race([told, aborted]);
    signal.removeEventListener("abort", end);
  }

  settle(id: number, outcome: Outcome<unknown>): void {
    for (const { ended } of this.#watchers.get(id) ?? []) ended.resolve(outcome);
  }

  settleAll(outcome: Outcome<unknown>): void {
    for (const id of this.#watchers.keys()) this.settle(id, outcome);
  }
}
