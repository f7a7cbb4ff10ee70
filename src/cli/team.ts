import { isLoginName } from "../access/names.ts";
import { ROLES } from "../access/principal.ts";
import { DONE, json, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { reachDaemon } from "./reach.ts";
import { tableText } from "./table.ts";
import { WHERE } from "./upkeep.ts";

const USAGE = `Usage: entrepot team VERB [TEAM] [USER] [ROLE] [OPTIONS]

Looks after teams and who is in them. Namespaces are given to teams by entrepot namespace.

  list                   every team (what happens without a word)
  show TEAM              a team
  members TEAM           who is in it, and as what
  add TEAM               a new team
  set TEAM               describe it anew
  remove TEAM            remove a team that has no namespaces, with its robots
  join TEAM USER ROLE    take a user into a team, or change its role there:
                         ${ROLES.join(", ")}
  leave TEAM USER        take a user out of a team

  --owner USER           add: who looks after it
  --description TEXT     add, set: what it is for
${WHERE}  --json                 what the API answers; of a list, one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** What follows each verb. */
const VERBS: Readonly<Record<string, readonly string[]>> = {
  list: [],
  show: ["TEAM"],
  members: ["TEAM"],
  add: ["TEAM"],
  set: ["TEAM"],
  remove: ["TEAM"],
  join: ["TEAM", "USER", "ROLE"],
  leave: ["TEAM", "USER"],
};

/** As the API answers it. */
interface Team {
  name: string;
  description: string;
  createdAt: string;
  members: number;
  namespaces: number;
}

interface Member {
  user: string;
  role: string;
  addedAt: string;
}

/** `entrepot team`: teams and their members, of the running daemon or, where none runs, of its storage. */
export function runTeam(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        owner: { type: "string" },
        description: { type: "string" },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      4,
    );
    const [verb = "list", team = "", user = "", role = ""] = positionals;
    const { owner, description } = values;
    const wanted = Object.hasOwn(VERBS, verb) ? VERBS[verb] : undefined;
    if (!wanted) throw new UsageError(`there is no "team ${verb}"`);
    if (Math.max(0, positionals.length - 1) !== wanted.length)
      throw new UsageError(wanted.length === 0 ? `${verb} takes no argument` : `${verb} takes ${wanted.join(" ")}`);
    for (const name of [team, user].slice(0, wanted.length))
      if (!isLoginName(name)) throw new UsageError(`"${name}" is no name: a-z and 0-9, with single . _ - between them`);
    if (verb === "join" && !(ROLES as readonly string[]).includes(role))
      throw new UsageError(`"${role}" is no role: write one of ${ROLES.join(", ")}`);
    if (owner !== undefined && verb !== "add") throw new UsageError("--owner goes with add: later, write team join");
    if ((description !== undefined) !== (verb === "set") && verb !== "add")
      throw new UsageError(verb === "set" ? "set takes --description" : "--description goes with add and set");

    await using reached = await reachDaemon(values, io);
    const { daemon } = reached;
    const tell = (answer: object, line: string): void => void io.stdout.write(values.json ? json(answer) : `${line}\n`);
    const list = <Item extends object>(items: AsyncIterable<Item>, head: string[], row: (item: Item) => string[]) =>
      writeList(items, head, row, values.json, io);
    const path = `/api/v1/teams/${team}`;
    switch (verb) {
      case "list":
        await list(daemon.list<Team>("/api/v1/teams"), ["TEAM", "MEMBERS", "NAMESPACES", "DESCRIPTION"], (one) => [
          one.name,
          String(one.members),
          String(one.namespaces),
          one.description,
        ]);
        break;
      case "members":
        await list(daemon.list<Member>(`${path}/members`), ["USER", "ROLE", "SINCE"], (one) => [
          one.user,
          one.role,
          localTime(one.addedAt),
        ]);
        break;
      case "show": {
        const found = await daemon.read<Team>(path);
        tell(found, described(found).join("\n"));
        break;
      }
      case "add": {
        const made = await daemon.change<Team>("/api/v1/teams", { name: team, description, owner });
        tell(made, `team ${team} is added${owner === undefined ? "" : `, ${owner} is its owner`}`);
        break;
      }
      case "set":
        tell(await daemon.change<Team>(path, { description }, "PATCH"), `team ${team} is described anew`);
        break;
      case "remove":
        await daemon.change(path, {}, "DELETE");
        tell({ name: team, removed: true }, `team ${team} is removed`);
        break;
      case "join":
        await daemon.change(`${path}/members/${user}`, { role }, "PUT");
        tell({ team, user, role }, `${user} is ${role} of ${team}`);
        break;
      default:
        await daemon.change(`${path}/members/${user}`, {}, "DELETE");
        tell({ team, user, removed: true }, `${user} is in ${team} no more`);
    }
    return DONE;
  });
}

/** As a table, or one JSON object a line. */
async function writeList<Item extends object>(
  items: AsyncIterable<Item>,
  head: string[],
  row: (item: Item) => string[],
  asJson: boolean,
  io: CommandIo,
): Promise<void> {
  const rows = [head];
  for await (const item of items) {
    if (asJson) io.stdout.write(`${JSON.stringify(item)}\n`);
    else rows.push(row(item));
  }
  if (!asJson) io.stdout.write(rows.length === 1 ? "there is none\n" : tableText(rows, new Set()));
}

function described({ name, description, createdAt, members, namespaces }: Team): string[] {
  return [
    `team ${name}${description === "" ? "" : `: ${description}`}`,
    `  members     ${members}`,
    `  namespaces  ${namespaces}`,
    `  added       ${localTime(createdAt)}`,
  ];
}

function localTime(iso: string): string {
  return new Date(iso).toLocaleString("sv-SE");
}
