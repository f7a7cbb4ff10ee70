import { stat } from "node:fs/promises";
import { resolve } from "node:path";
import type { Told as ToldBy } from "../jobs/attended.ts";
import { textOf } from "../moving/import-job.ts";
import type { ImportEvent, ImportReport } from "../moving/import.ts";
import { findSource } from "../moving/read-source.ts";
import { isRepositoryName } from "../oci/reference.ts";
import { bytesText, countText, timeText } from "./format.ts";
import { importFile } from "./import-file.ts";
import { DONE, FAILED, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { showProgress } from "./progress.ts";
import { Terminal } from "./terminal.ts";
import { runJob, WHERE } from "./upkeep.ts";

const USAGE = `Usage: entrepot import DIRECTORY [OPTIONS]
       entrepot import FILE.tar [OPTIONS]

Takes over what the data directory of a registry:2 holds, an OCI layout, or an archive that "entrepot export" or another tool wrote. What is
damaged is left out and listed; all else comes over. Interrupted, run it again: it goes on. Pulls and pushes go on meanwhile. Without a
running daemon, it works on the storage itself.

Of a directory, which stays as it is (files are linked to where they can be, else copied):
  --into PREFIX          put every repository below PREFIX; of a layout that tells only tags: the repository itself
  --overwrite            move tags that point elsewhere here
  --defer-verification   look at sizes only: what is damaged is found when it is pulled, or by a scrub
  --dry-run              only tell what would come over

Of a file:
  --as [NAME=]REPOSITORY[:TAG]
                         what the image, or the one called NAME there, is called here (may be repeated)

${WHERE}  --json                 pass the events on, one JSON object a line

Exit status: 0 done, 1 failed or something was left out, 2 wrong usage or configuration.
`;

type Told = ToldBy<ImportEvent, ImportReport>;

/** `entrepot import DIRECTORY|FILE`: brings in what another registry or tool has stored. */
export function runImport(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        into: { type: "string" },
        overwrite: { type: "boolean", default: false },
        "defer-verification": { type: "boolean", default: false },
        "dry-run": { type: "boolean", default: false },
        as: { type: "string", multiple: true, default: [] },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      1,
    );
    const [given] = positionals;
    if (given === undefined) throw new UsageError("name what to import");
    const { into, overwrite, as } = values;
    const ofDirectory = into !== undefined || overwrite || values["defer-verification"] || values["dry-run"];
    const stats = await stat(given).catch((cause: unknown) => {
      throw new Error(`${given} can't be read (${(cause as NodeJS.ErrnoException).code})`, { cause });
    });
    if (!stats.isDirectory()) {
      if (ofDirectory) throw new UsageError(`${given} is a file: --into and the like are for directories`);
      return importFile(given, values, io);
    }
    if (as.length > 0) throw new UsageError(`${given} is a directory: --as is for files`);
    if (into !== undefined && !isRepositoryName(into))
      throw new UsageError(`--into ${into} is no name of a repository`);
    const options = {
      path: resolve(given),
      overwrite,
      deferVerification: values["defer-verification"],
      dryRun: values["dry-run"],
    };
    return runJob<Told>(
      values,
      io,
      {
        path: "/api/v1/import",
        body: { ...options, ...(into === undefined ? {} : { into }) },
        start: async (stored, tell, signal) => {
          await findSource(options.path);
          await stored.import.start({ ...options, into }, tell, signal);
        },
      },
      show(io),
      (event) => (event.type === "failed" || (event.type === "done" && event.leftOut > 0) ? FAILED : DONE),
    );
  });
}

function show(io: CommandIo): (event: Told) => void {
  const terminal = new Terminal(io.stdout);
  const print = (line: string): void => terminal.conclude(line);
  return (event) => {
    if (event.type === "progress") {
      const leftOut = event.leftOut === 0 ? "" : `, ${event.leftOut} left out`;
      showProgress(terminal, event, `taking over contents${leftOut}`, "brought");
    } else if (event.type === "leftOut") print(`${terminal.paint("yellow", "!")} ${textOf(event)}`);
    else if (event.type === "unserved") print(`${terminal.paint("dim", "–")} ${textOf(event)}`);
    else if (event.type === "failed") print(`${terminal.paint("red", "✗")} ${event.message}`);
    else for (const line of summary(event, terminal)) print(line);
  };
}

function* summary(report: ImportReport, terminal: Terminal): Generator<string> {
  const { blobs, manifests, tags, bytes, copied, here, leftOut, unserved, dryRun, verified, ms } = report;
  const mark = leftOut === 0 ? terminal.paint("green", "✓") : terminal.paint("yellow", "!");
  const what = [
    countText(tags, "tag"),
    countText(manifests, "manifest"),
    `${countText(blobs, "blob")} of ${bytesText(bytes)}`,
  ];
  const notes = [
    ...(here > 0 ? [`${here} were here already`] : []),
    ...(copied > 0 ? [`${countText(copied, "blob")} had to be copied`] : []),
    ...(unserved > 0 ? [`${unserved} that the source did not serve passed over`] : []),
  ];
  const more = notes.map((note) => `; ${note}`).join("");
  yield `${mark} ${dryRun ? "would bring" : "brought"} ${what.join(", ")}, in ${timeText(ms)}${more}`;
  if (leftOut > 0) yield `${terminal.paint("yellow", "!")} ${leftOut} left out, as told above`;
  if (!verified && !dryRun) yield `${terminal.paint("dim", "–")} files were not read: "entrepot scrub" proves them`;
  for (const namespace of report.overQuota) {
    yield `${terminal.paint("yellow", "!")} namespace ${namespace} holds more than hosted.quotas lets it: pushes to it are refused`;
  }
}
