/**
 * Does what a plan says. Of each image the root comes first, by its digest, then what belongs to it, then the tag: a tag never leads to what is not
 * whole. An image that fails ends with its cause, its tag stays as it was, and the others go on. What was done is not done again: a
 * plan after a run that came through is empty.
 */
import { systemClock, type Bytes } from "../base/clock.ts";
import type { ReplicationRule } from "../config/schema.ts";
import { algorithmOf, digestOf, type Digest } from "../oci/digest.ts";
import { bareMediaType, MEDIA_TYPES } from "../oci/manifest.ts";
import type { Reference, Tag } from "../oci/reference.ts";
import type { Target } from "../remote/target.ts";
import { Copier } from "./copy.ts";
import { KnownBlobs } from "./copy-known.ts";
import type { PlannedRepository, PlannedTag, RulePlan } from "./plan.ts";
import type { PlanRegistry } from "./plan-registry.ts";
import { globFinder } from "./tag-filter.ts";

/** How one image ended: a tag, or what came along with it. */
export interface RunOutcome {
  registry: string;
  /** `mirror/library/node:18`. */
  name: string;
  outcome: "copied" | "unchanged" | "kept" | "failed";
  sentBytes: Bytes;
  mountedBytes: Bytes;
  /** Why it failed; what the copy lacks. */
  notes: string[];
}

/**
 * @param plan of the same rule and registries, whose targets were opened to be written to
 * @param tell is told of each image when it has ended
 * @throws the signal's reason
 */
export async function runPlan(
  plan: RulePlan,
  rule: ReplicationRule,
  registries: ReadonlyMap<string, PlanRegistry>,
  tell: (outcome: RunOutcome) => void,
  signal: AbortSignal,
): Promise<void> {
  const source = registries.get(plan.from);
  if (!source) throw new TypeError(`registry ${plan.from} was not opened`);
  const byRegistry = Map.groupBy(plan.repositories, ({ registry }) => registry);
  await Promise.all(
    [...byRegistry].map(async ([name, repositories]) => {
      const registry = registries.get(name);
      if (!registry?.target) throw new TypeError(`registry ${name} was not opened to be written to`);
      const run = new TargetRun(rule, source, { name, target: registry.target, registry }, tell, signal);
      await Promise.all(repositories.map((one) => run.repository(one)));
    }),
  );
}

class TargetRun {
  readonly #source: PlanRegistry;
  readonly #name: string;
  readonly #target: Target;
  readonly #tell: (outcome: RunOutcome) => void;
  readonly #signal: AbortSignal;
  /** They share what they know of the target. */
  readonly #copiers: Record<"replace" | "keep" | "fail", Copier>;
  readonly #existing: (tag: Tag) => "replace" | "keep" | "fail";

  constructor(
    rule: ReplicationRule,
    source: PlanRegistry,
    { name, target, registry }: { name: string; target: Target; registry: PlanRegistry },
    tell: (outcome: RunOutcome) => void,
    signal: AbortSignal,
  ) {
    this.#source = source;
    this.#name = name;
    this.#target = target;
    this.#tell = tell;
    this.#signal = signal;
    const known = new KnownBlobs();
    const copier = (existing: "replace" | "keep" | "fail"): Copier =>
      new Copier({
        source: source.remote,
        target,
        clock: systemClock,
        known,
        options: {
          platforms: rule.platforms.only,
          // The plan names what belongs to the root, for one request; what belongs to a platform of it shows when that is copied.
          attached: rule.attached.referrers && rule.attached.digestTags ? "whenChanged" : "never",
          existing,
          dryRun: false,
          concurrency: registry.queue.concurrency,
        },
      });
    this.#copiers = { replace: copier("replace"), keep: copier("keep"), fail: copier("fail") };
    const immutable = globFinder(rule.write.immutable);
    this.#existing = (tag) => (immutable(tag) === undefined ? rule.write.existing : "keep");
  }

  async repository(planned: PlannedRepository): Promise<void> {
    const images = planned.tags.filter(({ companionOf }) => companionOf === undefined);
    const companions = Map.groupBy(planned.tags.filter(changes), ({ companionOf }) => companionOf);
    await Promise.all(
      images.map(async (image) => {
        const attached = companions.get(image.digest) ?? [];
        // Another tag of the same image need not bring them again.
        companions.delete(image.digest);
        if (!changes(image) && attached.length === 0 && image.referrers.length === 0) return;
        await this.#image(planned, image, attached);
      }),
    );
  }

  async #image(at: PlannedRepository, image: PlannedTag, attached: readonly PlannedTag[]): Promise<void> {
    const total: RunOutcome = {
      registry: this.#name,
      name: `${at.target}:${image.tag}`,
      outcome: "unchanged",
      sentBytes: 0,
      mountedBytes: 0,
      notes: [],
    };
    const copy = async (reference: Reference, digest: Digest, existing: "replace" | "keep" | "fail"): Promise<void> => {
      const request = { from: { repository: at.source, reference }, to: { repository: at.target, reference }, digest };
      const { outcome, sentBytes, mountedBytes, notes } = await this.#copiers[existing].copy(request, this.#signal);
      if (outcome !== "unchanged") total.outcome = outcome;
      total.sentBytes += sentBytes;
      total.mountedBytes += mountedBytes;
      total.notes.push(...notes);
    };
    try {
      this.#keepPulls();
      const moves = changes(image);
      const existing = existingOf(image, this.#existing(image.tag));
      if (moves && attached.length + image.referrers.length > 0) await copy(image.digest, image.digest, existing);
      for (const one of attached) await copy(one.tag, one.digest, existingOf(one, this.#existing(one.tag)));
      for (const digest of image.referrers) await copy(digest, digest, existing);
      if (moves) {
        await this.#keepBackup(at, image);
        await copy(image.tag, image.digest, existing);
      }
    } catch (error) {
      this.#signal.throwIfAborted();
      total.outcome = "failed";
      total.notes.push((error as Error).message);
    }
    this.#tell(total);
  }

  /** What the tag leads to by now gets another name, before the tag moves. */
  async #keepBackup({ target }: PlannedRepository, image: PlannedTag): Promise<void> {
    if (image.action !== "replace" || image.backup === undefined) return;
    const found = await this.#target.getManifest(target, image.was, { signal: this.#signal });
    if (!found || digestOf(found.bytes, algorithmOf(image.was)) !== image.was) {
      throw new Error(`${image.was} is not at the target any more: plan again`);
    }
    const mediaType = bareMediaType(found.contentType) ?? MEDIA_TYPES.ociImage;
    const stored = await this.#target.putManifest(
      target,
      image.backup,
      { bytes: found.bytes, mediaType },
      { signal: this.#signal },
    );
    if (stored.missing) throw stored.cause;
  }

  /** @throws Error where the rest of the source's rate limit is for others */
  #keepPulls(): void {
    const { name, keep, remote } = this.#source;
    const { rateLimit } = remote.state;
    if (rateLimit && rateLimit.remaining <= keep) {
      throw new Error(
        `${name} has ${rateLimit.remaining} pulls left, and replication.registries.${name}.quota.keep is ${keep}: run this again later`,
      );
    }
  }
}

function changes({ action }: PlannedTag): boolean {
  return action === "copy" || action === "replace";
}

/** A tag that the plan found absent and that is there now is no tag that may be moved. */
function existingOf({ action }: PlannedTag, existing: "replace" | "keep" | "fail"): "replace" | "keep" | "fail" {
  return action === "replace" ? "replace" : existing;
}
