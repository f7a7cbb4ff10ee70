import { findDaemon } from "./daemon.ts";
import { momentOf } from "./events.ts";
import { DONE, FAILED, json, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";

const USAGE = `Usage: entrepot webhooks [list | failures NAME | redeliver NAME [ID] | ping NAME] [OPTIONS]

Tells how the addresses are that are told what happens, and sends them once more what they did not take.

  list                   how far each has been told (what happens without a word)
  failures NAME          what it did not take however often it was sent, newest first
  redeliver NAME [ID]    send a failure once more, or all of them that were not yet sent again
  ping NAME              send an event that tells of nothing, and tell what comes of it

  --since WHEN           redeliver all events from then on: a duration ago (90m, 7d), or a time (2026-01-31T12:00:00Z)
  --from N, --to N       redeliver all events with these ids
  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --json                 what the API answers; of a list, one JSON object a line

Exit status: 0 done, 1 failed (also: a ping that was not taken), 2 wrong usage or configuration.
`;

/** As the API answers them. */
interface Webhook {
  name: string;
  url: string;
  pending: number;
  deliveredAt?: string;
  failingSince?: string;
  retryAt?: string;
  error?: string;
}

interface Failure {
  id: number;
  firstEvent: number;
  lastEvent: number;
  events: number;
  error: string;
  at: string;
  redeliveredAt?: string;
}

interface Ping {
  delivered: boolean;
  ms: number;
  error?: string;
}

const VERBS = ["list", "failures", "redeliver", "ping"];

/** `entrepot webhooks`: shows the running daemon's webhooks, and sends them something. */
export function runWebhooks(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        since: { type: "string" },
        from: { type: "string" },
        to: { type: "string" },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      3,
    );
    const [verb = "list", name, id] = positionals;
    if (!VERBS.includes(verb)) throw new UsageError(`there is no "webhooks ${verb}"`);
    if ((verb === "list") !== (name === undefined))
      throw new UsageError(verb === "list" ? "list takes no NAME" : `${verb} takes the NAME of a webhook`);
    if (id !== undefined && verb !== "redeliver") throw new UsageError(`${verb} takes no ID`);
    const range = rangeOf(values);
    if (range && (verb !== "redeliver" || id !== undefined))
      throw new UsageError("--since, --from and --to go with redeliver NAME");
    await using daemon = await findDaemon(values, io);
    const print = (answer: object, line: string): void =>
      void io.stdout.write(`${values.json ? JSON.stringify(answer) : plain(line)}\n`);

    if (name === undefined) {
      for await (const webhook of daemon.list<Webhook>("/api/v1/webhooks")) print(webhook, stateLine(webhook));
      return DONE;
    }
    const path = `/api/v1/webhooks/${encodeURIComponent(name)}`;
    if (verb === "failures") {
      for await (const failure of daemon.list<Failure>(`${path}/failures`)) print(failure, failureLine(failure));
      return DONE;
    }
    if (verb === "ping") {
      const ping = await daemon.change<Ping>(`${path}/ping`);
      if (values.json) io.stdout.write(json(ping));
      else print(ping, ping.delivered ? `${name} took it, in ${ping.ms} ms` : `${name} did not take it: ${ping.error}`);
      return ping.delivered ? DONE : FAILED;
    }
    const send = async (where: string, what: string, body = {}): Promise<void> => {
      const answer = await daemon.change<{ job: number }>(`${path}${where}`, body);
      print(answer, `job ${answer.job} sends ${what}: see entrepot jobs show ${answer.job}`);
    };
    if (range) await send("/redeliver", "the events", range);
    else if (id !== undefined) await send(`/failures/${wholeNumber(id, "ID")}/redeliver`, `failure ${id}`);
    else {
      const failures = await Array.fromAsync(daemon.list<Failure>(`${path}/failures`));
      for (const { id: failed } of failures.filter(({ redeliveredAt }) => redeliveredAt === undefined).toReversed())
        await send(`/failures/${failed}/redeliver`, `failure ${failed}`);
    }
    return DONE;
  });
}

/** @throws UsageError */
function rangeOf({ since, from, to }: { since?: string; from?: string; to?: string }): object | undefined {
  if (since !== undefined) {
    if (from !== undefined || to !== undefined) throw new UsageError("write either --since, or --from and --to");
    return { since: momentOf(since, Date.now()) };
  }
  if (from === undefined) {
    if (to !== undefined) throw new UsageError("--to goes with --from");
    return undefined;
  }
  return { from: wholeNumber(from, "--from"), ...(to === undefined ? {} : { to: wholeNumber(to, "--to") }) };
}

/** @throws UsageError */
function wholeNumber(text: string, what: string): number {
  if (/^[0-9]{1,15}$/.test(text)) return Number(text);
  throw new UsageError(`${what} ${text.slice(0, 40)}: write a whole number`);
}

/** `ci  12 pending  told 2026-01-31 12:00:00  https://ci.example.com/hook`, and what keeps it from being told more. */
function stateLine({ name, url, pending, deliveredAt, failingSince, retryAt, error }: Webhook): string {
  const parts = [
    name,
    `${pending} pending`,
    deliveredAt === undefined ? "never told anything" : `told ${localTime(deliveredAt)}`,
    url,
  ];
  if (failingSince !== undefined) parts.push(`failing since ${localTime(failingSince)}: ${error}`);
  if (retryAt !== undefined) parts.push(`asked again ${localTime(retryAt)}`);
  return parts.join("  ");
}

function failureLine({ id, firstEvent, lastEvent, events, error, at, redeliveredAt }: Failure): string {
  const sent = redeliveredAt === undefined ? "" : `  sent again ${localTime(redeliveredAt)}`;
  return `${id}  ${localTime(at)}  ${events} of events ${firstEvent} to ${lastEvent}${sent}  ${error}`;
}

function localTime(iso: string): string {
  return new Date(iso).toLocaleString("sv-SE");
}

/** What others have said, in an error, must not steer a terminal. */
function plain(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, "?");
}
