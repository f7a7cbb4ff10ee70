import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import type { Lab, Server } from "./lab.ts";

/** What a docker client accepts. */
export const ACCEPT = [
  MEDIA_TYPES.ociIndex,
  MEDIA_TYPES.ociImage,
  MEDIA_TYPES.dockerList,
  MEDIA_TYPES.dockerImage,
].join(", ");

const REPORT = `
done = function(summary)
  local e = summary.errors
  io.write(string.format('{"requests":%d,"us":%d,"errors":%d}\\n', summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout))
end
`;

/**
 * Requests per second of one thread of wrk with that many connections.
 * @throws Error where any request failed: a server that refuses is fast
 */
export async function requestsPerSecond(
  lab: Lab,
  server: Server,
  path: string,
  connections: number,
  seconds: number,
  headers: Record<string, string> = {},
): Promise<number> {
  const script = join(lab.folder, "report.lua");
  await writeFile(script, REPORT);
  const args = ["-t1", `-c${connections}`, `-d${seconds}s`, "-H", `Accept: ${ACCEPT}`, "-s", script];
  for (const [name, value] of Object.entries(headers)) args.push("-H", `${name}: ${value}`);
  const report = await lab.run("wrk", [...args, `http://127.0.0.1:${server.port}${path}`]);
  const { requests, us, errors } = JSON.parse(report.slice(report.lastIndexOf("{"))) as Record<string, number>;
  if (errors !== 0 || !requests || !us) throw new Error(`${server.name}: ${errors} of ${requests} requests failed`);
  return (requests / us) * 1e6;
}

/** What clients.ts does. Paths start with `/v2/`; the server is on 127.0.0.1. */
export type Task =
  /** Reads the same blob over and over on that many connections and looks at nothing. */
  | { kind: "drain"; port: number; path: string; connections: number; ms: number }
  /** Pulls an image as docker does: the manifest, then the config and the layers, `lanes` at a time; verifies all. */
  | { kind: "pull"; port: number; repository: string; tag: string; clients: number; lanes: number }
  /** Reads and verifies one blob; with a rate, at that pace. */
  | { kind: "read"; port: number; path: string; clients: number; bytesPerSecond?: number };

/** Of a task; `ms` is the time that the slowest of its clients took. */
export interface Work {
  bytes: number;
  ms: number;
}
