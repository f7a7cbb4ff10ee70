import { findDaemon } from "./daemon.ts";
import { bytesText, timeText } from "./format.ts";
import { DONE, FAILED, json, parseOptions, runCommand, type CommandIo } from "./io.ts";
import { Terminal } from "./terminal.ts";

const USAGE = `Usage: entrepot status [OPTIONS]

Tells how the running daemon is: since when it runs, how full its storage is, and what it checks.

  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --json                 the daemon's answer as JSON

Exit status: 0 it serves, 1 it does not, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface Status {
  version: string;
  startedAt: string;
  uptimeSeconds: number;
  ready: boolean;
  storage: { root: string; freeBytes: number; cacheBytes: number; cacheMaxBytes: number };
  uploads: number;
  flights: number;
  checks: { name: string; ok: boolean; reason: string; informative?: boolean }[];
}

/** `entrepot status`: tells how the running daemon is. */
export function runStatus(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values } = parseOptions(args, {
      server: { type: "string" },
      config: { type: "string" },
      json: { type: "boolean", default: false },
    });
    await using daemon = await findDaemon(values, io);
    const status = await daemon.read<Status>("/api/v1/status");
    if (values.json) io.stdout.write(json(status));
    else for (const line of linesOf(status, daemon.address, new Terminal(io.stdout))) io.stdout.write(`${line}\n`);
    return status.ready ? DONE : FAILED;
  });
}

function linesOf(status: Status, address: string, terminal: Terminal): string[] {
  const { version, uptimeSeconds, storage, uploads, flights, checks } = status;
  const { root, freeBytes, cacheBytes, cacheMaxBytes } = storage;
  return [
    `entrepot ${version} at ${address}, running for ${timeText(uptimeSeconds * 1000)}`,
    `storage ${root}: ${bytesText(freeBytes)} free, cache ${bytesText(cacheBytes)} of ${bytesText(cacheMaxBytes)}`,
    `${flights} downloads and ${uploads} uploads under way`,
    ...checks.map(({ name, ok, reason, informative }) => {
      const sign = ok
        ? terminal.paint("green", "✓")
        : terminal.paint(informative ? "yellow" : "red", informative ? "!" : "✗");
      return `${sign} ${name}: ${reason}`;
    }),
  ];
}
