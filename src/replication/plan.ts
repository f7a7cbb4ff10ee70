/**
 * What a rule would do if it ran now: the difference between its sources and its targets. Nothing is written anywhere.
 *
 * An unchanged tag costs one HEAD on each side, with the same Accept that a copy's GET has. The source is asked once for all targets. A
 * repository or tag that cannot be asked is one fault; the rest goes on.
 */
import type { Milliseconds } from "../base/clock.ts";
import { inTurns } from "../base/give-way.ts";
import { inParallel } from "../base/in-parallel.ts";
import type { ReplicationRule } from "../config/schema.ts";
import type { Digest } from "../oci/digest.ts";
import type { Told } from "../oci/origin.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { AskedRemote } from "./asked-remote.ts";
import { SourceContent } from "./content.ts";
import { isChange } from "./copy-image.ts";
import type { DeletionPlan } from "./deletion.ts";
import { PlanFaults, type PlanFault } from "./plan-faults.ts";
import { opened, type PlanRegistry } from "./plan-registry.ts";
import { PlanSums, type PlanSizes } from "./plan-sizes.ts";
import { TagPlans, type PlannedTag, type TagPlanOptions, type TargetRepository } from "./plan-tag.ts";
import type { RewriteMemory } from "./rewrite.ts";
import { copyName, sourcesOf } from "./rules.ts";
import { DigestTags, selectingTags, type DroppedTag, type SelectedTag } from "./tag-filter.ts";

export type { PlannedTag } from "./plan-tag.ts";

/** One source repository at one target. */
export interface PlannedRepository {
  source: RepositoryName;
  registry: string;
  target: RepositoryName;
  tags: PlannedTag[];
  dropped: DroppedTag[];
  /** Tags of the source that the rule is about by their names. */
  selected: Tag[];
  /** Where the rule deletes, and who plans knows what it has put there. */
  deletions?: DeletionPlan;
}

export interface RulePlan {
  rule: string;
  from: string;
  repositories: PlannedRepository[];
  faults: PlanFault[];
  /** Undefined unless asked for. */
  sizes?: PlanSizes;
  /** That the plan took, by registry. */
  requests: Record<string, number>;
  /** What the source's rate limit has left, where it told. */
  pulls?: { remaining: number; limit: number; keep: number };
}

export interface PlanOptions {
  /** Whether manifests are fetched, to tell what would be sent. */
  sizes: boolean;
  nowMs: Milliseconds;
  /** Whether a run has a task for each image, which asks both sides anew. */
  byTasks?: boolean;
  /** Without it, indexes that are rewritten are read by each plan. */
  rewrites?: RewriteMemory | undefined;
  /** Whether a source whose rate limit leaves nothing to copies ends the planning with a Later; else that is a fault of the plan. */
  waits?: boolean;
  signal: AbortSignal;
}

/** @param registries by name: all that the rule names. @throws Later, with `waits`; the signal's reason */
export async function planRule(
  rule: ReplicationRule,
  registries: ReadonlyMap<string, PlanRegistry>,
  options: PlanOptions,
): Promise<RulePlan> {
  return await new Planning(rule, registries, options).run();
}

/** Whether a run would change nothing at any target. */
export function isSettled({ repositories }: RulePlan): boolean {
  return repositories.every(({ tags }) => tags.every((tag) => !isChange(tag) && tag.referrers.length === 0));
}

/** Asked for at a time, at most: how many requests go out, each registry's queue decides. Ten thousands that wait in it would be memory, and a long turn. */
const REPOSITORIES = 32;
const TAGS = 256;

/** One repository of the source, asked once for all targets. */
interface SourceRepository {
  name: RepositoryName;
  named: DigestTags;
  selected: SelectedTag[];
  dropped: DroppedTag[];
  told: Map<Tag, Told>;
}

class Planning {
  readonly #rule: ReplicationRule;
  readonly #registries: ReadonlyMap<string, PlanRegistry>;
  /** What this plan asks is what the plan of a run will ask. */
  readonly #asked: ReadonlyMap<string, PlanRegistry & { remote: AskedRemote }>;
  readonly #options: PlanOptions;
  readonly #source: PlanRegistry;
  readonly #content: SourceContent;
  readonly #tags: TagPlans;
  readonly #sums: PlanSums;
  readonly #faults: PlanFaults;
  /** A registry may have been asked by others before. */
  readonly #requestsBefore: ReadonlyMap<string, number>;
  /** Target reference → the repository that it is the copy of. */
  readonly #taken = new Map<string, RepositoryName>();

