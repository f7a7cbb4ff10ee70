import type { Milliseconds } from "../base/clock.ts";
import type { ReplicationRule } from "../config/schema.ts";
import { isTag, type Tag } from "../oci/reference.ts";
import type { Remote } from "../remote/remote.ts";
import { planDeletions, type DeletionPlan } from "./deletion.ts";
import type { PlannedRepository } from "./plan.ts";
import type { ReplicationRows } from "./rows.ts";

/**
 * What a run would delete now of what is at one repository of a target, where the rule deletes. The target is asked only where more than the rule's
 * own copies is to go.
 * @throws RemoteError
 */
export async function dueDeletions(
  rule: ReplicationRule,
  { registry, target, selected }: Pick<PlannedRepository, "registry" | "target" | "selected">,
  { rows, remote, nowMs }: { rows: ReplicationRows; remote: Pick<Remote, "listTags">; nowMs: Milliseconds },
  signal: AbortSignal,
): Promise<DeletionPlan> {
  let listed: ReadonlySet<Tag> | undefined;
  if (!rule.delete.ownedOnly) {
    const ofOthers = new Set(await rows.othersAt(rule.name, registry, target));
    const tags = (await remote.listTags(target, { signal })) ?? [];
    listed = new Set(tags.filter(isTag).filter((tag) => !ofOthers.has(tag)));
  }
  return planDeletions({
    rule: { ...rule.delete, immutable: rule.write.immutable, backup: rule.write.backup },
    copies: await rows.copiesAt(rule.name, registry, target),
    listed,
    wanted: new Set(selected),
    nowMs,
  });
}
