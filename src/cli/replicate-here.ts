/** Plans and runs of rules by the command itself, where no daemon is at work. */
import { PassThrough } from "node:stream";
import { createLog } from "../base/log.ts";
import { SELF } from "../config/replication-checks.ts";
import type { Config, ReplicationRule } from "../config/schema.ts";
import { planRule, type RulePlan } from "../replication/plan.ts";
import { openRegistry, type PlanRegistry } from "../replication/plan-registry.ts";
import { endpointOf } from "../replication/rules.ts";
import { runPlan, type RunOutcome } from "../replication/run.ts";
import { interruptible } from "./interrupt.ts";
import { UsageError } from "./io.ts";

export interface RuleHere {
  config: Config;
  name: string;
  /** Why no daemon is asked. */
  reason: Error;
}

/** @throws UsageError: no such rule; `reason` where the rule needs the daemon */
export async function planHere({ sizes, ...named }: RuleHere & { sizes: boolean }): Promise<RulePlan> {
  await using asked = await ask(named, "read");
  using interrupt = interruptible();
  return await planRule(asked.rule, asked.registries, { sizes, nowMs: Date.now(), signal: interrupt.signal });
}

/**
 * @param planned is told what comes before it begins
 * @throws as {@link planHere}
 */
export async function runHere(
  named: RuleHere,
  planned: (plan: RulePlan) => void,
  tell: (outcome: RunOutcome) => void,
  progress: Parameters<typeof runPlan>[5],
): Promise<RulePlan> {
  await using asked = await ask(named, "write");
  const { rule, registries } = asked;
  using interrupt = interruptible();
  const { signal } = interrupt;
  const found = await planRule(rule, registries, { sizes: false, nowMs: Date.now(), signal });
  planned(found);
  await runPlan(found, rule, registries, tell, signal, progress);
  return found;
}

/** A rule, and the registries that it names. @param access to its targets */
async function ask({ config, name, reason }: RuleHere, access: "read" | "write") {
  const rule = ruleCalled(name, config);
  const log = await createLog({ level: "silent", format: "json", destination: new PassThrough() });
  await using stack = new AsyncDisposableStack();
  const registries = new Map<string, PlanRegistry>();
  const targets = new Set(rule.to.map(({ registry }) => registry));
  for (const one of new Set([rule.from.registry, ...targets])) {
    if (one === SELF) throw reason;
    const registry = config.replication.registries[one];
    if (!registry) throw new TypeError(`registry ${one} is not configured`);
    const options = { keep: registry.quota.keep, log, access: targets.has(one) ? access : "read" } as const;
    registries.set(one, stack.use(await openRegistry(one, endpointOf(registry), options)));
  }
  // The timers of requests keep no process alive.
  const alive = setInterval(() => undefined, 60_000);
  stack.defer(() => clearInterval(alive));
  const owned = stack.move();
  return { rule, registries, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function ruleCalled(name: string, { replication: { rules } }: Config): ReplicationRule {
  const rule = rules.find((one) => one.name === name);
  if (rule) return rule;
  const known = rules.map((one) => one.name).join(", ") || "none: add some under replication.rules";
  throw new UsageError(`there is no rule ${name}; there are ${known}`);
}
