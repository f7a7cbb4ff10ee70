import { parseArgs, type ParseArgsConfig } from "node:util";
import { ConfigError } from "../config/faults.ts";

/** What a command reads and writes; a test hands in its own. */
export interface CommandIo {
  stdout: NodeJS.WritableStream & { isTTY?: boolean; columns?: number; rows?: number };
  stderr: NodeJS.WritableStream;
  env: NodeJS.ProcessEnv;
}

/** Exit statuses of every command. */
export const DONE = 0;
export const FAILED = 1;
export const WRONG_USAGE = 2;

/** Wrong usage of a command: told with the way to the right one, and exit status 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/**
 * Runs a command's body. Answers --help; tells wrong usage and a faulty configuration on standard error.
 * @returns the exit status
 * @throws whatever else the body throws
 */
export async function runCommand(
  args: readonly string[],
  io: CommandIo,
  usage: string,
  body: () => Promise<number>,
): Promise<number> {
  if (args.includes("--help") || args.includes("-h")) {
    io.stdout.write(usage);
    return DONE;
  }
  try {
    return await body();
  } catch (error) {
    if (!(error instanceof ConfigError || error instanceof UsageError)) throw error;
    io.stderr.write(`entrepot: ${error.message}\n${error instanceof UsageError ? `\n${usage}` : ""}`);
    return WRONG_USAGE;
  }
}

/**
 * Reads a command's arguments.
 * @param most how many may stand there beside the options
 * @throws UsageError
 */
export function parseOptions<const Options extends NonNullable<ParseArgsConfig["options"]>>(
  args: readonly string[],
  options: Options,
  most = 0,
) {
  try {
    const parsed = parseArgs({ args: [...args], options, allowPositionals: most > 0 });
    if (parsed.positionals.length <= most) return parsed;
  } catch (error) {
    throw new UsageError((error as Error).message, { cause: error });
  }
  throw new UsageError("there are too many arguments");
}

/** A value as a program reads it from standard output. */
export function json(value: object): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}
