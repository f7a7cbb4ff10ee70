import { stringify } from "yaml";
import { pathText, type Path } from "./faults.ts";
import { schemaAt } from "./json-schema.ts";
import type { LoadedConfig } from "./load.ts";
import { isMapping } from "./schema.ts";
import { formatDuration, formatSize } from "./units.ts";

const REDACTED = "[redacted]";

/** The configuration in force as YAML: secrets redacted, units as in a file, each value with its origin in a comment. */
export function printConfig({ config, origins }: Pick<LoadedConfig, "config" | "origins">): string {
  return `${linesOf(shown(config, []), [], origins).join("\n")}\n`;
}

/** The same for programs. `origins` has one entry for each value, by path. */
export function printConfigJson({ config, origins, warnings }: LoadedConfig): object {
  return { config: shown(config, []), origins: Object.fromEntries(origins), warnings };
}

function shown(value: unknown, path: Path): unknown {
  if (isMapping(value)) {
    return Object.fromEntries(Object.entries(value).map(([key, child]) => [key, shown(child, [...path, key])]));
  }
  if (Array.isArray(value)) return value.map((child, index) => shown(child, [...path, index]));
  const schema = schemaAt(path);
  if (schema?.writeOnly) return REDACTED;
  if (typeof value === "string") return withoutSecrets(value);
  if (typeof value !== "number") return value;
  if (schema?.["x-unit"] === "duration") return formatDuration(value);
  return schema?.["x-unit"] === "size" ? formatSize(value) : value;
}

/** A proxy's address may hold credentials, and a webhook's a token behind the path. */
function withoutSecrets(text: string): string {
  if (!/^https?:\/\//.test(text)) return text;
  return text.replace(/^(https?:\/\/)[^/]*@/, `$1${REDACTED}@`).replace(/\?.*$/s, `?${REDACTED}`);
}

function linesOf(value: unknown, path: Path, origins: LoadedConfig["origins"]): string[] {
  if (!isMapping(value)) return [];
  return Object.entries(value).flatMap(([name, child]) => {
    const key = inline(name);
    const at = [...path, name];
    if (isMapping(child) && Object.keys(child).length > 0) {
      return [`${key}:`, ...linesOf(child, at, origins).map((line) => `  ${line}`)];
    }
    if (Array.isArray(child) && child.some(isMapping)) {
      const items = child.flatMap((item, index) =>
        linesOf(item, [...at, index], origins).map((line, first) => `  ${first === 0 ? "-" : " "} ${line}`),
      );
      return [`${key}:`, ...items];
    }
    const origin = origins.get(pathText(at));
    return [`${key}: ${inline(child)}${origin === undefined ? "" : ` # ${origin}`}`];
  });
}

function inline(value: unknown): string {
  if (typeof value === "string" && /[\r\n]/.test(value)) return JSON.stringify(value);
  return stringify(value, {
    collectionStyle: "flow",
    lineWidth: 0,

    flowCollectionPadding: false,
  }).trim();
}
