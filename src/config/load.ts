/**
 * From what an operator wrote to one frozen `Config`. Sources, the lowest first: defaults, a file, the variables of `registry:2`,
 * ENTREPOT_ variables. Every fault of all of them is found before one error tells them together; nothing is used halfway.
 */
import { readFile } from "node:fs/promises";
import type { z } from "zod";
import { applyEnvironment } from "./environment.ts";
import { ConfigError, nearest, pathText, placeText, type Fault, type Path } from "./faults.ts";
import { schemaAt } from "./json-schema.ts";
import { applyRegistryEnvironment } from "./registry-env.ts";
import { replicationDoubts } from "./replication-checks.ts";
import { replicationRule } from "./replication-schema.ts";
import { configSchema, isMapping, type Config, type ReplicationRule } from "./schema.ts";
import { Settings } from "./settings.ts";
import { DURATION_REMEDY, SIZE_REMEDY } from "./units.ts";

export interface LoadedConfig {
  config: Config;
  /** Where each value came from, by path: `default`, `entrepot.yaml:12`, or a variable's name. */
  origins: ReadonlyMap<string, string>;
  /** What was given and has no effect, a sentence each. */
  warnings: readonly string[];
}

/** The configuration without a file and without an environment. */
export function defaultConfig(): Config {
  return parseConfig({});
}

/**
 * Checks a tree as a YAML file would hold it (durations and sizes as texts) and adds the defaults. Reads password files.
 * @throws ConfigError
 */
export function parseConfig(input: unknown): Config {
  const settings = new Settings();
  settings.set([], input, { source: "" });
  const { config, faults } = check(settings);
  if (config === undefined) throw new ConfigError(faults.map(({ path, cause, remedy }) => ({ path, cause, remedy })));
  return config;
}

/**
 * Checks a rule of replication by itself, as a YAML file would hold it. What keeps it from being beside others is told by `replicationFaults`.
 * @returns the rule, or its faults with paths that begin in it
 */
export function parseReplicationRule(
  given: unknown,
): { rule: ReplicationRule; faults?: never } | { rule?: never; faults: Fault[] } {
  const result = replicationRule.safeParse(given);
  if (result.success) return { rule: deepFreeze(result.data) };
  const settings = new Settings();
  const place = ["replication", "rules", 0];
  settings.set(["replication", "rules"], [given], { source: "" });
  const faults = result.error.issues.flatMap((issue) =>
    explain({ ...issue, path: [...place, ...issue.path] }, settings),
  );
  const start = pathText(place).length;
  return {
    faults: faults.map(({ path, cause, remedy }) => ({ path: path.slice(start).replace(/^\./, ""), cause, remedy })),
  };
}

/**
 * Reads the configuration; may be called again for a fresh one. Relative paths, of the file and in it, start at the working directory.
 * @param options.file before ENTREPOT_CONFIG; without both there is no file
 * @throws ConfigError with every fault, also for a file that cannot be read
 */
export async function loadConfig(options: {
  file?: string | undefined;
  env: NodeJS.ProcessEnv;
}): Promise<LoadedConfig> {
  const { env } = options;
  const file = options.file ?? (env["ENTREPOT_CONFIG"] || undefined);
  const settings = new Settings();
  const unread = file === undefined ? [] : await readInto(settings, file);
  // Without the file nothing more can be said for certain.
  if (unread.length > 0) throw new ConfigError(unread);
  const { faults: registryFaults, warnings } = applyRegistryEnvironment(settings, env);
  const environmentFaults = applyEnvironment(settings, env);
  const { config, faults } = check(settings);
  const all = [...registryFaults, ...environmentFaults, ...faults].sort((a, b) => (a.line ?? 0) - (b.line ?? 0));
  if (config === undefined || all.length > 0) throw new ConfigError(all);
  return { config, origins: originsOf(config, settings), warnings: [...warnings, ...doubtsAbout(config)] };
}

async function readInto(settings: Settings, file: string): Promise<Fault[]> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    const { code = String(error) } = error as NodeJS.ErrnoException;
    const remedy = "check the path (a relative one starts at the working directory) and who may read the file";
    return [{ source: file, path: "", cause: `cannot be read (${code})`, remedy }];
  }
  return settings.readFile(file, text);
}

