import picomatch from "picomatch";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Metrics } from "../base/metrics.ts";
import type { Config } from "../config/schema.ts";
import type { NewEvent } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { immutableTags } from "../registry/policy.ts";
import type { HostedRepository, TagCatalog } from "../store/tag-catalog.ts";
import type { Usage } from "../store/usage.ts";
import type { ClockWatch } from "./clock-watch.ts";
import { companionOf, compileRules, reasonText, ruleFor, type RetentionRule } from "./retention-plan.ts";
import { decisions, type Decision } from "./retention-walk.ts";

export interface RetentionOptions {
  dryRun: boolean;
  /** A rule that keeps nothing may remove all, whatever it says itself. */
  removeAll: boolean;
  /** A glob: only these; absent: all. */
  repository?: string | undefined;
}

/** What has gone and what stays, or would. */
export interface RetentionReport {
  /** What the rules are about, without those that were refused. */
  repositories: number;
  kept: number;
  removed: number;
  /** Were to go, and were moved, pushed or pulled meanwhile: they stay. */
  changed: number;
  /** Rules that would have removed all. */
  refused: number;
  ms: Milliseconds;
  dryRun: boolean;
  /** The clock has jumped ahead by so much: tags have to be that much older to go. */
  clockGainedMs: Milliseconds;
}

/** A tag, and why it stays or goes. */
export interface ToldTag {
  tag: Tag;
  digest: Digest;
  stays: boolean;
  reason: string;
}

/** What is told of a run. */
export type RetentionEvent =
  | { type: "progress"; scanned: number; total: number; removed: number }
  /** A rule would remove all that it is about: nothing of it goes. */
  | { type: "refused"; rule: string; message: string }
  /** What has gone; of a dry run what would, and what stays. */
  | { type: "tags"; repository: RepositoryName; tags: ToldTag[] };

export interface RetentionDeps {
  config: () => Pick<Config, "retention" | "hosted">;
  tags: TagCatalog;
  usage: Usage;
  journal: Journal;
  clock: Clock;
  watch: ClockWatch;
  metrics: Metrics;
}

/** So many go in a transaction: a push waits for a millisecond or two. */
const GROUP = 50;
const REPOSITORIES = 200;
const TELL_EVERY_MS: Milliseconds = 250;

/**
 * Removes tags of hosted repositories that no rule keeps; never content, which is for garbage collection, and never other tags of the
 * same content.
 *
 * - Every rule is tried first: one that would keep none of its tags is refused, before anything goes.
 * - A tag goes in a statement that looks again: what was moved, pushed or pulled since it was read stays.
 * - What fails ends the run: what has gone has gone, with an event for each, and the rest stays.
 */
export class Retention {
  readonly #deps: RetentionDeps;

  constructor(deps: RetentionDeps) {
    this.#deps = deps;
  }

  /** @throws the signal's reason; Error of the database */
  async run(
    options: RetentionOptions,
    tell: (event: RetentionEvent) => Promise<void>,
    signal: AbortSignal,
  ): Promise<RetentionReport> {
    const { clock, watch, usage, config } = this.#deps;
    const startedAtMs = performance.now();
    const { retention, hosted } = config();
    const rules = compileRules(retention.rules);
    // Pulls that no row tells of yet.
    await usage.flush();
    const clockGainedMs = watch.gainedMs(
      Math.max(0, ...rules.flatMap((rule) => [rule.pushedWithinMs, rule.pulledWithinMs])),
    );
    const run = new Run(this.#deps, {
      options,
      rules,
      immutable: immutableTags(hosted.immutableTags),
      nowMs: clock.now() - clockGainedMs,
      tell,
      signal,
    });
    const refused = await run.refuse();
    await run.apply(refused);
    const ms = Math.round(performance.now() - startedAtMs);
    return { ...run.counts, refused: refused.size, ms, dryRun: options.dryRun, clockGainedMs };
  }
}

interface Work {
  options: RetentionOptions;
  rules: readonly RetentionRule[];
  immutable: ReturnType<typeof immutableTags>;
  nowMs: Milliseconds;
  tell: (event: RetentionEvent) => Promise<void>;
  signal: AbortSignal;
}

type Ruled = HostedRepository & { rule: RetentionRule };

/** One run, and what it counts. */
class Run {
  readonly counts = { repositories: 0, kept: 0, removed: 0, changed: 0 };
  readonly #deps: RetentionDeps;
  readonly #work: Work;
  readonly #isWanted: (repository: RepositoryName) => boolean;
  #scanned = 0;
  #total = 0;
  #toldAtMs = 0;

  constructor(deps: RetentionDeps, work: Work) {
    this.#deps = deps;
    this.#work = work;
    const { repository } = work.options;
    this.#isWanted = repository === undefined ? () => true : picomatch(repository);
  }

