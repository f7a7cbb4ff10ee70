import { PassThrough } from "node:stream";
import { createLog } from "../base/log.ts";
import { loadConfig } from "../config/load.ts";
import type { Config, EndpointConfig, ReplicationRule } from "../config/schema.ts";
import { SELF } from "../config/replication-checks.ts";
import { planRule, type PlannedRepository, type PlannedTag, type RulePlan } from "../replication/plan.ts";
import { openRegistry, type PlanRegistry } from "../replication/plan-registry.ts";
import { endpointOf } from "../replication/rules.ts";
import { runPlan, type RunOutcome } from "../replication/run.ts";
import { localPlace } from "./daemon.ts";
import { bytesText, countText, cut } from "./format.ts";
import { interruptible } from "./interrupt.ts";
import { DONE, FAILED, json, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { tableText } from "./table.ts";
import { Terminal } from "./terminal.ts";

const USAGE = `Usage:
  entrepot replicate list [OPTIONS]        list the rules under replication.rules
  entrepot replicate plan RULE [OPTIONS]   tell what a rule would copy; nothing is written anywhere
  entrepot replicate run RULE [OPTIONS]    copy it, once

  --sizes                of a plan: read what would be copied, too, and tell its bytes (on Docker Hub, these reads are pulls)
  --verbose              also the tags that stay as they are or are left out, each with its reason
  --config FILE          the configuration with the rules
  --json                 as JSON; of a run, one object a line for each image

A rule that names "self" asks the running daemon of this machine.
Exit status: 0 done, 1 something could not be asked or may not be written, 2 wrong usage or configuration.
`;

/** `entrepot replicate list|plan|run`: shows the rules and what they would do, and does it. */
export function runReplicate(args: string[], io: CommandIo): Promise<number> {
  const [command, ...rest] = args;
  return runCommand(args, io, USAGE, async () => {
    if (command === "list") return list(rest, io);
    if (command === "plan") return plan(rest, io);
    if (command === "run") return run(rest, io);
    throw new UsageError(command === undefined ? "a command is missing" : `replicate has no command ${command}`);
  });
}

async function list(args: string[], io: CommandIo): Promise<number> {
  const { values } = parseOptions(args, { config: { type: "string" }, json: { type: "boolean", default: false } });
  const { config } = await loadConfig({ file: values.config, env: io.env });
  const { rules } = config.replication;
  if (values.json) io.stdout.write(json(rules));
  else if (rules.length === 0) io.stdout.write("there are no rules: add some under replication.rules\n");
  else io.stdout.write(tableText([["RULE", "FROM", "TO", "TAGS"], ...rules.map(rowOfRule)], new Set()));
  return DONE;
}

function rowOfRule({ name, from, to, tags }: ReplicationRule): string[] {
  const stages = [
    tags.match.join(", "),
    ...(tags.semver === undefined ? [] : [tags.semver]),
    ...(tags.exclude.length === 0 ? [] : [`without ${tags.exclude.join(", ")}`]),
    ...(tags.newest === 0 ? [] : [`the ${tags.newest} newest`]),
    ...(tags.always.length === 0 ? [] : [`always ${tags.always.join(", ")}`]),
  ];
  const targets = to.map(({ registry, repository }) => `${registry} ${repository}`);
  return [name, `${from.registry} ${from.repositories.join(", ")}`, targets.join(", "), stages.join("; ")];
}

async function plan(args: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parseOptions(
    args,
    {
      config: { type: "string" },
      json: { type: "boolean", default: false },
      sizes: { type: "boolean", default: false },
      verbose: { type: "boolean", default: false },
    },
    1,
  );
  await using asked = await ask(positionals[0], values.config, "read", io);
  const { rule, registries } = asked;
  using interrupt = interruptible();
  const found = await planRule(rule, registries, { sizes: values.sizes, nowMs: Date.now(), signal: interrupt.signal });
  io.stdout.write(values.json ? json(found) : planText(found, values.verbose));
  return isWhole(found) ? DONE : FAILED;
}

async function run(args: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parseOptions(
    args,
    {
      config: { type: "string" },
      json: { type: "boolean", default: false },
      verbose: { type: "boolean", default: false },
    },
    1,
  );
  await using asked = await ask(positionals[0], values.config, "write", io);
  const { rule, registries } = asked;
  using interrupt = interruptible();
  const { signal } = interrupt;
  const found = await planRule(rule, registries, { sizes: false, nowMs: Date.now(), signal });
  if (!values.json) io.stdout.write(planText(found, values.verbose));
  const terminal = new Terminal(io.stdout);
  let failed = 0;
  const tell = (outcome: RunOutcome): void => {
    if (outcome.outcome === "failed") failed++;
    if (values.json) io.stdout.write(`${JSON.stringify(outcome)}\n`);
    else terminal.conclude(outcomeText(outcome, terminal));
  };
  await runPlan(found, rule, registries, tell, signal);
  if (values.json)
    for (const fault of found.faults) io.stdout.write(`${JSON.stringify({ outcome: "failed", ...fault })}\n`);
  return failed === 0 && isWhole(found) ? DONE : FAILED;
}

/** Whether everything could be asked, and may be written. */
function isWhole({ repositories, faults }: RulePlan): boolean {
  return faults.length === 0 && repositories.every(({ tags }) => tags.every(({ action }) => action !== "fail"));
}

/** A rule, and the registries that it names. @param access to its targets */
async function ask(name: string | undefined, file: string | undefined, access: "read" | "write", io: CommandIo) {
  const { config } = await loadConfig({ file, env: io.env });
  const rule = ruleCalled(name, config);
  const log = await createLog({ level: "silent", format: "json", destination: new PassThrough() });
  await using stack = new AsyncDisposableStack();
  const registries = new Map<string, PlanRegistry>();
  const targets = new Set(rule.to.map(({ registry }) => registry));
  for (const one of new Set([rule.from.registry, ...targets])) {
    const { endpoint, keep } = await reach(one, config, io);
    const options = { keep, log, access: targets.has(one) ? access : "read" } as const;
    registries.set(one, stack.use(await openRegistry(one, endpoint, options)));
  }
  // The timers of requests keep no process alive.
  const alive = setInterval(() => undefined, 60_000);
  stack.defer(() => clearInterval(alive));
  const owned = stack.move();
  return { rule, registries, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function ruleCalled(name: string | undefined, { replication: { rules } }: Config): ReplicationRule {
  const known = rules.map((rule) => rule.name).join(", ") || "none: add some under replication.rules";
  if (name === undefined) throw new UsageError(`a rule is missing; there are ${known}`);
  const rule = rules.find((one) => one.name === name);
  if (!rule) throw new UsageError(`there is no rule ${name}; there are ${known}`);
  return rule;
}

async function reach(
  name: string,
  config: Config,
  { env }: CommandIo,
): Promise<{ endpoint: EndpointConfig; keep: number }> {
  if (name === SELF) return { endpoint: await ownEndpoint(config, env), keep: 0 };
  const registry = config.replication.registries[name];
  if (!registry) throw new TypeError(`registry ${name} is not configured`);
  return { endpoint: endpointOf(registry), keep: registry.quota.keep };
}

/** The daemon of this machine. @throws UsageError where it listens where no registry can be asked */
async function ownEndpoint(config: Config, env: NodeJS.ProcessEnv): Promise<EndpointConfig> {
  const { address, certificate, login } = await localPlace(config, env);
  if (!/^https?:/.test(address)) {
    throw new UsageError(`server.listen is ${address}: a rule with "self" needs host:port`);
  }
  // Its certificate names the public address.
  const url = certificate === undefined ? address : config.server.publicUrl;
  if (url === undefined) throw new UsageError('server.tls is set: a rule with "self" needs server.publicUrl, too');
  const secret = /^Bearer (operator_.*)$/.exec(login?.authorization ?? "")?.[1];
  return {
    url,
    ...(secret === undefined ? {} : { auth: { username: "operator", password: secret } }),
    realms: [],
    trustedHosts: [],
    allowPrivate: true,
    connections: 16,
    requests: 0,
    timeouts: { connect: 5000, firstByte: 60_000, progress: 20_000 },
  };
}

function outcomeText(
  { registry, name, outcome, sentBytes, mountedBytes, notes }: RunOutcome,
  terminal: Terminal,
): string {
  const what = `${registry} ${name}`;
  if (outcome === "failed") return `${terminal.paint("red", "✗")} ${what}: ${notes.join("; ")}`;
  const mounted = mountedBytes > 0 ? `, ${bytesText(mountedBytes)} mounted` : "";
  const note = notes.length > 0 ? ` (${notes.join("; ")})` : "";
  return `${terminal.paint("green", "✓")} ${what}: ${outcome}, ${bytesText(sentBytes)} sent${mounted}${note}`;
}

const MOST_FAULTS = 20;
const MARKS: Record<PlannedTag["action"], string> = {
  copy: "copy",
  replace: "replace",
  same: "same",
  keep: "keep",
  fail: "FAIL",
  withhold: "withhold",
};

/** A plan as a person reads it: what changes, then sums. @param verbose also what stays or is left out, and every reason */
function planText(plan: RulePlan, verbose: boolean): string {
  const { repositories, faults } = plan;
  const blocks = repositories.map((one) => repositoryText(plan.from, one, verbose)).filter((text) => text !== "");
  const shown = faults.slice(0, verbose ? faults.length : MOST_FAULTS);
  const wrong = shown.map(({ where, message }) => `! ${where}: ${message}\n`);
  if (shown.length < faults.length) wrong.push(`! ${faults.length - shown.length} more: see --verbose\n`);
  return [...blocks, wrong.join(""), sumsText(plan)].filter((text) => text !== "").join("\n");
}

function repositoryText(
  from: string,
  { source, registry, target, tags, dropped }: PlannedRepository,
  verbose: boolean,
): string {
  const told = tags.filter(({ action, referrers }) => verbose || action !== "same" || referrers.length > 0);
  const rows = told.map((one) => [MARKS[one.action], cut(one.tag, 40), one.digest.slice(0, 19), noteOf(one, verbose)]);
  if (verbose) rows.push(...dropped.map(({ tag, why }) => ["left out", cut(tag, 40), "", why]));
  if (rows.length === 0) return "";
  return `${from} ${source} → ${registry} ${target}\n${tableText(rows, new Set()).replaceAll(/^/gm, "  ").trimEnd()}\n`;
}

function noteOf(planned: PlannedTag, verbose: boolean): string {
  const notes: string[] = [];
  if ("was" in planned) notes.push(`${planned.action === "replace" ? "was" : "stays"} ${planned.was.slice(0, 19)}`);
  if (planned.action === "replace" && planned.backup) notes.push(`which stays as ${planned.backup}`);
  if ("because" in planned) notes.push(planned.because);
  if (planned.referrers.length > 0) notes.push(`with ${countText(planned.referrers.length, "referrer")}`);
  if (verbose) notes.push(planned.why);
  return notes.join("; ");
}

function sumsText({ repositories, sizes, requests, pulls }: RulePlan): string {
  const tags = repositories.flatMap((one) => one.tags);
  const count = (action: PlannedTag["action"]): number => tags.filter((one) => one.action === action).length;
  const sum = (action: PlannedTag["action"], words: string): string[] =>
    count(action) === 0 ? [] : [`${count(action)} ${words}`];
  const referrers = tags.reduce((all, one) => all + one.referrers.length, 0);
  const changes = [
    ...sum("copy", "to copy"),
    ...sum("replace", "to replace"),
    ...sum("keep", "to keep as they are"),
    ...sum("fail", "that may not be written"),
    ...sum("withhold", "withheld"),
    ...sum("same", "unchanged"),
  ];
  const dropped = repositories.reduce((all, one) => all + one.dropped.length, 0);
  const lines = [
    `tags: ${changes.join(", ") || "none"}; ${dropped} left out`,
    ...(referrers > 0 ? [`referrers: ${referrers} to copy`] : []),
    ...(sizes?.targets ?? []).map(
      ({ registry, manifests, blobs, bytes, present, mounts }) =>
        `${registry}: ${countText(manifests, "manifest")} and ${countText(blobs, "blob")} to send, ${bytesText(bytes)}; ${countText(mounts, "blob")} to mount, ${present} there`,
    ),
    `requests: ${Object.entries(requests)
      .map(([name, made]) => `${made} to ${name}`)
      .join(", ")}`,
    ...(pulls
      ? [
          `pulls: ${pulls.remaining} of ${pulls.limit} left, ${pulls.keep} kept for others${sizes ? `; copying takes at least ${sizes.pulls}` : ""}`,
        ]
      : []),
  ];
  return `${lines.join("\n")}\n`;
}
