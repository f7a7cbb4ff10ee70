/**
 * TLS of the server. The certificate is read anew when its files change, and taken only if it is in order: else the one of before stays
 * in use, and the log and /readyz say why. Connections that stand keep what they began with.
 */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import type { IncomingMessage, RequestListener } from "node:http";
import { createServer, type Server, type ServerOptions } from "node:https";
import type { Socket } from "node:net";
import { createSecureContext, TLSSocket, type SecureContextOptions } from "node:tls";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import type { Config } from "../config/schema.ts";
import type { Check } from "./check.ts";

export type TlsFiles = NonNullable<Config["server"]["tls"]>;

/** How often the files are looked at. */
const LOOK_MS: Milliseconds = 5_000;
/** From so long before its end on, a certificate is due to be renewed. */
const DUE_MS: Milliseconds = 14 * 86_400_000;

interface Loaded {
  context: SecureContextOptions;
  certificate: X509Certificate;
}

/**
 * Reads and checks the files.
 * @throws Error that names the file, what is wrong with it and what helps
 */
async function load(files: TlsFiles): Promise<Loaded> {
  const cert = await read(files.certificate);
  const key = await read(files.key);
  const ca = files.clientAuthority === undefined ? undefined : await read(files.clientAuthority);
  const certificate = parseCertificate(cert, files.certificate);
  if (!certificate.checkPrivateKey(parseKey(key, files.key))) {
    throw new Error(
      `the key in ${files.key} is not that of the certificate in ${files.certificate}: put both of one request there, the server's own certificate before its chain`,
    );
  }
  if (ca !== undefined) parseCertificate(ca, files.clientAuthority ?? "");
  const context: SecureContextOptions = { cert, key, minVersion: "TLSv1.2", ...(ca === undefined ? {} : { ca }) };
  try {
    createSecureContext(context);
  } catch (cause) {
    const why = (cause as Error).message.replace(/^error:[^:]*:/, "");
    throw new Error(
      `${Object.values(files).join(", ")} can't be served (${why}): have a certificate made with a key of at least 2048 bits (RSA) or 256 bits (EC)`,
      { cause },
    );
  }
  return { context, certificate };
}

async function read(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (cause) {
    const { code = String(cause) } = cause as NodeJS.ErrnoException;
    throw new Error(`cannot read ${file} (${code}): check the path and who may read the file`, { cause });
  }
}

function parseCertificate(pem: string, file: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (cause) {
    throw new Error(`${file} does not begin with a certificate in PEM (-----BEGIN CERTIFICATE-----)`, { cause });
  }
}

function parseKey(pem: string, file: string): ReturnType<typeof createPrivateKey> {
  try {
    return createPrivateKey(pem);
  } catch (cause) {
    if (pem.includes("ENCRYPTED")) {
      throw new Error(`the key in ${file} is encrypted: write it without a passphrase (openssl pkey -in FILE)`, {
        cause,
      });
    }
    throw new Error(`${file} holds no private key in PEM (-----BEGIN PRIVATE KEY-----)`, { cause });
  }
}

/** @returns what is wrong with the time in which it counts; undefined: nothing */
function untimely({ validFromDate, validToDate }: X509Certificate, nowMs: Milliseconds): string | undefined {
  if (nowMs > validToDate.getTime()) return `expired at ${validToDate.toISOString()}`;
  if (nowMs < validFromDate.getTime()) return `is not valid before ${validFromDate.toISOString()}`;
  return undefined;
}

export interface ServedCertificateDeps {
  clock: Clock;
  log: Logger;
  metrics: Metrics;
}

/** The certificate that is served at the moment. */
export class ServedCertificate implements AsyncDisposable {
  readonly #files: TlsFiles;
  readonly #deps: ServedCertificateDeps;
  readonly #stopped = new AbortController();
  #loaded: Loaded;
  /** How the files looked when they were read last. */
  #seen: string;
  /** Why what lies in the files now is not served. */
  #refusal: string | undefined;
  #looking: Promise<void> = Promise.resolve();
  #turn: Promise<void> = Promise.resolve();
  #take: (context: SecureContextOptions) => void = () => undefined;

  /** One that has expired is served, with a warning: its owner still has to get in. @throws Error that names file, cause and remedy */
  static async open(files: TlsFiles, deps: ServedCertificateDeps): Promise<ServedCertificate> {
    const seen = await look(files);
    const loaded = await load(files).catch((cause: unknown) => {
      throw new Error(`server.tls: ${(cause as Error).message}`, { cause });
    });
    const served = new ServedCertificate(files, deps, loaded, seen);
    const fault = untimely(loaded.certificate, deps.clock.now());
    if (fault !== undefined) deps.log.warn({ file: files.certificate }, `the certificate ${fault}: clients refuse it`);
    served.#looking = served.#watch();
    return served;
  }

  private constructor(files: TlsFiles, deps: ServedCertificateDeps, loaded: Loaded, seen: string) {
    this.#files = files;
    this.#deps = deps;
    this.#loaded = loaded;
    this.#seen = seen;
    this.#tell();
  }

  /** For `tls.createServer` or `setSecureContext`. */
  get context(): SecureContextOptions {
    return this.#loaded.context;
  }

  /** Whether clients are asked for certificates, too. */
  get asksClients(): boolean {
    return this.#files.clientAuthority !== undefined;
  }

  /** @param take is given every further certificate */
  onChange(take: (context: SecureContextOptions) => void): void {
    this.#take = take;
  }

  /** Reads the files now, whether they have changed or not. What is refused is logged. */
  reload(): Promise<void> {
    this.#turn = this.#turn.then(() => this.#reload());
    return this.#turn;
  }

