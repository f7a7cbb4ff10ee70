/**
 * Entrepot beside docker-registry on the same work, in one run: `npm run bench -- [--quick] [--only NAME]… [--json FILE] [--write]`.
 * Targets are ratios of medians of alternating rounds; absolute numbers are those of the machine.
 * Exit status: 0 every judged line passes, 1 a line misses its target, 2 wrong usage or a program is missing.
 */
import { writeFile } from "node:fs/promises";
import { availableParallelism, loadavg } from "node:os";
import { parseArgs } from "node:util";
import { userCatalogRow } from "./access-catalog-row.ts";
import { bearerRow, tokenIssueRow } from "./bearer-row.ts";
import { coldPullRow, fanoutRow, firstByteRow, memoryRow } from "./cold-rows.ts";
import { copyMemoryRow } from "./copy-memory-row.ts";
import { daemonMemoryRow, pushCopyRow } from "./daemon-copy-rows.ts";
import { eventsRow } from "./events-row.ts";
import { exportRow } from "./export-row.ts";
import { gcRow } from "./gc-row.ts";
import { importRow } from "./import-row.ts";
import { Lab, missingPrograms, versionOf } from "./lab.ts";
import { catalogRow, tagsRow } from "./listing-rows.ts";
import { pushImageRow, pushLayerRow } from "./push-rows.ts";
import type { Bench, Row } from "./runner.ts";
import { firstCopyRow, unchangedRow } from "./replication-rows.ts";
import { retentionRow } from "./retention-row.ts";
import { startRow } from "./start-row.ts";
import { renderTable, writeBetweenMarkers, type Line } from "./table.ts";
import { webhookRow } from "./webhook-row.ts";
import { configRow, layerRow, manifestRow } from "./warm-rows.ts";
import { wrongPasswordsRow } from "./wrong-passwords-row.ts";

const ROWS: Record<string, Row> = {
  manifest: manifestRow,
  config: configRow,
  layer: layerRow,
  fanout: fanoutRow,
  "first-byte": firstByteRow,
  "cold-pull": coldPullRow,
  memory: memoryRow,
  start: startRow,
  "push-layer": pushLayerRow,
  "push-image": pushImageRow,
  tags: tagsRow,
  catalog: catalogRow,
  "user-catalog": userCatalogRow,
  gc: gcRow,
  export: exportRow,
  retention: retentionRow,
  webhooks: webhookRow,
  import: importRow,
  events: eventsRow,
  bearer: bearerRow,
  "token-issue": tokenIssueRow,
  "wrong-passwords": wrongPasswordsRow,
  "first-copy": firstCopyRow,
  unchanged: unchangedRow,
  "copy-memory": copyMemoryRow,
  "push-copy": pushCopyRow,
  "daemon-memory": daemonMemoryRow,
};
const PROGRAMS = ["docker-registry", "wrk"];
const PAGE = new URL("../../docs/benchmarks.md", import.meta.url);

const USAGE = `Usage: npm run bench -- [--quick] [--only NAME]... [--json FILE] [--write]

  --quick      small sizes, one round, about three minutes: only what is exact is judged
  --only NAME  one row of ${Object.keys(ROWS).join(", ")}; may be repeated
  --json FILE  write every sample
  --write      put the table into docs/benchmarks.md
`;

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      quick: { type: "boolean", default: false },
      only: { type: "string", multiple: true },
      json: { type: "string" },
      write: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const names = values.only ?? Object.keys(ROWS);
  const unknown = names.filter((name) => !Object.hasOwn(ROWS, name));
  if (unknown.length > 0) return refuse(`there is no row ${unknown.join(", ")}\n\n${USAGE}`);
  if (values.write && (values.quick || values.only)) return refuse("--write needs a whole run\n");
  const missing = missingPrograms(PROGRAMS);
  if (missing.length > 0) {
    return refuse(
      `${missing.join(" and ")} ${missing.length === 1 ? "is" : "are"} missing: apt-get install ${missing.join(" ")}\n`,
    );
  }
  const on = machine(loadavg()[0] ?? 0);
  const lines = await runRows(names, values.quick);
  const report = `${on}\n\n${renderTable(lines)}`;
  process.stdout.write(`${report}\n`);
  if (values.json !== undefined) {
    await writeFile(values.json, `${JSON.stringify({ machine: on, quick: values.quick, lines }, undefined, 2)}\n`);
  }
  if (values.write) await writeBetweenMarkers(PAGE, report);
  return lines.some(({ verdict }) => verdict === "MISS") ? 1 : 0;
}

async function runRows(names: readonly string[], quick: boolean): Promise<Line[]> {
  await using lab = await Lab.open();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => {
      lab.abandon();
      process.exit(130);
    });
  }
  const upstream = await lab.startDockerRegistry();
  const lines: Line[] = [];
  for (const name of names) {
    const bench: Bench = { lab, upstream, quick, progress: (text) => process.stderr.write(`${name}: ${text}\n`) };
    const found = await ROWS[name]?.(bench);
    lines.push(...(found ?? []));
    process.stderr.write(`${renderTable(found ?? [])}\n`);
  }
  return lines;
}

/** @param load of the minute before the run: others' work blurs what is not exact */
function machine(load: number): string {
  const version = /\d+\.\d+\.\d+/.exec(versionOf("docker-registry"))?.[0];
  return `${availableParallelism()} cores (load ${load.toFixed(1)} before the run), Node ${process.versions.node}, docker-registry ${version}, ${new Date().toISOString().slice(0, 10)}`;
}

function refuse(message: string): number {
  process.stderr.write(`bench: ${message}`);
  return 2;
}

try {
  process.exitCode = await main();
} catch (error) {
  const usage = String((error as { code?: unknown }).code).startsWith("ERR_PARSE_ARGS");
  process.stderr.write(`bench: ${usage ? `${(error as Error).message}\n\n${USAGE}` : (error as Error).stack}\n`);
  process.exitCode = usage ? 2 : 1;
}
