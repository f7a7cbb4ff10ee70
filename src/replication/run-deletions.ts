/** What a run deletes at its end: what its rule has put there and the source has no more, as far as the rule goes. */
import type { Clock } from "../base/clock.ts";
import type { Metrics } from "../base/metrics.ts";
import type { ReplicationRule } from "../config/schema.ts";
import type { JobContext } from "../jobs/kind.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import type { Target } from "../remote/target.ts";
import { deleteTag } from "./deletion.ts";
import { dueDeletions } from "./due-deletions.ts";
import type { PlannedRepository, RulePlan } from "./plan.ts";
import { opened, writable, type PlanRegistry } from "./plan-registry.ts";
import type { ReplicationRows } from "./rows.ts";
import { fault } from "./run-result.ts";
import { selectTags } from "./tag-filter.ts";
import type { RunResult } from "./tasks.ts";

interface RunDeletionsDeps {
  rows: ReplicationRows;
  clock: Clock;
  metrics: Metrics;
  /** By name: those of the plan, its targets opened to be written to. */
  registries: ReadonlyMap<string, PlanRegistry>;
}

type Context = Pick<JobContext<unknown>, "signal" | "line">;

/** Deletes what is due, and notes what is missed at the source. @param result counts it; a repository that fails is a fault of it @throws the signal's reason */
export async function deleteDue(
  rule: ReplicationRule,
  plan: RulePlan,
  result: RunResult,
  deps: RunDeletionsDeps,
  context: Context,
): Promise<void> {
  for (const planned of plan.repositories) {
    const { target } = writable(opened(deps.registries, planned.registry));
    try {
      await deleteAt(rule, planned, target, result, deps, context);
    } catch (error) {
      context.signal.throwIfAborted();
      if (!(error instanceof Error)) throw error;
      result.failed++;
      fault(result, `${planned.registry} ${planned.target}`, `could not delete: ${error.message}`);
    }
  }
}

async function deleteAt(
  rule: ReplicationRule,
  planned: PlannedRepository,
  target: Target,
  result: RunResult,
  { rows, clock, metrics, registries }: RunDeletionsDeps,
  context: Context,
): Promise<void> {
  const { signal } = context;
  const { registry, target: repository } = planned;
  const where = `${registry} ${repository}`;
  const place = { rule: rule.name, registry, repository };
  const know = { rows, remote: target, nowMs: clock.now() };
  let due = await dueDeletions(rule, planned, know, signal);
  if (due.remove.length + due.missed.length > 0 || due.refused !== undefined) {
    // What was pushed while others were copied is not in the plan, and may have been copied by now.
    const selected = [...planned.selected, ...(await selectedNow(rule, planned.source, registries, signal))];
    due = await dueDeletions(rule, { ...planned, selected }, know, signal);
  }
  if (due.refused !== undefined) fault(result, where, due.refused);
  const missed = await Promise.all(
    due.missed.map(async ({ tag, digest }) => {
      const head = digest === undefined ? await target.headManifest(repository, tag, { signal }) : undefined;
      const known = digest ?? (typeof head === "object" ? head.digest : undefined);
      return known === undefined ? [] : [{ tag, digest: known }];
    }),
  );
  await rows.missed(place, missed.flat(), due.back);
  for (const { tag, digest } of due.remove) {
    const deleted = await deleteTag(target, { repository, tag, expected: digest }, signal);
    await rows.forget({ ...place, tag });
    if (deleted !== "deleted") {
      context.line(`${where}:${tag} is not deleted: ${deleted === "moved" ? "others have moved it" : "it is gone"}`);
      continue;
    }
    result.deleted++;
    metrics.replicationDeletedTags.inc({ rule: rule.name });
    context.line(`${where}:${tag} is deleted`);
  }
}

/** What a rule is about of a repository of its source. @throws RemoteError; Error where the source does not have it */
async function selectedNow(
  rule: ReplicationRule,
  repository: RepositoryName,
  registries: ReadonlyMap<string, PlanRegistry>,
  signal: AbortSignal,
): Promise<Tag[]> {
  const source = opened(registries, rule.from.registry);
  const listed = await source.queue.add(() => source.remote.listTags(repository, { signal }));
  if (!listed) throw new Error(`${source.name} does not have ${repository} any more`);
  return selectTags(listed, rule.tags).selected.map(({ tag }) => tag);
}
