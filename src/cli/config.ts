import { parseArgs, type ParseArgsConfig } from "node:util";
import { ConfigError } from "../config/faults.ts";
import { configJsonSchema } from "../config/json-schema.ts";
import { loadConfig } from "../config/load.ts";
import { printConfig, printConfigJson } from "../config/print.ts";

const USAGE = `Usage:
  entrepot config verify [FILE] [--json]          find every fault of a configuration
  entrepot config print [--config FILE] [--json]  show the configuration in force and where each value comes from
  entrepot config schema                          print the JSON Schema of a configuration file

Without FILE, the one that ENTREPOT_CONFIG names, else the defaults. The environment's variables count.
`;

export interface CommandIo {
  stdout: NodeJS.WritableStream;
  stderr: NodeJS.WritableStream;
  env: NodeJS.ProcessEnv;
}

/**
 * `entrepot config verify|print|schema`.
 * @param args what follows `config` on the command line
 * @returns the exit status: 0 done; 2 wrong usage, or a configuration with faults
 */
export async function runConfig(args: string[], io: CommandIo): Promise<number> {
  const [command, ...rest] = args;
  try {
    switch (command) {
      case "verify":
        return await verify(rest, io);
      case "print":
        return await print(rest, io);
      case "schema":
        parse(rest, {});
        io.stdout.write(json(configJsonSchema()));
        return 0;
      case "--help":
      case "-h":
        io.stdout.write(USAGE);
        return 0;
      default:
        throw new UsageError(command === undefined ? "a command is missing" : `config has no command ${command}`);
    }
  } catch (error) {
    if (!(error instanceof ConfigError || error instanceof UsageError)) throw error;
    io.stderr.write(`entrepot: ${error.message}\n${error instanceof UsageError ? `\n${USAGE}` : ""}`);
    return 2;
  }
}

async function verify(args: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: "boolean" } }, 1);
  const [file] = positionals;
  const name = file ?? (io.env["ENTREPOT_CONFIG"] || "the configuration");
  try {
    const { warnings } = await loadConfig({ file, env: io.env });
    if (values.json) io.stdout.write(json({ valid: true, faults: [], warnings }));
    else io.stdout.write(`${[`${name} is valid`, ...warnings.map((warning) => `warning: ${warning}`)].join("\n")}\n`);
    return 0;
  } catch (error) {
    if (!(error instanceof ConfigError) || !values.json) throw error;
    io.stdout.write(json({ valid: false, faults: error.faults, warnings: [] }));
    return 2;
  }
}

async function print(args: string[], io: CommandIo): Promise<number> {
  const { values } = parse(args, { config: { type: "string" }, json: { type: "boolean" } });
  const loaded = await loadConfig({ file: values.config, env: io.env });
  if (values.json) {
    io.stdout.write(json(printConfigJson(loaded)));
  } else {
    io.stdout.write(printConfig(loaded));
    for (const warning of loaded.warnings) io.stderr.write(`warning: ${warning}\n`);
  }
  return 0;
}

class UsageError extends Error {
  override readonly name = "UsageError";
}

function parse<const Options extends NonNullable<ParseArgsConfig["options"]>>(
  args: string[],
  options: Options,
  most = 0,
) {
  try {
    const parsed = parseArgs({ args, options, allowPositionals: most > 0 });
    if (parsed.positionals.length <= most) return parsed;
  } catch (error) {
    throw new UsageError((error as Error).message, { cause: error });
  }
  throw new UsageError("there are too many arguments");
}

function json(value: object): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}
