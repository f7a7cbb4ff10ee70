import { findDaemon } from "./daemon.ts";
import { bytesText } from "./format.ts";
import { DONE, parseOptions, runCommand, type CommandIo } from "./io.ts";
import { tableText } from "./table.ts";

const USAGE = `Usage: entrepot quota [OPTIONS]

Tells what each hosted namespace holds, and what it may hold by hosted.quotas.

  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --json                 one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface Namespace {
  name: string;
  bytes: number;
  quota?: number;
  share?: number;
  repositories: number;
}

const HEAD = ["NAMESPACE", "USED", "QUOTA", "SHARE", "REPOSITORIES"];

/** `entrepot quota`: a table of what namespaces hold. */
export function runQuota(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values } = parseOptions(args, {
      server: { type: "string" },
      config: { type: "string" },
      json: { type: "boolean", default: false },
    });
    await using daemon = await findDaemon(values, io);
    const rows: string[][] = [];
    for await (const namespace of daemon.list<Namespace>("/api/v1/namespaces")) {
      if (values.json) io.stdout.write(`${JSON.stringify(namespace)}\n`);
      else rows.push(rowOf(namespace));
    }
    if (!values.json)
      io.stdout.write(rows.length > 0 ? tableText([HEAD, ...rows], new Set([1, 2, 3, 4])) : "there is none\n");
    return DONE;
  });
}

function rowOf({ name, bytes, quota, share, repositories }: Namespace): string[] {
  const limit =
    quota === undefined || share === undefined ? ["-", "-"] : [bytesText(quota), `${Math.floor(share * 100)} %`];
  return [name, bytesText(bytes), ...limit, String(repositories)];
}
