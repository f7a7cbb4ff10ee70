import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { PassThrough } from "node:stream";
import { createLog } from "../base/log.ts";
import { loadConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { RegistryClient } from "../moving/registry-client.ts";
import { localLogin } from "./credentials.ts";
import { assertAnswers, Daemon, localPlace, NoDaemon, originOf, remotePlace, type Place } from "./daemon.ts";
import { UsageError, type CommandIo } from "./io.ts";

interface Where {
  server?: string | undefined;
  config?: string | undefined;
}

/** Where a daemon answers: one that runs, or one of this process. */
interface Found {
  place: Place;
  /** The folder of its storage, if the configuration of this machine tells it. */
  root: string | undefined;
}

/** A registry that a command can pull from and push to. */
export interface Reached extends AsyncDisposable {
  client: RegistryClient;
  /** The folder of its storage, if the configuration of this machine tells it. */
  root: string | undefined;
}

/**
 * Finds the daemon or, where none runs on this machine, opens the storage as a daemon does, for this process alone. So images go in and out
 * the one way that clients use, with all that is checked on it.
 * @param where `--server`; then only that is asked
 * @throws Error naming cause and remedy: nobody answers there, the storage is in use; UsageError, ConfigError
 */
export async function reachRegistry(where: Where, io: CommandIo): Promise<Reached> {
  await using stack = new AsyncDisposableStack();
  const { place, root } = await find(where, io, stack);
  const client = stack.use(new RegistryClient(originOf(place)));
  const owned = stack.move();
  return { client, root, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** The same for a command that asks the API. @throws as {@link reachRegistry} */
export async function reachDaemon(where: Where, io: CommandIo): Promise<{ daemon: Daemon } & AsyncDisposable> {
  await using stack = new AsyncDisposableStack();
  const { place } = await find(where, io, stack);
  const daemon = stack.use(new Daemon(place));
  const owned = stack.move();
  return { daemon, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** @param stack is given what has to be closed afterwards */
async function find({ server, config: file }: Where, io: CommandIo, stack: AsyncDisposableStack): Promise<Found> {
  if (server !== undefined) {
    const place = remotePlace(server, io.env);
    await assertAnswers(place);
    return { place, root: undefined };
  }
  const { config } = await loadConfig({ file, env: io.env });
  const root = resolve(config.storage.root);
  let reason: string;
  try {
    const place = await localPlace(config, io.env);
    await assertAnswers(place);
    return { place, root };
  } catch (error) {
    if (!(error instanceof NoDaemon || error instanceof UsageError)) throw error;
    reason = error.message;
  }
  const folder = await mkdtemp(join(tmpdir(), "entrepot-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const listen = `unix:${join(folder, "socket")}`;
  const log = await createLog({ level: "silent", format: "json", destination: new PassThrough() });
  // With all its parts it takes a while to load: most often a daemon runs.
  const { open } = await import("../app.ts");
  const app = await open(forOneCommand(config, listen), { log, ownWork: false }).catch((cause: unknown) => {
    throw new Error(`${(cause as Error).message}\n(${reason})`, { cause });
  });
  stack.use(app);
  return { place: { address: listen, login: await localLogin(root, io.env) }, root };
}

/** The same storage and upstreams. Nobody else reaches it. */
function forOneCommand(config: Config, listen: string): Config {
  return {
    ...config,
    server: { ...config.server, listen, publicUrl: undefined, tls: undefined },
    // It is the operator, whom the record names.
    access: { ...config.access, open: false },
    // What this command does is told by the next daemon.
    webhooks: [],
  };
}
