import { isLoginName } from "../access/names.ts";
import { DONE, json, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { reachDaemon } from "./reach.ts";
import { readNewPassword } from "./secret-input.ts";
import { tableText } from "./table.ts";
import { WHERE } from "./upkeep.ts";

const USAGE = `Usage: entrepot user VERB [NAME] [OPTIONS]

Looks after the users in the database. The first one is an administrator.

  list                   every user (what happens without a word)
  show NAME              a user
  add NAME               a new user
  passwd NAME            set the password anew
  disable NAME           log in no more, by personal tokens either
  enable NAME            log in again
  admin NAME             look after the registry as a whole
  no-admin NAME          do so no more
  remove NAME            remove the user, its personal tokens, and its own namespace, which has to be empty

  --admin                add: as an administrator
  --password-stdin       add, passwd: the password is what standard input holds
  --password-file FILE   add, passwd: the password is what FILE holds; without either, the terminal asks for it
${WHERE}  --json                 what the API answers; of a list, one JSON object a line

Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
`;

/** As the API answers it. */
interface User {
  name: string;
  admin: boolean;
  disabled: boolean;
  hasPassword: boolean;
  createdAt: string;
  passwordAt?: string;
  lastUsedAt?: string;
}

/** What a verb changes, and how it is told. */
const CHANGES: Readonly<Record<string, { change: object; told: string }>> = {
  disable: { change: { disabled: true }, told: "can't log in any more" },
  enable: { change: { disabled: false }, told: "can log in" },
  admin: { change: { admin: true }, told: "is an administrator" },
  "no-admin": { change: { admin: false }, told: "is no administrator" },
};
const VERBS = ["list", "show", "add", "passwd", "remove", ...Object.keys(CHANGES)];

/** `entrepot user`: the users in the database, of the running daemon or, where none runs, of its storage. */
export function runUser(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        admin: { type: "boolean", default: false },
        "password-stdin": { type: "boolean", default: false },
        "password-file": { type: "string" },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      2,
    );
    const [verb = "list", name] = positionals;
    if (!VERBS.includes(verb)) throw new UsageError(`there is no "user ${verb}"`);
    if ((verb === "list") !== (name === undefined))
      throw new UsageError(verb === "list" ? "list takes no NAME" : `${verb} takes the NAME of a user`);
    if (name !== undefined && !isLoginName(name))
      throw new UsageError(`"${name}" is no name of a user: a-z and 0-9, with single . _ - between them`);
    const { "password-stdin": stdin, "password-file": file } = values;
    const sets = verb === "add" || verb === "passwd";
    if (!sets && (stdin || file !== undefined))
      throw new UsageError("--password-stdin and --password-file go with add and passwd");
    if (values.admin && verb !== "add")
      throw new UsageError("--admin goes with add: to make a user one, write user admin");
    const password = sets ? await readNewPassword({ stdin, file }, `password of ${name}`) : undefined;

    await using reached = await reachDaemon(values, io);
    const { daemon } = reached;
    const print = (line: string): void => void io.stdout.write(`${line}\n`);
    if (name === undefined) {
      if (values.json) for await (const user of daemon.list<User>("/api/v1/users")) print(JSON.stringify(user));
      else io.stdout.write(tableText(rowsOf(await Array.fromAsync(daemon.list<User>("/api/v1/users"))), new Set()));
      return DONE;
    }
    const path = `/api/v1/users/${name}`;
    const tell = (answer: object, line: string): void => {
      if (values.json) io.stdout.write(json(answer));
      else print(line);
    };
    if (verb === "show") {
      const user = await daemon.read<User>(path);
      tell(user, described(user).join("\n"));
    } else if (verb === "add") {
      const user = await daemon.change<User>("/api/v1/users", { name, password, admin: values.admin });
      tell(user, `${name} is added${user.admin ? " as an administrator" : ""}`);
    } else if (verb === "passwd") {
      tell(await daemon.change<User>(path, { password }, "PATCH"), `${name} has a new password`);
    } else if (verb === "remove") {
      await daemon.change(path, {}, "DELETE");
      tell({ name, removed: true }, `${name} is removed`);
    } else {
      const { change = {}, told = "" } = CHANGES[verb] ?? {};
      tell(await daemon.change<User>(path, change, "PATCH"), `${name} ${told}`);
    }
    return DONE;
  });
}

function rowsOf(users: readonly User[]): string[][] {
  return [
    ["NAME", "MAY", "LOGGED IN LAST", "ADDED"],
    ...users.map(({ name, admin, disabled, lastUsedAt, createdAt }) => [
      name,
      disabled ? "disabled" : admin ? "administrator" : "user",
      lastUsedAt === undefined ? "never" : localTime(lastUsedAt),
      localTime(createdAt),
    ]),
  ];
}

function described({ name, admin, disabled, hasPassword, createdAt, passwordAt, lastUsedAt }: User): string[] {
  return [
    `${name}: ${admin ? "an administrator" : "a user"}${disabled ? ", disabled" : ""}`,
    `  added           ${localTime(createdAt)}`,
    `  password        ${hasPassword ? `set ${passwordAt === undefined ? "" : localTime(passwordAt)}` : "none"}`,
    `  logged in last  ${lastUsedAt === undefined ? "never" : localTime(lastUsedAt)}`,
  ];
}

function localTime(iso: string): string {
  return new Date(iso).toLocaleString("sv-SE");
}
