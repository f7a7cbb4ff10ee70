/** The kinds of values that a configuration holds, each with its check and its words. Used by the schemas of its sections. */
import { readFileSync } from "node:fs";
import { isIP, isIPv6 } from "node:net";
import { Cron } from "croner";
import { z } from "zod";
import {
  DURATION_PATTERN,
  DURATION_REMEDY,
  formatDuration,
  formatSize,
  parseDuration,
  parseSize,
  SIZE_PATTERN,
  SIZE_REMEDY,
} from "./units.ts";

/** A text that `read` understands; undefined from it is a fault. Causes never repeat the text: it may be a secret. */
export function reading<T>(read: (text: string) => T | undefined, cause: string, remedy: string) {
  return z.string().transform((text, context): T => {
    const value = read(text);
    if (value !== undefined) return value;
    context.issues.push({ code: "custom", message: cause, params: { remedy }, input: text });
    return z.NEVER;
  });
}

export function matching(test: (text: string) => boolean, cause: string, remedy: string) {
  return reading((text) => (test(text) ? text : undefined), cause, remedy);
}

/** For what is waited for: a timer of Node holds at most 2^31 - 1 milliseconds. */
export const A_WAIT = { min: 1, max: 86_400_000 };

export function duration(standard: string, description: string, { min = 0, max = Number.MAX_SAFE_INTEGER } = {}) {
  const bounds = `from ${formatDuration(min)}${max < Number.MAX_SAFE_INTEGER ? ` to ${formatDuration(max)}` : ""}`;
  return reading(
    (text) => {
      const ms = parseDuration(text);
      return ms !== undefined && ms >= min && ms <= max ? ms : undefined;
    },
    `is not a duration ${bounds}`,
    DURATION_REMEDY,
  )
    .prefault(standard)
    .meta({ description: `${description} A duration ${bounds}.`, pattern: DURATION_PATTERN, "x-unit": "duration" });
}

export function anySize(description: string, min = 0, unit = "A size") {
  const isRate = unit === "A size per second";
  return z
    .union([z.string(), z.number()])
    .transform((given, context): number => {
      const bytes = parseSize(isRate ? String(given).replace(/\/s$/, "") : String(given));
      if (bytes !== undefined && bytes >= min) return bytes;
      const message = `is not a size from ${formatSize(min)}`;
      context.issues.push({ code: "custom", message, params: { remedy: SIZE_REMEDY }, input: given });
      return z.NEVER;
    })
    .meta({
      description: `${description} ${unit} from ${formatSize(min)}.`,
      pattern: isRate ? SIZE_PATTERN.replace("$", "(/s)?$") : SIZE_PATTERN,
      "x-unit": "size",
    });
}

export function size(standard: string, description: string, min = 0, unit = "A size") {
  const schema = anySize(description, min, unit);
  return schema.prefault(standard).meta(schema.meta() ?? {});
}

// Not z.int(): its fault would keep checkNames from telling its own.
export function whole(standard: number, min: number, max: number, description: string) {
  const range = `from ${min}${max < Number.MAX_SAFE_INTEGER ? ` to ${max}` : ""}`;
  return z
    .number()
    .refine((number) => Number.isSafeInteger(number) && number >= min && number <= max, {
      error: `is not a whole number ${range}`,
      params: { remedy: `write a number ${range}` },
    })
    .default(standard)
    .meta({ description: `${description} A number ${range}.`, type: "integer", minimum: min, maximum: max });
}

/** A mapping whose keys all have defaults. An empty one (`log:` and nothing below) holds nothing but defaults. */
export function section<Shape extends z.ZodRawShape>(shape: Shape, description: string) {
  return z
    .preprocess((given) => given ?? {}, z.strictObject(shape))
    .prefault({})
    .describe(description);
}

export function httpUrl(text: string): URL | undefined {
  if (!URL.canParse(text)) return undefined;
  const url = new URL(text);
  return (url.protocol === "http:" || url.protocol === "https:") && url.search === "" && url.hash === ""
    ? url
    : undefined;
}

export function withoutCredentials(url: URL | undefined): URL | undefined {
  return url && url.username === "" && url.password === "" ? url : undefined;
}

export function isHost(text: string): boolean {
  const [, v6, name] = /^(?:\[([^\]]+)\]|([a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?))(?::[0-9]{1,5})?$/.exec(text) ?? [];
  return name !== undefined || (v6 !== undefined && isIPv6(v6));
}

export function isNetwork(text: string): boolean {
  const [address = "", bits, ...rest] = text.split("/");
  const version = isIP(address);
  if (version === 0 || rest.length > 0) return false;
  return bits === undefined || (/^[0-9]{1,3}$/.test(bits) && Number(bits) <= (version === 4 ? 32 : 128));
}

export function isCron(text: string): boolean {
  if (text === "never") return true;
  if (text.trim().split(/\s+/).length !== 5) return false;
  try {
    return new Cron(text, { paused: true, timezone: "UTC" }).nextRun() !== null;
  } catch {
    return false;
  }
}

export const host = matching(
  isHost,
  "is not a host",
  "write a host or host:port in lower case, such as registry.example.com",
);
export const hostGlob = matching(
  (text) => /^[^\s/]+$/.test(text),
  "is not a glob of hosts",
  "write a host in which * stands for any text, such as *.blob.example.com",
);
export const glob = matching((text) => /^\S+$/.test(text), "is not a glob", "write a glob such as library/* or **");
export const nonEmpty = matching((text) => text !== "", "is empty", "give it a text, or remove the key");

/** Read at once, so that whoever holds a Config holds the secret, and an unreadable file is one fault among all others. */
export function readSecret(file: string): { secret: string } | { message: string; remedy: string } {
  try {
    const secret = readFileSync(file, "utf8").replace(/\r?\n$/, "");
    if (secret !== "") return { secret };
    return { message: `names the empty file ${file}`, remedy: "write the secret into it" };
  } catch (error) {
    const { code = String(error) } = error as NodeJS.ErrnoException;
    return { message: `cannot read ${file} (${code})`, remedy: "check the path and who may read the file" };
  }
}
