/** The tags of a run that go together: moved at its end, each noted as the rule's copy. */
import type { ReplicationRule } from "../config/schema.ts";
import type { JobContext } from "../jobs/kind.ts";
import { moveTogether, type StagedTag } from "./moves.ts";
import type { PlannedRepository, RulePlan } from "./plan.ts";
import { opened, writable, type PlanRegistry } from "./plan-registry.ts";
import type { ReplicationRows } from "./rows.ts";
import type { Ends } from "./run-result.ts";
import { isDigestTag } from "./tag-filter.ts";
import { taskSubject } from "./tasks.ts";

/**
 * Moves them, registry by registry.
 * @param ends of the run's tasks, none of which failed: what became of each tag is noted there
 * @param deps.registries by name: those of the plan, opened to be written to
 * @throws Error as {@link moveTogether}
 */
export async function moveStaged(
  rule: ReplicationRule,
  plan: RulePlan,
  ends: Ends,
  { rows, registries }: { rows: ReplicationRows; registries: ReadonlyMap<string, PlanRegistry> },
  context: Pick<JobContext<unknown>, "jobId" | "signal" | "line">,
): Promise<void> {
  for (const [name, repositories] of Map.groupBy(plan.repositories, ({ registry }) => registry)) {
    const { target, queue } = writable(opened(registries, name));
    const at = { name, target, concurrency: queue.concurrency };
    const staged = repositories.flatMap((one) => stagedOf(one).map((tag) => ({ ...tag, source: one.source })));
    const record: Parameters<typeof moveTogether>[3] = async (moves) => {
      await rows.moving(
        context.jobId,
        moves.map((move) => ({ registry: name, ...move })),
      );
      // Not once they have moved: begun again after a kill, the run would find them there and not know that it has put them.
      const moving = new Map(moves.map((move) => [`${move.repository}:${move.tag}`, move]));
      for (const { origin: _, ...one } of staged) {
        const move = moving.get(`${one.repository}:${one.tag}`);
        if (move) await rows.copied({ rule: rule.name, registry: name, ...one, was: move.was });
      }
    };
    for (const { outcome, repository, tag, because } of await moveTogether(
      staged,
      at,
      rule.write,
      record,
      context.signal,
    )) {
      const how = outcome === "moved" ? "copied" : outcome;
      ends.outcomes.set(taskSubject({ registry: name, target: repository, tag }), how);
      if (outcome === "kept") context.line(`${name} ${repository}:${tag} stays: ${because}`);
    }
  }
}

/** What is to move in a repository at the end. */
function stagedOf({ target, tags }: PlannedRepository) {
  return tags.flatMap((one): (StagedTag & { sourceDigest: StagedTag["digest"] })[] => {
    if ((one.action !== "copy" && one.action !== "replace") || isDigestTag(one.tag)) return [];
    const { tag, digest: sourceDigest, rewritten: digest = sourceDigest, origin } = one;
    return [{ repository: target, tag, digest, origin, sourceDigest }];
  });
}
