import { conflict, invalid } from "./refusals.ts";
import type { Reader } from "../db/database.ts";

const LOGIN_NAME = /^[a-z0-9]+(?:[._-][a-z0-9]+)*$/;
const MAX_LENGTH = 64;
/** Events name whoever may read the storage folder so. */
const RESERVED: ReadonlySet<string> = new Set(["operator"]);

/** Whether the text is written as names of users and robots are. */
export function isLoginName(text: string): boolean {
  return text.length <= MAX_LENGTH && LOGIN_NAME.test(text);
}

/**
 * Sees to it that a new user or robot may have the name: the two are one set, as both log in by it.
 * @param tx of the transaction that takes it
 * @throws RegistryError with status 400 or 409
 */
export async function takeLoginName(tx: Reader, name: string): Promise<void> {
  if (!isLoginName(name)) {
    throw invalid(
      `"${name.slice(0, 100)}" is no name to log in by: groups of a-z and 0-9 with single . _ - between them, at most ${MAX_LENGTH} characters`,
    );
  }
  if (RESERVED.has(name)) throw conflict(`the name ${name} is the registry's own: take another one`);
  const taken = await tx.get<{ kind: string }>(
    "SELECT 'user' AS kind FROM users WHERE name = :name UNION ALL SELECT 'robot' FROM robots WHERE name = :name",
    { name },
  );
  if (taken) throw conflict(`there is a ${taken.kind} ${name} already: take another name`);
}
