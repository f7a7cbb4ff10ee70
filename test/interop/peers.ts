import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { goToolPath } from "./go-tools.ts";
import { find, findProgram, startDaemon } from "./machine.ts";

/** Registries of others. */
export const PEERS = ["docker-registry", "distribution 3", "zot"] as const;
export type PeerKind = (typeof PEERS)[number];

export interface Peer extends AsyncDisposable {
  readonly url: string;
  /** `127.0.0.1:40123`, as it stands in an image's name. */
  readonly host: string;
}

/**
 * Why a registry can't be had here; undefined: it is here now. Only of zot's: the module lies at a host of its own, which not every proxy
 * of Go modules asks.
 * @throws AssertionError, Error where another one can't be had: Debian's package and the Go proxy bring those
 */
export async function missingPeer(kind: PeerKind, folder: string): Promise<string | undefined> {
  try {
    await programOf(kind, folder);
    return undefined;
  } catch (error) {
    if (kind !== "zot") throw error;
    const reason = (error as Error).message.trimEnd().split("\n").at(-1);
    return `NOT RUN: zot is not on PATH, and can't be built: ${reason}`;
  }
}

/** Starts one with its content under `folder`, with deletion, and no password. */
export async function startPeer(kind: PeerKind, folder: string): Promise<Peer> {
  await mkdir(folder);
  const file = join(folder, "config.json");
  const program = await programOf(kind, folder);
  const rootDirectory = join(folder, "content");
  const content =
    kind === "zot"
      ? {
          distSpecVersion: "1.1.1",
          storage: { rootDirectory },
          http: { address: "127.0.0.1", port: "0" },
          log: { level: "info" },
        }
      : {
          version: "0.1",
          storage: { filesystem: { rootdirectory: rootDirectory }, delete: { enabled: true } },
          http: { addr: "127.0.0.1:0" },
          // Of distribution 3: what an index lists need not be there. The one before it knows no such choice.
          validation: { manifests: { indexes: { platforms: "none" } } },
        };
  await writeFile(file, JSON.stringify(content));
  const ready = kind === "zot" ? /listening on kernel chosen port","port":(\d+)/ : /listening on 127[.0-9]+:(\d+)/;
  // Where distribution 3 would tell of its requests, nobody listens.
  const env = { OTEL_TRACES_EXPORTER: "none" };
  const { daemon, match } = await startDaemon({ path: program }, ["serve", file], ready, { env });
  const host = `127.0.0.1:${match[1]}`;
  return { url: `http://${host}`, host, [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose]() };
}

async function programOf(kind: PeerKind, folder: string): Promise<string> {
  if (kind === "docker-registry") return findProgram("docker-registry");
  if (kind === "distribution 3") return await goToolPath("registry", folder);
  try {
    return find("zot", [], "put its binary there (https://github.com/project-zot/zot/releases)");
  } catch {
    return await goToolPath("zot", folder);
  }
}
