/** What the copies of a plan would send, and how many requests a run will take: what would be copied is read, and the targets are asked what of it they have. */
import type { Bytes } from "../base/clock.ts";
import type { ReplicationRule } from "../config/schema.ts";
import { SELF } from "../config/replication-checks.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { AskedRemote } from "./asked-remote.ts";
import type { Closure, SourceContent } from "./content.ts";
import { imagesOf } from "./copy-image.ts";
import { asksOfTask, CopyForecast, SourceReads, type TargetContent } from "./forecast.ts";
import type { PlanFaults } from "./plan-faults.ts";
import { opened, type PlanRegistry } from "./plan-registry.ts";
import type { PlannedTag, TagPlans } from "./plan-tag.ts";

/** What a run would send to one target. Contents that several images share count once. */
export interface TargetSizes {
  registry: string;
  manifests: number;
  blobs: number;
  bytes: Bytes;
  /** Blobs that are there already, in the repository that needs them. */
  present: number;
  /** Blobs that another repository of the same plan has or gets: mounted, not sent. */
  mounts: number;
}

/** Pulls are those that copying takes at least, as Docker Hub counts them. */
export interface PlanSizes {
  targets: TargetSizes[];
  pulls: number;
  /** That a run will send, by registry: it plans anew, and copies. None to this registry as a source. */
  requests: Record<string, number>;
}

/** One source repository at one target. */
interface Copies {
  source: RepositoryName;
  registry: string;
  target: RepositoryName;
  tags: readonly PlannedTag[];
}

interface PlanSumsParts {
  rule: ReplicationRule;
  source: PlanRegistry;
  /** All that the rule names, as the plan has asked them. */
  registries: ReadonlyMap<string, PlanRegistry & { remote: AskedRemote }>;
  content: SourceContent;
  tags: TagPlans;
  faults: PlanFaults;
  /** Whether a run has a task for each image, which asks both sides anew. */
  byTasks: boolean;
  signal: AbortSignal;
}

export class PlanSums {
  readonly #parts: PlanSumsParts;

  constructor(parts: PlanSumsParts) {
    this.#parts = parts;
  }

  /** What the copies of a plan would send. @throws the signal's reason */
  async of(repositories: readonly Copies[]): Promise<PlanSizes> {
    const { source, registries } = this.#parts;
    const pulled = new Set<string>();
    const requests = new Map([...registries].map(([name, { remote }]) => [name, remote.asked]));
    const reads = new SourceReads(source.keeps);
    const byRegistry = Map.groupBy(repositories, ({ registry }) => registry);
    const targets = await Promise.all(
      [...byRegistry].map(([name, planned]) => this.#at(opened(registries, name), planned, pulled, reads)),
    );
    for (const { sizes, asked } of targets) requests.set(sizes.registry, (requests.get(sizes.registry) ?? 0) + asked);
    const { name } = source;
    if (name !== SELF) requests.set(name, (requests.get(name) ?? 0) + reads.requests);
    else if (!byRegistry.has(SELF)) requests.delete(SELF);
    return {
      targets: targets.map(({ sizes }) => sizes),
      pulls: pulled.size,
      requests: Object.fromEntries(requests),
    };
  }

  async #at(
    registry: PlanRegistry,
    repositories: readonly Copies[],
    pulled: Set<string>,
    reads: SourceReads,
  ): Promise<{ sizes: TargetSizes; asked: number }> {
    const { queue, remote } = registry;
    const { tags: plans, faults, signal } = this.#parts;
    const sizes: TargetSizes = { registry: registry.name, manifests: 0, blobs: 0, bytes: 0, present: 0, mounts: 0 };
    const present = new Set<Digest>();
    const missing: { digest: Digest; sizeBytes: Bytes }[] = [];
    const [manifests, blobs] = [new Set<string>(), new Set<string>()];
    await Promise.all(
      repositories.map((planned) =>
        faults.attempt(`${registry.name} ${planned.target}`, async () => {
          const { source, target, tags } = planned;
          const closure = await this.#closureOf(source, tags);
          const absent = await plans.missing({ registry, name: target }, [...closure.manifests]);
          sizes.manifests += absent.length;
          for (const digest of absent) pulled.add(`${source} ${digest}`);
          for (const digest of closure.manifests) if (!absent.includes(digest)) manifests.add(`${target} ${digest}`);
          await Promise.all(
            [...closure.blobs].map(async ([digest, sizeBytes]) => {
              const head = await queue.add(() => remote.headBlob(target, digest, { signal }));
              if (!head) missing.push({ digest, sizeBytes });
              else {
                sizes.present++;
                blobs.add(`${target} ${digest}`);
                present.add(digest);
              }
            }),
          );
        }),
      ),
    );
    for (const { digest, sizeBytes } of missing) {
      if (present.has(digest)) sizes.mounts++;
      else {
        sizes.blobs++;
        sizes.bytes += sizeBytes;
        present.add(digest);
      }
    }
    const asked = await this.#requestsAt(repositories, reads, {
      hasManifest: (repository, digest) => manifests.has(`${repository} ${digest}`),
      hasBlob: (repository, digest) => blobs.has(`${repository} ${digest}`),
    });
    return { sizes, asked };
  }

  /** How many requests copying takes at a target. */
  async #requestsAt(repositories: readonly Copies[], reads: SourceReads, content: TargetContent): Promise<number> {
    const { rule, content: sources, byTasks, faults } = this.#parts;
    const forecast = new CopyForecast(rule, sources, reads, content);
    let asked = 0;
    for (const planned of repositories) {
      const place = { from: planned.source, to: planned.target };
      for (const { image, companions } of imagesOf(planned)) {
        if (byTasks) {
          const asks = asksOfTask(rule, image, companions);
          reads.ask(asks.source);
          asked += asks.target;
        }
        const staged = byTasks && rule.write.together;
        // What can't be read is a fault of the plan already.
        await forecast.image(place, image, companions, staged).catch((error: unknown) => faults.toldOf(error));
      }
    }
    return asked + forecast.requests;
  }

  async #closureOf(source: RepositoryName, tags: readonly PlannedTag[]): Promise<Closure> {
    const { content, faults } = this.#parts;
    const whole: Closure = { manifests: new Set(), blobs: new Map() };
    for (const { tag, action, digest, rewritten, referrers } of tags) {
      const roots = [...(action === "copy" || action === "replace" ? [digest] : []), ...referrers];
      for (const root of roots) {
        await faults.attempt(`${source}:${tag}`, () => content.closure(source, root, whole));
      }
      if (rewritten !== undefined && whole.manifests.delete(digest)) whole.manifests.add(rewritten);
    }
    return whole;
  }
}
