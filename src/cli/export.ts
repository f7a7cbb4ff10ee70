import { stat } from "node:fs/promises";
import { parseImageReference } from "../oci/reference.ts";
import { planExport, type ExportPlan } from "../moving/export-plan.ts";
import { ArchiveFile, sizeOf, writeArchive, type ArchiveSink, type ExportSource } from "../moving/tar-export.ts";
import { wanted } from "../registry/warm.ts";
import { bytesText, countText, timeText } from "./format.ts";
import { DONE, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { interruptible } from "./interrupt.ts";
import { reachRegistry } from "./reach.ts";
import { Terminal } from "./terminal.ts";
import { WHERE } from "./upkeep.ts";
import { faultOfImage, faultOfPlatform } from "./warm.ts";
import { jsonTeller, showBytes } from "./progress.ts";

const USAGE = `Usage: entrepot export IMAGE… FILE.tar [OPTIONS]

Writes images into a file, with all platforms, signatures and what else refers to them: an OCI image layout as a tar, which "entrepot import",
skopeo (oci-archive:) and podman read. Without a running daemon, it reads the storage itself.

  IMAGE                  as docker takes it: team/app:1, alpine:3.20, ghcr.io/owner/app@sha256:…
  FILE.tar               the file; - for standard output
  --platform OS/ARCH     only this platform, such as linux/amd64 or linux/arm/v7; may be given again (default: all)
  --force                write over a file that is there
${WHERE}  --json                 tell how far it is as JSON objects, one a line

Exit status: 0 done, 1 failed (nothing is left of the file), 2 wrong usage or configuration.
`;

const MAX_IMAGES = 1000;

/** What `--json` tells. Sizes are bytes. */
type ExportEvent =
  | { type: "image"; name: string; digest: string }
  | { type: "note"; message: string }
  | { type: "progress"; bytes: number; total: number }
  | { type: "done"; file: string; bytes: number; images: number; blobs: number; ms: number };

/** `entrepot export IMAGE… FILE.tar`: carries images out. */
export function runExport(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        platform: { type: "string", multiple: true, default: [] },
        force: { type: "boolean", default: false },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      MAX_IMAGES + 1,
    );
    const file = positionals.at(-1);
    const images = [...new Set(positionals.slice(0, -1))];
    if (file === undefined || images.length === 0) throw new UsageError("write the images, then the file");
    const faults = [...images.flatMap(faultOfImage), ...values.platform.flatMap(faultOfPlatform)];
    if (faults.length > 0) throw new UsageError(faults.join("\n"));
    if (file !== "-" && !values.force) await refuseExisting(file);

    const toStandardOutput = file === "-";
    const tell = teller({ ...io, stdout: toStandardOutput ? io.stderr : io.stdout }, values.json);
    const startedAtMs = performance.now();
    await using reached = await reachRegistry(values, io);
    using interrupt = interruptible();
    const platforms = values.platform;
    const plan = await planExport(
      reached.client,
      images.map((image) => parseImageReference(image)),
      { platforms, isWanted: (platform) => wanted(platforms, platform) },
      interrupt.signal,
    );
    for (const image of plan.images) tell({ type: "image", ...image });
    for (const message of plan.notes) tell({ type: "note", message });
    const write = (sink: ArchiveSink): Promise<void> => writeAll(plan, reached, sink, tell, interrupt.signal);
    if (toStandardOutput) await write(streamSink(io.stdout));
    else {
      await using archive = await ArchiveFile.create(file).catch((cause: unknown) => {
        throw new Error(`${file} can't be written: ${(cause as Error).message}`, { cause });
      });
      await write(archive);
      await archive.finish();
    }
    tell({
      type: "done",
      file,
      bytes: sizeOf(plan),
      images: plan.images.length,
      blobs: plan.blobs.length,
      ms: Math.round(performance.now() - startedAtMs),
    });
    return DONE;
  });
}

/** @throws Error where there is something of that name */
async function refuseExisting(file: string): Promise<void> {
  const stats = await stat(file).catch(() => undefined);
  if (stats?.isDirectory() === true) throw new UsageError(`${file} is a folder: name a file in it`);
  if (stats) throw new Error(`${file} is there: write over it with --force, or name another`);
}

async function writeAll(
  plan: ExportPlan,
  source: ExportSource,
  sink: ArchiveSink,
  tell: (event: ExportEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  const total = sizeOf(plan);
  await writeArchive(plan, source, sink, (bytes) => tell({ type: "progress", bytes, total }), signal);
}

function streamSink(stream: NodeJS.WritableStream): ArchiveSink {
  return {
    write: (bytes) =>
      new Promise((resolve, reject) => {
        stream.write(bytes, (error) => (error ? reject(error) : resolve()));
      }),
  };
}

function teller(io: CommandIo, json: boolean): (event: ExportEvent) => void {
  if (json) return jsonTeller(io.stdout);
  const terminal = new Terminal(io.stdout);
  const print = (line: string): void => terminal.conclude(line);
  return (event) => {
    if (event.type === "note") print(`${terminal.paint("yellow", "!")} ${event.message}`);
    else if (event.type === "image") print(`${event.name} ${event.digest}`);
    else if (event.type === "progress") showBytes(terminal, "exporting", event);
    else {
      const content = `${countText(event.images, "image")} of ${countText(event.blobs, "blob")}, ${bytesText(event.bytes)}`;
      print(`${terminal.paint("green", "✓")} ${event.file}: ${content}, in ${timeText(event.ms)}`);
    }
  };
}
