import { JOB_STATES } from "../jobs/job.ts";
import { findDaemon } from "./daemon.ts";
import { cut } from "./format.ts";
import { DONE, json, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";

const MOST = 1000;
const VERBS = ["list", "show", "cancel", "pause", "resume", "prioritise", "retry"];

const USAGE = `Usage: entrepot jobs [list | show ID | cancel ID | pause ID | resume ID | prioritise ID [N] | retry ID] [OPTIONS]

Work of the daemon that survives a restart: garbage collections, scrubs, webhooks, replication and others.

  list                   the newest jobs (what happens without a word)
  show ID                one of them, with the lines that it has told
  cancel ID              take it out of the queue, or end it while it runs
  pause ID               keep it from running, and end its run if it has begun, until it is resumed
  resume ID              queue what is paused
  prioritise ID [N]      give what waits priority N: higher first, 0 is usual, -- before one below 0;
                         without N: ahead of all others of its kind
  retry ID               queue what is dead or cancelled once more

  --kind KIND            list only these, such as gc
  --state STATE          list only these: ${JOB_STATES.join(", ")}
  --subject SUBJECT      list only what is about this, as the list shows it
  --parent ID            list only the parts of this job
  --limit N              list so many at most (default: 50)
  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --json                 what the API answers; of a list, one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface Job {
  id: number;
  kind: string;
  state: string;
  subject?: string;
  parent?: number;
  priority: number;
  attempts: number;
  payload: unknown;
  progress?: unknown;
  result?: unknown;
  error?: string;
  createdAt: string;
  runAt: string;
  startedAt?: string;
  endedAt?: string;
}

/** `entrepot jobs`: shows and steers the running daemon's queue. */
export function runJobs(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        kind: { type: "string" },
        state: { type: "string" },
        subject: { type: "string" },
        parent: { type: "string" },
        limit: { type: "string", default: "50" },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      3,
    );
    const [verb = "list", id, priority] = positionals;
    if (!VERBS.includes(verb)) throw new UsageError(`there is no "jobs ${verb}"`);
    if ((verb === "list") !== (id === undefined))
      throw new UsageError(verb === "list" ? "list takes no ID" : `${verb} takes the ID of a job`);
    for (const given of [id, values.parent])
      if (given !== undefined && !/^[1-9][0-9]{0,14}$/.test(given))
        throw new UsageError(`"${given}" is no ID of a job`);
    if (priority !== undefined && verb !== "prioritise") throw new UsageError("there are too many arguments");
    if (priority !== undefined && !/^-?[0-9]{1,6}$/.test(priority))
      throw new UsageError(`"${priority}" is no priority: write a whole number, of six digits at most`);
    const limit = /^[0-9]{1,4}$/.test(values.limit) ? Number(values.limit) : 0;
    if (limit < 1 || limit > MOST) throw new UsageError(`--limit ${values.limit}: write a number from 1 to ${MOST}`);
    const { state } = values;
    if (state !== undefined && !JOB_STATES.some((known) => known === state))
      throw new UsageError(`--state ${state}: write one of ${JOB_STATES.join(", ")}`);
    await using daemon = await findDaemon(values, io);
    const print = (line: string): void => void io.stdout.write(`${plain(line)}\n`);
    if (id === undefined) {
      const query = new URLSearchParams({ limit: String(limit) });
      for (const name of ["kind", "state", "subject", "parent"] as const) {
        const wanted = values[name];
        if (wanted !== undefined) query.set(name, wanted);
      }
      const { items } = await daemon.read<{ items: Job[] }>(`/api/v1/jobs?${query.toString()}`);
      for (const job of items) print(values.json ? JSON.stringify(job) : lineOf(job));
      return DONE;
    }
    const path = `/api/v1/jobs/${id}`;
    const input = priority === undefined ? {} : { priority: Number(priority) };
    const job = verb === "show" ? await daemon.read<Job>(path) : await daemon.change<Job>(`${path}/${verb}`, input);
    if (values.json) io.stdout.write(json(job));
    else if (verb === "show") {
      for (const line of described(job)) print(line);
      for await (const { at, text } of daemon.list<{ at: string; text: string }>(`${path}/lines`))
        print(`${localTime(at)}  ${text}`);
    } else print(`job ${id} ${becomes(verb, job)}`);
    return DONE;
  });
}

function becomes(verb: string, { state, priority }: Job): string {
  if (verb === "retry") return "is queued once more";
  if (verb === "prioritise") return `has priority ${priority}`;
  if (verb === "resume")
    return state === "running" ? "goes on: its run was told to end, and is followed by another" : "is queued";
  return `is ${state === "running" ? "told to end" : state}`;
}

/** `12  gc  done  2026-01-31 12:00:00`, what it is about, and what it waits for or why it failed. */
function lineOf({ id, kind, state, subject, runAt, startedAt, endedAt, error }: Job): string {
  const at = endedAt ?? (state === "running" ? startedAt : runAt) ?? runAt;
  const parts = [String(id).padStart(6), kind.padEnd(14), state.padEnd(9), localTime(at)];
  if (subject !== undefined) parts.push(subject);
  if (error !== undefined && state !== "done") parts.push(cut(error, 80));
  return parts.join("  ");
}

function described(job: Job): string[] {
  const {
    id,
    kind,
    state,
    subject,
    parent,
    priority,
    attempts,
    payload,
    progress,
    result,
    error,
    createdAt,
    runAt,
    startedAt,
    endedAt,
  } = job;
  const facts: [string, string | undefined][] = [
    ["subject", subject],
    ["part of", parent === undefined ? undefined : `job ${parent}`],
    ["priority", priority === 0 ? undefined : String(priority)],
    ["attempts", String(attempts)],
    ["payload", JSON.stringify(payload)],
    ["progress", JSON.stringify(progress)],
    ["result", JSON.stringify(result)],
    ["error", error],
    ["added", localTime(createdAt)],
    ["runs at", state === "queued" ? localTime(runAt) : undefined],
    ["started", startedAt === undefined ? undefined : localTime(startedAt)],
    ["ended", endedAt === undefined ? undefined : localTime(endedAt)],
  ];
  return [
    `job ${id}, ${kind}: ${state}`,
    ...facts.flatMap(([name, text]) => (text === undefined ? [] : [`  ${name.padEnd(8)}  ${text}`])),
  ];
}

function localTime(iso: string): string {
  return new Date(iso).toLocaleString("sv-SE");
}

/** What others have said, in an error or a line, must not steer a terminal. */
function plain(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, "?");
}
