import type { Limit } from "../access/principal.ts";
import { DONE, json, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { reachDaemon } from "./reach.ts";
import { LIMIT_USAGE, LIMITED_HEAD, limitedCells, limitOptions, limitsOf, printSecret } from "./secrets.ts";
import { tableText } from "./table.ts";
import { WHERE } from "./upkeep.ts";

const USAGE = `Usage: entrepot token [list | add NAME --user USER | remove NAME --user USER] [OPTIONS]

Personal tokens are what users log in with in place of their password.

  list                   all tokens, or those of a user (what happens without a word)
  add NAME               add one, and print its secret, this once
  remove NAME            remove it: its secret ends at once

  --user USER            whose
${LIMIT_USAGE}
${WHERE}  --json                 what the API answers; of a list, one JSON object a line

A token never has more than its user. Without --pull, --create, --push and --delete it has all that its user may do to repositories.
add takes --expires.
Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface Token {
  user: string;
  name: string;
  limits: Limit[];
  createdAt: string;
  expiresAt?: string;
  lastUsedAt?: string;
}

const OF_ADD = ["pull", "create", "push", "delete", "expires"] as const;
const HEAD = ["USER", "NAME", ...LIMITED_HEAD];

/** `entrepot token`: shows and changes personal tokens, of the running daemon or, where none runs, of its storage. */
export function runToken(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        ...limitOptions,
        user: { type: "string" },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      2,
    );
    const [verb = "list", name] = positionals;
    if (!["list", "add", "remove"].includes(verb)) throw new UsageError(`there is no "token ${verb}"`);
    if ((verb === "list") !== (name === undefined))
      throw new UsageError(verb === "list" ? "list takes no NAME" : `${verb} takes the NAME of a token`);
    const foreign = OF_ADD.find((option) => values[option] !== undefined);
    if (foreign !== undefined && verb !== "add") throw new UsageError(`--${foreign} goes with add`);
    const { user, expires } = values;
    if (name !== undefined && user === undefined) throw new UsageError("say whose token it is: --user USER");
    if (verb === "add" && expires === undefined)
      throw new UsageError("say until when it is good: --expires 90d, a day, or never");

    await using reached = await reachDaemon(values, io);
    const { daemon } = reached;
    const path = "/api/v1/tokens";
    if (name === undefined || user === undefined) {
      const rows: string[][] = [];
      for await (const token of daemon.list<Token>(path, { user })) {
        if (values.json) io.stdout.write(`${JSON.stringify(token)}\n`);
        else rows.push([token.user, token.name, ...limitedCells(token)]);
      }
      if (!values.json)
        io.stdout.write(rows.length > 0 ? tableText([HEAD, ...rows], new Set()) : "there are no tokens\n");
      return DONE;
    }
    if (verb === "add") {
      const limits = limitsOf(values);
      const input = { name, user, expires, ...(limits.length === 0 ? {} : { limits }) };
      const made = await daemon.change<{ secret: string }>(path, input);
      printSecret(io, made, values.json, user, daemon.address);
      return DONE;
    }
    await daemon.change(`${path}/${encodeURIComponent(name)}?user=${encodeURIComponent(user)}`, {}, "DELETE");
    io.stdout.write(values.json ? json({ user, name, removed: true }) : `the token ${name} of ${user} is removed\n`);
    return DONE;
  });
}
