import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { PROBLEMS } from "../../src/http/api/problem.ts";
import { Api } from "../kit/api.ts";
import { startRegistry } from "../kit/registry.ts";

const DOCUMENT = readFileSync(join(import.meta.dirname, "../../docs/api.md"), "utf8");
const SECTION = DOCUMENT.split(/^## /m).find((section) => section.startsWith("`/api/v1`\n")) ?? "";

test("docs/api.md has every operation of the API, with its parameters and what it is for", async () => {
  await using registry = await startRegistry();
  const { document } = await Api.of(registry);
  const paths = document["paths"] as Record<string, Record<string, Summarized>>;
  const rows = Object.entries(paths)
    .flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, one]) => rowOf(method.toUpperCase(), path, one)),
    )
    .toSorted();
  assert.ok(rows.length > 15, "the document was not read");
  const written = SECTION.split("\n").filter((line) => /^\| `(?:GET|POST|PUT|PATCH|DELETE) \//.test(line));
  assert.deepEqual(written, rows);
});

interface Summarized {
  summary: string;
  parameters: { name: string; in: string }[];
}

function rowOf(method: string, path: string, { summary, parameters }: Summarized): string {
  const names = parameters.filter(({ in: where }) => where === "query").map(({ name }) => `\`${name}\``);
  return `| \`${method} ${path}\` | ${names.join(", ")} | ${summary} |`.replace("|  |", "| |");
}

test("docs/api.md has every kind of problem, with its status", () => {
  const rows = Object.entries(PROBLEMS).map(
    ([kind, [status, title]]) => `| \`/problems/${kind}\` | ${status} | ${title} |`,
  );
  const written = SECTION.split("\n").filter((line) => line.startsWith("| `/problems/"));
  assert.deepEqual(written, rows);
});
