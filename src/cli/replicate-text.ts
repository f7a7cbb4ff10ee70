import type { ReplicationRule } from "../config/schema.ts";
import type { PlannedRepository, PlannedTag, RulePlan } from "../replication/plan.ts";
import type { RunOutcome } from "../replication/run.ts";
import { bytesText, countText, cut, timeText } from "./format.ts";
import { tableText } from "./table.ts";
import type { Terminal } from "./terminal.ts";

/** As the API answers it. */
export interface RuleStates {
  items: {
    name: string;
    paused?: string;
    queued: number;
    running: number;
    waiting: number;
    dead: number;
    lagSeconds: number;
    settledAt?: string;
    nextAt?: string;
    lastRun?: { id: number; state: string };
  }[];
  faulty: { name: string; faults: { path: string; cause: string; remedy: string }[] }[];
}

const STATUS_HEAD = ["RULE", "LAG", "WAITING", "RUNNING", "FAILED", "LAST SUCCESS", "NEXT", "LAST RUN"];

/** How far the copies of each rule are. */
export function statusText({ items, faulty }: RuleStates): string {
  if (items.length + faulty.length === 0) return "there are no rules: add some under replication.rules\n";
  const rows = items.map(({ name, lagSeconds, queued, running, waiting, dead, settledAt, nextAt, lastRun, paused }) => [
    name,
    lagSeconds === 0 ? "none" : timeText(lagSeconds * 1000),
    String(queued + waiting),
    String(running),
    String(dead),
    settledAt === undefined ? "never" : localTime(settledAt),
    paused !== undefined ? "paused" : nextAt === undefined ? "-" : localTime(nextAt),
    lastRun === undefined ? "-" : `${lastRun.id} ${lastRun.state}`,
  ]);
  const notes = [
    ...items.flatMap(({ name, paused }) => (paused === undefined ? [] : [`! ${name} is paused: ${paused}`])),
    ...items.flatMap(({ name, dead }) =>
      dead === 0
        ? []
        : [
            `! ${name}: ${countText(dead, "copy", "copies")} failed: entrepot jobs --state dead tells why, entrepot replicate run ${name} tries again`,
          ],
    ),
    ...faulty.flatMap(({ name, faults }) =>
      faults.map(({ path, cause, remedy }) => `! ${name} does not run: ${path} ${cause}; ${remedy}`),
    ),
  ];
  return `${tableText([STATUS_HEAD, ...rows], new Set([1, 2, 3, 4]))}${notes.map((note) => `${note}\n`).join("")}`;
}

function localTime(iso: string): string {
  return new Date(iso).toLocaleString("sv-SE");
}

/** A rule in the columns RULE, FROM, TO, TAGS. */
export function ruleRow({ name, from, to, tags }: ReplicationRule): string[] {
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

/** How one image ended, in a line. */
export function outcomeText(
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
  mark: "mark",
  keep: "keep",
  fail: "FAIL",
  withhold: "withhold",
};

/** A plan as a person reads it: what changes, then sums. @param verbose also what stays or is left out, and every reason */
export function planText(plan: RulePlan, verbose: boolean): string {
  const { repositories, faults } = plan;
  const blocks = repositories.map((one) => repositoryText(plan.from, one, verbose)).filter((text) => text !== "");
  const shown = faults.slice(0, verbose ? faults.length : MOST_FAULTS);
  const wrong = shown.map(({ where, message }) => `! ${where}: ${message}\n`);
  if (shown.length < faults.length) wrong.push(`! ${faults.length - shown.length} more: see --verbose\n`);
  return [...blocks, wrong.join(""), sumsText(plan)].filter((text) => text !== "").join("\n");
}

function repositoryText(
  from: string,
  { source, registry, target, tags, dropped, deletions }: PlannedRepository,
  verbose: boolean,
): string {
  const told = tags.filter(({ action, referrers }) => verbose || action !== "same" || referrers.length > 0);
  const rows = told.map((one) => [MARKS[one.action], cut(one.tag, 40), one.digest.slice(0, 19), noteOf(one, verbose)]);
  for (const { tag, digest } of deletions?.remove ?? []) rows.push(["delete", cut(tag, 40), digest.slice(0, 19), ""]);
  for (const { tag, digest = "" } of deletions?.missed ?? []) {
    rows.push(["miss", cut(tag, 40), digest.slice(0, 19), "goes once it has been missed for delete.grace"]);
  }
  if (deletions?.refused !== undefined) rows.push(["no delete", "", "", deletions.refused]);
  if (verbose) rows.push(...dropped.map(({ tag, why }) => ["left out", cut(tag, 40), "", why]));
  if (rows.length === 0) return "";
  return `${from} ${source} → ${registry} ${target}\n${tableText(rows, new Set()).replaceAll(/^/gm, "  ").trimEnd()}\n`;
}

function noteOf(planned: PlannedTag, verbose: boolean): string {
  const notes: string[] = [];
  if ("was" in planned) notes.push(`${planned.action === "replace" ? "was" : "stays"} ${planned.was.slice(0, 19)}`);
  if (planned.action === "replace" && planned.backup) notes.push(`which stays as ${planned.backup}`);
  if (planned.action === "mark") notes.push("is there, and was pushed again since");
  if ("because" in planned) notes.push(planned.because);
  if (planned.referrers.length > 0) notes.push(`with ${countText(planned.referrers.length, "referrer")}`);
  if (verbose) notes.push(planned.why);
  return notes.join("; ");
}

function requestsText(requests: Record<string, number>): string {
  const all = Object.entries(requests).map(([name, made]) => `${made} to ${name}`);
  return all.join(", ") || "none";
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
    ...sum("mark", "to mark as pushed later"),
    ...sum("keep", "to keep as they are"),
    ...sum("fail", "that may not be written"),
    ...sum("withhold", "withheld"),
    ...sum("same", "unchanged"),
  ];
  const deleted = repositories.reduce((all, { deletions }) => all + (deletions?.remove.length ?? 0), 0);
  if (deleted > 0) changes.push(`${deleted} to delete`);
  const dropped = repositories.reduce((all, one) => all + one.dropped.length, 0);
  const lines = [
    `tags: ${changes.join(", ") || "none"}; ${dropped} left out`,
    ...(referrers > 0 ? [`referrers: ${referrers} to copy`] : []),
    ...(sizes?.targets ?? []).map(
      ({ registry, manifests, blobs, bytes, present, mounts }) =>
        `${registry}: ${countText(manifests, "manifest")} and ${countText(blobs, "blob")} to send, ${bytesText(bytes)}; ${countText(mounts, "blob")} to mount, ${present} there`,
    ),
    `requests: ${requestsText(requests)}`,
    ...(sizes ? [`requests to come: ${requestsText(sizes.requests)}`] : []),
    ...(pulls
      ? [
          `pulls: ${pulls.remaining} of ${pulls.limit} left, ${pulls.keep} kept for others${sizes ? `; copying takes at least ${sizes.pulls}` : ""}`,
        ]
      : []),
  ];
  return `${lines.join("\n")}\n`;
}