  /** @returns rules that would remove every tag they are about, and may not */
  async refuse(): Promise<Set<RetentionRule>> {
    const { options, rules, tell } = this.#work;
    /** How many tags would go of each rule that has kept none yet. */
    const untried = new Map(rules.filter((rule) => !rule.removeAll && !options.removeAll).map((rule) => [rule, 0]));
    for await (const ruled of this.#ruled()) {
      if (this.#isWanted(ruled.name)) this.#total += ruled.tags;
      const going = untried.get(ruled.rule);
      if (going === undefined) continue;
      const gone = await this.#countIfAllGo(ruled);
      if (gone === undefined) untried.delete(ruled.rule);
      else untried.set(ruled.rule, going + gone);
    }
    const refused = [...untried].filter(([, going]) => going > 0);
    for (const [{ name }, going] of refused) {
      const all = going === 1 ? "the only tag that it is about" : `all ${going} tags that it is about`;
      const message = `${name} would remove ${all}, so it is left out: let it keep some, or say that it may with removeAll: true in the rule, or once with --remove-all`;
      await tell({ type: "refused", rule: name, message });
    }
    return new Set(refused.map(([rule]) => rule));
  }

  /** @returns how many would go; undefined: some tag stays */
  async #countIfAllGo(ruled: Ruled): Promise<number | undefined> {
    let going = 0;
    for await (const page of this.#decisions(ruled)) {
      if (page.some(({ keeper }) => keeper)) return undefined;
      going += page.length;
      // A client takes silence for an end.
      await this.#progress();
    }
    return going;
  }

  async apply(refused: ReadonlySet<RetentionRule>): Promise<void> {
    const { options, nowMs, tell } = this.#work;
    for await (const ruled of this.#ruled()) {
      if (refused.has(ruled.rule) || !this.#isWanted(ruled.name)) continue;
      this.counts.repositories++;
      for await (const page of this.#decisions(ruled)) {
        const going = page.filter(({ keeper }) => !keeper);
        this.counts.kept += page.length - going.length;
        const gone = options.dryRun ? going : await this.#remove(ruled, going);
        this.counts.removed += gone.length;
        this.counts.changed += going.length - gone.length;
        const told = options.dryRun ? page : gone;
        if (told.length > 0)
          await tell({ type: "tags", repository: ruled.name, tags: told.map((one) => toldOf(one, nowMs)) });
        this.#scanned += page.length;
        await this.#progress();
      }
    }
    this.#toldAtMs = 0;
    this.#total = this.#scanned;
    await this.#progress();
  }

  /** @returns those that went */
  async #remove(repository: HostedRepository, going: readonly Decision[]): Promise<Decision[]> {
    const { tags, journal, usage, metrics } = this.#deps;
    const gone: Decision[] = [];
    for (let at = 0; at < going.length; at += GROUP) {
      this.#work.signal.throwIfAborted();
      const leaving = going
        .slice(at, at + GROUP)
        .map((decision) => ({ ...decision.tag, decision, unlessTagged: companionOf(decision.tag.name) }));
      const left = await tags.remove(
        repository,
        leaving,
        (tag) => usage.pendingTag(repository.name, tag),
        (tx, left) =>
          journal.recordWithin(
            tx,
            left.map(({ name, digest }) => removalOf(repository.name, name, digest)),
          ),
      );
      if (left.length > 0) journal.recorded();
      metrics.retentionRemovedTags.inc(left.length);
      gone.push(...left.map(({ decision }) => decision));
    }
    return gone;
  }

  /** Hosted repositories that a rule is about. */
  async *#ruled(): AsyncGenerator<Ruled> {
    const { rules, signal } = this.#work;
    for (let after = ""; ;) {
      const page = await this.#deps.tags.repositories(after, REPOSITORIES);
      for (const repository of page) {
        signal.throwIfAborted();
        const rule = ruleFor(rules, repository.name);
        if (rule) yield { ...repository, rule };
      }
      if (page.length < REPOSITORIES) return;
      after = page.at(-1)?.name ?? after;
    }
  }

  #decisions({ rule, ...repository }: Ruled): AsyncGenerator<Decision[]> {
    const { immutable, nowMs, signal } = this.#work;
    const isImmutable = (tag: Tag): boolean => immutable(repository.name, tag);
    return decisions({ tags: this.#deps.tags, repository, rule, isImmutable, nowMs, signal });
  }

  async #progress(): Promise<void> {
    if (performance.now() - this.#toldAtMs < TELL_EVERY_MS) return;
    this.#toldAtMs = performance.now();
    const total = Math.max(this.#scanned, this.#total);
    await this.#work.tell({ type: "progress", scanned: this.#scanned, total, removed: this.counts.removed });
  }
}

function removalOf(repository: RepositoryName, tag: Tag, digest: Digest): NewEvent {
  return { action: "delete", outcome: "done", repository, tag, digest, by: { actor: "retention" }, detail: "tag" };
}

function toldOf({ tag, keeper }: Decision, nowMs: Milliseconds): ToldTag {
  return { tag: tag.name, digest: tag.digest, stays: keeper !== undefined, reason: reasonText(tag, keeper, nowMs) };
}
