import { isDigest } from "../oci/digest.ts";
import { findDaemon, LostDaemon } from "./daemon.ts";
import { bytesText, countText } from "./format.ts";
import { DONE, FAILED, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { Terminal } from "./terminal.ts";

const USAGE = `Usage: entrepot purge REPOSITORY|DIGEST [OPTIONS]
       entrepot purge --upstream NAME [OPTIONS]

Takes content out of the running daemon's cache; the next pull brings it again. What was pushed is refused.

  REPOSITORY             the full name of a cached repository: docker.io/library/alpine
  DIGEST                 a manifest or a blob, whichever repositories have it
  --upstream NAME        all that is cached of it
  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --json                 pass the daemon's events on, one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

interface Counts {
  repositories: number;
  contents: number;
  bytes: number;
  inUse: number;
}

/** As the API tells it. */
type PurgeEvent = ({ type: "progress" | "done" } & Counts) | { type: "failed"; message: string };

/** `entrepot purge`: empties the cache, or a part of it. */
export function runPurge(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        upstream: { type: "string" },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      1,
    );
    const target = targetOf(positionals[0], values.upstream);
    await using daemon = await findDaemon(values, io);
    const terminal = new Terminal(io.stdout);
    let last: PurgeEvent | undefined;
    for await (const event of await daemon.events<PurgeEvent>("/api/v1/cache/purge", target)) {
      last = event;
      if (values.json) io.stdout.write(`${JSON.stringify(event)}\n`);
    }
    if (last?.type !== "done" && last?.type !== "failed") throw new LostDaemon(daemon.address);
    if (!values.json)
      terminal.print(
        last.type === "failed" ? `${terminal.paint("red", "✗")} ${last.message}` : summary(terminal, last),
      );
    return last.type === "done" ? DONE : FAILED;
  });
}

function targetOf(what: string | undefined, upstream: string | undefined): object {
  if ((what === undefined) === (upstream === undefined))
    throw new UsageError("name one thing to purge: a repository, a digest, or --upstream NAME");
  if (what === undefined) return { upstream };
  return isDigest(what) ? { digest: what } : { repository: what };
}

function summary(terminal: Terminal, { contents, bytes, inUse }: Counts): string {
  const stays = inUse === 0 ? "" : `; ${countText(inUse, "content stays, being used", "contents stay, being used")}`;
  return `${terminal.paint("green", "✓")} purged ${countText(contents, "content")}: ${bytesText(bytes)}${stays}`;
}
