/** Imported before a program: at its end, its last line tells the most memory that it took, in KiB. */
import { writeSync } from "node:fs";

process.once("exit", () => writeSync(process.stdout.fd, `${process.resourceUsage().maxRSS}\n`));
