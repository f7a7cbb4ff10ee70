import { parseDuration } from "../config/units.ts";
import { ACTIONS, OUTCOMES } from "../events/event.ts";
import { findDaemon } from "./daemon.ts";
import { bytesText, cut } from "./format.ts";
import { DONE, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";

const MOST_PER_PAGE = 1000;
const MOST = 1_000_000;

const USAGE = `Usage: entrepot events [OPTIONS]

Shows what happened to repositories, newest first: pushes, pulls, deletes and mounts, by whom, from where and with what outcome. What was
pulled or refused shows up after about a second.

  --repository NAME      only of this repository (full name)
  --actor NAME           only by this user, or by this work of the daemon's own, such as retention
  --action ACTION        only ${ACTIONS.join(", ")}
  --outcome OUTCOME      only ${OUTCOMES.join(", ")}
  --since WHEN           only from then on: a duration ago (90m, 7d), or a time (2026-01-31T12:00:00Z)
  --limit N              at most so many (default: 50)
  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --json                 one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface Event {
  at: string;
  action: string;
  outcome: string;
  repository: string;
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
      actor: { type: "string" },
      action: { type: "string" },
      outcome: { type: "string" },
      since: { type: "string" },
      limit: { type: "string", default: "50" },
      server: { type: "string" },
      config: { type: "string" },
      json: { type: "boolean", default: false },
    });
    const { repository, action, actor, outcome } = values;
    const limit = /^[0-9]{1,7}$/.test(values.limit) ? Number(values.limit) : 0;
    if (limit < 1 || limit > MOST) throw new UsageError(`--limit ${values.limit}: write a number from 1 to ${MOST}`);
    const since = values.since === undefined ? undefined : momentOf(values.since, Date.now());
    await using daemon = await findDaemon(values, io);
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries({ repository, action, actor, outcome, since }))
      if (value !== undefined) query.set(name, value);
    for (let left = limit; left > 0;) {
      query.set("limit", String(Math.min(left, MOST_PER_PAGE)));
      const { items, next } = await daemon.read<{ items: Event[]; next?: string }>(
        `/api/v1/events?${query.toString()}`,
      );
      for (const event of items) io.stdout.write(`${values.json ? JSON.stringify(event) : lineOf(event)}\n`);
      left -= items.length;
      if (next === undefined) break;
      query.set("cursor", next);
    }
    return DONE;
  });
}

/** An ISO 8601 time for a duration ago or a time. @throws UsageError */
export function momentOf(text: string, nowMs: number): string {
  const agoMs = parseDuration(text);
  const ms = agoMs === undefined ? Date.parse(text) : nowMs - agoMs;
  if (Number.isFinite(ms) && Math.abs(ms) < 8.64e15) return new Date(ms).toISOString();
  throw new UsageError(
    `--since ${text.slice(0, 40)}: write a duration such as 90m or 7d, or a time such as 2026-01-31T12:00:00Z`,
  );
}

/** `2026-01-31 12:00:00  push    team/app:1.2  sha256:ab12cd34ef56  12.3 KiB  by ci  from 10.0.0.7  docker/27.0`, in local time. */
function lineOf(event: Event): string {
  const { at, action, outcome, repository, tag, digest, sizeBytes, actor, address, agent, detail } = event;
  const parts = [
    new Date(at).toLocaleString("sv-SE"),
    action.padEnd(6),
    outcome === "done" ? undefined : outcome,
    tag === undefined ? repository : `${repository}:${tag}`,
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
