/** Where names that somebody may see begin: the first place at or after `from` that is worth a look. Undefined: there is none any more. */
export type Ahead = (from: string) => string | undefined;

/**
 * Namespaces as the ranges that their repositories' names lie in, in the order of these names. A namespace is two of them: the name itself,
 * and all that begins with it and a slash. They are apart, as `a-b/x` stands between `a` and `a/x`.
 */
export class Starts {
  readonly #starts: string[];

  constructor(namespaces: Iterable<string> = []) {
    const names = [...namespaces];
    this.#starts = [...names, ...names.map((name) => `${name}/`)].sort();
  }

  /** Adds a namespace, which may be there already. */
  add(namespace: string): void {
    for (const start of [namespace, `${namespace}/`]) {
      const at = this.#indexOf(start);
      if (this.#starts[at] !== start) this.#starts.splice(at, 0, start);
    }
  }

  delete(namespace: string): void {
    for (const start of [namespace, `${namespace}/`]) {
      const at = this.#indexOf(start);
      if (this.#starts[at] === start) this.#starts.splice(at, 1);
    }
  }

  get isEmpty(): boolean {
    return this.#starts.length === 0;
  }

  /** As {@link Ahead}. */
  ahead(from: string): string | undefined {
    const at = this.#indexOf(from);
    const before = this.#starts[at - 1];
    // Nothing that begins like this one stands between it and what it holds.
    if (before?.endsWith("/") && from.startsWith(before)) return from;
    return this.#starts[at];
  }

  /** Namespaces in order of their names, after that one (exclusive). */
  after(last: string, limit: number): string[] {
    const found: string[] = [];
    for (let at = this.#indexOf(last); at < this.#starts.length && found.length < limit; at += 1) {
      const start = this.#starts[at] as string;
      if (start !== last && !start.endsWith("/")) found.push(start);
    }
    return found;
  }

  /** Of the first one that does not stand before `from`. */
  #indexOf(from: string): number {
    let [low, high] = [0, this.#starts.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#starts[middle] as string) < from) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Whatever one of them leads to. */
export function anyOf(all: readonly Ahead[]): Ahead {
  return (from) => {
    let first: string | undefined;
    for (const ahead of all) {
      const at = ahead(from);
      if (at === from) return at;
      if (at !== undefined && (first === undefined || at < first)) first = at;
    }
    return first;
  };
}

/** Only what both lead to. */
export function bothOf(one: Ahead, other: Ahead): Ahead {
  return (from) => {
    for (let at: string | undefined = from; at !== undefined;) {
      const next = one(at);
      if (next === undefined) return undefined;
      at = other(next);
      if (at === next) return at;
    }
    return undefined;
  };
}

/** Names that begin like that. */
export function beginningWith(prefix: string): Ahead {
  return (from) => (from <= prefix ? prefix : from.startsWith(prefix) ? from : undefined);
}

/** These names alone. */
export function oneOf(names: Iterable<string>): Ahead {
  const sorted = [...names].sort();
  return (from) => sorted.find((name) => name >= from);
}
