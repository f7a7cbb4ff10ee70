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

/** Until when something is believed, by key. Bounded: the oldest entry goes first. */
export class ExpiryMap {
  readonly #untilMs = new Map<string, number>();
  readonly #capacity = 10_000;

  get(key: string): number | undefined {
    return this.#untilMs.get(key);
  }

  set(key: string, untilMs: number): void {
    this.#untilMs.delete(key);
    this.#untilMs.set(key, untilMs);
    const [oldest] = this.#untilMs.keys();
    if (this.#untilMs.size > this.#capacity && oldest !== undefined) this.#untilMs.delete(oldest);
  }

  delete(key: string): void {
    this.#untilMs.delete(key);
  }
}
