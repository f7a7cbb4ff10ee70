import { createLog } from "../base/log.ts";
import { ConfigError } from "../config/faults.ts";
import { loadConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { fault, ok, warning, type Finding } from "./doctor/finding.ts";
import { checkAddress, checkOpenFiles } from "./doctor/machine.ts";
import { checkStorage, judgeDatabase, readDatabase } from "./doctor/storage.ts";
import { checkClock, checkUpstreams } from "./doctor/upstreams.ts";
import { DONE, FAILED, json, parseOptions, runCommand, WRONG_USAGE, type CommandIo } from "./io.ts";
import { Terminal } from "./terminal.ts";

const USAGE = `Usage: entrepot doctor [--config FILE] [--json]

Looks at all that a daemon with this configuration needs: storage, database, address, upstreams, clock. Changes nothing.

Exit status: 0 all is well (warnings may be there), 1 something is wrong, 2 wrong usage or configuration.
`;

/** `entrepot doctor`: looks for what keeps a daemon from working, and says what helps. */
export function runDoctor(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values } = parseOptions(args, { config: { type: "string" }, json: { type: "boolean", default: false } });
    const { status, findings } = await loadConfig({ file: values.config, env: io.env }).then(
      ({ config, warnings }) => ({ status: undefined, findings: examine(config, warnings) }),
      (error: unknown) => ({ status: WRONG_USAGE, findings: [Promise.resolve(configurationFaults(error))] }),
    );
    const told: Finding[] = [];
    const print = values.json ? undefined : printer(io);
    // All are under way; they are told in their order.
    for (const some of findings) {
      for (const finding of await some) {
        told.push(finding);
        print?.(finding);
      }
    }
    const count = (verdict: Finding["verdict"]): number => told.filter((finding) => finding.verdict === verdict).length;
    const [faults, warnings] = [count("fault"), count("warning")];
    if (values.json) io.stdout.write(json({ ok: faults === 0, faults, warnings, findings: told }));
    else io.stdout.write(`\n${verdictText(faults, warnings)}\n`);
    return status ?? (faults === 0 ? DONE : FAILED);
  });
}

/** @throws what is no fault of the configuration */
function configurationFaults(error: unknown): Finding[] {
  if (!(error instanceof ConfigError)) throw error;
  return error.faults.map(({ source, line, path, cause, remedy }) => {
    const place = [source, line].filter((part) => part !== undefined).join(":");
    return fault("configuration", [place, path, cause].filter((part) => part !== "").join(" "), remedy);
  });
}

function examine(config: Config, warnings: readonly string[]): Promise<Finding[]>[] {
  const database = readDatabase(config.storage.root);
  const upstreams = createLog({ level: "silent", format: "json" }).then((log) =>
    Promise.all(checkUpstreams(config.upstreams, log)),
  );
  const checks: Record<string, Promise<Finding[]>> = {
    configuration: Promise.resolve(checkConfiguration(warnings)),
    storage: checkStorage(config.storage),
    database: database.then((found) => [judgeDatabase(found)]),
    address: database.then(async ({ state }) => [await checkAddress(config.server, state === "inUse")]),
    "open files": Promise.resolve([checkOpenFiles()]),
    upstreams: upstreams.then((reports) => reports.map(({ finding }) => finding)),
    clock: upstreams.then((reports) => [checkClock(reports.flatMap(({ skewMs }) => skewMs ?? []))]),
  };
  return Object.entries(checks).map(([check, work]) =>
    work.catch((error: unknown) => [
      fault(check, `could not be looked at: ${(error as Error).message}`, "see whether this user may"),
    ]),
  );
}

function checkConfiguration(warnings: readonly string[]): Finding[] {
  if (warnings.length === 0) return [ok("configuration", "valid")];
  return warnings.map((text) => warning("configuration", text, "remove it"));
}

function printer(io: CommandIo): (finding: Finding) => void {
  const terminal = new Terminal(io.stdout);
  const marks = {
    ok: terminal.paint("green", "✓"),
    warning: terminal.paint("yellow", "!"),
    fault: terminal.paint("red", "✗"),
  };
  return ({ check, verdict, cause, remedy }) => {
    terminal.print(`${marks[verdict]} ${check}: ${cause}`);
    if (remedy !== undefined) terminal.print(`    → ${remedy}`);
  };
}

function verdictText(faults: number, warnings: number): string {
  const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;
  if (faults > 0) return `${counted(faults, "fault")}, ${counted(warnings, "warning")}`;
  return warnings > 0 ? `Nothing is wrong; ${counted(warnings, "warning")}.` : "All is well.";
}