  constructor(rule: ReplicationRule, registries: ReadonlyMap<string, PlanRegistry>, options: PlanOptions) {
    this.#rule = rule;
    this.#registries = registries;
    this.#options = options;
    this.#faults = new PlanFaults(options.waits ?? false, options.signal);
    this.#asked = new Map(
      [...registries].map(([name, registry]) => {
        const remote = new AskedRemote(registry.remote, registry.keeps !== undefined);
        return [name, { ...registry, remote }];
      }),
    );
    this.#requestsBefore = new Map([...registries].map(([name, { requests }]) => [name, requests]));
    this.#source = opened(this.#asked, rule.from.registry);
    this.#content = new SourceContent(this.#source, rule, options.signal, options.rewrites);
    const attempt: TagPlanOptions["attempt"] = (where, work) => this.#faults.attempt(where, work);
    this.#tags = new TagPlans(rule, this.#source, this.#content, { ...options, attempt });
    this.#sums = new PlanSums({
      rule,
      source: this.#source,
      registries: this.#asked,
      content: this.#content,
      tags: this.#tags,
      faults: this.#faults,
      byTasks: options.byTasks ?? false,
      signal: options.signal,
    });
  }

  async run(): Promise<RulePlan> {
    const names = await this.#sourceNames();
    const planned = await inParallel(names, REPOSITORIES, (name) => this.#repository(name));
    const repositories = planned.flat();
    const sizes = this.#options.sizes ? await this.#sums.of(repositories) : undefined;
    const { rateLimit } = this.#source.remote.state;
    return {
      rule: this.#rule.name,
      from: this.#source.name,
      repositories,
      faults: this.#faults.all,
      ...(sizes ? { sizes } : {}),
      requests: Object.fromEntries(
        [...this.#registries].map(([name, { requests }]) => [name, requests - (this.#requestsBefore.get(name) ?? 0)]),
      ),
      ...(rateLimit
        ? { pulls: { remaining: rateLimit.remaining, limit: rateLimit.limit, keep: this.#source.keep } }
        : {}),
    };
  }

  async #sourceNames(): Promise<RepositoryName[]> {
    const { names, globs, has } = sourcesOf(this.#rule);
    if (globs.length === 0) return names;
    const { name, queue, remote } = this.#source;
    const listed = await this.#faults.attempt(
      globs.join(", "),
      async () => {
        const found = await queue.add(() => remote.listRepositories({ signal: this.#options.signal }));
        if (!found) throw new Error(`${name} has no list of its repositories`);
        return found;
      },
      "name the repositories without *, as in library/{node,redis}",
    );
    if (listed && !listed.some(has)) {
      const seen = `none of the ${listed.length} repositories that ${name} lists matches`;
      this.#faults.add(globs.join(", "), `${seen}: check the globs, and what the credentials see`);
    }
    return [...new Set([...names, ...(listed ?? []).filter(has)])].sort();
  }

  async #repository(name: RepositoryName): Promise<PlannedRepository[]> {
    const targets = this.#rule.to.flatMap((to): TargetRepository[] => {
      const target = this.#target(to, name);
      if (target === undefined) return [];
      return [{ registry: opened(this.#asked, to.registry), name: target, dropped: [], attended: new Set<Digest>() }];
    });
    const source = targets.length === 0 ? undefined : await this.#sourceRepository(name);
    if (!source) return [];
    return await Promise.all(
      targets.map(async (target): Promise<PlannedRepository> => {
        target.dropped.push(...source.dropped);
        const tags = await inParallel(source.selected, TAGS, (selected) => this.#tag(source, selected, target));
        return {
          source: name,
          registry: target.registry.name,
          target: target.name,
          tags: tags.flat(),
          dropped: target.dropped,
          selected: source.selected.map(({ tag }) => tag),
        };
      }),
    );
  }

  #target(to: ReplicationRule["to"][number], name: RepositoryName): RepositoryName | undefined {
    const target = copyName(this.#rule, to, name);
    if (target === undefined) {
      this.#faults.add(name, `its copy's name at ${to.registry} would be longer than 255 characters`);
      return undefined;
    }
    const key = `${to.registry} ${target}`;
    const other = this.#taken.get(key);
    if (other !== undefined) {
      this.#faults.add(
        name,
        `its copy at ${to.registry} would be ${target}, as that of ${other}: add {{path}} to the rule's to.repository`,
      );
      return undefined;
    }
    this.#taken.set(key, name);
    return target;
  }

  async #sourceRepository(name: RepositoryName): Promise<SourceRepository | undefined> {
    const { queue, remote } = this.#source;
    return await this.#faults.attempt(name, async () => {
      const tags = await queue.add(() => remote.listTags(name, { signal: this.#options.signal }));
      if (!tags) throw new Error(`${this.#source.name} has no such repository, or the credentials do not see it`);
      const { selected, dropped } = await inTurns(selectingTags(tags, this.#rule.tags), this.#options.signal);
      if (selected.length === 0) {
        this.#faults.add(
          name,
          tags.length === 0 ? "it has no tags" : `none of its ${tags.length} tags is selected: see --verbose`,
        );
      }
      const told = new Map<Tag, Told>();
      await inParallel(selected, TAGS, async ({ tag }) => {
        const head = await this.#faults.attempt(`${name}:${tag}`, () => this.#tags.headSource(name, tag));
        if (head !== undefined) told.set(tag, head);
      });
      return { name, named: new DigestTags(tags), selected, dropped, told };
    });
  }

  async #tag(source: SourceRepository, selected: SelectedTag, target: TargetRepository): Promise<PlannedTag[]> {
    const told = source.told.get(selected.tag);
    if (told === undefined) return [];
    const copies = (tag: Tag): boolean => source.told.has(tag);
    return this.#tags.plan(
      { name: source.name, named: source.named, listed: source.named, copies },
      selected,
      told,
      target,
    );
  }
}
