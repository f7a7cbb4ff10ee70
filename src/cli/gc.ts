import type { GcEvent, GcPhase, GcReport } from "../upkeep/gc.ts";
import type { Told as ToldBy } from "../jobs/attended.ts";
import { bytesText, countText, timeText } from "./format.ts";
import { DONE, FAILED, parseOptions, runCommand, type CommandIo } from "./io.ts";
import { Terminal } from "./terminal.ts";
import { runJob, WHERE } from "./upkeep.ts";
import { showProgress } from "./progress.ts";

const USAGE = `Usage: entrepot gc [OPTIONS]

Removes what was pushed and is needed no more: manifests that no repository has, blobs that no manifest needs and that have not been used
for gc.grace. Pushes and pulls go on meanwhile. Without a running daemon, it works on the storage itself.

  --dry-run              only tell what would go
${WHERE}  --json                 pass the events on, one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

const PHASES: Record<GcPhase, string> = {
  untagged: "looking for untagged manifests",
  manifests: "looking for manifests",
  blobs: "looking for blobs",
  links: "looking for access to blobs",
  repositories: "looking for empty repositories",
};

type Told = ToldBy<GcEvent, GcReport>;

/** `entrepot gc [--dry-run]`: collects garbage, and shows how far it is. */
export function runGc(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values } = parseOptions(args, {
      "dry-run": { type: "boolean", default: false },
      server: { type: "string" },
      config: { type: "string" },
      json: { type: "boolean", default: false },
    });
    const dryRun = values["dry-run"];
    return runJob<Told>(
      values,
      io,
      {
        path: "/api/v1/gc",
        body: { dryRun },
        start: ({ upkeep }, tell, signal) => upkeep.gc.start({ dryRun }, tell, signal),
      },
      show(io),
      ({ type }) => (type === "failed" ? FAILED : DONE),
    );
  });
}

function show(io: CommandIo): (event: Told) => void {
  const terminal = new Terminal(io.stdout);
  const print = (line: string): void => terminal.conclude(line);
  return (event) => {
    if (event.type === "progress") showProgress(terminal, event, PHASES[event.phase], "found");
    else if (event.type === "garbage")
      print(`${event.kind} ${event.digest}, ${bytesText(event.sizeBytes)}: ${event.reason}`);
    else if (event.type === "failed") print(`${terminal.paint("red", "✗")} ${event.message}`);
    else {
      print(`${terminal.paint("green", "✓")} ${summary(event)}`);
      if (event.clockGainedMs > 0) print(`${terminal.paint("yellow", "!")} ${clockWarning(event.clockGainedMs)}`);
    }
  };
}

function clockWarning(gainedMs: number): string {
  return `the clock has jumped ahead by ${timeText(gainedMs)}: until gc.grace has passed, content has to be that much older to go`;
}

function summary({ manifests, blobs, links, repositories, bytes, ms, dryRun }: GcReport): string {
  const parts = [
    countText(manifests, "manifest"),
    countText(blobs, "blob"),
    `access to ${countText(links, "blob")}`,
    countText(repositories, "empty repository", "empty repositories"),
  ];
  return `${dryRun ? "would remove" : "removed"} ${parts.join(", ")}: ${bytesText(bytes)}, in ${timeText(ms)}`;
}