  /** For /readyz: whether somebody should see to the certificate. */
  check(): Check {
    const { validToDate } = this.#loaded.certificate;
    const nowMs = this.#deps.clock.now();
    const fault = untimely(this.#loaded.certificate, nowMs);
    const due = validToDate.getTime() - nowMs < DUE_MS;
    const end = `it expires at ${validToDate.toISOString()}`;
    const reason =
      this.#refusal !== undefined
        ? `${this.#refusal}; the certificate of before is served, ${end}`
        : fault !== undefined
          ? `the certificate ${fault}: renew ${this.#files.certificate}`
          : due
            ? `${end}: renew ${this.#files.certificate}`
            : end;
    const ok = this.#refusal === undefined && fault === undefined && !due;
    return { name: "certificate", ok, reason, informative: true };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped.abort();
    await this.#looking;
    await this.#turn;
  }

  async #watch(): Promise<void> {
    const { signal } = this.#stopped;
    let before = this.#seen;
    while (!signal.aborted) {
      await this.#deps.clock.sleep(LOOK_MS, signal).catch(() => undefined);
      if (signal.aborted) return;
      const now = await look(this.#files);
      // Certificate and key are not replaced in one step: what still changes is left alone.
      if (now === before && now !== this.#seen) await this.reload();
      before = now;
    }
  }

  async #reload(): Promise<void> {
    const { log, clock } = this.#deps;
    const { certificate: file } = this.#files;
    // Before they are read: what changes meanwhile is seen as a change.
    this.#seen = await look(this.#files);
    try {
      const loaded = await load(this.#files);
      const fault = untimely(loaded.certificate, clock.now());
      if (fault !== undefined) throw new Error(`the certificate in ${file} ${fault}: put a valid one there`);
      this.#take(loaded.context);
      this.#refusal = undefined;
      this.#loaded = loaded;
      this.#tell();
      log.info({ file, expires: loaded.certificate.validToDate.toISOString() }, "the certificate was read anew");
    } catch (error) {
      this.#refusal = (error as Error).message;
      log.error({ file, reason: this.#refusal }, "the new certificate can't be used, the one of before is served");
    }
  }

  #tell(): void {
    const seconds = this.#loaded.certificate.validToDate.getTime() / 1000;
    this.#deps.metrics.tlsCertificateExpires.set({ file: this.#files.certificate }, seconds);
  }
}

/** Another text whenever a file was written or replaced. */
async function look(files: TlsFiles): Promise<string> {
  const { certificate, key, clientAuthority = key } = files;
  const looks = [certificate, key, clientAuthority].map(async (file) => {
    try {
      const { ino, size, mtimeNs, ctimeNs } = await stat(file, { bigint: true });
      return `${ino}:${size}:${mtimeNs}:${ctimeNs}`;
    } catch {
      return "absent";
    }
  });
  return (await Promise.all(looks)).join(" ");
}

const HINT = "This port speaks https: ask for https:// in place of http://.\n";
const SPEAKS_HTTPS = `HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ${HINT.length}\r\n\r\n${HINT}`;

/** An HTTPS server, and what Node's does not know of it. */
export class TlsServer {
  readonly server: Server;
  /** Connections without a session yet, by the client's end of them. */
  readonly #handshakes = new Map<string, Socket>();

  constructor(
    certificate: ServedCertificate,
    { log, ...options }: ServerOptions & { log: Logger },
    handle: RequestListener,
  ) {
    this.server = createServer(
      {
        ...options,
        ...certificate.context,
        // A client without one, or with one of another authority, is anonymous, not refused.
        requestCert: certificate.asksClients,
        rejectUnauthorized: false,
      },
      handle,
    );
    certificate.onChange((context) => this.server.setSecureContext(context));
    this.server.on("connection", (socket: Socket) => {
      const end = endOf(socket);
      this.#handshakes.set(end, socket);
      socket.once("close", () => {
        // The same port may have come back before the old connection was done for.
        if (this.#handshakes.get(end) === socket) this.#handshakes.delete(end);
      });
    });
    this.server.on("secureConnection", (socket) => this.#handshakes.delete(endOf(socket)));
    // Before Node's own listener, which destroys the connection.
    this.server.prependListener("tlsClientError", (error: NodeJS.ErrnoException, socket) => {
      if (error.code === "ERR_SSL_HTTP_REQUEST") this.#handshakes.get(endOf(socket))?.end(SPEAKS_HTTPS);
      // "unknown ca" is what a client says that does not trust the certificate.
      const reason = error.code ?? error.message;
      log.info({ client: socket.remoteAddress, reason }, "a client did not get through the TLS handshake");
    });
  }

  /** Cuts whoever has not got through the handshake: the server waits for them when it closes. */
  cutHandshakes(): void {
    for (const socket of this.#handshakes.values()) socket.destroy();
  }
}

function endOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`;
}

const names = new WeakMap<TLSSocket, string | undefined>();

/**
 * The common name of the client's certificate, if it came with one that `server.tls.clientAuthority` has signed and that is valid.
 * Found out once for a connection.
 */
export function certificateNameOf({ socket }: IncomingMessage): string | undefined {
  if (!(socket instanceof TLSSocket) || !socket.authorized) return undefined;
  if (names.has(socket)) return names.get(socket);
  // Two common names make an array. Without a certificate there is nothing.
  const subject = socket.getPeerCertificate().subject as { CN?: unknown } | undefined;
  const name = typeof subject?.CN === "string" && subject.CN !== "" ? subject.CN : undefined;
  names.set(socket, name);
  return name;
}
