import type { Limit } from "../access/principal.ts";
import { json, type CommandIo } from "./io.ts";
import { limitsText } from "../access/limits.ts";

/** What of repositories a robot or a token may touch, as options of a command. */
export const limitOptions = {
  pull: { type: "string", multiple: true },
  create: { type: "string", multiple: true },
  push: { type: "string", multiple: true },
  delete: { type: "string", multiple: true },
  expires: { type: "string" },
} as const;

export const LIMIT_USAGE = `  --pull GLOB            may pull these repositories, such as team/** (each of these options can be repeated)
  --create GLOB          may also push to them, but move no tag
  --push GLOB            may also push to them
  --delete GLOB          may pull and delete there
  --expires WHEN         until when the secret is good: 90d, 2027-01-31 (as it begins, UTC), or never`;

/** The limits that options say; none where there are none. Clients look at what they push or delete, so either includes to pull. */
export function limitsOf(options: Partial<Record<"pull" | "create" | "push" | "delete", string[]>>): Limit[] {
  const { pull = [], create = [], push = [], delete: deleted = [] } = options;
  const limits: Limit[] = [
    { repositories: pull, verbs: ["pull"] },
    { repositories: create, verbs: ["pull", "create"] },
    { repositories: push, verbs: ["pull", "push"] },
    { repositories: deleted, verbs: ["pull", "delete"] },
  ];
  return limits.filter(({ repositories }) => repositories.length > 0);
}

/** Writes a secret: alone on standard output, for `$(…)`; how it is used beside that. @param login the user name that goes with it */
export function printSecret(
  io: CommandIo,
  answer: { secret: string },
  asJson: boolean,
  login: string,
  address: string,
): void {
  if (asJson) {
    io.stdout.write(json(answer));
    return;
  }
  io.stdout.write(`${answer.secret}\n`);
  const host = URL.canParse(address) && /^https?:/.test(address) ? new URL(address).host : "HOST";
  io.stderr.write(
    `This secret is not shown again. Log in with it in place of a password:\n  docker login --username ${login} --password-stdin ${host}\n`,
  );
}

interface Limited {
  limits: Limit[];
  expiresAt?: string;
  lastUsedAt?: string;
}

/** The columns of what robots and tokens have in common. */
export const LIMITED_HEAD = ["MAY", "EXPIRES", "LAST USED"];

export function limitedCells({ limits, expiresAt, lastUsedAt }: Limited): string[] {
  return [limitsText(limits), expiryText(expiresAt), lastUsedAt === undefined ? "never" : minute(lastUsedAt)];
}

function expiryText(expiresAt: string | undefined): string {
  if (expiresAt === undefined) return "never";
  return Date.parse(expiresAt) <= Date.now() ? `expired ${minute(expiresAt)}` : minute(expiresAt);
}

/** `2027-01-31 12:00`, as the clock on the wall says. */
function minute(iso: string): string {
  return new Date(iso).toLocaleString("sv-SE").slice(0, 16);
}
