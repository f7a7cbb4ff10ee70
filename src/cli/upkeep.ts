import { PassThrough } from "node:stream";
import type { StoredContent } from "../app-stored.ts";
import { createLog } from "../base/log.ts";
import { loadConfig } from "../config/load.ts";
import type { Tell } from "../jobs/attended.ts";
import { Daemon, localPlace, LostDaemon, NoDaemon, remotePlace } from "./daemon.ts";
import { interruptible } from "./interrupt.ts";
import { FAILED, UsageError, type CommandIo } from "./io.ts";

/** A job that a command asks for: of the running daemon or, where none runs, on the storage itself. */
export interface Asked<Event> {
  path: string;
  body: object;
  /** The same without a daemon. */
  start: (stored: Omit<StoredContent, keyof AsyncDisposable>, tell: Tell<Event>, signal: AbortSignal) => Promise<void>;
}

export interface Where {
  server?: string | undefined;
  config?: string | undefined;
  /** Passes the events on instead of showing them. */
  json: boolean;
}

/** What `--server` and `--config` mean to these commands. */
export const WHERE = `  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens, and where the storage is if none runs
`;

/**
 * Runs a job to its end.
 * @param show is told of every event, the last one included
 * @param statusOf the exit status that an event means, if it is the last
 * @returns that of the last one
 * @throws Error naming cause and remedy: the daemon refuses or goes away, the storage is in use
 */
export async function runJob<Event extends { type: string }>(
  { server, config: file, json }: Where,
  io: CommandIo,
  asked: Asked<Event>,
  show: (event: Event) => void,
  statusOf: (event: Event) => number,
): Promise<number> {
  const watch = (event: Event): number => {
    if (json) io.stdout.write(`${JSON.stringify(event)}\n`);
    else show(event);
    return statusOf(event);
  };
  if (server !== undefined) {
    await using daemon = new Daemon(remotePlace(server, io.env));
    return await runByDaemon(daemon, asked, watch);
  }
  const { config } = await loadConfig({ file, env: io.env });
  let reason: string;
  try {
    await using daemon = new Daemon(await localPlace(config, io.env));
    return await runByDaemon(daemon, asked, watch);
  } catch (error) {
    // Without a port in the configuration, its lock tells whether a daemon runs.
    if (!(error instanceof NoDaemon || error instanceof UsageError)) throw error;
    reason = error.message;
  }
  const log = await createLog({ level: "silent", format: "json", destination: new PassThrough() });
  // The timers of jobs keep no process alive.
  const alive = setInterval(() => undefined, 60_000);
  let status = FAILED;
  try {
    // With all its parts it takes a while to load: most often a daemon runs.
    const { openStoredContent } = await import("../app-stored.ts");
    await using stored = await openStoredContent(config, { log }).catch((cause: unknown) => {
      throw new Error(`${(cause as Error).message}\n(${reason})`, { cause });
    });
    const tell = async (event: Event): Promise<void> => {
      status = watch(event);
    };
    // Else the next daemon would go on with it.
    using interrupt = interruptible();
    await asked.start(stored, tell, interrupt.signal);
  } finally {
    clearInterval(alive);
  }
  return status;
}

async function runByDaemon<Event extends { type: string }>(
  daemon: Daemon,
  { path, body }: Asked<Event>,
  watch: (event: Event) => number,
): Promise<number> {
  let last: string | undefined;
  let status = FAILED;
  for await (const event of await daemon.events<Event>(path, body)) {
    last = event.type;
    status = watch(event);
  }
  if (last !== "done" && last !== "failed") throw new LostDaemon(daemon.address);
  return status;
}
