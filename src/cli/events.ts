import { pipeline } from "node:stream/promises";
import { parseDuration } from "../config/units.ts";
import { ACTIONS, OUTCOMES } from "../events/event.ts";
import { findDaemon, LostDaemon, reasonOf, type Daemon } from "./daemon.ts";
import { bytesText, cut } from "./format.ts";
import { DONE, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";

const MOST_PER_PAGE = 1000;
const MOST = 1_000_000_000;
const SHOWN = 50;

const USAGE = `Usage: entrepot events [OPTIONS]

Shows what happened, newest first: pushes, pulls, deletes and mounts, logins, and changes of who may do what; by whom, from where and with
what outcome. What was pulled or refused, and who logged in, shows up after about a second.

  --repository NAME      only of this repository (full name)
  --subject WHAT         only of this user, robot, token, team, or of the rights on this namespace or upstream: user:alice, namespace:team
  --actor NAME           only by this user, or by this work of the daemon's own, such as retention
  --action ACTION        only ${ACTIONS.join(", ")}
  --outcome OUTCOME      only ${OUTCOMES.join(", ")}
  --since WHEN           only from then on: a duration ago (90m, 7d), or a time (2026-01-31T12:00:00Z)
  --until WHEN           only before that
  --limit N              at most so many (default: 50; all of them with --csv or --json)
  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --csv                  CSV (RFC 4180) with a line that names the columns; what a spreadsheet would take for a formula gets an
                         apostrophe before it
  --json                 one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface Event {
  at: string;
  action: string;
  outcome: string;
  repository?: string;
  subject?: string;
  tag?: string;
  digest?: string;
  sizeBytes?: number;
  actor?: string;
  address?: string;
  agent?: string;
  detail?: string;
}

/** `entrepot events`: shows what the running daemon has recorded. */
export function runEvents(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values } = parseOptions(args, {
      repository: { type: "string" },
      subject: { type: "string" },
      actor: { type: "string" },
      action: { type: "string" },
      outcome: { type: "string" },
      since: { type: "string" },
      until: { type: "string" },
      limit: { type: "string" },
      server: { type: "string" },
      config: { type: "string" },
      csv: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
    });
    const { repository, subject, action, actor, outcome, csv, json } = values;
    if (csv && json) throw new UsageError("--csv and --json: write one of them");
    const limit = values.limit === undefined ? undefined : numberOf(values.limit);
    const since = values.since === undefined ? undefined : momentOf(values.since, Date.now());
    const until = values.until === undefined ? undefined : momentOf(values.until, Date.now(), "--until");
    await using daemon = await findDaemon(values, io);
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries({ repository, subject, action, actor, outcome, since, until }))
      if (value !== undefined) query.set(name, value);
    if (csv || json) {
      query.set("format", csv ? "csv" : "json");
      if (limit !== undefined) query.set("limit", String(limit));
      await copy(daemon, `/api/v1/events/export?${query.toString()}`, io);
      return DONE;
    }
    for (let left = limit ?? SHOWN; left > 0;) {
      query.set("limit", String(Math.min(left, MOST_PER_PAGE)));
      const { items, next } = await daemon.read<{ items: Event[]; next?: string }>(
        `/api/v1/events?${query.toString()}`,
      );
      for (const event of items) io.stdout.write(`${lineOf(event)}\n`);
      left -= items.length;
      if (next === undefined) break;
      query.set("cursor", next);
    }
    return DONE;
  });
}

/** @throws LostDaemon where the daemon goes away before the end */
async function copy(daemon: Daemon, path: string, { stdout }: CommandIo): Promise<void> {
  const body = await daemon.text(path);
  let lost: unknown;
  body.once("error", (error) => (lost = error));
  try {
    await pipeline(body, stdout, { end: false });
  } catch (error) {
    // Whoever reads has seen enough.
    if ((error as NodeJS.ErrnoException).code === "EPIPE") return;
    if (lost === undefined) throw error;
    throw new LostDaemon(daemon.address, reasonOf(lost), { cause: lost });
  }
}

function numberOf(limit: string): number {
  const number = /^[0-9]{1,10}$/.test(limit) ? Number(limit) : 0;
  if (number >= 1 && number <= MOST) return number;
  throw new UsageError(`--limit ${limit}: write a number from 1 to ${MOST}`);
}

/** An ISO 8601 time for a duration ago or a time. @throws UsageError */
export function momentOf(text: string, nowMs: number, option = "--since"): string {
  const agoMs = parseDuration(text);
  const ms = agoMs === undefined ? Date.parse(text) : nowMs - agoMs;
  if (Number.isFinite(ms) && Math.abs(ms) < 8.64e15) return new Date(ms).toISOString();
  throw new UsageError(
    `${option} ${text.slice(0, 40)}: write a duration such as 90m or 7d, or a time such as 2026-01-31T12:00:00Z`,
  );
}

/** `2026-01-31 12:00:00  push    team/app:1.2  sha256:ab12cd34ef56  12.3 KiB  by ci  from 10.0.0.7  docker/27.0`, in local time. */
function lineOf(event: Event): string {
  const { at, action, outcome, repository, tag, digest, sizeBytes, actor, address, agent, detail, subject } = event;
  const parts = [
    new Date(at).toLocaleString("sv-SE"),
    action.padEnd(6),
    outcome === "done" ? undefined : outcome,
    tag === undefined ? repository : `${repository}:${tag}`,
    subject,
    digest?.slice(0, 19),
    sizeBytes === undefined ? undefined : bytesText(sizeBytes),
    actor === undefined ? undefined : `by ${actor}`,
    address === undefined ? undefined : `from ${address === "" ? "a socket" : address}`,
    agent === undefined ? undefined : cut(agent, 40),
    detail,
  ];
  // What clients say of themselves must not steer a terminal.
  return parts
    .filter((part) => part !== undefined)
    .join("  ")
    .replaceAll(/\p{Cc}/gu, "?");
}
