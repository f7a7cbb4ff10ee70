import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join, normalize } from "node:path";
import { test } from "node:test";

/** A folder or file of src/ imports only from its own and from those before it. */
const ORDER = [
  "base",
  "oci",
  "config",
  "db",
  "remote",
  "store",
  "jobs",
  "events",
  "access",
  "transfer",
  "registry",
  "replication",
  "upkeep",
  "moving",
  "http",
  "ui",
  "app-parts.ts",
  "app-http.ts",
  "app-stored.ts",
  "app.ts",
  "cli",
  "main.ts",
];

const IMPORT = /\b(?:from|import)\s*\(?\s*"(\.{1,2}\/[^"]+)"/g;

/** File → what it imports, both relative to src/; types count too. */
async function readImports(): Promise<Map<string, string[]>> {
  const source = join(import.meta.dirname, "../src");
  const files = (await readdir(source, { recursive: true })).filter((file) => file.endsWith(".ts"));
  const imports = await Promise.all(
    files.map(async (file): Promise<[string, string[]]> => {
      const text = await readFile(join(source, file), "utf8");
      return [file, [...text.matchAll(IMPORT)].map((match) => normalize(join(dirname(file), match[1] ?? "")))];
    }),
  );
  return new Map(imports.sort(([a], [b]) => (a < b ? -1 : 1)));
}

function layerOf(file: string): string {
  return file.split("/", 1)[0] ?? "";
}

test("each folder imports only from those before it", async () => {
  const wrong: string[] = [];
  for (const [file, imported] of await readImports()) {
    if (!ORDER.includes(layerOf(file))) wrong.push(`src/${file} is in no folder that has a place in the order`);
    for (const target of imported) {
      if (target.startsWith("..")) wrong.push(`src/${file} imports ${target} from outside src/`);
      else if (ORDER.indexOf(layerOf(target)) > ORDER.indexOf(layerOf(file))) {
        wrong.push(`src/${file} imports src/${target}, but ${layerOf(target)} comes after ${layerOf(file)}`);
      }
    }
  }
  assert.deepEqual(wrong, [], wrong.join("\n"));
});

test("no file imports itself, directly or by way of others", async () => {
  const imports = await readImports();
  const done = new Set<string>();
  const visit = (file: string, path: string[]): void => {
    const at = path.indexOf(file);
    if (at >= 0) assert.fail(`import cycle: ${[...path.slice(at), file].map((one) => `src/${one}`).join(" → ")}`);
    if (done.has(file)) return;
    for (const target of imports.get(file) ?? []) visit(target, [...path, file]);
    done.add(file);
  };
  for (const file of imports.keys()) visit(file, []);
});
