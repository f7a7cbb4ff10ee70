import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { startDaemon } from "./machine.ts";

/** Entrepot as a process of its own, as an operator starts it. */
export interface Entrepot extends AsyncDisposable {
  readonly url: string;
  /** `127.0.0.1:40123`, as it stands in an image's name. */
  readonly host: string;
  /** The folder of its content. */
  readonly root: string;
  /** A metric's value, summed over the labels that are not given; 0 for one that is not there. */
  metric(name: string, labels?: Record<string, string>): Promise<number>;
  /** Lines of its log about requests that it answered with that status or a worse one. */
  refusals(fromStatus: number): Record<string, unknown>[];
  /** Ends it by SIGTERM. @returns its exit status */
  stop(): Promise<number | null>;
}

type Tree = Record<string, unknown>;

/** No upstream can be asked for anything. */
export const UNREACHABLE = { "docker.io": { url: "http://127.0.0.1:9" } };

/** Starts `entrepot serve --config FILE` on a free port, with its files under `folder`. */
export async function startEntrepot(
  folder: string,
  config: { upstreams: Tree; storage?: Tree; server?: Tree; hosted?: Tree; access?: Tree; replication?: Tree },
): Promise<Entrepot> {
  const root = join(folder, "entrepot");
  const file = join(folder, "entrepot.yaml");
  await writeFile(
    file,
    JSON.stringify({
      ...config,
      server: { listen: "127.0.0.1:0", ...config.server },
      log: { format: "json" },
      storage: { root, minFree: 0, ...config.storage },
    }),
  );
  const { daemon, match } = await startDaemon(
    { path: process.execPath },
    [join(import.meta.dirname, "../../src/main.ts"), "serve", "--config", file],
    /"address":"(http:\/\/[^"]+)"/,
  );
  const url = match[1] ?? "";
  return {
    url,
    host: new URL(url).host,
    root,
    metric: async (name, labels = {}) => {
      const answer = await fetch(`${url}/metrics`);
      assert.equal(answer.status, 200);
      return sumOf(await answer.text(), name, labels);
    },
    refusals: (fromStatus) =>
      daemon.output
        .split("\n")
        .filter((line) => line.startsWith("{"))
        .map((line) => JSON.parse(line) as Record<string, unknown>)
        .filter(({ code }) => typeof code === "number" && code >= fromStatus),
    stop: () => daemon.stop(),
    [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose](),
  };
}

function sumOf(text: string, name: string, labels: Record<string, string>): number {
  let sum = 0;
  for (const line of text.split("\n")) {
    const [, found, inner = "", value] = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (found !== name) continue;
    if (Object.entries(labels).every(([label, wanted]) => inner.includes(`${label}="${wanted}"`))) sum += Number(value);
  }
  return sum;
}
