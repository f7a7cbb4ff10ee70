import { ConfigError } from "../config/faults.ts";
import { configJsonSchema } from "../config/json-schema.ts";
import { loadConfig } from "../config/load.ts";
import { printConfig, printConfigJson } from "../config/print.ts";
import { DONE, json, parseOptions, runCommand, UsageError, WRONG_USAGE, type CommandIo } from "./io.ts";

const USAGE = `Usage:
  entrepot config verify [FILE] [--json]          find every fault of a configuration
  entrepot config print [--config FILE] [--json]  show the configuration in force and where each value comes from
  entrepot config schema                          print the JSON Schema of a configuration file

Without FILE, the one that ENTREPOT_CONFIG names, else the defaults. The environment's variables count.
`;

/**
 * `entrepot config verify|print|schema`.
 * @param args what follows `config` on the command line
 * @returns the exit status: 0 done; 2 wrong usage, or a configuration with faults
 */
export function runConfig(args: string[], io: CommandIo): Promise<number> {
  const [command, ...rest] = args;
  return runCommand(args, io, USAGE, async () => {
    switch (command) {
      case "verify":
        return verify(rest, io);
      case "print":
        return print(rest, io);
      case "schema":
        parseOptions(rest, {});
        io.stdout.write(json(configJsonSchema()));
        return DONE;
      default:
        throw new UsageError(command === undefined ? "a command is missing" : `config has no command ${command}`);
    }
  });
}

async function verify(args: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parseOptions(args, { json: { type: "boolean" } }, 1);
  const [file] = positionals;
  const name = file ?? (io.env["ENTREPOT_CONFIG"] || "the configuration");
  try {
    const { warnings } = await loadConfig({ file, env: io.env });
    if (values.json) io.stdout.write(json({ valid: true, faults: [], warnings }));
    else io.stdout.write(`${[`${name} is valid`, ...warnings.map((warning) => `warning: ${warning}`)].join("\n")}\n`);
    return DONE;
  } catch (error) {
    if (!(error instanceof ConfigError) || !values.json) throw error;
    io.stdout.write(json({ valid: false, faults: error.faults, warnings: [] }));
    return WRONG_USAGE;
  }
}

async function print(args: string[], io: CommandIo): Promise<number> {
  const { values } = parseOptions(args, { config: { type: "string" }, json: { type: "boolean" } });
  const loaded = await loadConfig({ file: values.config, env: io.env });
  if (values.json) {
    io.stdout.write(json(printConfigJson(loaded)));
  } else {
    io.stdout.write(printConfig(loaded));
    for (const warning of loaded.warnings) io.stderr.write(`warning: ${warning}\n`);
  }
  return DONE;
}
