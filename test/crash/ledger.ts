/*
 * What may be read after a crash.
 *
 * Every tag, manifest and blob of a repository is a register that several write at once. A write takes effect at one moment between
 * its request and its answer; one whose answer never came has taken effect, or not, at any moment before the process died. So what
 * may be read is: the value of each write after whose end no other was begun and acknowledged.
 */

/** A digest, or undefined where there is nothing. */
export type Value = string | undefined;

interface Entry {
  readonly value: Value;
  /** It changes only this value, as the deletion of a manifest removes only the tags that point to it. */
  readonly only: Value;
  readonly from: number;
  to: number;
  acknowledged: boolean;
}

/** A write under way. */
export interface Write {
  /** It was acknowledged. */
  acknowledge(): void;
  /** It was refused, and had no effect. */
  refuse(): void;
}

/** A read under way. */
export interface Read {
  /** Whether that value may be the answer. */
  allows(value: Value): boolean;
}

class Register {
  readonly #tick: () => number;
  #entries: Entry[] = [{ value: undefined, only: undefined, from: 0, to: 0, acknowledged: true }];

  constructor(tick: () => number) {
    this.#tick = tick;
  }

  write(value: Value, only?: Value): Write {
    const entry: Entry = { value, only, from: this.#tick(), to: Infinity, acknowledged: false };
    this.#entries.push(entry);
    return {
      acknowledge: () => {
        entry.to = this.#tick();
        entry.acknowledged = true;
      },
      refuse: () => void this.#entries.splice(this.#entries.indexOf(entry), 1),
    };
  }

  read(): Read {
    const from = this.#tick();
    const before = this.possible();
    return {
      allows: (value) => before.has(value) || this.#entries.some((entry) => entry.from > from && entry.value === value),
    };
  }

  possible(): Set<Value> {
    return new Set(
      this.#entries
        .filter((entry) => this.#took(entry) && !this.#overwritten(entry, Infinity))
        .map(({ value }) => value),
    );
  }

  /** Whether an acknowledged write took its place, from its request to its answer between the entry's end and a moment. */
  #overwritten(entry: Entry, before: number): boolean {
    return this.#entries.some(
      ({ from, to, acknowledged, only }) =>
        acknowledged && from > entry.to && to < before && (only === undefined || only === entry.value),
    );
  }

  /** Whether it can have had an effect: one that changes a single value needs that value to be there. */
  #took(entry: Entry): boolean {
    if (entry.only === undefined) return true;
    return this.#entries.some(
      (other) => other.value === entry.only && other.from < entry.to && !this.#overwritten(other, entry.from),
    );
  }

  /** Its writer is gone: whatever was under way has taken effect by now, or never will. */
  crash(): void {
    const now = this.#tick();
    for (const entry of this.#entries) entry.to = Math.min(entry.to, now);
  }

  /** This is what was found while nobody wrote. */
  settle(value: Value): void {
    const now = this.#tick();
    this.#entries = [{ value, only: undefined, from: now, to: now, acknowledged: true }];
  }
}

/** All registers of a registry, by name. */
export class Ledger {
  readonly #registers = new Map<string, Register>();
  #now = 0;

  /** The digest that a tag points to. */
  tag(repository: string, tag: string): Register {
    return this.#register(`${repository}:${tag}`);
  }

  /** Its own digest where the repository has that manifest. */
  manifest(repository: string, digest: string): Register {
    return this.#register(`${repository}@${digest}`);
  }

  /** Its own digest where the repository has that blob, which no manifest refers to. */
  looseBlob(repository: string, digest: string): Register {
    return this.#register(`${repository} ${digest}`);
  }

  /** The registry has died. */
  crash(): void {
    for (const register of this.#registers.values()) register.crash();
  }

  #register(name: string): Register {
    let register = this.#registers.get(name);
    if (!register) {
      register = new Register(() => ++this.#now);
      this.#registers.set(name, register);
    }
    return register;
  }
}
