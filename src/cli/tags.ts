import { findDaemon } from "./daemon.ts";
import { bytesText } from "./format.ts";
import { DONE, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { tableText } from "./table.ts";

const USAGE = `Usage: entrepot tags REPOSITORY [OPTIONS]

Lists the tags of a repository that are stored here, in order of their names; no upstream is asked.

  REPOSITORY             its full name: docker.io/library/alpine, team/app
  --prefix TEXT          only tags that begin with it
  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --json                 one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface Tag {
  name: string;
  digest: string;
  contentBytes: number;
  pushedAt: string;
  pulledAt?: string;
}

const ROWS = 500;
const SIZE = new Set([2]);

/** `entrepot tags REPOSITORY`: lists what the running daemon holds. */
export function runTags(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        prefix: { type: "string" },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      1,
    );
    const [repository] = positionals;
    if (repository === undefined) throw new UsageError("a repository is missing");
    await using daemon = await findDaemon(values, io);
    const path = `/api/v1/repositories/${encodeURIComponent(repository)}/tags`;
    let rows: string[][] = [["TAG", "DIGEST", "SIZE", "PUSHED", "PULLED"]];
    for await (const tag of daemon.list<Tag>(path, { prefix: values.prefix })) {
      if (values.json) io.stdout.write(`${JSON.stringify(tag)}\n`);
      else rows.push(rowOf(tag));
      if (rows.length <= ROWS) continue;
      io.stdout.write(tableText(rows, SIZE));
      rows = [];
    }
    if (!values.json) io.stdout.write(rows.length === 1 ? "it has no tags\n" : tableText(rows, SIZE));
    return DONE;
  });
}

function rowOf({ name, digest, contentBytes, pushedAt, pulledAt }: Tag): string[] {
  return [name, digest.slice(0, 19), bytesText(contentBytes), minuteOf(pushedAt), pulledAt ? minuteOf(pulledAt) : "-"];
}

/** `2026-01-31 12:00`, in UTC. */
function minuteOf(time: string): string {
  return time.slice(0, 16).replace("T", " ");
}
