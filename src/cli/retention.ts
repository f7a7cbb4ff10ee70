import type { Told as ToldBy } from "../jobs/attended.ts";
import type { RetentionEvent, RetentionOptions, RetentionReport } from "../upkeep/retention.ts";
import { countText, timeText } from "./format.ts";
import { DONE, FAILED, parseOptions, runCommand, type CommandIo } from "./io.ts";
import { Terminal } from "./terminal.ts";
import { runJob, WHERE } from "./upkeep.ts";
import { showShare } from "./progress.ts";

const USAGE = `Usage: entrepot retention [OPTIONS]

Removes tags of hosted repositories that no rule under retention.rules keeps, and names them. What they pointed to goes by garbage
collection, unless something else needs it. Pushes and pulls go on meanwhile. Without a running daemon, it works on the storage itself.

  --dry-run              only tell which tags would stay or go, and why
  --repository GLOB      only these repositories
  --remove-all           apply rules that keep none of their tags, too
${WHERE}  --json                 pass the events on, one JSON object a line

Exit status: 0 done, 1 failed or a rule was refused, 2 wrong usage or configuration.
`;

type Told = ToldBy<RetentionEvent, RetentionReport>;

/** `entrepot retention [--dry-run]`: applies the retention rules, and shows why each tag stays or goes. */
export function runRetention(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values } = parseOptions(args, {
      "dry-run": { type: "boolean", default: false },
      "remove-all": { type: "boolean", default: false },
      repository: { type: "string" },
      server: { type: "string" },
      config: { type: "string" },
      json: { type: "boolean", default: false },
    });
    const { repository } = values;
    const options: RetentionOptions = {
      dryRun: values["dry-run"],
      removeAll: values["remove-all"],
      ...(repository === undefined ? {} : { repository }),
    };
    return runJob<Told>(
      values,
      io,
      {
        path: "/api/v1/retention",
        body: options,
        start: ({ upkeep }, tell, signal) => upkeep.retention.start(options, tell, signal),
      },
      show(io),
      (event) => (event.type === "failed" || (event.type === "done" && event.refused > 0) ? FAILED : DONE),
    );
  });
}

function show(io: CommandIo): (event: Told) => void {
  const terminal = new Terminal(io.stdout);
  const print = (line: string): void => terminal.conclude(line);
  return (event) => {
    switch (event.type) {
      case "progress":
        showTags(terminal, event);
        break;
      case "tags":
        // One write for all: a dry run may tell of a million.
        print(event.tags.map(({ tag, reason }) => `${event.repository}:${tag} ${reason}`).join("\n"));
        break;
      case "refused":
        print(`${terminal.paint("yellow", "!")} ${event.message}`);
        break;
      case "failed":
        print(`${terminal.paint("red", "✗")} ${event.message}`);
        break;
      case "done":
        print(`${terminal.paint("green", "✓")} ${summary(event)}`);
        if (event.clockGainedMs > 0) print(`${terminal.paint("yellow", "!")} ${clockWarning(event.clockGainedMs)}`);
    }
  };
}

function showTags(terminal: Terminal, { scanned, total, removed }: Extract<Told, { type: "progress" }>): void {
  const going = `${removed} to go`;
  showShare(terminal, "looking at tags", { done: scanned, total }, going, `${scanned} of about ${total}, ${going}`);
}

function clockWarning(gainedMs: number): string {
  return `the clock has jumped ahead by ${timeText(gainedMs)}: for a while, tags have to be that much older to go`;
}

function summary({ repositories, kept, removed, changed, ms, dryRun }: RetentionReport): string {
  const parts = [
    `${dryRun ? "would remove" : "removed"} ${countText(removed, "tag")}`,
    `kept ${kept}`,
    ...(changed > 0 ? [`${changed} changed meanwhile and stay`] : []),
  ];
  const where = countText(repositories, "repository", "repositories");
  return `${parts.join(", ")}, in ${where} that a rule is about, in ${timeText(ms)}`;
}
