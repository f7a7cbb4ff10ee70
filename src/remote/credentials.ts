import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { AuthConfig } from "../config/schema.ts";
import { RemoteError } from "./remote-error.ts";

/** A name and its password, or what docker calls an identity token: a refresh token for the token realm. */
export type Credentials = { username: string; password: string } | { identityToken: string };

export interface CredentialSource {
  /**
   * @returns undefined where there are none: the registry is asked anonymously
   * @throws RemoteError unauthorized where the source cannot be read
   */
  get(): Promise<Credentials | undefined>;
  /** The registry refused what `get` returned: the next `get` may look again. */
  rejected(): void;
}

const HELPER_TIMEOUT_MS = 15_000;
const MAX_HELPER_BYTES = 64 * 1024;
const ASK_AGAIN_MS = 300_000;
const ASK_AGAIN_AFTER_FAILURE_MS = 10_000;
/** Docker Hub's names; docker files its credentials under an address of old. */
const HUB: ReadonlySet<string> = new Set(["docker.io", "index.docker.io", "registry-1.docker.io"]);
const HUB_KEY = "https://index.docker.io/v1/";

/** @param host of the configured registry, with its port unless that is the scheme's own */
export function createCredentialSource(auth: AuthConfig | undefined, host: string, clock: Clock): CredentialSource {
  if (auth === undefined) return constant(undefined);
  if ("dockerConfig" in auth) return new DockerConfig(auth.dockerConfig, host, clock);
  if ("credentialHelper" in auth) return new CredentialHelper(auth.credentialHelper, host, clock);
  return constant(auth);
}

function constant(credentials: Credentials | undefined): CredentialSource {
  return { get: async () => credentials, rejected: () => {} };
}

/** A program `docker-credential-X`. It is asked when credentials are first needed, and after a refusal, at most every five minutes. */
class CredentialHelper implements CredentialSource {
  readonly #program: string;
  readonly #host: string;
  readonly #clock: Clock;
  #answer: Promise<Credentials | undefined> | undefined;
  #doubted = false;
  #notBeforeMs: Milliseconds = 0;

  constructor(name: string, host: string, clock: Clock) {
    this.#program = `docker-credential-${name}`;
    this.#host = host;
    this.#clock = clock;
  }

