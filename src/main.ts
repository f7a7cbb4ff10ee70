#!/usr/bin/env node
import { enableCompileCache } from "node:module";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { DONE, FAILED, WRONG_USAGE, type CommandIo } from "./cli/io.ts";

// Types are stripped once, not at every start: that saves 200 ms and 20 MiB. Where the folder can't be written, it is done without.
enableCompileCache(join(import.meta.dirname, "../node_modules/.cache/entrepot"));

/**
 * Keeps the heap's young generation at its first MiB, for a command that passes on many bytes: their buffers lie outside of the heap and are freed
 * when a collection finds them, which a larger young generation puts off. What has grown stays: to be called before modules are loaded.
 */
function keepYoungMemorySmall(): void {
  setFlagsFromString("--semi-space-growth-factor=1");
}

type Command = (args: string[], io: CommandIo) => Promise<number>;

// Each command's modules are loaded when it is asked for: `config verify` needs no server.
const COMMANDS: Record<string, { summary: string; load: () => Promise<Command> }> = {
  serve: {
    summary: "run the daemon (what happens without a command)",
    load: async () => (await import("./cli/serve.ts")).runServe,
  },
  warm: {
    summary: "bring images into the running daemon's cache",
    load: async () => (await import("./cli/warm.ts")).runWarm,
  },
  copy: {
    summary: "copy images from one registry to another",
    load: async () => {
      keepYoungMemorySmall();
      return (await import("./cli/copy.ts")).runCopy;
    },
  },
  export: {
    summary: "write images into a file, to be carried elsewhere",
    load: async () => (await import("./cli/export.ts")).runExport,
  },
  import: {
    summary: "take over a registry:2 directory, a layout or a file of images",
    load: async () => (await import("./cli/import.ts")).runImport,
  },
  status: {
    summary: "tell how the running daemon is",
    load: async () => (await import("./cli/status.ts")).runStatus,
  },
  repositories: {
    summary: "list what was pushed or pulled",
    load: async () => (await import("./cli/repositories.ts")).runRepositories,
  },
  tags: {
    summary: "list the tags of a repository",
    load: async () => (await import("./cli/tags.ts")).runTags,
  },
  purge: {
    summary: "take content out of the cache",
    load: async () => (await import("./cli/purge.ts")).runPurge,
  },
  gc: {
    summary: "remove what was pushed and is needed no more",
    load: async () => (await import("./cli/gc.ts")).runGc,
  },
  quota: {
    summary: "tell what namespaces hold, and what they may hold",
    load: async () => (await import("./cli/quota.ts")).runQuota,
  },
  retention: {
    summary: "remove tags that no retention rule keeps",
    load: async () => (await import("./cli/retention.ts")).runRetention,
  },
  scrub: {
    summary: "read everything that is stored, and prove it",
    load: async () => (await import("./cli/scrub.ts")).runScrub,
  },
  events: {
    summary: "show who pushed, pulled and deleted what",
    load: async () => (await import("./cli/events.ts")).runEvents,
  },
  webhooks: {
    summary: "show who is told what happens, and tell them once more",
    load: async () => (await import("./cli/webhooks.ts")).runWebhooks,
  },
  user: {
    summary: "look after the users in the database",
    load: async () => (await import("./cli/user.ts")).runUser,
  },
  team: {
    summary: "look after teams and who is in them",
    load: async () => (await import("./cli/team.ts")).runTeam,
  },
  namespace: {
    summary: "look after hosted namespaces, and what teams are granted",
    load: async () => (await import("./cli/namespace.ts")).runNamespace,
  },
  robot: {
    summary: "look after the programs that log in",
    load: async () => (await import("./cli/robot.ts")).runRobot,
  },
  token: {
    summary: "look after what users log in with in place of their password",
    load: async () => (await import("./cli/token.ts")).runToken,
  },
  replicate: {
    summary: "copy what the rules of replication name, or tell what they would",
    load: async () => {
      keepYoungMemorySmall();
      return (await import("./cli/replicate.ts")).runReplicate;
    },
  },
  jobs: {
    summary: "show, cancel and retry work that survives a restart",
    load: async () => (await import("./cli/jobs.ts")).runJobs,
  },
  doctor: {
    summary: "find out what keeps the daemon from working well",
    load: async () => (await import("./cli/doctor.ts")).runDoctor,
  },
  config: {
    summary: "verify, print or describe the configuration",
    load: async () => (await import("./cli/config.ts")).runConfig,
  },
  demo: {
    summary: "show what a mirror does, in half a minute and without any network",
    load: async () => (await import("./cli/demo.ts")).runDemo,
  },
};

const HELP = `Usage: entrepot [COMMAND] [OPTIONS]

${Object.entries(COMMANDS)
  .map(([name, { summary }]) => `  ${name.padEnd(13)} ${summary}`)
  .join("\n")}

Every command takes --help; entrepot --version prints the version.
Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

async function main(argv: string[], io: CommandIo): Promise<number> {
  const [first = "serve", ...rest] = argv;
  if (first === "--help" || first === "help" || first === "-h") {
    io.stdout.write(HELP);
    return DONE;
  }
  if (first === "--version") {
    const { VERSION } = await import("./base/version.ts");
    io.stdout.write(`entrepot ${VERSION}\n`);
    return DONE;
  }
  const [name, args] = first.startsWith("-") ? ["serve", argv] : [first, rest];
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!command) {
    io.stderr.write(`entrepot: there is no command "${name}"\n\n${HELP}`);
    return WRONG_USAGE;
  }
  try {
    const run = await command.load();
    return await run(args, io);
  } catch (error) {
    io.stderr.write(`entrepot ${name}: ${(error as Error).message}\n`);
    return FAILED;
  }
}

// Whoever reads the output (head, less) may have seen enough.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(FAILED);
});

process.exitCode = await main(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
});
