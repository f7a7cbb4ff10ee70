import type { NewEvent, Requester } from "./event.ts";

/** Of one address and action, so many denials of different things are recorded one by one in a minute. */
export const PER_ADDRESS = 20;
/** Of one action, from all addresses. */
export const PER_ACTION = 200;

interface Tally {
  /** How many came since it was recorded, or summed up. */
  more: number;
  /** The last of them, or what stands for all of them. */
  event: NewEvent;
  /** What it sums up; "same": the same thing, denied to the same client. */
  of: "same" | "address" | "action";
}

/**
 * Keeps a client that is denied over and over, such as a crawler or one that guesses passwords, from filling the record. The first denial is
 * recorded; of what the same client is denied again for the same reason (a pull: whatever of the repository) a minute has one event with their number. Beyond
 * {@link PER_ADDRESS} and {@link PER_ACTION}, an event for the address, or the action, has the number of all others.
 * Nothing is denied without being counted.
 */
export class Denials {
  #tallies = new Map<string, Tally>();
  /** Of those that are recorded one by one: by action, and by action and address. */
  #counts = new Map<string, number>();

  get isEmpty(): boolean {
    return this.#tallies.size === 0;
  }

  /** @returns whether it is to be recorded by itself */
  take(event: NewEvent): boolean {
    const key = keyOf(event);
    const known = this.#tallies.get(key);
    if (known) {
      known.more++;
      known.event = event;
      return false;
    }
    const { action, outcome, by } = event;
    const [ofAction, ofAddress] = groupsOf(event);
    if (this.#count(ofAddress) >= PER_ADDRESS) {
      const from = "address" in by ? { ...by, actor: undefined } : by;
      this.#add(ofAddress, { action, outcome, by: from }, "address");
      return false;
    }
    if (this.#count(ofAction) >= PER_ACTION) {
      this.#add(ofAction, { action, outcome, by: { actor: "journal" } }, "action");
      return false;
    }
    this.#keep(key, { more: 0, event, of: "same" });
    return true;
  }

  /** To be called once a minute. @returns what is to be recorded of those that were counted since the last time */
  sums(): NewEvent[] {
    const before = this.#tallies;
    this.#tallies = new Map();
    this.#counts = new Map();
    const counted = [...before].filter(([, { more }]) => more > 0);
    // What goes on is only counted in the next minute, too.
    for (const [key, tally] of counted) if (tally.of === "same") this.#keep(key, { ...tally, more: 0 });
    return counted.map(([, tally]) => ({ ...tally.event, detail: wordsFor(tally) }));
  }

  #keep(key: string, tally: Tally): void {
    this.#tallies.set(key, tally);
    for (const group of groupsOf(tally.event)) this.#counts.set(group, this.#count(group) + 1);
  }

  #add(key: string, event: NewEvent, of: Tally["of"]): void {
    const more = this.#tallies.get(key)?.more ?? 0;
    this.#tallies.set(key, { more: more + 1, event, of });
  }

  #count(group: string): number {
    return this.#counts.get(group) ?? 0;
  }
}

function keyOf({ action, repository, subject, tag, digest, detail, by }: NewEvent): string {
  const { actor, address }: Partial<Requester> = by;
  const what = action === "pull" ? [] : [tag, digest, detail];
  return JSON.stringify([action, actor, address, repository, subject, what]);
}

function groupsOf({ action, by }: NewEvent): readonly [action: string, address: string] {
  const { address }: Partial<Requester> = by;
  return [JSON.stringify([action]), JSON.stringify([action, address])];
}

function wordsFor({ more, event: { detail }, of }: Tally): string {
  if (of === "address") return `${more} more denials within a minute from this address, not recorded one by one`;
  if (of === "action") return `${more} more denials within a minute from many addresses, not recorded one by one`;
  return `${detail === undefined ? "" : `${detail} `}(the last of ${more} more within a minute)`;
}
