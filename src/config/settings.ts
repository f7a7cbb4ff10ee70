import { isAlias, isMap, isScalar, isSeq, LineCounter, parseDocument, type Document, type Node } from "yaml";
import type { Fault, Path, Place } from "./faults.ts";
import { isMapping } from "./schema.ts";

/** What was given, before any check: a file's tree with single values replaced, each of which knows where it came from. */
export class Settings {
  #value: unknown = {};
  #locate: (path: Path) => Place | undefined = () => undefined;
  readonly #replaced: { path: Path; place: Place }[] = [];

  /** Takes a file's text in place of everything that is there. Returns what makes it no YAML. */
  readFile(name: string, text: string): Fault[] {
    const lines = new LineCounter();
    const { value, faults, document } = parseYaml(text, lines);
    const placeOf = (offset: number): Place => {
      const { line, col } = lines.linePos(offset);
      return { source: name, line, column: col };
    };
    if (faults.length > 0) return faults.map(({ offset, ...fault }) => ({ ...placeOf(offset), ...fault }));
    this.#value = value ?? {};
    this.#locate = (path) => {
      const offset = offsetOf(document, path);
      return offset === undefined ? undefined : placeOf(offset);
    };
    return [];
  }

  /** Replaces what stands at `path`. Below a value that is faulty anyway, nothing changes. */
  set(path: Path, value: unknown, place: Place): void {
    this.#value = withValue(this.#value, path, value);
    this.#replaced.push({ path, place });
  }

  get(path: Path): unknown {
    return path.reduce<unknown>((value, key) => (hasKey(value, key) ? value[key] : undefined), this.#value);
  }

  /** Where the value at `path` was given; undefined if it was not. */
  place(path: Path): Place | undefined {
    if (!hasKey(this.get(path.slice(0, -1)), path.at(-1) ?? "")) return undefined;
    return (
      this.#replaced.findLast((one) => startsWith(path, one.path))?.place ??
      this.#locate(path) ??
      this.#replaced.find((one) => startsWith(one.path, path))?.place
    );
  }

  /** Where the value at `path` was given, or the closest one around it. */
  placeAround(path: Path): Place | undefined {
    for (let length = path.length; length > 0; length--) {
      const place = this.place(path.slice(0, length));
      if (place !== undefined) return place;
    }
    return undefined;
  }
}

/** A YAML text's value and syntax faults, these with their offset in the text. Faults do not repeat the text: it may hold a secret. */
export function parseYaml(
  text: string,
  lineCounter = new LineCounter(),
): { value: unknown; faults: (Fault & { offset: number })[]; document: Document } {
  const document = parseDocument(text, { lineCounter, prettyErrors: false });
  const fault = (message: string, offset: number) => {
    const cause = `is not YAML: ${message.split(": ")[0]}`;
    return { path: "", cause, remedy: "correct it, and put texts with special characters in quotes", offset };
  };
  const faults = [...document.errors, ...document.warnings].map(({ message, pos }) => fault(message, pos[0]));
  if (faults.length > 0) return { value: undefined, faults, document };
  try {
    return { value: document.toJS(), faults, document };
  } catch {
    return { value: undefined, faults: [fault("an alias (*) that leads nowhere, or too many of them", 0)], document };
  }
}

/** Where a key (or a list's item) begins in the text. */
function offsetOf(document: Document, path: Path): number | undefined {
  let node: Node | null = document.contents;
  let offset: number | undefined;
  for (const key of path) {
    if (isAlias(node)) node = node.resolve(document) ?? null;
    if (isMap(node)) {
      const pair = node.items.find((item) => isScalar(item.key) && String(item.key.value) === key);
      offset = isScalar(pair?.key) ? pair.key.range?.[0] : undefined;
      node = (pair?.value ?? null) as Node | null;
    } else if (isSeq(node)) {
      node = (node.items[Number(key)] ?? null) as Node | null;
      offset = node?.range?.[0];
    } else {
      return undefined;
    }
  }
  return offset;
}

// Copies along the path: a YAML alias makes two keys share one object.
function withValue(tree: unknown, [key, ...rest]: Path, value: unknown): unknown {
  if (key === undefined) return value;
  if (!isMapping(tree ?? {})) return tree;
  const mapping = (tree ?? {}) as Record<string, unknown>;
  return { ...mapping, [key]: withValue(mapping[key], rest, value) };
}

function hasKey(value: unknown, key: string | number): value is Record<string | number, unknown> {
  return typeof value === "object" && value !== null && Object.hasOwn(value, key);
}

function startsWith(path: Path, beginning: Path): boolean {
  return beginning.length <= path.length && beginning.every((key, index) => key === path[index]);
}
