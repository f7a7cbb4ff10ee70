/** Works of one key come one after the other, in the order in which they ask. */
export class Turns {
  /** By key: resolves once the last of them is over. */
  readonly #last = new Map<string, Promise<void>>();

  /** @throws what the work throws; the signal's reason, where it fires before the turn has come */
  async take<T>(key: string, work: () => Promise<T>, signal: AbortSignal): Promise<T> {
    const before = this.#last.get(key);
    const over = Promise.withResolvers<void>();
    // Whoever gives up while it waits lets nobody pass those before it.
    const last = Promise.all([before, over.promise]).then(() => {
      if (this.#last.get(key) === last) this.#last.delete(key);
    });
    this.#last.set(key, last);
    try {
      if (before) await orAborted(before, signal);
      signal.throwIfAborted();
      return await work();
    } finally {
      over.resolve();
    }
  }
}

function orAborted(wait: Promise<void>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason as Error);
    if (signal.aborted) return abort();
    signal.addEventListener("abort", abort, { once: true });
    void wait.then(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    });
  });
}
