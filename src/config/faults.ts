export type Path = readonly (string | number)[];

/** Where a value stands: a file with line and column (from 1), or an environment variable. */
export interface Place {
  source: string;
  line?: number;
  column?: number;
}

/** One thing that is wrong, and what to do about it. */
export interface Fault extends Partial<Place> {
  /** The key, as in `upstreams.docker.io.fallbacks[0].url`; empty for the whole. */
  path: string;
  cause: string;
  remedy: string;
}

/** The configuration cannot be used. Holds every fault that was found; the message lists them, one a line. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  readonly faults: readonly Fault[];

  constructor(faults: readonly Fault[]) {
    super(
      [
        `the configuration has ${faults.length === 1 ? "a fault" : `${faults.length} faults`}:`,
        ...faults.map((fault) => `  ${faultText(fault)}`),
      ].join("\n"),
    );
    this.faults = faults;
  }
}

function faultText({ source, line, column, path, cause, remedy }: Fault): string {
  const place =
    source === undefined ? "" : `${placeText({ source, ...(line && { line }) })}${column ? `:${column}` : ""}: `;
  return `${place}${path === "" ? "" : `${path} `}${cause}; ${remedy}`;
}

/** `entrepot.yaml:12`, or a variable's name. */
export function placeText({ source, line }: Place): string {
  return line === undefined ? source : `${source}:${line}`;
}

export function pathText(path: Path): string {
  return path.reduce<string>(
    (text, key) => (typeof key === "number" ? `${text}[${key}]` : text === "" ? key : `${text}.${key}`),
    "",
  );
}

/** The name among `known` that `given` was probably meant to be; case does not count. */
export function nearest(given: string, known: readonly string[]): string | undefined {
  const scored = known
    .map((name) => ({ name, edits: distance(given.toLowerCase(), name.toLowerCase()) }))
    .sort((a, b) => a.edits - b.edits);
  const [best] = scored;
  return best && best.edits <= Math.ceil(best.name.length / 3) ? best.name : undefined;
}

/** Levenshtein's: how many insertions, deletions and replacements of a character lie between two texts. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