function check(settings: Settings): { config: Config | undefined; faults: Fault[] } {
  const result = configSchema.safeParse(settings.get([]));
  if (result.success) return { config: deepFreeze(result.data), faults: [] };
  return { config: undefined, faults: result.error.issues.flatMap((issue) => explain(issue, settings)) };
}

/** What is no fault, and hardly meant. */
function doubtsAbout({ server, replication }: Config): string[] {
  const doubts = replicationDoubts(replication);
  if (server.tls === undefined || !server.publicUrl?.startsWith("http:")) return doubts;
  return [
    `server.publicUrl is ${server.publicUrl}, and server.tls has this server speak https: make it https`,
    ...doubts,
  ];
}

function explain(issue: z.core.$ZodIssue, settings: Settings): Fault[] {
  const path = issue.path as Path;
  const schema = schemaAt(path);
  const fault = (cause: string, remedy: string, at = path): Fault => ({
    ...settings.placeAround(at),
    path: pathText(at),
    cause,
    remedy,
  });
  switch (issue.code) {
    case "unrecognized_keys": {
      const known = Object.keys(schema?.properties ?? {});
      return issue.keys.map((key) => {
        const close = nearest(key, known);
        return fault("is not a key", close ? `did you mean ${close}?` : `known are ${known.join(", ")}`, [
          ...path,
          key,
        ]);
      });
    }
    case "invalid_type":
    case "invalid_union": {
      const value = settings.get(path);
      if (value === undefined) return [fault("is missing", `add it: ${schema?.description}`)];
      if (value === null) return [fault("is empty", "give it a value, or remove the key")];
      const unit = schema?.["x-unit"];
      if (unit === "duration") return [fault("is not a duration", DURATION_REMEDY)];
      if (unit === "size") return [fault("is not a size", SIZE_REMEDY)];
      const [kind, remedy] = (issue.code === "invalid_type" && KINDS[issue.expected]) || [
        "something else",
        issue.message,
      ];
      return [fault(`must be ${kind}`, remedy)];
    }
    case "invalid_value": {
      const values = issue.values.map(String);
      const close = nearest(String(settings.get(path)), values);
      return [fault(`must be one of ${values.join(", ")}`, close ? `did you mean ${close}?` : "choose one of them")];
    }
    case "invalid_key":
      return [
        fault(
          "is not a name for an upstream",
          "write the first component of its repositories' names: a-z, 0-9 and single . _ - between them, such as ghcr.io",
        ),
      ];
    case "too_small":
      return [
        issue.origin === "array"
          ? fault("is an empty list", "write one entry at least")
          : fault("is not valid", issue.message),
      ];
    case "custom":
      return [fault(issue.message, issue.params?.["remedy"] as string)];
    default:
      return [fault("is not valid", issue.message)];
  }
}

const KINDS: Record<string, [kind: string, remedy: string]> = {
  string: ["a text", "put a number or true and false in quotes"],
  number: ["a number", "write digits alone"],
  boolean: ["true or false", "write one of them, without quotes"],
  array: ["a list", "write [one, another], or one a line after a dash"],
  object: ["a mapping", "write its keys below it, indented"],
  record: ["a mapping", "write a name and its keys below it, indented"],
};

function originsOf(config: Config, settings: Settings): Map<string, string> {
  const origins = new Map<string, string>();
  const visit = (value: unknown, path: Path): void => {
    if (isMapping(value)) {
      for (const [key, child] of Object.entries(value)) visit(child, [...path, key]);
    } else if (Array.isArray(value) && value.some(isMapping)) {
      for (const [index, child] of value.entries()) visit(child, [...path, index]);
    } else {
      // A secret that was read from a file came with passwordFile or secretFile.
      const place = settings.place(path) ?? settings.place([...path.slice(0, -1), `${path.at(-1)}File`]);
      origins.set(pathText(path), place ? placeText(place) : "default");
    }
  };
  visit(config, []);
  return origins;
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null) {
    for (const child of Object.values(value)) deepFreeze(child);
    Object.freeze(value);
  }
  return value;
}
