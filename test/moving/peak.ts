/** Runs one command of the way in or out in a process of its own, and tells the most memory that it took, in KiB. */
import { runExport } from "../../src/cli/export.ts";
import { importFile } from "../../src/cli/import-file.ts";

const [command, server = "", ...args] = process.argv.slice(2);
const io = { stdout: process.stderr, stderr: process.stderr, env: {} };
if (command === "export") process.exitCode = await runExport([...args, "--server", server], io);
else process.exitCode = await importFile(args[0] ?? "", { as: args.slice(1), server, json: false }, io);
process.stdout.write(`${process.resourceUsage().maxRSS}\n`);
