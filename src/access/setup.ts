/**
 * Where the first administrator comes from, beside `entrepot user add`: the environment, or a link that the daemon logs while nobody can log
 * in. There is no default password.
 *
 * The link is good once, until somebody can log in, until five wrong tokens were tried, or until the daemon ends.
 */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { readFile } from "node:fs/promises";
import type { Logger } from "../base/log.ts";
import { FIRST_ADMIN } from "../config/environment.ts";
import type { Requester } from "../events/event.ts";
import { RegistryError } from "../oci/errors.ts";
import type { Accounts, User } from "./accounts.ts";
import { isLoginName } from "./names.ts";
import { hashNewPassword, type NewPasswordDeps } from "./password-rules.ts";
import { missing } from "./refusals.ts";

const TOKEN_BYTES = 32;
const MOST_FAILURES = 5;

/** What a first administrator logs in by. */
export interface FirstLogin {
  name: string;
  password: string;
}

export interface SetupDeps extends NewPasswordDeps {
  accounts: Accounts;
  log: Logger;
}

/**
 * The first administrator that the environment names.
 * @returns undefined where it names none
 * @throws Error naming cause and remedy where it says half of what is needed
 */
export async function firstLoginOf(env: NodeJS.ProcessEnv): Promise<FirstLogin | undefined> {
  const [name, password, file] = Object.values(FIRST_ADMIN).map((variable) => env[variable] || undefined);
  if (name === undefined && password === undefined && file === undefined) return undefined;
  if (name === undefined) throw new Error(`set ${FIRST_ADMIN.name}, too: the first administrator's password is given`);
  if (!isLoginName(name)) throw new Error(`${FIRST_ADMIN.name}: "${name.slice(0, 100)}" is no name to log in by`);
  if ((password === undefined) === (file === undefined)) {
    const { name: variable, password: one, passwordFile: other } = FIRST_ADMIN;
    throw new Error(`${variable} is set: set either ${one} or ${other}, too`);
  }
  if (file === undefined) return { name, password: password ?? "" };
  const text = await readFile(file, "utf8").catch((cause: unknown) => {
    throw new Error(`${FIRST_ADMIN.passwordFile}: ${(cause as Error).message}`, { cause });
  });
  // Editors and echo end a file with a line break, which is no part of the password.
  return { name, password: text.replace(/\r?\n$/, "") };
}

/**
 * Makes the first administrator, as long as there is no user.
 * @param first is read only then: later it may be gone
 * @throws Error naming cause and remedy
 */
export async function addFirstAdmin(deps: SetupDeps, first: () => Promise<FirstLogin | undefined>): Promise<void> {
  const { accounts, log } = deps;
  if (accounts.hasUsers) return;
  const login = await first();
  if (!login) return;
  const { name, password } = login;
  const passwordHash = await hashNewPassword(deps, name, password).catch((cause: unknown) => {
    throw new Error(`the first administrator, of ${FIRST_ADMIN.name}: ${(cause as Error).message}`, { cause });
  });
  await accounts.addUser({ name, passwordHash, admin: true }, { actor: "environment" });
  log.info({ name }, "the first administrator was made, as the environment says");
}

/** The one-time link. */
export class Setup {
  readonly #deps: SetupDeps;
  #token: Buffer | undefined;
  #failures = 0;

  constructor(deps: SetupDeps) {
    this.#deps = deps;
  }

  /** Whether the link is good. */
  get isOffered(): boolean {
    return this.#token !== undefined && !this.#deps.accounts.hasLogins;
  }

  /**
   * Makes the link and logs it. To be called where somebody has to log in, and nobody can.
   * @param address where this daemon is reached, `https://registry.example.com`, or where it listens, `http://0.0.0.0:5000`
   */
  offer(address: string): void {
    // Nobody reaches all addresses; on a Unix socket, a proxy has an address that is not known here.
    const origin = address.startsWith("unix:")
      ? ""
      : address.replace(/\/\/(?:0\.0\.0\.0|\[::\])(?=:|$)/, "//localhost");
    const token = randomBytes(TOKEN_BYTES).toString("base64url");
    this.#token = hashOf(token);
    // Behind the #, it comes into no request and so into no proxy's log.
    this.#deps.log.warn(
      { link: `${origin}/setup#${token}` },
      "nobody can log in yet: open the link to make the first administrator, or run entrepot user add",
    );
  }

  /**
   * Makes the first administrator. Name and password that are refused leave the link as it is.
   * @throws RegistryError with status 404 where there is no link any more, 403 for a wrong token, 400 for what is wrong with the rest
   */
  async complete(token: string, { name, password }: FirstLogin, by: Requester): Promise<User> {
    const { accounts, log } = this.#deps;
    const expected = this.#token;
    if (!expected || accounts.hasLogins) {
      throw missing("there is no set-up link any more: ask an administrator for a user, or start the daemon anew");
    }
    if (!timingSafeEqual(hashOf(token), expected)) {
      this.#failures += 1;
      if (this.#failures >= MOST_FAILURES) {
        this.#token = undefined;
        log.warn(
          { failures: this.#failures, client: by.address },
          "wrong set-up tokens were tried: the link has ended",
        );
      }
      throw new RegistryError("DENIED", "this is not the token of the set-up link: copy the link from the log whole");
    }
    // Of two that come at once, one makes the administrator.
    this.#token = undefined;
    try {
      const passwordHash = await hashNewPassword(this.#deps, name, password);
      return await accounts.addUser({ name, passwordHash, admin: true }, { ...by, actor: name });
    } catch (error) {
      this.#token = expected;
      throw error;
    }
  }
}

function hashOf(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
