/** What keeps a run or a task of a rule from going on now: said to the queue, which tries again then. */
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { ReplicationRule } from "../config/schema.ts";
import { Later } from "../jobs/kind.ts";
import type { ReplicationRows } from "./rows.ts";
import type { RuleBook } from "./rule-book.ts";
import type { Trigger } from "./tasks.ts";
import { opensAtMs } from "./window.ts";

/** How often what belongs to a rule that cannot be applied looks whether it can. */
const FAULTY_MS: Milliseconds = 300_000;
/** How often what belongs to a paused rule looks again: its resuming lets it begin at once. */
const PAUSED_MS: Milliseconds = 3_600_000;

/** @returns undefined: there is no such rule any more @throws Later: it cannot be applied */
export function ruleCalled(
  name: string,
  { rules, clock }: { rules: RuleBook; clock: Clock },
): ReplicationRule | undefined {
  const known = rules.get(name);
  if (!known && rules.isFaulty(name)) {
    throw new Later("the rule cannot be applied as the configuration is now", clock.now() + FAULTY_MS);
  }
  return known?.rule;
}

/** @throws Later: the rule is paused or its window closed, and nobody has asked for it by hand */
export async function waitForTurn(
  rule: ReplicationRule,
  trigger: Trigger,
  { rows, clock }: { rows: ReplicationRows; clock: Clock },
): Promise<void> {
  if (trigger === "hand") return;
  const { paused } = await rows.state(rule.name);
  if (paused !== undefined) throw new Later(`the rule is paused: ${paused}`, clock.now() + PAUSED_MS);
  const opensMs = opensAtMs(rule.on.window, clock.now());
  if (opensMs > clock.now()) throw new Later(`it waits for ${rule.on.window} UTC`, opensMs);
}
