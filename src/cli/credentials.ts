import { operatorSecretFile, readOperatorSecret } from "../access/operator.ts";
import { UsageError } from "./io.ts";

/** What a command presents to a daemon. */
export interface Login {
  /** The `Authorization` header; undefined: none, which is enough where access is open. */
  authorization: string | undefined;
  /** What helps where the daemon does not take it. */
  remedy: string;
}

const TOKEN = "ENTREPOT_TOKEN";
const WRITTEN = /^[A-Za-z0-9._~+/=-]+$/;

/** For a daemon that `--server` names: the token in the environment. @throws UsageError where that can be none */
export function remoteLogin(env: NodeJS.ProcessEnv): Login {
  const token = env[TOKEN]?.trim() ?? "";
  if (token === "") {
    return {
      authorization: undefined,
      remedy: `set ${TOKEN} to a token of a user or a robot, or to the operator's secret of the daemon's storage folder`,
    };
  }
  if (!WRITTEN.test(token)) throw new UsageError(`${TOKEN} holds no token: it has blanks or other signs in it`);
  return {
    authorization: `Bearer ${token}`,
    remedy: `${TOKEN} holds no token that is good there: make another one`,
  };
}

/**
 * For the daemon of this machine: the operator's secret of its storage folder or, where this user may not read that, the token in the
 * environment.
 * @param root the folder
 * @throws UsageError
 */
export async function localLogin(root: string, env: NodeJS.ProcessEnv): Promise<Login> {
  try {
    return {
      authorization: `Bearer ${await readOperatorSecret(root)}`,
      remedy: `the secret in ${operatorSecretFile(root)} is not that daemon's: name its configuration with --config`,
    };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const login = remoteLogin(env);
    if (login.authorization !== undefined) return login;
    const asOwner = code === "ENOENT" ? "name its configuration with --config" : "run this as the daemon's user";
    return {
      ...login,
      remedy: `${operatorSecretFile(root)} can't be read (${code ?? message}): ${asOwner}, or ${login.remedy}`,
    };
  }
}
