import assert from "node:assert/strict";
import { createLog } from "../../src/base/log.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { Config, ReplicationRule } from "../../src/config/schema.ts";
import { openRegistry, type PlanRegistry } from "../../src/replication/plan-registry.ts";
import { endpointOf } from "../../src/replication/rules.ts";

/** Registries by their names. To be disposed of. */
export interface Opened extends AsyncDisposable {
  registries: ReadonlyMap<string, PlanRegistry>;
}

/** @param written the names of those that are opened to be written to */
export async function openAll(
  configured: Config["replication"]["registries"],
  written: readonly string[] = [],
): Promise<Opened> {
  const log = await createLog({ level: "silent", format: "json", destination: { write: () => undefined } });
  await using stack = new AsyncDisposableStack();
  const registries = new Map<string, PlanRegistry>();
  for (const [name, registry] of Object.entries(configured)) {
    const access = written.includes(name) ? "write" : "read";
    const options = { keep: registry.quota.keep, log, access } as const;
    registries.set(name, stack.use(await openRegistry(name, endpointOf(registry), options)));
  }
  const owned = stack.move();
  return { registries, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** Opens what the first rule of a section needs, `dr` to be written to. */
export async function openRule(section: object): Promise<Opened & { rule: ReplicationRule }> {
  const { replication } = parseConfig({ replication: section });
  const [rule] = replication.rules;
  assert.ok(rule);
  return { rule, ...(await openAll(replication.registries, ["dr"])) };
}
