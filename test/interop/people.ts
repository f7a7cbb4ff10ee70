import { join } from "node:path";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { startEntrepot, UNREACHABLE, type Entrepot } from "./entrepot.ts";
import { run } from "./machine.ts";
import { makeSamples, type Sample } from "./samples.ts";
import { copyIn } from "./skopeo.ts";

/** Members of the team `crew`, named by their roles there, and one who is in no team; what each may do in its private namespace. */
export const PEOPLE = [
  { name: "viewer", pulls: true, pushes: false, deletes: false },
  { name: "contributor", pulls: true, pushes: true, deletes: false },
  { name: "owner", pulls: true, pushes: true, deletes: true },
  { name: "outsider", pulls: false, pushes: false, deletes: false },
] as const;

export function passwordOf(name: string): string {
  return `${name} opens the door`;
}

/** A registry that is closed to whoever has not logged in, with people, a team and its namespaces `hold` (private) and `deck` (public). */
export interface Settled extends AsyncDisposable {
  readonly entrepot: Entrepot;
  /** `127.0.0.1:40123/hold/app`, which has the tag v1. */
  readonly hidden: string;
  /** `127.0.0.1:40123/deck/app`, which has the tag v1. */
  readonly shown: string;
  /** What both tags name. */
  readonly image: Sample;
  /** Runs `entrepot ARGS…` on the daemon's machine. @returns its standard output, trimmed */
  command: (...args: string[]) => Promise<string>;
  /** What an administrator finds under a name. */
  digestOf(name: string): Promise<Digest>;
  /** The tags of the private repository, as an administrator sees them. */
  tags(): Promise<string[]>;
}

/**
 * Starts a daemon with its files under `folder`, and settles it by the command line.
 * @param image what its repositories hold; without it, one is made
 */
export async function startSettled(
  folder: string,
  { upstreams = UNREACHABLE, image }: { upstreams?: Record<string, unknown>; image?: Sample } = {},
): Promise<Settled> {
  await using stack = new AsyncDisposableStack();
  const entrepot = stack.use(await startEntrepot(folder, { upstreams, access: { open: false } }));
  const commandWith = async (input: string, ...args: string[]): Promise<string> => {
    const main = join(import.meta.dirname, "../../src/main.ts");
    const at = ["--config", join(folder, "entrepot.yaml")];
    // The port was chosen as the daemon started.
    const env = { ENTREPOT_SERVER__LISTEN: entrepot.host };
    return (await run({ path: process.execPath }, [main, ...args, ...at], { env, input })).trim();
  };
  const command: Settled["command"] = (...args) => commandWith("", ...args);
  const addUser = (name: string): Promise<string> =>
    commandWith(`${passwordOf(name)}\n`, "user", "add", name, "--password-stdin");
  // The first of all is an administrator.
  await addUser("root");
  await Promise.all(PEOPLE.map(({ name }) => addUser(name)));
  await command("team", "add", "crew", "--owner", "owner");
  await Promise.all([
    command("team", "join", "crew", "viewer", "viewer"),
    command("team", "join", "crew", "contributor", "contributor"),
    command("namespace", "add", "hold", "--team", "crew"),
    command("namespace", "add", "deck", "--team", "crew", "--visibility", "public"),
  ]);
  const sample = image ?? (await makeSamples(folder)).single;
  const asRoot = `root:${passwordOf("root")}`;
  const hidden = `${entrepot.host}/hold/app`;
  const shown = `${entrepot.host}/deck/app`;
  for (const repository of [hidden, shown]) await copyIn(sample.source, `${repository}:v1`, ["--dest-creds", asRoot]);
  const read = (name: string, ...verb: string[]): Promise<string> =>
    run("skopeo", [...verb, "--tls-verify=false", "--creds", asRoot, `docker://${name}`]);
  const owned = stack.move();
  return {
    entrepot,
    hidden,
    shown,
    image: sample,
    command,
    digestOf: async (name) => digestOf(Buffer.from(await read(name, "inspect", "--raw"))),
    tags: async () => (JSON.parse(await read(hidden, "list-tags")) as { Tags: string[] }).Tags,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
