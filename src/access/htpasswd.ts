/**
 * Names and passwords in a file, as `htpasswd -B` writes it: `name:hash`, one a line, bcrypt only.
 *
 * A line that is no such thing is a fault that names its number and what to do; the other lines work. The file is looked at every few
 * seconds and read anew when it has changed, however it was changed: written in place, exchanged by a rename, or as a link to another file.
 * While it can't be read, what was read last goes on to count.
 */
import { readFile, stat } from "node:fs/promises";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import { MAX_COST, MIN_COST } from "./passwords.ts";
import type { Principal } from "./principal.ts";

export type FilePrincipal = Extract<Principal, { kind: "file" }>;

/** A line that does not count, or that makes another one not count. */
export interface LineFault {
  /** 1-based. */
  line: number;
  /** Cause and remedy. Never what the line says: it may be a password. */
  fault: string;
}

export interface ParsedHtpasswd {
  /** Hashes by name. */
  users: ReadonlyMap<string, string>;
  faults: readonly LineFault[];
}

const HASH = /^\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}$/;
const MAX_NAME_BYTES = 256;
const MAX_FILE_BYTES = 16 * 1024 * 1024;
const LOOK_MS: Milliseconds = 2_000;
/** More of them would fill the log. */
const MOST_FAULTS_LOGGED = 20;
const REMEDY = `write it with "htpasswd -B"`;

/** Reads the text of a file. Of two lines with one name, the last one counts: it was appended to change the password. */
export function parseHtpasswd(text: string): ParsedHtpasswd {
  const users = new Map<string, string>();
  const lines = new Map<string, number>();
  const faults: LineFault[] = [];
  for (const [index, raw] of text
    .replace(/^\uFEFF/, "")
    .split("\n")
    .entries()) {
    const line = raw.trim();
    if (line === "" || line.startsWith("#")) continue;
    const number = index + 1;
    const colon = line.indexOf(":");
    const name = line.slice(0, Math.max(colon, 0));
    const hash = line.slice(colon + 1);
    const fault = colon < 0 ? `it has no colon: ${REMEDY}` : (nameFault(name) ?? hashFault(hash));
    if (fault !== undefined) {
      faults.push({ line: number, fault });
      continue;
    }
    const earlier = lines.get(name);
    if (earlier !== undefined) {
      faults.push({
        line: earlier,
        fault: `${name} is named again in line ${number}, which counts: remove one of them`,
      });
    }
    users.set(name, hash);
    lines.set(name, number);
  }
  return { users, faults: faults.sort((a, b) => a.line - b.line) };
}

function nameFault(name: string): string | undefined {
  if (name === "") return `it has no name before the colon: ${REMEDY}`;
  if (Buffer.byteLength(name) > MAX_NAME_BYTES)
    return `its name is longer than ${MAX_NAME_BYTES} bytes: take a shorter one`;
  if (name.includes("\uFFFD")) return "its name is not UTF-8: save the file as UTF-8";
  if (/\p{Cc}/u.test(name)) return "its name holds control characters, which nobody can log in with: take another one";
  return undefined;
}

function hashFault(hash: string): string | undefined {
  const cost = Number(HASH.exec(hash)?.[1]);
  if (cost > MAX_COST) {
    return `its cost is ${cost}, ${2 ** (cost - MAX_COST)} times the work of ${MAX_COST}, which is the most: write it anew with "htpasswd -B -C 10"`;
  }
  if (cost < MIN_COST) return `its cost is ${cost}, which bcrypt does not have: ${REMEDY}`;
  if (cost >= MIN_COST) return undefined;
  if (/^\$2[aby]\$/.test(hash)) return `its hash has ${hash.length} characters in place of 60: ${REMEDY}`;
  if (hash === "") return `it has no hash after the colon: ${REMEDY}`;
  const kind =
    hash.startsWith("$apr1$") || hash.startsWith("$1$")
      ? "MD5"
      : hash.startsWith("{SHA}")
        ? "SHA-1"
        : hash.startsWith("$5$") || hash.startsWith("$6$")
          ? "SHA-2"
          : undefined;
  return `its hash is ${kind ?? "no bcrypt"}${kind === undefined ? "" : ", not bcrypt"}: ${REMEDY}`;
}

