import { z } from "zod";
import type { Bytes, Milliseconds } from "../../base/clock.ts";
import { flight, amount, time } from "./schemas.ts";
import type { FlightProgress } from "../../transfer/download.ts";
import { isoTime, operation, type Operation } from "./operation.ts";

export interface DaemonStatus {
  version: string;
  startedAtMs: Milliseconds;
  nowMs: Milliseconds;
  storage: { root: string; freeBytes: Bytes; cacheBytes: Bytes; cacheMaxBytes: Bytes; minFreeBytes: Bytes };
  uploads: number;
  flights: number;
  checks: readonly { name: string; ok: boolean; reason: string; informative?: boolean }[];
}

export interface DaemonDeps {
  status: () => Promise<DaemonStatus>;
  flights: () => FlightProgress[];
  /** What `entrepot config print --json` tells, of the configuration in force. */
  config: () => object;
}

const status = z
  .object({
    version: z.string(),
    startedAt: time,
    uptimeSeconds: amount,
    ready: z.boolean().describe("Whether it serves: all checks but the informative ones are well."),
    storage: z.object({
      root: z.string(),
      freeBytes: amount,
      minFreeBytes: amount.describe("Free bytes that are never used."),
      cacheBytes: amount,
      cacheMaxBytes: amount,
    }),
    uploads: amount.describe("Pushes of blobs that are under way."),
    flights: amount.describe("Downloads that are under way."),
    checks: z.array(
      z.object({ name: z.string(), ok: z.boolean(), reason: z.string(), informative: z.boolean().optional() }),
    ),
  })
  .meta({ id: "Status" });

const effectiveConfig = z
  .object({
    config: z.record(z.string(), z.unknown()).describe("Secrets are redacted; units are as in a file."),
    origins: z.record(z.string(), z.string()).describe("Where each value comes from, by its path."),
    warnings: z.array(z.string()),
  })
  .meta({ id: "EffectiveConfig" });

/** The daemon itself: how it is, what it does now, and by which configuration. */
export function daemonOperations({ status: read, flights, config }: DaemonDeps): Operation[] {
  return [
    operation({
      id: "getStatus",
      method: "GET",
      path: "/status",
      tag: "daemon",
      summary: "Tells the version, since when it runs, and how the storage is",
      answers: { 200: { description: "How it is", schema: status } },
      handle: async () => ({ status: 200, body: statusAnswer(await read()) }),
    }),
    operation({
      id: "getConfig",
      method: "GET",
      path: "/config",
      tag: "daemon",
      summary: "Tells the configuration in force, and where each value comes from",
      answers: { 200: { description: "The configuration", schema: effectiveConfig } },
      handle: () => ({ status: 200, body: config() }),
    }),
    operation({
      id: "listFlights",
      method: "GET",
      path: "/flights",
      tag: "cache",
      summary: "Lists the downloads that are under way",
      answers: { 200: { description: "All of them", schema: z.object({ items: z.array(flight) }) } },
      handle: () => ({ status: 200, body: { items: flights() } }),
    }),
  ];
}

function statusAnswer({ version, startedAtMs, nowMs, checks, ...rest }: DaemonStatus): z.input<typeof status> {
  return {
    version,
    startedAt: isoTime(startedAtMs),
    uptimeSeconds: Math.max(0, Math.floor((nowMs - startedAtMs) / 1000)),
    ready: checks.every(({ ok, informative }) => ok || informative),
    ...rest,
    checks: [...checks],
  };
}
