/**
 * Variables such as ENTREPOT_SERVER__LISTEN: a key's path in capitals, levels separated by two underscores, everything that is
 * no letter and no digit by one. A variable replaces what stands at its path, be it one value or a whole section. Its value is
 * read as YAML; for a key that takes a text, as it stands unless it is quoted, so that passwords need no care. An empty one is none.
 */
import { nearest, pathText, type Fault, type Path } from "./faults.ts";
import { schemaAt } from "./json-schema.ts";
import { isMapping } from "./schema.ts";
import { parseYaml, type Settings } from "./settings.ts";

const PREFIX = "ENTREPOT_";
/** Of the first administrator, who is no part of the configuration: nothing prints these. */
export const FIRST_ADMIN = {
  name: "ENTREPOT_ADMIN_USERNAME",
  password: "ENTREPOT_ADMIN_PASSWORD",
  passwordFile: "ENTREPOT_ADMIN_PASSWORD_FILE",
} as const;
const NO_SETTINGS: ReadonlySet<string> = new Set(["ENTREPOT_CONFIG", "ENTREPOT_TOKEN", ...Object.values(FIRST_ADMIN)]);
// Kubernetes sets these in every pod beside a service named "entrepot".
const SERVICE_LINK =
  /^ENTREPOT_(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)$/;

/** Sets what the environment's ENTREPOT_ variables say. Returns the faults of those that say nothing. */
export function applyEnvironment(settings: Settings, env: NodeJS.ProcessEnv): Fault[] {
  const names = Object.keys(env).filter(
    (name) => name.startsWith(PREFIX) && !NO_SETTINGS.has(name) && !SERVICE_LINK.test(name) && env[name] !== "",
  );
  const depth = (name: string) => name.split("__").length;
  // Sections before the keys in them, so that both can be given.
  names.sort((a, b) => depth(a) - depth(b) || (a < b ? -1 : 1));
  return names.flatMap((name) => applyVariable(settings, name, env[name] ?? ""));
}

function applyVariable(settings: Settings, variable: string, text: string): Fault[] {
  const path: string[] = [];
  for (const segment of variable.slice(PREFIX.length).split("__")) {
    const known = keysAt(settings, path);
    const matches = known.filter((key) => asSegment(key) === segment.toUpperCase());
    const [key] = matches;
    if (key === undefined || matches.length > 1) {
      const cause = key === undefined ? "is not the name of a setting" : `could mean ${matches.join(" or ")}`;
      return [{ source: variable, path: "", cause, remedy: remedyFor(segment, path, known) }];
    }
    path.push(key);
  }
  const { value, faults } = valueOf(path, text);
  if (faults.length > 0)
    return faults.map(({ cause, remedy }) => ({ source: variable, path: pathText(path), cause, remedy }));
  settings.set(path, value, { source: variable });
  return [];
}

function keysAt(settings: Settings, path: Path): string[] {
  const { properties, additionalProperties } = schemaAt(path) ?? {};
  const given = settings.get(path);
  return additionalProperties && isMapping(given) ? Object.keys(given) : Object.keys(properties ?? {});
}

function asSegment(key: string): string {
  return key.replaceAll(/[^A-Za-z0-9]/g, "_").toUpperCase();
}

function remedyFor(segment: string, path: Path, known: string[]): string {
  const parent = PREFIX + path.map((key) => asSegment(String(key))).join("__");
  if (known.length === 0) return `set ${parent} as a whole`;
  const close = nearest(segment, known.map(asSegment));
  const level = path.length === 0 ? PREFIX : `${parent}__`;
  return close === undefined
    ? `known are ${known.map((key) => level + asSegment(key)).join(", ")}`
    : `did you mean ${level}${close}?`;
}

function valueOf(path: Path, text: string): Pick<ReturnType<typeof parseYaml>, "value" | "faults"> {
  return schemaAt(path)?.type === "string" && !/^["']/.test(text) ? { value: text, faults: [] } : parseYaml(text);
}
