/** A rule of replication, read once: what it is about, what its copies are called, and what may happen to a tag. Pure. */
import type { Milliseconds } from "../base/clock.ts";
import type { Config, EndpointConfig, ReplicationRule } from "../config/schema.ts";
import type { Digest } from "../oci/digest.ts";
import { isBehind, isPushedLater, type Told } from "../oci/origin.ts";
import { readRepositories, renderName, type RepositorySet } from "../oci/repository-glob.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { globFinder } from "./tag-filter.ts";

export type ReplicationRegistry = Config["replication"]["registries"][string];

/** What becomes of a tag at a target. */
export type Verdict =
  /** It is not there. */
  | { action: "copy" }
  | { action: "same" }
  /** The same, pushed earlier: its mark is brought up to date. */
  | { action: "mark" }
  | { action: "replace"; was: Digest; backup: Tag | undefined }
  /** It stays as it is; fail tells so, too. */
  | { action: "keep" | "fail"; was: Digest; because: string };

/** Read once for a rule: every push asks every rule. */
const read = new WeakMap<ReplicationRule, RepositorySet>();

/** What a rule is about. @throws never for a configuration that was checked */
export function sourcesOf(rule: ReplicationRule): RepositorySet {
  const known = read.get(rule);
  if (known) return known;
  const sources = readRepositories(rule.from.repositories);
  if (!sources) throw new Error(`rule ${rule.name} has a glob that stands for nothing`);
  read.set(rule, sources);
  return sources;
}

/** @returns undefined where the name would be too long */
export function copyName(
  rule: ReplicationRule,
  target: ReplicationRule["to"][number],
  repository: RepositoryName,
): RepositoryName | undefined {
  return renderName(target.repository, { registry: rule.from.registry, repository });
}

/** @param was what the tag points to at the target; undefined: it is not there */
export function judgeTag(
  tag: Tag,
  digest: Digest,
  was: Digest | undefined,
  { existing, backup, immutable }: ReplicationRule["write"],
): Verdict {
  if (was === undefined) return { action: "copy" };
  if (was === digest) return { action: "same" };
  const glob = globFinder(immutable)(tag);
  if (glob !== undefined) return { action: "keep", was, because: `immutable by ${glob}` };
  if (existing === "keep") return { action: "keep", was, because: "write.existing is keep" };
  if (existing === "fail") return { action: "fail", was, because: "write.existing is fail" };
  return { action: "replace", was, backup: backup?.replaceAll("{{tag}}", tag) as Tag | undefined };
}

/**
 * What becomes of a tag where both registries tell when it was pushed: what was pushed later at the target stays.
 * @param there at the target, as the verdict has it
 */
export function judgePushes(verdict: Verdict, source: Told, there: Told | undefined, nowMs: Milliseconds): Verdict {
  if (there === undefined) return verdict;
  if (verdict.action === "same" && isBehind(there, source, nowMs)) return { action: "mark" };
  if (verdict.action !== "replace" || !isPushedLater(there, source, nowMs)) return verdict;
  return { action: "keep", was: verdict.was, because: "it was pushed later there" };
}

/** Of an index, only what is for these is copied; none: all. */
export function platformsOf({ platforms: { only, index } }: Pick<ReplicationRule, "platforms">): readonly string[] {
  return index === "all" ? [] : only;
}

/** The registry as other parts reach one. */
export function endpointOf({ concurrency, ...address }: ReplicationRegistry): EndpointConfig {
  return { ...address, connections: concurrency };
}
