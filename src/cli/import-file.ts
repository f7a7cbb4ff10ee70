import type { Renaming } from "../moving/import-plan.ts";
import { importArchive, type Imported, type ImportEvent } from "../moving/tar-import.ts";
import { isDigest } from "../oci/digest.ts";
import { isRepositoryName, isTag, parseImageReference } from "../oci/reference.ts";
import { bytesText, countText, timeText } from "./format.ts";
import { interruptible } from "./interrupt.ts";
import { DONE, UsageError, type CommandIo } from "./io.ts";
import { reachRegistry } from "./reach.ts";
import { Terminal } from "./terminal.ts";
import { jsonTeller, showBytes } from "./progress.ts";

/** How a file is imported. */
export interface ImportFileOptions {
  /** `--as`, as it was given. */
  as: readonly string[];
  server?: string | undefined;
  config?: string | undefined;
  json: boolean;
}

type Told = ImportEvent | ({ type: "done"; file: string; ms: number } & Imported);

/**
 * `entrepot import FILE.tar`: puts the images of an archive into the daemon's registry or, where none runs, into the storage.
 * @returns the exit status
 * @throws UsageError; Error with cause and remedy: then no tag has been changed
 */
export async function importFile(file: string, options: ImportFileOptions, io: CommandIo): Promise<number> {
  const renamings = options.as.map(parseRenaming);
  const tell = teller(io, options.json);
  const startedAtMs = performance.now();
  await using reached = await reachRegistry(options, io);
  using interrupt = interruptible();
  const imported = await importArchive(reached.client, file, renamings, tell, interrupt.signal);
  tell({ type: "done", file, ms: Math.round(performance.now() - startedAtMs), ...imported });
  return DONE;
}

/** Reads `[NAME=]REPOSITORY[:TAG]`. @throws UsageError */
export function parseRenaming(text: string): Renaming {
  const equals = text.lastIndexOf("=");
  const name = equals < 0 ? undefined : text.slice(0, equals);
  const place = text.slice(equals + 1);
  try {
    const { host, repository, reference } = parseImageReference(place);
    const full = host === undefined ? repository : `${host}/${repository}`;
    if (!isRepositoryName(full) || isDigest(reference)) throw new Error("it is no name here");
    const tag = /:[^/]*$/.test(place) && isTag(reference) ? reference : undefined;
    return { name, repository: full, tag };
  } catch (cause) {
    throw new UsageError(
      `--as ${text}: write [NAME=]REPOSITORY[:TAG], such as team/app:1 (${(cause as Error).message})`,
      {
        cause,
      },
    );
  }
}

function teller(io: CommandIo, json: boolean): (event: Told) => void {
  if (json) return jsonTeller(io.stdout);
  const terminal = new Terminal(io.stdout);
  const print = (line: string): void => terminal.conclude(line);
  return (event) => {
    if (event.type === "progress") showBytes(terminal, "importing", event);
    else if (event.type === "image") print(`${event.name} ${event.digest}`);
    else {
      const content = `${countText(event.blobs, "blob")}, ${bytesText(event.sentBytes)} of them new`;
      print(
        `${terminal.paint("green", "✓")} ${countText(event.images, "image")} of ${content}, in ${timeText(event.ms)}`,
      );
    }
  };
}
