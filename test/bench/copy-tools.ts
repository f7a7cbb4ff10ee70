/** Tools that copy repositories from one registry to another, each run from the start of its process to its end. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { buildGoTool } from "../interop/go-tools.ts";
import { missingPrograms, type Lab } from "./lab.ts";

/** From and to registries on ports of this machine. */
export interface CopyWork {
  fromPort: number;
  toPort: number;
  repositories: readonly string[];
}

/** Copies all tags; at the target a repository is called `mirror/` and its own name. @returns milliseconds @throws Error where it fails */
export type CopyTool = (work: CopyWork) => Promise<number>;

export const MAIN = fileURLToPath(new URL("../../src/main.ts", import.meta.url));
/** As many as Entrepot has; its default is one after the other. */
const REGSYNC_PARALLEL = 8;

/** `entrepot replicate run`, without a daemon. */
export function entrepotTool(lab: Lab): CopyTool {
  return async ({ fromPort, toPort, repositories }) => {
    const folder = await lab.newFolder("replicate");
    const config = join(folder, "entrepot.yaml");
    const content = {
      // Where no daemon runs, the command does the work by itself.
      server: { listen: "127.0.0.1:0" },
      storage: { root: join(folder, "data") },
      replication: {
        registries: { source: { url: local(fromPort) }, target: { url: local(toPort) } },
        rules: [
          {
            name: "all",
            from: { registry: "source", repositories },
            to: [{ registry: "target", repository: "mirror/{{path}}" }],
          },
        ],
      },
    };
    await writeFile(config, JSON.stringify(content));
    return await timed(() => lab.run(process.execPath, [MAIN, "replicate", "run", "all", "--config", config]));
  };
}

/** `skopeo sync` of all platforms, byte for byte. @returns undefined where it is not installed */
export function skopeoTool(lab: Lab): CopyTool | undefined {
  if (missingPrograms(["skopeo"]).length > 0) return undefined;
  return async ({ fromPort, toPort, repositories }) => {
    const folder = await lab.newFolder("skopeo");
    const list = join(folder, "list.yaml");
    const images = Object.fromEntries(repositories.map((name) => [name, []]));
    await writeFile(list, JSON.stringify({ [`127.0.0.1:${fromPort}`]: { "tls-verify": false, images } }));
    // What it remembers of blobs goes into the folder, too, as that of a user other than root.
    const command = ["_CONTAINERS_ROOTLESS_UID=1000", `XDG_DATA_HOME=${folder}`, "skopeo", "--insecure-policy", "sync"];
    const options = ["--all", "--preserve-digests", "--dest-tls-verify=false"];
    const places = ["--src", "yaml", "--dest", "docker", list, `127.0.0.1:${toPort}/mirror`];
    return await timed(() => lab.run("env", [...command, ...options, ...places]));
  };
}

/** `regsync once`. @returns undefined where there is no Go to build it with */
export async function regsyncTool(lab: Lab): Promise<CopyTool | undefined> {
  if (missingPrograms(["go"]).length > 0) return undefined;
  const folder = await lab.newFolder("regsync");
  const regsync = await buildGoTool("regsync", folder);
  return async ({ fromPort, toPort, repositories }) => {
    const config = join(folder, "regsync.yaml");
    const [from, to] = [`127.0.0.1:${fromPort}`, `127.0.0.1:${toPort}`];
    const content = {
      version: 1,
      creds: [from, to].map((registry) => ({ registry, tls: "disabled", reqConcurrent: REGSYNC_PARALLEL })),
      defaults: { parallel: REGSYNC_PARALLEL },
      sync: repositories.map((name) => ({
        source: `${from}/${name}`,
        target: `${to}/mirror/${name}`,
        type: "repository",
      })),
    };
    await writeFile(config, JSON.stringify(content));
    return await timed(() => regsync("once", "--config", config));
  };
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedAtMs = performance.now();
  await work();
  return performance.now() - startedAtMs;
}

function local(port: number): string {
  return `http://127.0.0.1:${port}`;
}
