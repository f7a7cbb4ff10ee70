import { ROLES, VISIBILITIES } from "../access/principal.ts";
import type { Daemon } from "./daemon.ts";
import { bytesText } from "./format.ts";
import { DONE, json, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { reachDaemon } from "./reach.ts";
import { tableText } from "./table.ts";
import { WHERE } from "./upkeep.ts";

const USAGE = `Usage: entrepot namespace VERB [NAME] [TEAM] [ROLE] [OPTIONS]

Looks after hosted namespaces: whose they are, who sees them, and what else teams may.

  list                      every namespace (what happens without a word)
  show NAME                 a namespace, and the teams that it is granted to
  add NAME                  a new one: of a team, of a user, or of nobody in particular (administrators push)
  set NAME                  change whose it is, who sees it, how it is described
  remove NAME               remove one that holds nothing
  grant NAME TEAM ROLE      let members of another team have their roles there, up to this one:
                            ${ROLES.join(", ")}
  revoke NAME TEAM          take that back
  grant NAME TEAM --upstream, revoke NAME TEAM --upstream, show NAME --upstream
                            the same for a private upstream of the configuration: members may pull from it

  --team TEAM               add, set: it is the team's
  --user USER               add, set: it is the user's own
  --global                  set: it is of nobody in particular
  --visibility VISIBILITY   add, set: ${VISIBILITIES.join(", ")} (default: private)
  --description TEXT        add, set: what it is for
  --upstream                NAME is an upstream's
${WHERE}  --json                 what the API answers; of a list, one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** What follows each verb. */
const VERBS: Readonly<Record<string, readonly string[]>> = {
  list: [],
  show: ["NAME"],
  add: ["NAME"],
  set: ["NAME"],
  remove: ["NAME"],
  grant: ["NAME", "TEAM", "ROLE"],
  revoke: ["NAME", "TEAM"],
};
const OF_UPSTREAMS: ReadonlySet<string> = new Set(["show", "grant", "revoke"]);

interface Values {
  team?: string | undefined;
  user?: string | undefined;
  global: boolean;
  visibility?: string | undefined;
  description?: string | undefined;
  upstream: boolean;
}

/** As the API answers it. */
interface Namespace {
  name: string;
  owner: { kind: string; name?: string };
  visibility: string;
  description: string;
  bytes: number;
  quota?: number;
  repositories: number;
}

interface Grant {
  team: string;
  role: string;
}

/** `entrepot namespace`: hosted namespaces and grants, of the running daemon or, where none runs, of its storage. */
export function runNamespace(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        team: { type: "string" },
        user: { type: "string" },
        global: { type: "boolean", default: false },
        visibility: { type: "string" },
        description: { type: "string" },
        upstream: { type: "boolean", default: false },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      4,
    );
    const [verb = "list", name = "", team = "", role = ""] = positionals;
    checkUsage(verb, positionals, values);
    const body = { owner: ownerOf(values), visibility: values.visibility, description: values.description };
    await using reached = await reachDaemon(values, io);
    const { daemon } = reached;
    const tell = (answer: object, line: string): void => void io.stdout.write(values.json ? json(answer) : `${line}\n`);
    const path = `/api/v1/namespaces/${encodeURIComponent(name)}`;
    const granting = values.upstream ? `/api/v1/upstreams/${encodeURIComponent(name)}/grants` : `${path}/grants`;
    const grantPath = `${granting}/${encodeURIComponent(team)}`;
    switch (verb) {
      case "list":
        await list(daemon, values.json, io);
        break;
      case "show": {
        const found = values.upstream ? { name } : await daemon.read<Namespace>(path);
        const grants = await Array.fromAsync(daemon.list<Grant>(granting));
        const lines = grants.map(
          (grant) => `  granted      to ${grant.team}${values.upstream ? "" : ` as ${grant.role}`}`,
        );
        tell({ ...found, grants }, ["owner" in found ? described(found) : `upstream ${name}`, ...lines].join("\n"));
        break;
      }
      case "add":
        tell(await daemon.change<Namespace>("/api/v1/namespaces", { name, ...body }), `namespace ${name} is added`);
        break;
      case "set":
        tell(await daemon.change<Namespace>(path, body, "PATCH"), `namespace ${name} is changed`);
        break;
      case "remove":
        await daemon.change(path, {}, "DELETE");
        tell({ name, removed: true }, `namespace ${name} is removed`);
        break;
      case "grant":
        await daemon.change(grantPath, values.upstream ? {} : { role }, "PUT");
        tell(
          { name, team, ...(values.upstream ? {} : { role }) },
          values.upstream ? `${team} may pull from ${name}` : `${team} is granted ${name} as ${role}`,
        );
        break;
      default:
        await daemon.change(grantPath, {}, "DELETE");
        tell({ name, team, revoked: true }, `${team} is granted ${name} no more`);
    }
    return DONE;
  });
}

/** @throws UsageError */
function checkUsage(verb: string, positionals: readonly string[], values: Values): void {
  const known = Object.hasOwn(VERBS, verb) ? VERBS[verb] : undefined;
  if (!known) throw new UsageError(`there is no "namespace ${verb}"`);
  const wanted = values.upstream ? known.filter((word) => word !== "ROLE") : known;
  if (Math.max(0, positionals.length - 1) !== wanted.length)
    throw new UsageError(wanted.length === 0 ? `${verb} takes no argument` : `${verb} takes ${wanted.join(" ")}`);
  if (values.upstream && !OF_UPSTREAMS.has(verb))
    throw new UsageError(
      `--upstream goes with ${[...OF_UPSTREAMS].join(", ")}: upstreams are made in the configuration`,
    );
  const role = positionals[3];
  if (role !== undefined && !(ROLES as readonly string[]).includes(role))
    throw new UsageError(`"${role}" is no role: write one of ${ROLES.join(", ")}`);
  const { team, user, global, visibility, description } = values;
  if ([team !== undefined, user !== undefined, global].filter(Boolean).length > 1)
    throw new UsageError("--team, --user and --global exclude each other: a namespace has one owner");
  const changes = [team, user, visibility, description].some((value) => value !== undefined) || global;
  if (changes && verb !== "add" && verb !== "set")
    throw new UsageError("--team, --user, --global, --visibility and --description go with add and set");
  if (!changes && verb === "set")
    throw new UsageError("set takes one of --team, --user, --global, --visibility and --description");
  if (visibility !== undefined && !(VISIBILITIES as readonly string[]).includes(visibility))
    throw new UsageError(`--visibility ${visibility}: write one of ${VISIBILITIES.join(", ")}`);
}

function ownerOf({ team, user, global }: Values): object | undefined {
  if (team !== undefined) return { kind: "team", name: team };
  if (user !== undefined) return { kind: "personal", name: user };
  return global ? { kind: "global" } : undefined;
}

async function list(daemon: Daemon, asJson: boolean, io: CommandIo): Promise<void> {
  const rows = [["NAMESPACE", "OWNER", "VISIBILITY", "REPOSITORIES", "USED", "DESCRIPTION"]];
  for await (const found of daemon.list<Namespace>("/api/v1/namespaces")) {
    const { name, owner, visibility, repositories, bytes, description } = found;
    if (asJson) io.stdout.write(`${JSON.stringify(found)}\n`);
    else rows.push([name, ownerText(owner), visibility, String(repositories), bytesText(bytes), description]);
  }
  if (!asJson) io.stdout.write(rows.length === 1 ? "there is none\n" : tableText(rows, new Set([3, 4])));
}

function described({ name, owner, visibility, description, bytes, quota, repositories }: Namespace): string {
  return [
    `namespace ${name}${description === "" ? "" : `: ${description}`}`,
    `  owner        ${ownerText(owner)}`,
    `  visibility   ${visibility}`,
    `  holds        ${bytesText(bytes)}${quota === undefined ? "" : ` of ${bytesText(quota)}`} in ${repositories} ${repositories === 1 ? "repository" : "repositories"}`,
  ].join("\n");
}

function ownerText({ kind, name }: Namespace["owner"]): string {
  return name === undefined ? kind : `${kind === "personal" ? "user" : kind} ${name}`;
}
