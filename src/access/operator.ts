/**
 * The operator's secret: a file in the storage folder. Whoever can read the folder has all that the registry holds anyway, so what the file
 * says logs in the operator, who may do everything. Commands on the daemon's machine present it.
 */
import { randomBytes } from "node:crypto";
import { chmod, lstat, open, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";

const FILE = "operator-secret";
const SECRET = /^operator_[A-Za-z0-9_-]{43}$/;

export function operatorSecretFile(root: string): string {
  return join(root, FILE);
}

/**
 * Reads the secret of a storage folder.
 * @throws Error with `code` where it can't be read (ENOENT: no daemon has made it yet), without one where it is none
 */
export async function readOperatorSecret(root: string): Promise<string> {
  const text = (await readFile(operatorSecretFile(root), "utf8")).trim();
  if (!SECRET.test(text)) throw new Error("it holds no secret");
  return text;
}

/**
 * Reads the secret, or makes one (mode 0600) where there is none, where the file was cut short, and where others than its owner could
 * have read it. For the daemon, which has the folder for itself.
 * @throws Error with `code` where the folder can't be written
 */
export async function keepOperatorSecret(root: string): Promise<string> {
  const path = operatorSecretFile(root);
  const stats = await lstat(path).catch(() => undefined);
  if (stats?.isFile() && (stats.mode & 0o077) === 0) {
    const secret = await readOperatorSecret(root).catch(() => undefined);
    if (secret !== undefined) return secret;
  }
  const secret = `operator_${randomBytes(32).toString("base64url")}`;
  const temporary = `${path}.new`;
  await rm(temporary, { force: true });
  const file = await open(temporary, "wx", 0o600);
  try {
    await file.writeFile(`${secret}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
  // A umask only takes away; a file system that knows no modes is no reason to fail.
  await chmod(temporary, 0o600).catch(() => undefined);
  await rename(temporary, path);
  return secret;
}
