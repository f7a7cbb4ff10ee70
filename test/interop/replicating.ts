import { join } from "node:path";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { startEntrepot, UNREACHABLE, type Entrepot } from "./entrepot.ts";
import { run } from "./machine.ts";
import type { Peer } from "./peers.ts";
import { inspect } from "./skopeo.ts";

const MAIN = join(import.meta.dirname, "../../src/main.ts");

/** A daemon with these rules between registries. */
export function startReplicating(
  folder: string,
  peers: Record<string, Peer>,
  rules: Record<string, unknown>[],
): Promise<Entrepot> {
  const registries = Object.fromEntries(Object.entries(peers).map(([name, { url }]) => [name, { url }]));
  return startEntrepot(folder, {
    upstreams: UNREACHABLE,
    hosted: { namespaces: ["team", "here"] },
    replication: { registries, rules },
  });
}

/** Runs a command of `entrepot replicate` against a daemon, without a terminal. @throws Error with what it wrote, for an exit status other than 0 */
export function replicate(entrepot: Entrepot, ...args: string[]): Promise<string> {
  return run({ path: process.execPath }, [MAIN, "replicate", ...args, "--server", entrepot.url]);
}

/** The digest of what a name leads to, as skopeo sees it; undefined: nothing. */
export async function digestAt(name: string): Promise<Digest | undefined> {
  try {
    return digestOf(Buffer.from(await inspect(name)));
  } catch (error) {
    if (/(?:manifest|name) unknown/.test((error as Error).message)) return undefined;
    throw error;
  }
}
