import { writeSync } from "node:fs";
import { open, type App } from "../app.ts";
import { VERSION } from "../base/version.ts";
import { collectAll } from "../base/garbage.ts";
import { createLog, type Logger } from "../base/log.ts";
import { loadConfig, type LoadedConfig } from "../config/load.ts";
import { greeting } from "./greeting.ts";
import { DONE, FAILED, parseOptions, runCommand, type CommandIo } from "./io.ts";
import { readConfigText, Reloading } from "./reload.ts";

const USAGE = `Usage: entrepot serve [--config FILE]

Runs the daemon. Without FILE, the one that ENTREPOT_CONFIG names, else the defaults; the environment's variables count.

  SIGTERM, SIGINT   stop: requests under way may end (server.drainTimeout); a second one stops at once
  SIGHUP            load the configuration again, as after a change of its file

Exit status: 0 stopped, 1 failed, 2 wrong usage or configuration.
`;

/** A Ctrl-C reaches the daemon twice under npm: from the terminal, and passed on by npm. */
const ECHO_MS = 500;
/** A log that can't be written must not keep the process from ending. */
const FLUSH_MS = 1000;

/** `entrepot serve [--config FILE]`: runs the daemon until SIGTERM or SIGINT, then drains it. */
export function runServe(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values } = parseOptions(args, { config: { type: "string" } });
    const file = values.config ?? (io.env["ENTREPOT_CONFIG"] || undefined);
    const text = file === undefined ? undefined : await readConfigText(file);
    const { config, origins, warnings } = await loadConfig({ file, env: io.env });
    const log = await createLog(config.log);
    const signals = new Signals();
    process.once("uncaughtException", (failure, origin) => {
      log.fatal({ err: failure, origin }, "failed where nothing may fail: the daemon ends");
      void flushed(log).then(() => process.exit(FAILED));
    });
    for (const warning of warnings) log.warn(warning);
    try {
      await run({ config, origins }, log, async (app) => {
        await using reloading = new Reloading({ app, file, text, env: io.env, log });
        signals.onHangup = () => reloading.reload("SIGHUP");
        if (io.stdout.isTTY) io.stdout.write(greeting(app.address, config.server.publicUrl, VERSION));
        const signal = await signals.stop;
        signals.onHangup = () => undefined;
        log.info({ signal }, "stopping: what is under way may end");
      });
      log.info("stopped");
    } finally {
      await flushed(log);
    }
    return DONE;
  });
}

async function run(
  { config, origins }: Pick<LoadedConfig, "config" | "origins">,
  log: Logger,
  until: (app: App) => Promise<void>,
): Promise<void> {
  await using app = await open(config, { log, origins });
  collectAll();
  await until(app);
}

async function flushed(log: Logger): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, FLUSH_MS);
  log.flush(() => resolve());
  await promise;
  clearTimeout(timer);
}

/** The process's signals, from its first moment on: one that comes while the daemon starts is not lost. */
class Signals {
  /** The first signal to stop. */
  readonly stop: Promise<NodeJS.Signals>;
  onHangup: () => void = () => undefined;

  constructor() {
    const { promise, resolve } = Promise.withResolvers<NodeJS.Signals>();
    this.stop = promise;
    let first: { signal: NodeJS.Signals; atMs: number } | undefined;
    const stop = (signal: NodeJS.Signals): void => {
      const nowMs = performance.now();
      if (first?.signal === signal && nowMs - first.atMs < ECHO_MS) return;
      if (first) {
        writeSync(process.stderr.fd, `entrepot: ${signal} again: stopping at once\n`);
        process.exit(FAILED);
      }
      first = { signal, atMs: nowMs };
      resolve(signal);
    };
    process.on("SIGTERM", stop);
    process.on("SIGINT", stop);
    process.on("SIGHUP", () => this.onHangup());
  }
}
