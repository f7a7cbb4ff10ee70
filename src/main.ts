#!/usr/bin/env node
import { ConfigError } from "./config/faults.ts";
import { FAILED, UsageError, WRONG_USAGE, type CommandIo } from "./cli/io.ts";

type Command = (args: string[], io: CommandIo) => Promise<number>;

// Each command's modules are loaded when it is asked for: `config verify` needs no server.
const COMMANDS: Record<string, { summary: string; load: () => Promise<Command> }> = {
  serve: {
    summary: "run the daemon (what happens without a command)",
    load: async () => (await import("./cli/serve.ts")).runServe,
  },
  config: {
    summary: "verify, print or describe the configuration",
    load: async () => (await import("./cli/config.ts")).runConfig,
  },
};

const HELP = `Usage: entrepot [COMMAND] [OPTIONS]

${Object.entries(COMMANDS)
  .map(([name, { summary }]) => `  ${name.padEnd(8)} ${summary}`)
  .join("\n")}

Every command takes --help. Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

async function main(argv: string[], io: CommandIo): Promise<number> {
  const [first = "serve", ...rest] = argv;
  if (first === "--help" || first === "help" || first === "-h") {
    io.stdout.write(HELP);
    return 0;
  }
  const [name, args] = first.startsWith("-") ? ["serve", argv] : [first, rest];
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!command) {
    io.stderr.write(`entrepot: there is no command "${name}"\n\n${HELP}`);
    return WRONG_USAGE;
  }
  try {
    return await (
      await command.load()
    )(args, io);
  } catch (error) {
    const usage =
      error instanceof UsageError ||
      error instanceof ConfigError ||
      String((error as { code?: unknown }).code).startsWith("ERR_PARSE_ARGS");
    io.stderr.write(`entrepot ${name}: ${(error as Error).message}\n`);
    return usage ? WRONG_USAGE : FAILED;
  }
}

process.exitCode = await main(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
});
