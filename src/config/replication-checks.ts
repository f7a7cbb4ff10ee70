/** What can be said of rules of replication before anybody is asked: pure, on a section whose shape is right. */
import { intersects, minVersion } from "semver";
import { readRepositories, renderName, sampleOf, type RepositorySet } from "../oci/repository-glob.ts";
import type { RepositoryName } from "../oci/reference.ts";

/** The name of this registry in rules. */
export const SELF = "self";

interface Rules {
  readonly registries: Readonly<Record<string, { readonly url: string }>>;
  readonly rules: readonly Rule[];
}

interface Rule {
  readonly name: string;
  readonly from: { readonly registry: string; readonly repositories: readonly string[] };
  readonly to: readonly { readonly registry: string; readonly repository: string }[];
  readonly tags: {
    readonly match: readonly string[];
    readonly semver?: string | undefined;
    readonly exclude: readonly string[];
    readonly always: readonly string[];
  };
}

interface Found {
  path: PropertyKey[];
  message: string;
  remedy: string;
}

/** A rule with one of its targets. Registries are places here: one that has two names is one. */
interface Way {
  rule: Rule;
  path: PropertyKey[];
  from: string;
  to: string;
  sources: RepositorySet;
  /** The copy's name for each name that is known, and for one that each glob matches. */
  copies: { source: RepositoryName; isSample: boolean; target: RepositoryName }[];
  template: string;
}

/** What keeps rules from being applied: unknown registries, names that cannot be, two writers of one tag, loops. */
export function replicationFaults(given: Rules): Found[] {
  const faults: Found[] = [];
  const refuse = (path: PropertyKey[], message: string, remedy: string) => void faults.push({ path, message, remedy });
  for (const name of Object.keys(given.registries)) {
    if (name === SELF)
      refuse(
        ["registries", name],
        "is the name of this registry",
        "choose another name, and let rules that mean this registry say self",
      );
    else if (!/^[a-z0-9]+(?:[._-][a-z0-9]+)*$/.test(name)) {
      refuse(["registries", name], "is not a registry's name", "write a-z, 0-9 and single . _ - between them");
    }
  }
  for (const [index, rule] of given.rules.entries()) {
    const path = ["rules", index];
    if (given.rules.findIndex(({ name }) => name === rule.name) < index) {
      refuse([...path, "name"], "is the name of another rule", "give each a name of its own");
    }
    const known = [...Object.keys(given.registries), SELF];
    const check = (name: string, at: PropertyKey[]): void => {
      if (!known.includes(name))
        refuse(
          [...at, "registry"],
          "is not under replication.registries",
          `add it there, or choose one of ${known.join(", ")}`,
        );
    };
    check(rule.from.registry, [...path, "from"]);
    for (const [target, { registry }] of rule.to.entries()) check(registry, [...path, "to", target]);
    const none = selectsNothing(rule.tags);
    if (none) refuse([...path, "tags", none.key], ...none.words);
  }
  const ways = waysOf(given, refuse);
  for (const [index, way] of ways.entries()) {
    for (const other of ways.slice(0, index + 1)) {
      const fault = other === way ? faultWithin(way) : (loopOf(way, other) ?? clashOf(way, other));
      if (fault) refuse([...way.path, "repository"], ...fault);
    }
  }
  return faults;
}

/** What keeps this registry, as a target, from being reached by its own daemon. */
export function selfFaults(
  { listen, tls, publicUrl }: { listen: string; tls?: object | undefined; publicUrl?: string | undefined },
  rules: readonly Rule[],
): Found[] {
  const [cause, remedy] = listen.startsWith("unix:")
    ? ["is written to over HTTP, and server.listen is a Unix socket", "have server.listen be host:port"]
    : tls !== undefined && publicUrl === undefined
      ? ["is written to by the name in its certificate, which is not told", "set server.publicUrl"]
      : [];
  if (cause === undefined || remedy === undefined) return [];
  return rules.flatMap(({ to }, index) =>
    to.flatMap(({ registry }, target) =>
      registry === SELF
        ? [{ path: ["rules", index, "to", target, "registry"], message: `is this registry, which ${cause}`, remedy }]
        : [],
    ),
  );
}

/** What is allowed, and may not be meant: a sentence each. */
export function replicationDoubts(given: Rules): string[] {
  const ways = waysOf(given, () => undefined);
  const pairs = ways.flatMap((way, index) => ways.slice(0, index).map((other) => [other, way] as const));
  return pairs
    .filter(([a, b]) => a.from === b.to && a.to === b.from)
    .filter(([a, b]) => a.copies.some(({ source, target }) => b.sources.has(target) && backFrom(b, target) === source))
    .map(
      ([a, b]) =>
        `replication rules ${a.rule.name} and ${b.rule.name} copy the same repositories both ways: a tag is at rest once both sides have one digest; of two different ones, the later push wins between registries of Entrepot, elsewhere that of the rule that runs first`,
    );
}

