import type { Config } from "../config/schema.ts";
import { MAX_PASSWORD_BYTES } from "./passwords.ts";
import { invalid } from "./refusals.ts";

/** Those of at least eight characters that lists of leaked passwords begin with, in small letters. */
const COMMONEST: ReadonlySet<string> = new Set(
  `12345678 123456789 1234567890 12345678910 123456789012 1234567890123 12341234 123123123 123123123123 11111111 111111111 1111111111
  111111111111 00000000 000000000000 88888888 87654321 987654321 0987654321 1q2w3e4r 1q2w3e4r5t 1q2w3e4r5t6y 1qaz2wsx 1qaz2wsx3edc
  q1w2e3r4 q1w2e3r4t5y6 zaq12wsx qwertyui qwertyuiop qwertyuiop123 qwerty12 qwerty123 qwerty1234 qwerty123456 qwertyqwerty asdfghjk
  asdfghjkl asdfghjkl123 asdfasdf asdfasdfasdf zxcvbnm1 zxcvbnm123 abcd1234 abcdefgh abcdefghijkl abc12345 abc123456789 a1b2c3d4
  a1b2c3d4e5f6 aa123456 aaaaaaaa aaaaaaaaaaaa password passw0rd p@ssw0rd p@ssword password1 password12 password123 password1234
  password12345 password123456 passwordpassword passw0rd1234 p@ssw0rd1234 changeme changeme123 changeme1234 changemechangeme
  letmein1 letmein123 letmein12345 iloveyou iloveyou1234 iloveyouiloveyou welcome1 welcome123 welcome12345 welcometohell
  administrator administrator1 admin123 admin1234 admin12345 admin123456 adminadmin adminadminadmin adminpassword root1234 rootroot
  rootrootroot test1234 testtest testtesttest testing12345 default1 sunshine sunshine1234 princess princess1234 football football1234
  baseball baseball1234 superman superman1234 starwars starwars1234 trustno1 trustno1trustno1 whatever michael1 computer jennifer
  internet internet1234 dragon12 master12 monkey12 samsung1 liverpool correcthorsebatterystaple secret12 secretsecret
  secretsecretsecret harbor12345 registry registry123 dockerdocker dockerhub entrepot entrepot1234 entrepotentrepot`.split(
    /\s+/,
  ),
);

/**
 * What keeps a text from being the password of a user.
 * @param minLength characters that it has at least
 * @returns undefined: it may be
 */
export function passwordFault(password: string, name: string, minLength: number): string | undefined {
  if (Array.from(password).length < minLength)
    return `is shorter than ${minLength} characters (access.passwordMinLength)`;
  const bytes = Buffer.byteLength(password);
  // What is longer would be cut without a word.
  if (bytes > MAX_PASSWORD_BYTES)
    return `has ${bytes} bytes in UTF-8, and ${MAX_PASSWORD_BYTES} is the most that bcrypt reads`;
  // Source: RFC 7617 §2: a client could not send it.
  if (/\p{Cc}/u.test(password)) return "holds a control character (a line break, a tab): clients can't send it";
  const folded = password.toLowerCase();
  if (folded === name.toLowerCase()) return "is the name of the user";
  if (COMMONEST.has(folded)) return "is one of the commonest of all, which whoever guesses tries first";
  return undefined;
}

export interface NewPasswordDeps {
  /** Hashes beside the event loop. */
  passwords: { hash(password: string): Promise<string> };
  /** Read whenever it is needed: it can be reloaded. */
  access: () => Pick<Config["access"], "passwordMinLength">;
}

/** The hash of a new password of a user. @throws RegistryError with status 400 that tells which rule it breaks */
export async function hashNewPassword(
  { passwords, access }: NewPasswordDeps,
  name: string,
  password: string,
): Promise<string> {
  const fault = passwordFault(password, name, access().passwordMinLength);
  if (fault !== undefined) throw invalid(`password: ${fault}`);
  return passwords.hash(password);
}
