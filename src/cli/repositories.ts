import { findDaemon } from "./daemon.ts";
import { DONE, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { tableText } from "./table.ts";

const USAGE = `Usage: entrepot repositories [PREFIX] [OPTIONS]

Lists the repositories that were pushed or pulled, in order of their names.

  PREFIX                 only those whose full name begins with it: docker.io/library/, team/
  --kind KIND            only hosted, or only cached ones
  --text TEXT            only those whose full name holds it
  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --json                 one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface Repository {
  name: string;
  kind: "hosted" | "cached";
  upstream?: string;
  tags: number;
}

/** Up to so many tags the API counts in a list. */
const MOST_COUNTED = 100;
/** A table is as wide as its widest row: it is written in parts, so that a long list shows up at once. */
const ROWS = 500;

/** `entrepot repositories [PREFIX]`: lists what the running daemon holds. */
export function runRepositories(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        kind: { type: "string" },
        text: { type: "string" },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      1,
    );
    const { kind, text } = values;
    if (kind !== undefined && kind !== "hosted" && kind !== "cached")
      throw new UsageError(`--kind ${kind}: write hosted or cached`);
    await using daemon = await findDaemon(values, io);
    const filter = { prefix: positionals[0], kind, q: text };
    let rows: string[][] = [["REPOSITORY", "TAGS", "FROM"]];
    for await (const repository of daemon.list<Repository>("/api/v1/repositories", filter)) {
      if (values.json) io.stdout.write(`${JSON.stringify(repository)}\n`);
      else rows.push(rowOf(repository));
      if (rows.length <= ROWS) continue;
      io.stdout.write(tableText(rows, new Set([1])));
      rows = [];
    }
    if (!values.json) io.stdout.write(rows.length === 1 ? "there is none\n" : tableText(rows, new Set([1])));
    return DONE;
  });
}

function rowOf({ name, upstream, tags }: Repository): string[] {
  return [name, tags === MOST_COUNTED ? `${MOST_COUNTED}+` : String(tags), upstream ?? "hosted here"];
}