function waysOf(
  { registries, rules }: Rules,
  refuse: (path: PropertyKey[], message: string, remedy: string) => void,
): Way[] {
  const placeOf = (name: string): string => registries[name]?.url ?? name;
  return rules.flatMap((rule, index) => {
    const sources = readRepositories(rule.from.repositories);
    if (!sources) {
      refuse(["rules", index, "from", "repositories"], "stand for more than 1,000 names", "write fewer braces, or a *");
      return [];
    }
    return rule.to.flatMap(({ registry, repository: template }, target): Way[] => {
      const path = ["rules", index, "to", target];
      const samples = sources.globs.flatMap((glob) => sampleOf(glob) ?? []);
      const all = [
        ...sources.names.map((source) => ({ source, isSample: false })),
        ...samples.map((source) => ({ source, isSample: true })),
      ];
      const copies = all.flatMap(({ source, isSample }) => {
        const name = renderName(template, { registry: rule.from.registry, repository: source });
        return name === undefined ? [] : [{ source, isSample, target: name }];
      });
      if (copies.length < all.length) {
        refuse(
          [...path, "repository"],
          "makes no name that a repository can have",
          'write one such as "mirror/{{path}}"',
        );
        return [];
      }
      return [{ rule, path, from: placeOf(rule.from.registry), to: placeOf(registry), sources, copies, template }];
    });
  });
}

type Words = [message: string, remedy: string];

/** The stage of the tags that leaves none of any repository's. */
function selectsNothing({ match, semver, exclude, always }: Rule["tags"]): { key: string; words: Words } | undefined {
  // A union with one empty part has no least version for the library.
  if (semver?.split("||").every((part) => minVersion(part) === null)) {
    return { key: "semver", words: ["is a range that no version is in", 'write one such as ">=18 <23"'] };
  }
  if (always.length > 0) return undefined;
  if (match.length === 0) {
    return { key: "match", words: ["is an empty list, so that no tag is selected", "leave it out for all tags"] };
  }
  if (exclude.some((glob) => glob === "*" || glob === "**")) {
    return { key: "exclude", words: ["takes away every tag", "name what stays under tags.always"] };
  }
  return undefined;
}

function faultWithin(way: Way): Words | undefined {
  const { copies, sources } = way;
  if (way.from === way.to) {
    const own = copies.find(({ target }) => sources.has(target));
    if (own)
      return own.target === own.source
        ? ["is its own source", "give the copy another name or registry"]
        : [
            `is among its own sources, so that ${own.target} would be copied again by every run`,
            "leave the copies out of from.repositories",
          ];
  }
  // Without either, every repository that a glob finds gets the one name.
  if (sources.globs.length > 0 && !/\{\{\s*(?:path|name|namespace)\s*\}\}/.test(way.template)) {
    return ["is one repository for many sources", "add {{path}} or {{name}}"];
  }
  const sourceOf = new Map<string, string>();
  for (const { source, target, isSample } of copies) {
    const first = sourceOf.get(target);
    if (first !== undefined && first !== source && !isSample) {
      return [`is ${target} for both ${first} and ${source}`, "add {{path}}"];
    }
    sourceOf.set(target, source);
  }
  return undefined;
}

/** Two rules that make each other's copies longer, run by run. Those that lead back to where they began come to rest. */
function loopOf(way: Way, other: Way): Words | undefined {
  if (way.from !== other.to || way.to !== other.from) return undefined;
  for (const { source, target } of way.copies) {
    const back = other.sources.has(target) ? backFrom(other, target) : undefined;
    if (back !== undefined && back !== source && way.sources.has(back)) {
      return [
        `makes a loop with rule ${other.rule.name}: ${source} comes back as ${back}`,
        "leave the copies out of from.repositories of one of them",
      ];
    }
  }
  return undefined;
}

function clashOf(way: Way, other: Way): Words | undefined {
  if (way.to !== other.to || !mayShareTags(way.rule.tags, other.rule.tags)) return undefined;
  const targets = new Set<string>(other.copies.flatMap(({ target, isSample }) => (isSample ? [] : [target])));
  const both = way.copies.find(({ target, isSample }) => !isSample && targets.has(target));
  // Which repositories a glob finds is not known; that one name would become one copy twice is.
  const alike =
    way.from === other.from && way.rule.from.registry === other.rule.from.registry && way.template === other.template;
  const open = alike
    ? (way.copies.find(({ source }) => other.sources.globs.length > 0 && other.sources.has(source)) ??
      other.copies.find(({ source }) => way.sources.globs.length > 0 && way.sources.has(source)))
    : undefined;
  const found = both ?? open;
  if (!found) return undefined;
  const whose = other.rule === way.rule ? "another target of this rule" : `rule ${other.rule.name}`;
  return [
    `writes ${found.target}, and so does ${whose}`,
    "give one of them another name, or tags that the other leaves out",
  ];
}

function backFrom(way: Way, repository: RepositoryName): RepositoryName | undefined {
  return renderName(way.template, { registry: way.rule.from.registry, repository });
}

/** False only where it is certain: versions in ranges that do not meet, or globs that begin differently. */
function mayShareTags(a: Rule["tags"], b: Rule["tags"]): boolean {
  const meet = (some: readonly string[], others: readonly string[]): boolean =>
    some.some((one) => others.some((other) => mayMeet(one, other)));
  if (meet(a.always, b.always) || meet(a.always, b.match) || meet(a.match, b.always)) return true;
  if (a.semver !== undefined && b.semver !== undefined && !intersects(a.semver, b.semver)) return false;
  return meet(a.match, b.match);
}

function mayMeet(a: string, b: string): boolean {
  const [x = "", y = ""] = [a, b].map((glob) => /^[A-Za-z0-9._-]*/.exec(glob)?.[0]);
  if (x === a && y === b) return x === y;
  return x === a ? x.startsWith(y) : y === b ? y.startsWith(x) : x.startsWith(y) || y.startsWith(x);
}
