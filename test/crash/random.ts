import { createHash } from "node:crypto";

/** Random choices that follow from a seed alone. */
export class Random {
  readonly seed: string;
  #drawn = 0;

  constructor(seed: string) {
    this.seed = seed;
  }

  /** @returns a whole number from 0 to `end - 1` */
  below(end: number): number {
    return Math.floor(this.#next() * end);
  }

  chance(probability: number): boolean {
    return this.#next() < probability;
  }

  pick<T>(from: readonly T[]): T {
    if (from.length === 0) throw new Error("nothing to pick from");
    return from[this.below(from.length)] as T;
  }

  /** One or a few of them, each once. */
  some<T>(from: readonly T[]): T[] {
    return this.shuffled(from).slice(0, this.pick([1, 1, 1, 2, 3]));
  }

  shuffled<T>(from: readonly T[]): T[] {
    const rest = [...from];
    return Array.from(from, () => rest.splice(this.below(rest.length), 1)[0] as T);
  }

  /** Does one of several things, each as often as its weight says. */
  weighted<T>(choices: readonly (readonly [weight: number, work: () => T])[]): T {
    let at = this.#next() * choices.reduce((sum, [weight]) => sum + weight, 0);
    const chosen = choices.find(([weight]) => (at -= weight) < 0);
    if (!chosen) throw new Error("nothing to choose from");
    return chosen[1]();
  }

  #next(): number {
    const drawn = createHash("sha256")
      .update(`${this.seed}/${this.#drawn++}`)
      .digest();
    return drawn.readUInt32LE(0) / 2 ** 32;
  }
}
