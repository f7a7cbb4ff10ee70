/**
 * Does what a plan says. Of each image the root comes first, by its digest, then what belongs to it, then the tag: a tag never leads to what is not
 * whole. An image that fails ends with its cause, its tag stays as it was, and the others go on. What was done is not done again: a
 * plan after a run that came through is empty.
 */
import { systemClock, type Bytes } from "../base/clock.ts";
import { Turns } from "../base/turns.ts";
import type { ReplicationRule } from "../config/schema.ts";
import { ImageCopies, imagesOf } from "./copy-image.ts";
import type { CopyProgress } from "./copy-job.ts";
import { KnownBlobs } from "./copy-known.ts";
import type { RulePlan } from "./plan.ts";
import { opened, writable, type PlanRegistry } from "./plan-registry.ts";

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
 * @param progress is told often while the bytes of one flow
 * @throws the signal's reason
 */
export async function runPlan(
  plan: RulePlan,
  rule: ReplicationRule,
  registries: ReadonlyMap<string, PlanRegistry>,
  tell: (outcome: RunOutcome) => void,
  signal: AbortSignal,
  progress: (image: Pick<RunOutcome, "registry" | "name"> & CopyProgress) => void = () => {},
): Promise<void> {
  const source = opened(registries, plan.from);
  const turns = new Turns();
  const byRegistry = Map.groupBy(plan.repositories, ({ registry }) => registry);
  await Promise.all(
    [...byRegistry].map(async ([name, repositories]) => {
      const registry = writable(opened(registries, name));
      const copies = new ImageCopies({
        rule,
        source: source.remote,
        target: registry.target,
        concurrency: registry.queue.concurrency,
        clock: systemClock,
        known: new KnownBlobs(),
        turns,
      });
      const images = repositories.flatMap((at) => imagesOf(at).map((one) => ({ at, ...one })));
      await Promise.all(
        images.map(async ({ at, image, companions }) => {
          const named = { registry: name, name: `${at.target}:${image.tag}` };
          try {
            const found = { source: at.source, target: at.target, image, companions, staged: false };
            const copied = await copies.copy(found, signal, (far) => progress({ ...named, ...far }));
            tell({ ...named, ...copied });
          } catch (error) {
            signal.throwIfAborted();
            tell({ ...named, outcome: "failed", sentBytes: 0, mountedBytes: 0, notes: [(error as Error).message] });
          }
        }),
      );
    }),
  );
}
