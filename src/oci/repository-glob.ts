/** Globs of repositories' names as rules of copying write them (`library/{node,redis}`, `team/**`), and the names that copies get. */
import picomatch from "picomatch";
import { isRepositoryName, type RepositoryName } from "./reference.ts";

const MOST_ALTERNATIVES = 1000;
const PLACEHOLDER = /\{\{([^{}]*)\}\}/g;

/** What stands for a part of the source's name in a target's: all of it, all but its last component, the last one, its registry. */
export const PLACEHOLDERS: readonly string[] = ["path", "namespace", "name", "registry"];

/** Repositories of one registry: names that can be asked for as they are, and globs that need the registry's list. */
export interface RepositorySet {
  names: RepositoryName[];
  globs: string[];
  has: (repository: string) => boolean;
}

/**
 * Reads globs: `*` stands for any text within a component, `**` for any components, `{a,b}` for one of them.
 * @returns undefined if one of them can match no name at all, or stands for more than 1,000
 */
export function readRepositories(globs: readonly string[]): RepositorySet | undefined {
  const all: string[] = [];
  for (const glob of globs) {
    const alternatives = expandBraces(glob);
    if (!alternatives || !alternatives.every((one) => sampleOf(one) !== undefined)) return undefined;
    all.push(...alternatives);
    if (all.length > MOST_ALTERNATIVES) return undefined;
  }
  const unique = [...new Set(all)];
  const names = unique.filter(isRepositoryName);
  const open = unique.filter((one) => one.includes("*"));
  const matchers = open.map((glob) => picomatch(glob));
  const literal = new Set<string>(names);
  return {
    names,
    globs: open,
    has: (repository) => literal.has(repository) || matchers.some((matches) => matches(repository)),
  };
}

/** A name that a glob without braces matches; undefined where there is none. */
export function sampleOf(glob: string): RepositoryName | undefined {
  const components = glob.split("/");
  if (components.some((component) => component !== "**" && component.includes("**"))) return undefined;
  const sample = components.map((component) => component.replaceAll(/\*+/g, "a")).join("/");
  return isRepositoryName(sample) ? sample : undefined;
}

/** @returns the placeholders of a template that stand for nothing */
export function unknownPlaceholders(template: string): string[] {
  return [...template.matchAll(PLACEHOLDER)]
    .map(([, name = ""]) => name.trim())
    .filter((name) => !PLACEHOLDERS.includes(name));
}

/**
 * The name of a copy.
 * @param source of which registry (by the configuration's name) and repository it is one
 * @returns undefined where that is no repository's name
 */
export function renderName(
  template: string,
  source: { registry: string; repository: RepositoryName },
): RepositoryName | undefined {
  const components = source.repository.split("/");
  const values: Record<string, string> = {
    path: source.repository,
    namespace: components.slice(0, -1).join("/"),
    name: components.at(-1) ?? "",
    registry: source.registry,
  };
  const rendered = template.replaceAll(PLACEHOLDER, (_, name: string) => values[name.trim()] ?? "");
  // A repository without a namespace leaves nothing between two slashes.
  const name = rendered
    .split("/")
    .filter((component) => component !== "")
    .join("/");
  return isRepositoryName(name) ? name : undefined;
}

/** @returns undefined for braces that do not close, or that stand for too many */
function expandBraces(glob: string): string[] | undefined {
  const open = glob.indexOf("{");
  if (open < 0) return glob.includes("}") ? undefined : [glob];
  const parts: string[] = [];
  let depth = 0;
  let from = open + 1;
  for (let at = open; at < glob.length; at++) {
    const sign = glob[at];
    if (sign === "{") depth++;
    else if (sign === "," && depth === 1) {
      parts.push(glob.slice(from, at));
      from = at + 1;
    } else if (sign === "}" && --depth === 0) {
      parts.push(glob.slice(from, at));
      const [before, after] = [glob.slice(0, open), glob.slice(at + 1)];
      const expanded: string[] = [];
      for (const part of parts) {
        const each = expandBraces(`${before}${part}${after}`);
        if (!each) return undefined;
        expanded.push(...each);
        if (expanded.length > MOST_ALTERNATIVES) return undefined;
      }
      return expanded;
    }
  }
  return undefined;
}
