import { pino, type DestinationStream, type Logger } from "pino";

export type { Logger };
export type LogLevel = "trace" | "debug" | "info" | "warn" | "error" | "fatal" | "silent";
export type LogFormat = "auto" | "json" | "pretty";

// Whatever object is logged, these never appear. Names of headers and of keys that hold secrets.
const SECRETS = ["authorization", "password", "token", "access_token", "refresh_token", "secret", "cookie"];
const REDACT = SECRETS.flatMap((key) => [key, `*.${key}`, `*.*.${key}`]);

/** Removes user information and query strings (signed URLs hold credentials) from a URL that goes into a log or an error. */
export function redactUrl(url: string | URL): string {
  try {
    const { protocol, host, pathname, search } = new URL(url);
    return `${protocol}//${host}${pathname}${search === "" ? "" : "?…"}`;
  } catch {
    return "(not a URL)";
  }
}

export interface LogOptions {
  level: LogLevel;
  /** `auto`: pretty on a terminal, JSON lines elsewhere. */
  format: LogFormat;
  /** Where lines go; standard output without it. */
  destination?: DestinationStream;
}

/** The process's log. Lines are written asynchronously in blocks; call `flush` before exit. */
export async function createLog(options: LogOptions): Promise<Logger> {
  const pretty = options.format === "pretty" || (options.format === "auto" && process.stdout.isTTY === true);
  const destination =
    options.destination ??
    (pretty
      ? (await import("pino-pretty")).default({
          colorize: process.stdout.isTTY === true,
          ignore: "pid,hostname",
          sync: true,
        })
      : pino.destination({ dest: 1, sync: false, minLength: 0 }));
  return pino(
    {
      level: options.level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      redact: { paths: REDACT, censor: "[redacted]" },
    },
    destination,
  );
}
