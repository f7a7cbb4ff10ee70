import type { Limit } from "../access/principal.ts";
import { DONE, json, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { reachDaemon } from "./reach.ts";
import { LIMIT_USAGE, LIMITED_HEAD, limitedCells, limitOptions, limitsOf, printSecret } from "./secrets.ts";
import { tableText } from "./table.ts";
import { WHERE } from "./upkeep.ts";

const USAGE = `Usage: entrepot robot [list | show NAME | add NAME | rotate NAME | disable NAME | enable NAME | remove NAME] [OPTIONS]

Robots are programs that log in, with a name and a secret of their own: CI, hosts, scripts.

  list                   all robots (what happens without a word)
  show NAME              one of them
  add NAME               add one, and print its secret, this once
  rotate NAME            give it another secret, printed this once; the one before ends at once
  disable NAME           let it in no more; enable NAME lets it in again
  remove NAME            remove it: its secret ends at once

  --team TEAM            with add: whose namespaces it may touch at most (default: all); with list: only these
  --description TEXT     with add: what it is for
${LIMIT_USAGE}
${WHERE}  --json                 what the API answers; of a list, one JSON object a line

add takes --expires and what the robot may do; rotate may take --expires.
Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface Robot {
  name: string;
  description: string;
  team?: string;
  limits: Limit[];
  disabled: boolean;
  createdAt: string;
  expiresAt?: string;
  lastUsedAt?: string;
}

const VERBS = ["list", "show", "add", "rotate", "disable", "enable", "remove"];
const OF_ADD = ["description", "pull", "create", "push", "delete"] as const;
const HEAD = ["NAME", "TEAM", "STATE", ...LIMITED_HEAD];

/** `entrepot robot`: shows and changes robots, of the running daemon or, where none runs, of its storage. */
export function runRobot(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        ...limitOptions,
        team: { type: "string" },
        description: { type: "string" },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      2,
    );
    const [verb = "list", name] = positionals;
    if (!VERBS.includes(verb)) throw new UsageError(`there is no "robot ${verb}"`);
    if ((verb === "list") !== (name === undefined))
      throw new UsageError(verb === "list" ? "list takes no NAME" : `${verb} takes the NAME of a robot`);
    const foreign = OF_ADD.find((option) => values[option] !== undefined);
    if (foreign !== undefined && verb !== "add") throw new UsageError(`--${foreign} goes with add`);
    const { team, expires, description } = values;
    if (team !== undefined && verb !== "add" && verb !== "list") throw new UsageError("--team goes with add and list");
    if (expires !== undefined && verb !== "add" && verb !== "rotate")
      throw new UsageError("--expires goes with add and rotate");
    const limits = limitsOf(values);
    if (verb === "add" && limits.length === 0)
      throw new UsageError("say what the robot may do: --pull, --create, --push or --delete with a GLOB");
    if (verb === "add" && expires === undefined)
      throw new UsageError("say until when its secret is good: --expires 90d, a day, or never");

    await using reached = await reachDaemon(values, io);
    const { daemon } = reached;
    const path = "/api/v1/robots";
    if (name === undefined) {
      const rows: string[][] = [];
      for await (const robot of daemon.list<Robot>(path, { team })) {
        if (values.json) io.stdout.write(`${JSON.stringify(robot)}\n`);
        else rows.push(rowOf(robot));
      }
      if (!values.json)
        io.stdout.write(rows.length > 0 ? tableText([HEAD, ...rows], new Set()) : "there are no robots\n");
      return DONE;
    }
    const own = `${path}/${encodeURIComponent(name)}`;
    if (verb === "add" || verb === "rotate") {
      const made =
        verb === "add"
          ? await daemon.change<{ secret: string }>(path, { name, team, description, limits, expires })
          : await daemon.change<{ secret: string }>(`${own}/rotate`, { expires });
      printSecret(io, made, values.json, name, daemon.address);
      return DONE;
    }
    if (verb === "remove") {
      await daemon.change(own, {}, "DELETE");
      io.stdout.write(values.json ? json({ name, removed: true }) : `the robot ${name} is removed\n`);
      return DONE;
    }
    if (verb === "show") {
      const robot = await daemon.read<Robot>(own);
      io.stdout.write(values.json ? json(robot) : described(robot));
      return DONE;
    }
    const robot = await daemon.change<Robot>(own, { disabled: verb === "disable" }, "PATCH");
    io.stdout.write(values.json ? json(robot) : `the robot ${name} is ${verb}d\n`);
    return DONE;
  });
}

function rowOf(robot: Robot): string[] {
  return [robot.name, robot.team ?? "-", robot.disabled ? "disabled" : "enabled", ...limitedCells(robot)];
}

function described(robot: Robot): string {
  // What others have written must not steer a terminal.
  const about = robot.description === "" ? "-" : robot.description.replaceAll(/\p{Cc}/gu, "?");
  const facts = [...HEAD, "ABOUT"].map((head, at) => [head.toLowerCase(), [...rowOf(robot), about][at] ?? ""]);
  return tableText(facts, new Set());
}
