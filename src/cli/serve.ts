import { parseArgs } from "node:util";
import { open } from "../app.ts";
import { createLog } from "../base/log.ts";
import { loadConfig } from "../config/load.ts";
import { DONE, type CommandIo } from "./io.ts";

/** `entrepot serve [--config FILE]`: runs the daemon until SIGTERM or SIGINT, then drains it. */
export async function runServe(args: readonly string[], io: CommandIo): Promise<number> {
  const { values } = parseArgs({ args: [...args], options: { config: { type: "string" } }, strict: true });
  const stopped = new Promise<string>((resolve) => {
    process.once("SIGTERM", () => resolve("SIGTERM"));
    process.once("SIGINT", () => resolve("SIGINT"));
  });
  const { config, warnings } = await loadConfig({
    ...(values.config === undefined ? {} : { file: values.config }),
    env: io.env,
  });
  const log = await createLog(config.log);
  for (const warning of warnings) log.warn(warning);
  {
    await using _app = await open(config, { log });
    const signal = await stopped;
    log.info({ signal, drainMs: config.server.drainTimeout }, "stopping");
  }
  log.info("stopped");
  await new Promise<void>((resolve) => log.flush(() => resolve()));
  return DONE;
}