  get(): Promise<Credentials | undefined> {
    if (this.#answer && !(this.#doubted && this.#clock.now() >= this.#notBeforeMs)) return this.#answer;
    this.#doubted = false;
    this.#notBeforeMs = this.#clock.now() + ASK_AGAIN_MS;
    this.#answer = this.#ask();
    this.#answer.catch(() => {
      this.#doubted = true;
      this.#notBeforeMs = this.#clock.now() + ASK_AGAIN_AFTER_FAILURE_MS;
    });
    return this.#answer;
  }

  rejected(): void {
    this.#doubted = true;
  }

  async #ask(): Promise<Credentials | undefined> {
    const output = await this.#run();
    if (output === undefined) return undefined;
    try {
      const { Username: username, Secret: secret } = JSON.parse(output) as Record<string, unknown>;
      if (typeof username !== "string" || typeof secret !== "string") throw new TypeError("no Username and Secret");
      return username === "<token>" ? { identityToken: secret } : { username, password: secret };
    } catch {
      // Without the cause: it may quote the output, which may be a secret.
      throw this.#error("did not print a JSON object with Username and Secret");
    }
  }

  /** @returns undefined where the helper knows no credentials for the host. Source: docker-credential-helpers, "Development" */
  #run(): Promise<string | undefined> {
    return new Promise((resolve, reject) => {
      const options = { timeout: HELPER_TIMEOUT_MS, killSignal: "SIGKILL", maxBuffer: MAX_HELPER_BYTES } as const;
      const child = execFile(this.#program, ["get"], options, (error, output) => {
        if (!error) resolve(output);
        else if (output.includes("credentials not found")) resolve(undefined);
        else if (error.code === "ENOENT") reject(this.#error("is not on the PATH"));
        else if (error.killed) reject(this.#error(`did not answer within ${HELPER_TIMEOUT_MS} ms, or too much`));
        else reject(this.#error(`failed (${error.code ?? error.signal}): try it by hand`));
      });
      // A helper that ends without reading is judged by its output.
      child.stdin?.on("error", () => {});
      child.stdin?.end(serverKey(this.#host));
    });
  }

  #error(reason: string): RemoteError {
    return new RemoteError("unauthorized", this.#host, `cannot be logged in to: ${this.#program} ${reason}`);
  }
}

/** The file that `docker login` writes: what is in it, or the helpers that it names. Read when needed, and again after a refusal. */
class DockerConfig implements CredentialSource {
  readonly #path: string;
  readonly #host: string;
  readonly #clock: Clock;
  readonly #helpers = new Map<string, CredentialHelper>();
  #sources: Promise<CredentialSource[]> | undefined;

  constructor(path: string, host: string, clock: Clock) {
    this.#path = path;
    this.#host = host;
    this.#clock = clock;
  }

  async get(): Promise<Credentials | undefined> {
    const sources = (this.#sources ??= this.#read());
    sources.catch(() => (this.#sources = undefined));
    for (const source of await sources) {
      const credentials = await source.get();
      if (credentials) return credentials;
    }
    return undefined;
  }

  rejected(): void {
    this.#sources = undefined;
    for (const helper of this.#helpers.values()) helper.rejected();
  }

  /** A helper for this host first, then the helper for all, then the file itself, as docker does. */
  async #read(): Promise<CredentialSource[]> {
    let config: unknown;
    try {
      config = JSON.parse(await readFile(this.#path, "utf8"));
    } catch (error) {
      // A syntax error quotes the file: only the code goes on.
      const { code = "it is not JSON" } = error as NodeJS.ErrnoException;
      throw new RemoteError("unauthorized", this.#host, `cannot be logged in to: cannot read ${this.#path} (${code})`);
    }
    const { auths, credHelpers, credsStore } = isObject(config) ? config : {};
    const names = [this.#entry(credHelpers), credsStore].filter((name) => typeof name === "string" && name !== "");
    const entry = credentialsOf(this.#entry(auths));
    return [...names.map((name) => this.#helper(name as string)), ...(entry ? [constant(entry)] : [])];
  }

  #helper(name: string): CredentialHelper {
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)) {
      throw new RemoteError("unauthorized", this.#host, `cannot be logged in to: ${this.#path} names a bad helper`);
    }
    const helper = this.#helpers.get(name) ?? new CredentialHelper(name, this.#host, this.#clock);
    this.#helpers.set(name, helper);
    return helper;
  }

  /** The value for this host: keys are hosts, or URLs of old. */
  #entry(section: unknown): unknown {
    if (!isObject(section)) return undefined;
    const found = Object.entries(section).find(([key]) => {
      const host = key.replace(/^https?:\/\//, "").replace(/\/.*$/, "");
      return host === this.#host || (HUB.has(host) && HUB.has(this.#host));
    });
    return found?.[1];
  }
}

function serverKey(host: string): string {
  return HUB.has(host) ? HUB_KEY : host;
}

function credentialsOf(entry: unknown): Credentials | undefined {
  if (!isObject(entry)) return undefined;
  const { auth, identitytoken, username, password } = entry;
  if (typeof identitytoken === "string" && identitytoken !== "") return { identityToken: identitytoken };
  if (typeof auth === "string" && auth !== "") {
    const [, name = "", secret = ""] = /^([^:]*):(.*)$/s.exec(Buffer.from(auth, "base64").toString()) ?? [];
    return name === "" ? undefined : { username: name, password: secret };
  }
  return typeof username === "string" && typeof password === "string" && username !== ""
    ? { username, password }
    : undefined;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
