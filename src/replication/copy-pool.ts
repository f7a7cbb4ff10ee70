import type { Clock, Milliseconds } from "../base/clock.ts";
import { Turns } from "../base/turns.ts";
import type { ReplicationRule } from "../config/schema.ts";
import type { UploadMemory } from "./copy-blob.ts";
import { ImageCopies } from "./copy-image.ts";
import { KnownBlobs } from "./copy-known.ts";
import type { PlanRegistry, TargetRegistry } from "./plan-registry.ts";

interface Pooled {
  readonly copies: ImageCopies;
  readonly source: PlanRegistry;
  readonly target: TargetRegistry;
  /** Of the rule: another one copies otherwise. */
  readonly rule: ReplicationRule;
  users: number;
  uses: number;
  idleSinceMs: Milliseconds;
}

/** What has been learnt of a target is true for a while only. */
const IDLE_MS: Milliseconds = 30_000;
/** Bounds what a run of many images remembers. */
const MOST_USES = 2_000;

/** Tasks of one rule and target share what they learn of both sides: a blob that several images need is sent once. */
export class CopyPool {
  readonly #clock: Clock;
  readonly #uploads: UploadMemory;
  /** Of all rules: two that bring the same to one repository would share an upload. */
  readonly #turns = new Turns();
  readonly #pooled = new Map<string, Pooled>();

  constructor(clock: Clock, uploads: UploadMemory) {
    this.#clock = clock;
    this.#uploads = uploads;
  }

  async use<T>(
    rule: ReplicationRule,
    source: PlanRegistry,
    target: TargetRegistry,
    work: (copies: ImageCopies) => Promise<T>,
  ): Promise<T> {
    this.#forgetIdle();
    const key = `${rule.name} ${target.name}`;
    let pooled = this.#pooled.get(key);
    if (
      pooled === undefined ||
      pooled.source !== source ||
      pooled.target !== target ||
      pooled.rule !== rule ||
      pooled.uses >= MOST_USES
    ) {
      pooled = { copies: this.#open(rule, source, target), source, target, rule, users: 0, uses: 0, idleSinceMs: 0 };
      this.#pooled.set(key, pooled);
    }
    pooled.users++;
    pooled.uses++;
    try {
      return await work(pooled.copies);
    } finally {
      pooled.users--;
      pooled.idleSinceMs = this.#clock.now();
    }
  }

  #open(rule: ReplicationRule, source: PlanRegistry, target: TargetRegistry): ImageCopies {
    return new ImageCopies({
      rule,
      source: source.remote,
      target: target.target,
      concurrency: target.queue.concurrency,
      clock: this.#clock,
      known: new KnownBlobs(),
      uploads: this.#uploads,
      turns: this.#turns,
    });
  }

  #forgetIdle(): void {
    const beforeMs = this.#clock.now() - IDLE_MS;
    for (const [key, { users, idleSinceMs }] of this.#pooled) {
      if (users === 0 && idleSinceMs < beforeMs) this.#pooled.delete(key);
    }
  }
}
