import { parseSize, SIZE_REMEDY } from "../config/units.ts";
import type { Told as ToldBy } from "../jobs/attended.ts";
import type { Finding, ScrubEvent, ScrubPhase, ScrubReport } from "../upkeep/scrub.ts";
import { bytesText, countText, timeText } from "./format.ts";
import { DONE, FAILED, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { Terminal } from "./terminal.ts";
import { runJob, WHERE } from "./upkeep.ts";
import { showProgress } from "./progress.ts";

const USAGE = `Usage: entrepot scrub [OPTIONS]

Reads everything that is stored and proves it. A damaged blob goes to quarantine, and is brought again from its upstream where it has one;
what was pushed is named, to be pushed again. Without a running daemon, it works on the storage itself and asks no upstream.

  --bandwidth SIZE       read at most so much a second, such as 100MiB (default: scrub.bandwidth)
${WHERE}  --json                 pass the events on, one JSON object a line

Exit status: 0 all is right, 1 something is wrong and not repaired, or the scrub failed, 2 wrong usage or configuration.
`;

const PHASES: Record<ScrubPhase, string> = {
  blobs: "reading blobs",
  manifests: "reading manifests",
  tags: "following tags",
  files: "looking for files without a row",
  usage: "counting what namespaces hold",
};

type Told = ToldBy<ScrubEvent, ScrubReport>;

/** `entrepot scrub`: looks for damage, and shows how far it is. */
export function runScrub(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values } = parseOptions(args, {
      bandwidth: { type: "string" },
      server: { type: "string" },
      config: { type: "string" },
      json: { type: "boolean", default: false },
    });
    const bandwidth = values.bandwidth === undefined ? undefined : parseSize(values.bandwidth);
    if (values.bandwidth !== undefined && !bandwidth)
      throw new UsageError(`"${values.bandwidth}" is no bandwidth: ${SIZE_REMEDY}`);
    return runJob<Told>(
      values,
      io,
      {
        path: "/api/v1/scrub",
        body: { bandwidth },
        start: ({ upkeep }, tell, signal) => upkeep.scrub.start({ bandwidth }, tell, signal),
      },
      show(io),
      statusOf,
    );
  });
}

function statusOf(event: Told): number {
  if (event.type === "failed") return FAILED;
  return event.type === "done" && event.findings > event.repaired ? FAILED : DONE;
}

function show(io: CommandIo): (event: Told) => void {
  const terminal = new Terminal(io.stdout);
  const print = (color: "red" | "green" | "yellow", sign: string, line: string): void => {
    terminal.conclude(`${terminal.paint(color, sign)} ${line}`);
  };
  return (event) => {
    if (event.type === "progress") showProgress(terminal, event, PHASES[event.phase], "read");
    else if (event.type === "finding")
      print(event.repaired ? "yellow" : "red", event.repaired ? "!" : "✗", described(event));
    else if (event.type === "failed") print("red", "✗", event.message);
    else if (statusOf(event) === DONE) print("green", "✓", summary(event));
    else print("red", "✗", summary(event));
  };
}

function described({ kind, digest, namespace, message, repositories, manifests }: Finding): string {
  const places = [
    repositories.length > 0 ? `in ${repositories.join(", ")}` : "",
    manifests.length > 0 ? `of ${manifests.join(", ")}` : "",
  ].filter((place) => place !== "");
  return [`${kind} ${digest ?? namespace}`, ...places.map((place) => `    ${place}`), `    ${message}`].join("\n");
}

function summary({ blobs, manifests, tags, bytes, orphans, findings, repaired, ms }: ScrubReport): string {
  const read = `${countText(blobs, "blob")}, ${countText(manifests, "manifest")}, ${countText(tags, "tag")}: ${bytesText(bytes)} read in ${timeText(ms)}`;
  const wrong = findings === 0 ? "nothing is wrong" : `${countText(findings, "finding")}, ${repaired} repaired`;
  const without =
    orphans === 0 ? "" : `; ${countText(orphans, "file")} without a row, which the daemon removes within a day`;
  return `${read}; ${wrong}${without}`;
}