export interface HtpasswdOptions {
  path: string;
  /** Of all of them; read whenever it is needed. */
  role: () => FilePrincipal["role"];
  clock: Clock;
  log: Logger;
}

export class Htpasswd implements AsyncDisposable {
  readonly #path: string;
  readonly #role: HtpasswdOptions["role"];
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #listeners = new Set<() => void>();
  readonly #stop = new AbortController();
  #users: ReadonlyMap<string, string> = new Map();
  /** What the file was like when it was read; of one that can't be read, why. */
  #read = "";
  /** What it was like when it was looked at last. */
  #seen = "";
  #watching: Promise<void> | undefined;

  private constructor({ path, role, clock, log }: HtpasswdOptions) {
    this.#path = path;
    this.#role = role;
    this.#clock = clock;
    this.#log = log;
  }

  /** Reads the file, and looks after it from then on. @throws Error naming cause and remedy where it can't be read */
  static async open(options: HtpasswdOptions): Promise<Htpasswd> {
    const file = new Htpasswd(options);
    file.#seen = await file.#identity();
    try {
      await file.#take(file.#seen);
    } catch (cause) {
      throw new Error(
        `access.htpasswd.path: ${options.path} can't be read (${reasonOf(cause)}): make it with "htpasswd -Bc ${options.path} NAME", or let this user read it`,
        { cause },
      );
    }
    file.#watching = file.#watch();
    return file;
  }

  /** The hash of a name's password. */
  hashOf(name: string): string | undefined {
    return this.#users.get(name);
  }

  /** @returns undefined where the file does not name it, or not any more */
  principal(name: string): FilePrincipal | undefined {
    return this.#users.has(name) ? { kind: "file", name, role: this.#role() } : undefined;
  }

  /** @param listener is called after other names or passwords were read @returns ends that */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Reads it now if it has changed. A file that can't be read is told of in the log, and what was read before goes on to count. */
  async reload(): Promise<void> {
    const identity = await this.#identity();
    this.#seen = identity;
    if (identity === this.#read) return;
    try {
      await this.#take(identity);
      for (const listener of this.#listeners) listener();
    } catch (error) {
      this.#read = identity;
      this.#log.error(
        { path: this.#path, reason: reasonOf(error) },
        "the htpasswd file can't be read: the names and passwords that were read last go on to count",
      );
    }
  }

  async #watch(): Promise<void> {
    for (;;) {
      try {
        await this.#clock.sleep(LOOK_MS, this.#stop.signal);
      } catch {
        return;
      }
      const identity = await this.#identity();
      // Whoever writes it may be in the middle of that: it is read once it has been the same twice.
      if (identity !== this.#read && identity === this.#seen) await this.reload();
      this.#seen = identity;
    }
  }

  async #take(identity: string): Promise<void> {
    const { size } = await stat(this.#path);
    if (size > MAX_FILE_BYTES) throw new Error(`it has more than ${MAX_FILE_BYTES} bytes`);
    const { users, faults } = parseHtpasswd(await readFile(this.#path, "utf8"));
    this.#users = users;
    this.#read = identity;
    this.#log.info({ path: this.#path, names: users.size }, "htpasswd file read");
    for (const fault of faults.slice(0, MOST_FAULTS_LOGGED)) {
      this.#log.warn({ path: this.#path, ...fault }, "a line of the htpasswd file does not count");
    }
    if (faults.length > MOST_FAULTS_LOGGED) {
      this.#log.warn({ path: this.#path, lines: faults.length }, "so many lines of the htpasswd file do not count");
    }
  }

  /** Changes whenever the file may have. */
  async #identity(): Promise<string> {
    try {
      const { dev, ino, size, mtimeNs, ctimeNs } = await stat(this.#path, { bigint: true });
      return [dev, ino, size, mtimeNs, ctimeNs].join(" ");
    } catch (error) {
      return reasonOf(error);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#watching;
  }
}

function reasonOf(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return code ?? message;
}
