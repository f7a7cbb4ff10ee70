/** Runs one `entrepot copy` in a process of its own, and tells the most memory that it took, in KiB. */
import { runCopy } from "../../src/cli/copy.ts";

const io = { stdout: process.stderr, stderr: process.stderr, env: {} };
process.exitCode = await runCopy(process.argv.slice(2), io);
process.stdout.write(`${process.resourceUsage().maxRSS}\n`);
